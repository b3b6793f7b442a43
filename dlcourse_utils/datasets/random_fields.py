"""Gaussian and log-normal random fields on a periodic square grid, with their exact answers.

A field has n x n pixels and wraps around at its edges. The Gaussian one has mean 0, a variance of 1
in each pixel, and a correlation that falls as exp(-d / r) over the distance d in pixels. Values
have no unit; wave numbers are in radians per pixel unless said otherwise.

Convention of the Fourier transform: orthonormal (``norm="ortho"``), x_k = sum_p x_p e^(-i k p) / n.
Then E|x_k|^2 = P(k) whatever n is, the mean of P over the n^2 modes is the variance of a pixel, and
noise of standard deviation sigma in each pixel adds sigma^2 to each P(k). The transform without a
norm, which is NumPy's and JAX's own, gives n^2 times as much: a spectrum measured in one convention
and used in the other is wrong by n^2, and so is the weight of the prior against the noise.

An observation is y = mask * (x + noise * eps) with eps standard normal and a mask of ones and
zeros. For a Gaussian x the posterior is Gaussian: `wiener_mean`, `wiener_samples` and
`wiener_spread` are exact.
"""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from scipy.linalg import solve_triangular

SCALE = 6.0  # correlation length r in pixels


def _check_positive(**numbers) -> None:
    """Only numbers are looked at: inside jit there is nothing to see."""
    for name, value in numbers.items():
        if isinstance(value, Real) and not 0.0 < value < np.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}.")


def _check_size(n) -> None:
    if not isinstance(n, int | np.integer) or n < 4:
        raise ValueError(f"n, the pixels of a side, must be a whole number from 4 on, got {n!r}.")


def _as_power(power) -> jax.Array:
    power = jnp.asarray(power, dtype=jnp.float32)
    if power.ndim != 2 or power.shape[0] != power.shape[1]:
        raise ValueError(
            f"power must have shape (n, n), got {power.shape}: take it from `power(n)`, or lay "
            "yours out as jnp.fft.fft2 does."
        )
    return power


def _as_field(x, n: int, name: str = "x") -> jax.Array:
    x = jnp.asarray(x, dtype=jnp.float32)
    if x.shape[-2:] != (n, n):
        raise ValueError(
            f"{name} must have shape (..., {n}, {n}), got {x.shape}: the power is on that grid."
        )
    return x


