"""Numbers of a galaxy image: flux, magnitude, size, ellipticity, concentration; and the PSNR.

Images are (..., n, n) in nJy per pixel of `datasets.galaxies.PIXEL` arcsec, the galaxy within two
pixels of the stamp's centre. All is measured about the galaxy's own centroid, in apertures of
subpixel accuracy. One bad image does not spoil a table: a shape that is no image raises ValueError,
but an image that holds NaN, or whose flux is not positive, only has NaN for its own numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import j1

from dlcourse_utils.datasets.galaxies import PIXEL, ZERO_POINT

WEIGHT = 0.4  # arcsec, standard deviation of the Gaussian weight of moments and centroid
REACH = 2.0  # pixels: no centroid is farther than this from the stamp's centre

_STEP = 0.125  # pixels between the radii of the curve of growth
_ITERATIONS = 5  # of the centroid: a Gaussian is there after the first
_BLOCK = 64  # images measured at a time: one compilation serves every number of them


class Photometry(NamedTuple):
    """Numbers of images (..., n, n), each a numpy array (...); NaN where an image has none.

    ``flux``: sum of the pixels, nJy. ``magnitude``: AB. ``half_light_radius``: arcsec, of the
    circle about the centroid that holds half of the light in the largest circle in the stamp.
    ``concentration``: 5 log10(r80 / r20), radii of the same kind that hold 80 % and 20 % (Conselice
    2003, ApJS 147, 1, doi:10.1086/375001, with that circle in place of his Petrosian radius).
    ``ellipticity``: (1 - q) / (1 + q), q the axis ratio of the second moments.
    """

    flux: np.ndarray
    magnitude: np.ndarray
    half_light_radius: np.ndarray
    ellipticity: np.ndarray
    concentration: np.ndarray


def _check_stamps(images, name: str) -> None:
    shape = np.shape(images)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 9:
        raise ValueError(
            f"{name} must have shape (..., n, n) with n >= 9, got {shape}: the last two axes are a "
            "square stamp."
        )


@lru_cache(maxsize=4)
def _apertures(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Radii (r,) in pixels, and the transform of a disc of each, (n * (n // 2 + 1), r).

    The sum over all modes of image times disc is the light inside of the circle: exact for an image
    that has no detail finer than its pixels. A mode of the half plane that rfft2 keeps stands for
    its mirror image too.
    """
    radii = np.arange(_STEP, n / 2, _STEP)
    ky, kx = np.meshgrid(np.fft.fftfreq(n), np.fft.rfftfreq(n), indexing="ij")
    k = 2.0 * np.pi * np.hypot(ky, kx).ravel()[:, None]
    k[0] = 1.0
    discs = 2.0 * np.pi * radii * j1(k * radii) / k
    discs[0] = np.pi * radii**2
    alone = (kx == 0.0) | (kx == 0.5)
    discs *= np.where(alone, 1.0, 2.0).ravel()[:, None] / n**2
    return radii.astype(np.float32), discs.astype(np.float32)


def _offsets(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32) - (n - 1) / 2


def _moments(image, centre, width):
    """Sums (3, 3) of weight * image * dy^i * dx^j about the centre; the weight is Gaussian."""
    gap = _offsets(len(image))[None, :] - centre[:, None]
    weight = jnp.exp(-0.5 * (gap / width) ** 2)
    dy, dx = jnp.stack([weight, weight * gap, weight * gap**2], axis=1)
    return dy @ image @ dx.T


def _centroid(image, width, reach=REACH):
    def closer(_, centre):
        m = _moments(image, centre, width)
        # The weight holds the mean back near its own centre, by this share if all is Gaussian.
        wide = (m[2, 0] + m[0, 2]) / (2.0 * m[0, 0] * width**2)
        step = jnp.stack([m[1, 0], m[0, 1]]) / (m[0, 0] * jnp.clip(1.0 - wide, 0.2, 1.0))
        return jnp.clip(centre + step, -reach, reach)

    return jax.lax.fori_loop(0, _ITERATIONS, closer, jnp.zeros(2))


def _ellipticity(image, centre, width):
    m = _moments(image, centre, width)
    yy, xx, xy = m[2, 0], m[0, 2], m[1, 1]
    # Not positive where noise is all there is: no axis ratio then, the root makes it NaN.
    small, trace = jnp.sqrt(xx * yy - xy**2), xx + yy
    chi = jnp.hypot(xx - yy, 2.0 * xy) / (trace + 2.0 * small)
    return jnp.where((m[0, 0] > 0.0) & (trace > 0.0), chi, jnp.nan)


