"""A telescope on the ground: y = P(Π ∗ x) + n.

x is a galaxy at the resolution of the course, on the fine grid of `datasets.galaxies`: the light
behind a round Gaussian of FWHM ``RESOLUTION``, sampled at pixels of ``PIXEL`` arcsec. A survey sees
the same light behind its own, broader point-spread function (PSF). The *difference kernel* Π takes
x to that: the PSF over the Gaussian, in Fourier space (Magain et al. 1998, ApJ 494, 472,
doi:10.1086/305187). P samples Π ∗ x at the pixels of the survey, and n is Gaussian noise with a
known variance in each pixel; a pixel that is masked has infinite variance.

A PSF here is always the *effective* one, as it is measured on stars: atmosphere and optics, and the
integration over the survey's pixel. P then is nothing but samples: the flux in a survey pixel is
the surface brightness of Π ∗ x at its centre times its area. Images are in nJy per pixel, row = y,
column = x, and every stamp has an odd number of pixels, so that its centre is a pixel.
"""

from __future__ import annotations

from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import next_fast_len

from dlcourse_utils.datasets.galaxies import PIXEL, RESOLUTION, SIZE
from dlcourse_utils.errors import CourseError

FACTOR = 3  # fine pixels in a survey pixel, along a side
SURVEY_PIXEL = FACTOR * PIXEL  # arcsec, that of Hyper Suprime-Cam on Subaru
SURVEY_SIZE = SIZE // FACTOR
SEEING = 0.7  # arcsec, FWHM of the atmosphere
NOISE = 3.8  # nJy in a survey pixel: 5 sigma for a point source of 25.9 mag (AB)
KERNEL_SIZE = 2 * SIZE - 1  # every offset between two pixels of a stamp

_PSF_SIZE = 501  # the wings of a Moffat are long: see `moffat`
_NODES = 3  # of the integral over a pixel, along a side
_NO_POWER = 1e-6  # of the PSF's transfer function, 1 at frequency zero: below is rounding


class TelescopeError(CourseError):
    """A PSF, an image or an observation that the telescope cannot use."""


# --- point-spread functions --------------------------------------------------------------------