def filter_modes(x: jax.Array, transfer: jax.Array) -> jax.Array:
    """Multiply the modes of x (..., n, n) with a ``transfer``, (n, n) or (..., n, n); same shape.

    It is real and the same at k and -k, laid out as fft2 does, like a `power`.
    """
    n = x.shape[-1]
    transfer = transfer[..., : n // 2 + 1]
    transfer = transfer.reshape((1,) * (x.ndim - transfer.ndim) + transfer.shape)
    return jnp.fft.irfft2(jnp.fft.rfft2(x) * transfer, s=(n, n))


def _wave_numbers(n: int) -> np.ndarray:
    """|k| of each mode (n, n) in cycles per field: 0, 1, ..., as fft2 lays them out."""
    k = np.fft.fftfreq(n, 1.0 / n)
    return np.hypot(k[:, None], k[None, :])


# --- fields ----------------------------------------------------------------------------------


def power(n: int, scale: float = SCALE) -> jax.Array:
    """Power spectrum of the Gaussian field, orthonormal; (n, n), laid out as fft2 does.

    (1 + (k r)^2)^(-3/2), the spectrum of exp(-d / r) in the plane, with ``scale`` = r in pixels;
    scaled so that its mean, the variance of a pixel, is 1. Raises ValueError for an n below 4 and
    a ``scale`` that is not positive.
    """
    _check_size(n)
    _check_positive(scale=scale)
    shape = (1.0 + (2.0 * np.pi / n * _wave_numbers(n) * scale) ** 2) ** -1.5
    return jnp.asarray(shape / shape.mean(), dtype=jnp.float32)


@partial(jax.jit, static_argnums=1)
def _simulate(key, count, power):
    white = jax.random.normal(key, (count, *power.shape))
    return filter_modes(white, jnp.sqrt(power))


def simulate(key: jax.Array, count: int, power: jax.Array) -> jax.Array:
    """Draw Gaussian fields with mean 0 and this ``power`` (n, n); (count, n, n).

    Raises ValueError if ``power`` is not square.
    """
    return _simulate(key, count, _as_power(power))


def correlation(power: jax.Array) -> jax.Array:
    """Covariance of two pixels by their offset, from ``power`` (n, n); (n, n), offset 0 first."""
    return jnp.fft.ifft2(_as_power(power)).real


def log_normal(g: jax.Array, variance: float = 1.0) -> jax.Array:
    """The log-normal field exp(g - variance / 2) - 1 of a Gaussian field; same shape.

    Like the density contrast of matter it has mean 0 and is never below -1. ``variance`` is that
    of a pixel of g. Coles & Jones 1991, MNRAS 248, 1, doi:10.1093/mnras/248.1.1. Raises ValueError
    for a ``variance`` that is not positive.
    """
    _check_positive(variance=variance)
    return jnp.expm1(g - 0.5 * variance)


def log_normal_power(power: jax.Array) -> jax.Array:
    """Power spectrum of the log-normal field of a Gaussian one with ``power`` (n, n); (n, n).

    Exact on the grid: the covariance is exp(xi) - 1 where that of the Gaussian field is xi.
    """
    return jnp.fft.fft2(jnp.expm1(correlation(power))).real


def mask(n: int) -> jax.Array:
    """What a survey sees of the field: 1 observed, 0 not; (n, n), always the same.

    A large round hole, a strip from edge to edge and five small holes take about 24 % away. Raises
    ValueError for an n below 4.
    """
    _check_size(n)
    x, y = np.meshgrid(*2 * [(np.arange(n) + 0.5) / n], indexing="ij")
    seen = np.abs(y - 0.87 - 0.08 * (x - 0.5)) > 0.035
    holes = [(0.42, 0.36, 0.20), (0.10, 0.08, 0.045), (0.87, 0.14, 0.055), (0.80, 0.55, 0.05)]
    for centre_x, centre_y, radius in [*holes, (0.15, 0.70, 0.06), (0.62, 0.70, 0.04)]:
        seen &= np.hypot(x - centre_x, y - centre_y) > radius
    return jnp.asarray(seen, dtype=jnp.float32)


# --- score and spectrum ----------------------------------------------------------------------


@jax.jit
def _score(x, sigma, power):
    sigma = jnp.asarray(sigma, dtype=jnp.float32)
    power = power.reshape((1,) * max(sigma.ndim - 2, 0) + power.shape)
    return -filter_modes(x, 1.0 / (power + sigma**2))


def score(x: jax.Array, sigma: float | jax.Array, power: jax.Array) -> jax.Array:
    """Score of the Gaussian field plus noise ``sigma``, at x (..., n, n); same shape.

    -x_k / (P(k) + sigma^2) in Fourier space. ``sigma`` is one number, or an array (..., 1, 1) with
    one for each field. Raises ValueError for shapes that do not fit and a ``sigma`` that is not
    positive.
    """
    _check_positive(sigma=sigma)
    power = _as_power(power)
    return _score(_as_field(x, len(power)), sigma, power)


def in_rings(values: jax.Array, edges: np.ndarray) -> jax.Array:
    """Mean of values (..., n, n), one for each mode, over rings of |k|; (..., bins).

    ``edges`` (bins + 1,) rise and are in cycles per field, n / (2 pi) times radians per pixel. A
    ring holds its lower edge and not its upper one; the mode k = 0 counts as any other. Raises
    ValueError for edges that do not rise, a ring without modes and values that are not square.
    """
    values, edges = jnp.asarray(values), np.asarray(edges, dtype=float)
    if values.ndim < 2 or values.shape[-1] != values.shape[-2]:
        raise ValueError(f"values must have shape (..., n, n), got {values.shape}.")
    if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0.0):
        raise ValueError("edges must be at least two numbers that rise.")
    n = values.shape[-1]
    k = _wave_numbers(n).ravel()
    ring = (k >= edges[:-1, None]) & (k < edges[1:, None])
    modes = ring.sum(axis=1)
    if not modes.all():
        empty = int(np.argmin(modes))
        raise ValueError(
            f"No mode lies between {edges[empty]:g} and {edges[empty + 1]:g} cycles per field: "
            "make the ring wider."
        )
    weights = jnp.asarray((ring / modes[:, None]).T, dtype=jnp.float32)
    return values.reshape(*values.shape[:-2], n * n) @ weights


def binned_power(x: jax.Array, edges: np.ndarray) -> jax.Array:
    """Measured power of fields x (..., n, n) in rings of |k|, orthonormal; (..., bins).

    The mean of |x_k|^2 over each ring; ``edges`` and errors as in `in_rings`.
    """
    return in_rings(jnp.abs(jnp.fft.fft2(jnp.asarray(x), norm="ortho")) ** 2, edges)


# --- the posterior of a Gaussian field -------------------------------------------------------


def _as_observation(y, mask, noise, power) -> tuple[jax.Array, jax.Array, jax.Array]:
    power = _as_power(power)
    mask = _as_mask(mask, noise, power)
    y = _as_field(y, len(power), "y")
    if not isinstance(y, jax.core.Tracer) and not bool(jnp.isfinite(y).all()):
        raise ValueError("y holds NaN or infinite values: put 0 where the mask is 0.")
    return y, mask, power