def _growth(image, centre, discs):
    """Light inside of the circles about the centre, (r,)."""
    n = len(image)
    ky = 2.0 * np.pi * np.fft.fftfreq(n).astype(np.float32)
    kx = 2.0 * np.pi * np.fft.rfftfreq(n).astype(np.float32)
    centre = centre + (n - 1) / 2
    phase = (ky * centre[0])[:, None] + (kx * centre[1])[None, :]
    modes = (jnp.fft.rfft2(image) * jnp.exp(1j * phase)).real.ravel()
    return jnp.matmul(modes, discs, precision=jax.lax.Precision.HIGHEST)


def _radius(fraction, growth, radii):
    """Where the curve of growth first reaches a fraction of its end; pixels."""
    level = fraction * growth[-1]
    first = jnp.argmax(growth >= level)
    before = jnp.maximum(first - 1, 0)
    inner, light = jnp.where(first > 0, jnp.stack([radii[before], growth[before]]), 0.0)
    # Light grows as the area, so areas are interpolated.
    part = (level - light) / (growth[first] - light)
    return jnp.sqrt(inner**2 + part * (radii[first] ** 2 - inner**2))


@jax.jit
def _measure(images, radii, discs, weight):
    width = weight / PIXEL

    def one(image):
        flux = image.sum()
        centre = _centroid(image, width)
        growth = _growth(image, centre, discs)
        r20, r50, r80 = (_radius(f, growth, radii) for f in (0.2, 0.5, 0.8))
        numbers = jnp.stack(
            [
                flux,
                ZERO_POINT - 2.5 * jnp.log10(flux),
                PIXEL * r50,
                _ellipticity(image, centre, width),
                5.0 * jnp.log10(r80 / r20),
            ]
        )
        usable = jnp.isfinite(flux) & (flux > 0.0) & (growth[-1] > 0.0)
        return jnp.where(usable, numbers, jnp.nan).at[0].set(flux)

    return jax.vmap(one)(images)


def measure(images: jax.Array, *, weight: float = WEIGHT) -> Photometry:
    """Measure images (..., n, n) in nJy per pixel; every number of the `Photometry` is (...).

    Centroid and second moments have a round Gaussian weight, of standard deviation ``weight``
    arcsec, which keeps the noise of the outskirts out and makes all galaxies look rounder than they
    are, the larger ones more: compare ellipticities only where the weight is the same. Noise adds
    to an ellipticity, which is never negative. Raises ValueError for a shape that is no stamp and
    a ``weight`` that is not positive.
    """
    _check_stamps(images, "images")
    if not 0.0 < weight < np.inf:
        raise ValueError(f"weight must be positive and finite, in arcsec, got {weight}.")
    images = np.asarray(images, dtype=np.float32)
    *leading, n, _ = images.shape
    images = images.reshape(-1, n, n)
    count = len(images)
    images = np.pad(images, ((0, -count % _BLOCK), (0, 0), (0, 0)))
    blocks = [
        _measure(images[i : i + _BLOCK], *_apertures(n), weight) for i in range(0, count, _BLOCK)
    ]
    numbers = np.concatenate([np.zeros((0, 5), np.float32), *blocks])[:count]
    return Photometry(*numbers.T.reshape(5, *leading))


@jax.jit
def _centroids(images, width, reach):
    return jax.vmap(lambda image: _centroid(image, width, reach))(images)


def centroid(images: jax.Array, width: float, reach: float = REACH) -> np.ndarray:
    """Where galaxies are: (..., 2), row and column from the centre of images (..., n, n), pixels.

    The mean under a round Gaussian weight of ``width`` pixels that lies on it, found from the
    stamp's centre and at most ``reach`` pixels from it. Unlike `measure` it takes pixels of any
    size. Raises ValueError for a shape that is no stamp.
    """
    _check_stamps(images, "images")
    images = np.asarray(images, dtype=np.float32)
    found = _centroids(images.reshape(-1, *images.shape[-2:]), width, reach)
    return np.asarray(found).reshape(*images.shape[:-2], 2)


@jax.jit
def _psnr(estimate, truth):
    peak = truth.max(axis=(-2, -1))
    ratio = peak**2 / jnp.mean((estimate - truth) ** 2, axis=(-2, -1))
    return jnp.where(peak > 0.0, 10.0 * jnp.log10(ratio), jnp.nan)


def psnr(estimate: jax.Array, truth: jax.Array) -> jax.Array:
    """Peak signal to noise ratio in dB of estimates (..., n, n) of truths of the same shape; (...).

    10 log10(peak^2 / MSE) with the peak of the truth and the mean over all pixels of the stamp. Inf
    for an estimate without error, NaN where an image holds NaN or the truth has no positive pixel.
    Raises ValueError for shapes that differ or are no stamps.
    """
    estimate, truth = jnp.asarray(estimate, jnp.float32), jnp.asarray(truth, jnp.float32)
    _check_stamps(estimate, "estimate")
    if estimate.shape != truth.shape:
        raise ValueError(
            f"estimate and truth must have one shape, got {estimate.shape} and {truth.shape}: give "
            "each estimate its own truth."
        )
    return _psnr(estimate, truth)
