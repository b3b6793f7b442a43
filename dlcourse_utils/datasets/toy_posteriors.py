"""Posteriors in two dimensions that are known: a Gaussian one, a bent one, one with two peaks.

The Gaussian posterior is that of a straight line through Cepheids: its mean, covariance and
evidence have closed forms. The other two are densities on a plane, without their normalisers as
posteriors are, and known on a grid. Logarithms are in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils.errors import CourseError


class ToyPosteriorError(CourseError):
    """Data or tables that have no posterior."""


# --- a Gaussian posterior --------------------------------------------------------------------


class Exact(NamedTuple):
    """A Gaussian posterior: mean (d,), covariance (d, d), and the log evidence in nats."""

    mean: np.ndarray
    covariance: np.ndarray
    log_evidence: float


class Line(NamedTuple):
    """A line through points with Gaussian noise, M = a + b t, and a Gaussian prior of (a, b).

    t and M (n,), the standard deviation ``noise`` of M, and mean and standard deviation of the
    prior of a and of b, both (2,). A tree of arrays: a jitted function takes it as an argument.
    """

    t: np.ndarray
    magnitude: np.ndarray
    noise: float
    prior_mean: np.ndarray
    prior_std: np.ndarray

    def log_joint(self, x: jax.Array) -> jax.Array:
        """log p(M | x) + log p(x) (n,) in nats of unknowns x = (a, b), (n, 2)."""
        mean = x[:, :1] + x[:, 1:] * jnp.asarray(self.t)[None, :]
        return _log_normal(jnp.asarray(self.magnitude)[None, :], mean, self.noise) + _log_normal(
            x, jnp.asarray(self.prior_mean)[None, :], jnp.asarray(self.prior_std)[None, :]
        )

    def posterior(self) -> Exact:
        """The exact posterior of (a, b) and the log evidence, in double precision.

        Raises `ToyPosteriorError` for values that are not finite, or a noise or a spread of the
        prior that is not positive.
        """
        t, data, noise, mean, std = (np.asarray(part, dtype=float) for part in self)
        if not all(np.isfinite(part).all() for part in (t, data, noise, mean, std)):
            raise ToyPosteriorError("The line holds NaN or infinite values: drop those points.")
        if not (noise > 0.0 and (std > 0.0).all()):
            raise ToyPosteriorError(
                "The noise and the standard deviations of the prior must be positive: a number "
                "that is known exactly is no unknown."
            )
        design = np.stack([np.ones_like(t), t], axis=1)
        precision = design.T @ design / noise**2 + np.diag(std**-2.0)
        covariance = np.linalg.inv(precision)
        best = covariance @ (design.T @ data / noise**2 + mean / std**2)
        # Bayes' theorem at one point, the mean: p(M) = p(M, x) / p(x | M).
        residuals = (data - design @ best) / noise, (best - mean) / std
        widths = np.full(len(data), noise), std
        log_joint = -sum(
            0.5 * r @ r + np.log(w).sum() + 0.5 * len(r) * np.log(2.0 * np.pi)
            for r, w in zip(residuals, widths, strict=True)
        )
        log_peak = 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * len(best) * np.log(2.0 * np.pi)
        return Exact(best, covariance, float(log_joint - log_peak))


def _log_normal(x, mean, std):
    """Log density of independent Gaussians, summed over the last axis."""
    std = jnp.broadcast_to(jnp.asarray(std, x.dtype).reshape(1, -1), (1, x.shape[-1]))
    terms = ((x - mean) / std) ** 2 + jnp.log(2.0 * jnp.pi * std**2)
    return -0.5 * jnp.sum(terms, axis=-1)


def cepheids(n: int = 20, seed: int = 0) -> Line:
    """Cepheids of one galaxy of known distance: absolute magnitude against t, log10 of the period.

    n periods from 2.5 to 40 days, M = -1.6 - 2.7 t with a scatter of 0.2 mag, close to the
    period-luminosity law in V of Fouque et al. 2007, A&A 476, 73, doi:10.1051/0004-6361:20078187.
    No Cepheid has a period of one day, t = 0, where the line has its zero point a: a and b are
    strongly correlated. The prior is Gaussian about (-1.5, -2.5), 1 mag wide in both.
    """
    t = np.linspace(0.4, 1.6, n)
    magnitude = -1.6 - 2.7 * t + 0.2 * np.random.default_rng(seed).normal(size=n)
    prior = np.array([-1.5, -2.5], np.float32), np.ones(2, np.float32)
    return Line(t.astype(np.float32), magnitude.astype(np.float32), 0.2, *prior)


# --- two densities on the plane --------------------------------------------------------------

_BEND, _ALONG, _ACROSS = 0.5, 1.5, 0.5
# Of the banana: bending the plane keeps areas, so it is that of the Gaussian before.
BANANA_LOG_NORMALISER = float(np.log(2.0 * np.pi * _ALONG * _ACROSS))

# Of the two peaks: shares of the probability, centres, standard deviations.
WEIGHTS = np.array([0.35, 0.65])
CENTRES = np.array([[-2.0, -1.3], [2.0, 1.3]])
WIDTHS = np.array([0.5, 0.8])
PEAKS_LOG_NORMALISER = 1.0


def banana(x: jax.Array) -> jax.Array:
    """Log density (n,) of points x (n, 2), but for its normaliser: a Gaussian bent to a parabola.

    x_1 has a standard deviation of 1.5, and x_2 one of 0.5 about (x_1^2 - 1.5^2) / 2.
    """
    ridge = _BEND * (x[:, 0] ** 2 - _ALONG**2)
    return -0.5 * ((x[:, 0] / _ALONG) ** 2 + ((x[:, 1] - ridge) / _ACROSS) ** 2)


def two_peaks(x: jax.Array) -> jax.Array:
    """Log density (n,) of points x (n, 2), but for its normaliser: two round Gaussian peaks.

    The narrow one has 0.35 of the probability, the broad one 0.65. Between them the density is
    e^-6 of that at the lower peak.
    """
    square = jnp.sum((x[:, None, :] - jnp.asarray(CENTRES, x.dtype)[None]) ** 2, axis=-1)
    heights = jnp.asarray(np.log(WEIGHTS / (2.0 * np.pi * WIDTHS**2)), x.dtype)
    terms = heights[None] - 0.5 * square / jnp.asarray(WIDTHS**2, x.dtype)[None]
    return PEAKS_LOG_NORMALISER + jax.nn.logsumexp(terms, axis=-1)


class Plane(NamedTuple):
    """A grid: its axes (g,) and (h,), and its points (g h, 2), the first axis the slowest."""

    first: np.ndarray
    second: np.ndarray
    points: np.ndarray

    def log_normaliser(self, log_p: jax.Array) -> float:
        """Log of the integral of exp(log_p), from its table (g h,); in nats."""
        log_p = self._table(log_p)
        peak = log_p.max()
        area = (self.first[1] - self.first[0]) * (self.second[1] - self.second[0])
        return float(peak + np.log(np.exp(log_p - peak).sum() * area))

    def divergence(self, log_q: jax.Array, log_p: jax.Array) -> float:
        """KL(q || p) in nats of tables (g h,), each up to a constant.

        Raises `ToyPosteriorError` if the grid misses a part of q.
        """
        log_q, log_p = (self._table(t) - self.log_normaliser(t) for t in (log_q, log_p))
        q = np.exp(log_q)
        q /= q.sum()
        edge = q.reshape(len(self.first), -1)
        cut = edge[[0, -1]].sum() + edge[:, [0, -1]].sum()
        if cut > 1e-4:
            raise ToyPosteriorError(
                f"A share of {cut:.1e} of q lies on the edge of the grid: it goes on outside. Take "
                "a larger grid, or look why the guide is so wide."
            )
        held = q > 0.0  # elsewhere log q may be -inf; 0 log 0 is 0
        return float(np.sum(q[held] * (log_q[held] - log_p[held])))

    def moments(self, log_p: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Mean (2,) and covariance (2, 2) of the density with the table log_p (g h,)."""
        log_p = self._table(log_p)
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        mean = p @ self.points
        offset = self.points - mean
        return mean, (p[:, None] * offset).T @ offset

    def _table(self, log_p: jax.Array) -> np.ndarray:
        log_p = np.asarray(log_p, dtype=float)
        if log_p.shape != (len(self.points),):
            raise ToyPosteriorError(
                f"A table on this grid has shape ({len(self.points)},), got {log_p.shape}: "
                "evaluate the log density at `points`."
            )
        return log_p


def plane(
    low: tuple[float, float] = (-8.0, -8.0),
    high: tuple[float, float] = (8.0, 20.0),
    step: float = 0.1,
) -> Plane:
    """A grid that holds banana and two peaks, all but 2e-5 of them, and Gaussians fitted to them.

    A sum over it is an integral: of smooth densities that vanish at its edges, and are wider than
    two steps, to all digits.
    """
    first, second = (
        np.linspace(a, b, round((b - a) / step) + 1) for a, b in zip(low, high, strict=True)
    )
    points = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    return Plane(first, second, points.astype(np.float32))