def _as_mask(mask, noise, power) -> jax.Array:
    _check_positive(noise=noise)
    mask = jnp.asarray(mask, dtype=jnp.float32)
    if mask.shape != power.shape:
        raise ValueError(
            f"mask must have shape {power.shape}, that of the power; got {mask.shape}."
        )
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask)
        if not np.isin(values, (0.0, 1.0)).all():
            raise ValueError("mask must hold only 1 (observed) and 0 (not observed).")
        if not values.any():
            raise ValueError("mask is 0 everywhere: nothing is observed, the prior is the answer.")
    return mask


@jax.jit
def _wiener_mean(y, mask, noise, power):
    n = len(power)

    def covariance(w):  # of what is observed, noise included
        return mask * filter_modes(w, power) + noise**2 * w

    def nearly_inverse(w):  # that of a sky without holes: 25 iterations in place of 115
        return mask * filter_modes(w, 1.0 / (power + noise**2))

    def one(y):
        return cg(covariance, y, tol=1e-6, maxiter=500, M=nearly_inverse)[0]

    weights = jax.vmap(one)(mask[None] * y.reshape(-1, n, n))
    return filter_modes(weights, power).reshape(y.shape)


def wiener_mean(y: jax.Array, mask: jax.Array, noise: float, power: jax.Array) -> jax.Array:
    """Posterior mean of a Gaussian field with ``power`` (n, n) given y (..., n, n); same shape.

    P M (M P M + noise^2)^(-1) y by conjugate gradients, to about 1e-5 of its size; y where ``mask``
    (n, n) is 0 has no influence, ``noise`` is the standard deviation of a pixel. The filter of
    Wiener 1949. Raises ValueError for shapes that do not fit, values that are not finite, a
    ``noise`` that is not positive and a mask that is not of ones and zeros or observes nothing.
    """
    y, mask, power = _as_observation(y, mask, noise, power)
    return _wiener_mean(y, mask, noise, power)


@partial(jax.jit, static_argnums=1)
def _wiener_samples(key, count, y, mask, noise, power):
    field_key, noise_key = jax.random.split(key)
    x = _simulate(field_key, count, power)
    seen = x + noise * jax.random.normal(noise_key, x.shape)
    return x + _wiener_mean(y - seen, mask, noise, power)


def wiener_samples(
    key: jax.Array, count: int, y: jax.Array, mask: jax.Array, noise: float, power: jax.Array
) -> jax.Array:
    """Independent exact samples of the posterior that `wiener_mean` is the mean of.

    (count, n, n) for one y (n, n), or for one y each (count, n, n). Constrained realisations: a
    field and an observation of it are simulated, and the field is moved by the mean of the
    difference between y and that observation. Hoffman & Ribak 1991, ApJ 380, L5,
    doi:10.1086/186160. Raises ValueError as `wiener_mean` does.
    """
    y, mask, power = _as_observation(y, mask, noise, power)
    if y.shape not in (power.shape, (count, *power.shape)):
        raise ValueError(
            f"y must be one observation {power.shape}, or {count} of them, got {y.shape}."
        )
    y = jnp.broadcast_to(y, (count, *power.shape))
    return _wiener_samples(key, count, y, mask, noise, power)


class WienerSpread(NamedTuple):
    """Scatter of the posterior about its mean: of each pixel, ``std`` (n, n), and of each mode,
    ``power`` (n, n); numpy arrays in double precision. No y enters."""

    std: np.ndarray
    power: np.ndarray


def wiener_spread(mask: jax.Array, noise: float, power: jax.Array) -> WienerSpread:
    """Exact scatter of the posterior that `wiener_mean` is the mean of.

    The spectrum of posterior samples is that of the mean plus this ``power``. In double precision,
    by Cholesky on the m pixels that are not observed, O(m^2 n^2): about a second for 64 x 64
    with 24 % missing. Raises ValueError as `wiener_mean` does.
    """
    power = _as_power(power)
    mask = np.asarray(_as_mask(mask, noise, power))
    n, power = len(power), np.asarray(power, dtype=float)
    # Observe all pixels first: then all is diagonal in Fourier space. Taking the information of m
    # pixels away again is an update of rank m (the identity of Woodbury).
    whole = power * noise**2 / (power + noise**2)
    rows, columns = np.nonzero(mask == 0.0)
    kernel = np.fft.ifft2(whole).real
    pixel = np.arange(n)
    from_missing = kernel[
        (pixel[None, :, None] - rows[:, None, None]) % n,
        (pixel[None, None, :] - columns[:, None, None]) % n,
    ]  # (m, n, n)
    inner = noise**2 * np.eye(len(rows)) - from_missing[:, rows, columns]
    factor = np.linalg.cholesky(inner)
    lost = solve_triangular(factor, from_missing.reshape(len(rows), n * n), lower=True)
    lost = lost.reshape(len(rows), n, n)
    variance = kernel[0, 0] + np.sum(lost**2, axis=0)
    modes = whole + np.sum(np.abs(np.fft.fft2(lost, norm="ortho")) ** 2, axis=0)
    return WienerSpread(np.sqrt(variance), modes)