def moffat(fwhm: float = SEEING, beta: float = 3.0, e1: float = 0.0, e2: float = 0.0) -> np.ndarray:
    """Effective PSF of the survey: a Moffat law integrated over its pixel; (501, 501), sum 1.

    On the fine grid, with ``fwhm`` in arcsec that of the atmosphere, before the pixel widens it.
    ``e1``, ``e2`` make it elliptical at the same area: (a - b) / (a + b) along the columns, and
    along the diagonal. The wings fall as r^(2 - 2 beta) in flux and the stamp ends at 14 arcsec:
    scaling it to 1 adds 5e-6 to the survey's PSF, and 2e-4 for fwhm 1 and beta 2.5.
    Moffat 1969, A&A 3, 455.

    Raises `TelescopeError` for a width that is not positive, a beta up to 1, whose flux would be
    infinite, and an ellipticity from 1 on.
    """
    if not (0.0 < fwhm < np.inf and 1.0 < beta < np.inf and np.hypot(e1, e2) < 1.0):
        raise TelescopeError(
            f"No Moffat has fwhm = {fwhm}, beta = {beta}, e1 = {e1}, e2 = {e2}: take fwhm > 0, "
            "beta > 1 and an ellipticity below 1."
        )
    scale = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    # Gauss-Legendre over the survey's pixel, exact to 1e-9 where the PSF is wider than the pixel.
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    grid = PIXEL * (np.arange(_PSF_SIZE) - _PSF_SIZE // 2)
    fine = (grid[:, None] + 0.5 * SURVEY_PIXEL * nodes).ravel()
    x, y = fine[None, :], fine[:, None]
    shear = np.array([[1.0 - e1, -e2], [-e2, 1.0 + e1]]) / np.sqrt(1.0 - e1**2 - e2**2)
    (a, b), (_, c) = shear.T @ shear
    profile = (1.0 + (a * x**2 + 2.0 * b * x * y + c * y**2) / scale**2) ** -beta
    profile = profile.reshape(_PSF_SIZE, _NODES, _PSF_SIZE, _NODES)
    psf = np.einsum("iajb,a,b->ij", profile, weights, weights)
    return psf / psf.sum()


def _as_psf(psf, pixel: float) -> np.ndarray:
    """The PSF in double precision with sum 1, or a sentence."""
    psf = np.asarray(psf, dtype=float)
    if psf.ndim != 2 or psf.shape[0] % 2 == 0 or psf.shape[1] % 2 == 0:
        raise TelescopeError(
            f"A PSF must be an image with an odd number of pixels a side, got shape {psf.shape}: "
            "cut or pad it so that its centre is the middle pixel."
        )
    if not np.isfinite(psf).all():
        raise TelescopeError("The PSF holds NaN or infinite values: replace them first, say by 0.")
    if not (isinstance(pixel, Real) and 0.0 < pixel < np.inf):
        raise TelescopeError(
            f"pixel, the arcsec of a pixel of the PSF, must be positive, got {pixel}."
        )
    total = psf.sum()
    if not total > 1e-3 * np.abs(psf).sum():
        raise TelescopeError(
            f"The PSF sums to {total:.3g} and cannot be scaled to 1: look at its background."
        )
    psf = psf / total
    middle = np.array(psf.shape) // 2
    rows, columns = (np.arange(n) - n // 2 for n in psf.shape)
    peak = np.array(np.unravel_index(psf.argmax(), psf.shape)) - middle
    centroid = np.array([rows @ psf.sum(axis=1), columns @ psf.sum(axis=0)])
    if np.abs(peak).max() > 1 or np.abs(centroid).max() > 0.5:
        raise TelescopeError(
            f"The PSF is not centred: its peak is {tuple(peak.tolist())} pixels (rows, columns) "
            f"from the middle pixel, its centroid ({centroid[0]:.2f}, {centroid[1]:.2f}). Shift "
            "it, or the galaxy will be shifted instead."
        )
    return psf


def _transfer(psf: np.ndarray, pixel: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Fourier transform of ``psf`` at frequencies ``rows`` (n,), ``columns`` (m,); (n, m).

    In cycles per arcsec. Zero beyond the highest frequency that the pixels of the PSF hold.
    """
    waves, seen = [], []
    for frequency, n in zip((rows, columns), psf.shape, strict=True):
        place = pixel * (np.arange(n) - n // 2)
        seen.append(np.abs(frequency) <= 0.5 / pixel)
        waves.append(np.exp(-2j * np.pi * frequency[seen[-1], None] * place))
    transfer = np.zeros((len(rows), len(columns)), dtype=complex)
    transfer[np.ix_(*seen)] = waves[0] @ psf @ waves[1].T
    return transfer


def difference_kernel(psf: np.ndarray, pixel: float = PIXEL) -> jax.Array:
    """Π: what takes x to the light behind an effective ``psf``; (125, 125), on the fine grid.

    ``psf`` (odd, odd) is sampled at ``pixel`` arcsec, as from `moffat` or measured (0.168 for HSC),
    and counted as all of the light whatever it sums to. It is resampled as a band-limited image, in
    Fourier space, and divided by the Gaussian of ``RESOLUTION`` there. Frequencies at which it has
    less than 1e-6 of what it has at zero hold nothing but rounding, and are set to zero. The noise
    of a PSF measured at 0.168 arcsec is at most doubled (fourfold in the corners): its pixels hold
    no higher frequencies. Such pixels are just fine enough: of a Moffat law sampled by them, the
    images of galaxies come out to 2e-4 of the peak for a seeing of 0.5 arcsec, where the quintic
    polynomials that GalSim takes unless told otherwise are off by 4e-3.

    Π sums to 1 over the whole plane. What lies further out than the 125 pixels is cut off without
    scaling the rest: it never links two pixels of a stamp. That is 0.1 % for the survey's PSF.

    Raises `TelescopeError` for a PSF with NaN, of even size, that sums to zero, is off its centre,
    larger than the stamp, or sharper than ``RESOLUTION``.
    """
    psf = _as_psf(psf, pixel)
    # The grid wraps around: it holds half of the PSF more than what is kept, so that none comes in.
    size = KERNEL_SIZE + 2 * int(np.ceil(0.25 * max(psf.shape) * pixel / PIXEL))
    rows, columns = np.fft.fftfreq(size, PIXEL), np.fft.rfftfreq(size, PIXEL)
    transfer = _transfer(psf, pixel, rows, columns)
    sigma = RESOLUTION / np.sqrt(8.0 * np.log(2.0))
    gauss = np.exp(-2.0 * (np.pi * sigma) ** 2 * (rows[:, None] ** 2 + columns**2))
    ratio = np.where(np.abs(transfer) > _NO_POWER, transfer, 0.0) / gauss
    if np.abs(ratio).max() > 1.01:
        raise TelescopeError(
            f"The PSF is sharper than the resolution of the course, {RESOLUTION} arcsec, or noise "
            "makes it look so: take the PSF of a survey from the ground, smooth it, or check "
            f"pixel, {pixel} arcsec."
        )
    kernel = np.fft.fftshift(np.fft.irfft2(ratio, s=(size, size)))
    inside = _middle(kernel, SIZE).sum()
    if inside < 0.5:
        raise TelescopeError(
            f"The PSF is larger than the image: {100 * inside:.0f} % of its light falls within "
            f"{SIZE * PIXEL:.1f} arcsec. Check pixel, {pixel} arcsec."
        )
    return jnp.asarray(_middle(kernel, KERNEL_SIZE), jnp.float32)


def _middle(image: np.ndarray, size: int) -> np.ndarray:
    edge = (len(image) - size) // 2
    return image[edge : edge + size, edge : edge + size]


# --- the forward model -------------------------------------------------------------------------


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve images x (..., n, m) with ``kernel`` (odd, odd), centred on its middle pixel.

    Same shape as x. By FFT on a grid padded with zeros, so that light that leaves at one edge does
    not come back at the other. Raises `TelescopeError` for a kernel of even size and for one larger
    than (2 n - 1, 2 m - 1): what lies further out never meets the image.
    """
    shape = x.shape[-2:]
    if x.ndim < 2:
        raise TelescopeError(f"x must have shape (..., n, m), got {x.shape}: give it as an image.")
    if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise TelescopeError(
            f"A kernel must have an odd number of pixels a side, got shape {kernel.shape}: its "
            "centre must be a pixel."
        )
    if any(k > 2 * n - 1 for k, n in zip(kernel.shape, shape, strict=True)):
        raise TelescopeError(
            f"The kernel {kernel.shape} is larger than the image {shape} can use: cut it around "
            f"its centre to at most {tuple(2 * n - 1 for n in shape)}."
        )
    half = tuple(k // 2 for k in kernel.shape)
    padded = tuple(next_fast_len(n + h, real=True) for n, h in zip(shape, half, strict=True))
    room = [(0, p - k) for p, k in zip(padded, kernel.shape, strict=True)]
    transfer = jnp.fft.rfft2(jnp.roll(jnp.pad(kernel, room), (-half[0], -half[1]), (0, 1)))
    transfer = transfer.reshape((1,) * (x.ndim - 2) + transfer.shape)
    blurred = jnp.fft.irfft2(jnp.fft.rfft2(x, s=padded) * transfer, s=padded)
    return blurred[..., : shape[0], : shape[1]]


def sample(x: jax.Array) -> jax.Array:
    """P: the survey's pixels of fine images (..., 3 n, 3 m); (..., n, m), nJy per survey pixel.

    The centre of survey pixel j is that of fine pixel 3 j + 1, and its area is 9 fine ones. Raises
    `TelescopeError` for sides that are no multiple of 3.
    """
    if x.ndim < 2 or x.shape[-2] % FACTOR or x.shape[-1] % FACTOR:
        raise TelescopeError(
            f"x must have sides that are multiples of {FACTOR}, got shape {x.shape}: cut or pad it."
        )
    return FACTOR**2 * x[..., FACTOR // 2 :: FACTOR, FACTOR // 2 :: FACTOR]


def observe(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """P(Π ∗ x), the mean of an observation; x (..., 63, 63), result (..., 21, 21), in nJy.

    ``kernel`` is that of `difference_kernel`. Sides may be any multiple of 3 from 63 on. Light
    outside of x is not there: what it would send into the stamp is up to 4 % of the peak at the
    edges for galaxies with half-light radii of 0.8 arcsec. Raises `TelescopeError` as `convolve`
    and `sample` do.
    """
    return sample(convolve(x, kernel))


@jax.jit
def observe_noisy(
    key: jax.Array, x: jax.Array, kernel: jax.Array, variance: float | jax.Array
) -> jax.Array:
    """y = P(Π ∗ x) + n, with ``variance`` in nJy^2: one number, (21, 21) or (..., 21, 21).

    y is 0 where the variance is infinite, which says that a pixel is masked.
    """
    mean = observe(x, kernel)
    variance = jnp.broadcast_to(jnp.asarray(variance, mean.dtype), mean.shape)
    used = jnp.isfinite(variance)
    noise = jnp.sqrt(jnp.where(used, variance, 0.0)) * jax.random.normal(key, mean.shape)
    return jnp.where(used, mean + noise, 0.0)


def operator(kernel: jax.Array) -> jax.Array:
    """The matrix A (441, 3969) of `observe` on a stamp: y.ravel() = A @ x.ravel().

    ``kernel`` (125, 125) is that of `difference_kernel`; `TelescopeError` for another shape.
    """
    kernel = np.asarray(kernel)
    if kernel.shape != (KERNEL_SIZE, KERNEL_SIZE):
        raise TelescopeError(
            f"The kernel must have shape {(KERNEL_SIZE, KERNEL_SIZE)}, got {kernel.shape}: take "
            "it from `difference_kernel`."
        )
    reach = np.arange(SIZE) - (FACTOR * np.arange(SURVEY_SIZE)[:, None] + FACTOR // 2)
    index = KERNEL_SIZE // 2 - reach  # (21, 63): row of the kernel that links the two
    matrix = kernel[index[:, None, :, None], index[None, :, None, :]]
    return jnp.asarray(FACTOR**2 * matrix.reshape(SURVEY_SIZE**2, SIZE**2), jnp.float32)


def apply(operator: jax.Array, x: jax.Array) -> jax.Array:
    """`observe` as a matrix product; x (..., 63, 63), result (..., 21, 21).

    Faster for many images: on two cores, with its gradient, 55 ms for 200 images where the FFT
    takes 290 ms, 8 and 4 ms for 16, 2 and 0.3 ms for one. It compiles in 0.2 s, the FFT in 1 s.
    """
    y = x.reshape(*x.shape[:-2], SIZE**2) @ operator.T
    return y.reshape(*x.shape[:-2], SURVEY_SIZE, SURVEY_SIZE)


def check_observation(y: jax.Array, variance: jax.Array) -> None:
    """Raise `TelescopeError` unless y (..., 21, 21) with its ``variance`` can be fitted.

    The variance has the shape of y or of one image, and is positive; infinite where a pixel is
    masked, but not in all of an image. y is finite where it is not masked.
    """
    y, variance = np.asarray(y), np.asarray(variance)
    stamp = (SURVEY_SIZE, SURVEY_SIZE)
    if y.shape[-2:] != stamp or variance.shape not in (stamp, y.shape):
        raise TelescopeError(
            f"y must have shape (..., {SURVEY_SIZE}, {SURVEY_SIZE}) and the variance that of y or "
            f"{stamp}; got {y.shape} and {variance.shape}."
        )
    if not (variance > 0.0).all():
        raise TelescopeError(
            f"The variance holds {np.sum(~(variance > 0.0))} values that are not positive: give a "
            "pixel that is not to be used an infinite one."
        )
    used = np.isfinite(variance)
    if not used.any(axis=(-2, -1)).all():
        raise TelescopeError("All pixels of an image are masked: nothing is left to fit, drop it.")
    if bad := np.sum(~np.isfinite(y) & used):
        raise TelescopeError(
            f"y holds {bad} values that are not finite where the variance is: make the variance "
            "infinite there, and y 0."
        )
