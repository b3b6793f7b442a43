"""Posteriors of galaxies behind the telescope: observations whose truth is known, modes with their
curvature, and reference chains.

The unknown is u, a standard Gaussian under the prior of `galaxy_prior`, of which the latents are
z = prior.from_base(u). Minus the log posterior of u is, up to a constant, half a sum of squares,
0.5 chi^2 + 0.5 |u|^2. The chains are of Hamiltonian Monte Carlo (Neal 2011, arXiv:1206.1901), by
``scripts/make_galaxy_posteriors.py``, and stand in ``data/galaxy_posteriors.npz``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils import galaxy_prior, newton, registry, telescope
from dlcourse_utils.galaxy_prior import DIM, GalaxyPrior
from dlcourse_utils.telescope import TelescopeError

_STEPS, _EVERY, _BATCH = 96, 8, 16  # of a descent, and rows that descend at a time
_SPREAD = 0.7  # of random starts, in standard deviations of the prior
_SAME = 1.0  # nats between two ends of one height

CHAINS, DRAWS = 8, 80  # of each stored posterior


class Laplace(NamedTuple):
    """Modes of n posteriors of u, each with the Gaussian that has its curvature. Numpy arrays.

    ``mode`` (n, 33); ``factor`` (n, 33, 33): lower Cholesky factor of the covariance, the inverse
    of the Gauss-Newton curvature at the mode; ``value`` (n,): 0.5 chi^2 + 0.5 |u|^2 there;
    ``agreement`` (n,): share of the starts that end within 1 of it; ``ends`` (n, starts, 33): where
    each of them ends.
    """

    mode: np.ndarray
    factor: np.ndarray
    value: np.ndarray
    agreement: np.ndarray
    ends: np.ndarray


class References(NamedTuple):
    """Observations of galaxies whose truth is known, with chains of their posteriors; numpy arrays.

    ``names`` (8,): "galaxy 0" to "galaxy 5", and the first of them again: "deep", with a third of
    the noise, and "masked", with rows 12 to 17 of columns 11 to 16 masked. ``magnitude`` (8,) and
    ``truth`` (8, 33), u; ``y`` and ``variance`` (8, 21, 21), nJy and nJy^2, infinite and y 0 where
    masked.

    ``samples`` (8, 640, 33): u, 80 samples of each of eight chains, one after the other. Of the
    chains before they were thinned: ``u_mean``, ``u_std``, ``z_mean``, ``z_std`` (8, 33); ``r_hat``
    and ``ess`` (8,), the largest rank-normalised R-hat and the smallest bulk effective sample size
    of any number in u and z. How they ran: ``in_z`` (8,), sampled in z, else in u; ``step_size``,
    ``acceptance``, ``leapfrogs`` and ``iterations`` (8,).
    """

    names: np.ndarray
    magnitude: np.ndarray
    truth: np.ndarray
    y: np.ndarray
    variance: np.ndarray
    samples: np.ndarray
    u_mean: np.ndarray
    u_std: np.ndarray
    z_mean: np.ndarray
    z_std: np.ndarray
    r_hat: np.ndarray
    ess: np.ndarray
    in_z: np.ndarray
    step_size: np.ndarray
    acceptance: np.ndarray
    leapfrogs: np.ndarray
    iterations: np.ndarray


def load() -> References:
    """Read the shipped file; `registry.RegistryError` if it is damaged."""
    with np.load(registry.path("galaxy_posteriors.npz"), allow_pickle=False) as file:
        return References(**{name: file[name] for name in References._fields})


@partial(jax.jit, static_argnums=1)
def _draw(key, n, prior, operator, noise):
    of_u, of_noise = jax.random.split(key)
    u = jax.random.normal(of_u, (n, DIM))
    mean = telescope.apply(operator, prior.decode(prior.from_base(u)))
    return u, mean + noise * jax.random.normal(of_noise, mean.shape)


def draw(
    key: jax.Array, n: int, prior: GalaxyPrior, operator: jax.Array, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """n galaxies of the prior as the telescope sees them: their u (n, 33) and y (n, 21, 21), nJy.

    ``noise`` is the standard deviation in each pixel, nJy; ``operator`` as in `telescope.operator`.
    """
    u, y = _draw(key, n, prior, operator, noise)
    return np.asarray(u), np.asarray(y)


def minus_log_posterior(u, y, variance, operator, prior):
    """0.5 chi^2 + 0.5 |u|^2, (n,), of u (n, 33), each with its own y and variance (n, 21, 21).

    Infinite where masked, the variance takes no part, and y there must be finite.
    """
    mean = telescope.apply(operator, prior.decode(prior.from_base(u)))
    chi2 = jnp.sum((y - mean) ** 2 / variance, axis=(1, 2))
    return 0.5 * chi2 + 0.5 * jnp.sum(u**2, axis=1)


def _gradient(u, *rest):
    return jax.grad(lambda u: minus_log_posterior(u, *rest).sum())(u)


def _residuals(u, y, variance, operator, prior):
    mean = telescope.apply(operator, prior.decode(prior.from_base(u[None])))[0]
    return jnp.concatenate([((mean - y) / jnp.sqrt(variance)).ravel(), u])


@jax.jit
def _to_base(z, prior):
    return prior.to_base(z)[0]


def laplace(
    y: np.ndarray,
    variance: np.ndarray,
    operator: jax.Array,
    prior: GalaxyPrior,
    *,
    starts: int = 4,
    seed: int = 0,
) -> Laplace:
    """The highest mode that is found of each posterior of u, and the Gaussian of its curvature.

    y (n, 21, 21) in nJy, ``variance`` of the same shape or of one image, infinite where a pixel is
    masked. The first of the ``starts`` is an average shape with the flux of the image, the others
    are random, from the ``seed``. Raises `telescope.TelescopeError` for observations that cannot be
    fitted, `newton.NewtonError` where the posterior is not finite at a start.
    """
    y, variance = np.asarray(y, np.float32), np.asarray(variance, np.float32)
    telescope.check_observation(y, variance)
    if y.ndim != 3 or not len(y) or starts < 1:
        raise TelescopeError(
            f"Expected y (n, 21, 21) with n >= 1 and starts >= 1, got {y.shape} and {starts}: give "
            "a batch, y[None] for a single image."
        )
    n, variance = len(y), np.broadcast_to(variance, y.shape)
    y = np.where(np.isfinite(variance), y, np.float32(0.0))
    rng = np.random.default_rng(seed)
    first = np.asarray(_to_base(galaxy_prior.rough_start(y), prior))[:, None]
    others = _SPREAD * rng.normal(size=(n, starts - 1, DIM))
    u = np.concatenate([first, others], axis=1).reshape(-1, DIM)
    found = newton.minimise(
        minus_log_posterior,
        _gradient,
        _residuals,
        u,
        (y.repeat(starts, axis=0), variance.repeat(starts, axis=0)),
        (operator, prior),
        steps=_STEPS,
        every=_EVERY,
        batch=_BATCH,
    )
    ends, values = found.z.reshape(n, starts, DIM), found.value.reshape(n, starts)
    best = values.argmin(axis=1)
    mode, value = ends[np.arange(n), best], values[np.arange(n), best]
    curvature = newton.curvature(_residuals, mode, (y, variance), (operator, prior), batch=_BATCH)
    factor = np.linalg.cholesky(np.linalg.inv(curvature.astype(float))).astype(np.float32)
    agreement = np.mean(values < value[:, None] + _SAME, axis=1)
    return Laplace(mode, factor, value, agreement, ends)
