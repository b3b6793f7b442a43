"""Real galaxies: Hubble stamps at the resolution of the course, and a blend seen from Mauna Kea.

**HST.** 100 galaxies of COSMOS from the ACS camera in F814W, each with its own PSF (Leauthaud et
al. 2007, doi:10.1086/516598; made into stamps as in Mandelbaum et al. 2012,
doi:10.1111/j.1365-2966.2011.20138.x). They come in counts/s on pixels of 0.03 arcsec, zero point
25.94. `load_hst` gives them as the simulator gives its own (`datasets.galaxies`): the PSF is
divided out and the Gaussian of RESOLUTION put in, in Fourier space, and the result is sampled at
the fine grid. This is safe, for the Gaussian is wider than the PSF, 0.15 against 0.12 arcsec: no
wave is enlarged by more than 1.18. Waves of which the Gaussian leaves less than 1e-4 are left out.
Each galaxy is moved so that its weighted centroid is the stamp's centre.

- Stamps have 16 to 190 pixels a side: what is larger than the fine grid (118 pixels) is cut off,
  which takes 0.26 mag from the brightest, number 42; what is smaller is filled with zeros, and
  ``valid`` says where the stamp was.
- Each PSF is scaled to sum 1, as GalSim does; its stamp holds 98 % of the light of a star.
- Stamps and catalogue agree to 0.1 mag for 85 % of the galaxies brighter than 24.5 and for half of
  all: a stamp is summed up to its edges, and fainter the noise in that sum counts. Stamps of faint
  galaxies are also too small for all of the light, 0.06 mag at the median.
- The noise of ACS images is correlated, and matching smooths it further: ``noise`` is worked out
  from the catalogue's variance and the measured correlation function. What the images scatter near
  the edges of the stamps is 1.00 of it at the median, and 0.91 to 1.16 for two thirds of them.

**HSC.** One blend in COSMOS from Subaru's Hyper Suprime-Cam (Aihara et al. 2018,
doi:10.1093/pasj/psx066; it comes with scarlet, Melchior et al. 2018,
doi:10.1016/j.ascom.2018.07.001), of which `load_hsc` takes the i band: counts, zero point 27, on
pixels of 0.168 arcsec. Of its seven peaks number 0 is a star. The best target is number 1, the only
bright galaxy: magnitude 20.6, well resolved, 2.9 arcsec from that star. Its peak is 400 times the
noise, so that errors of the PSF count: moved to the star, the PSF fits it to 1 % of its peak.

**Sérsic fits.** Magnitudes, sizes and shapes of 100 other galaxies of COSMOS, brighter than 22.5,
from fits of one Sérsic profile to their Hubble images that come with GalSim's sample of galaxies
(Mandelbaum et al. 2012): `load_sersic_fits`.

The files are fetched (`dlcourse_utils.registry`), not shipped.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from scipy.fft import fftfreq, next_fast_len, rfft2, rfftfreq

from dlcourse_utils import photometry, registry
from dlcourse_utils.datasets.galaxies import PIXEL, RESOLUTION, SIZE, ZERO_POINT
from dlcourse_utils.datasets.splus import DataFileError

HST_PIXEL = 0.03  # arcsec
HSC_PIXEL = 3.0 * PIXEL
TARGET = 1  # the peak of the HSC blend that is fitted

_HST_UNIT = 10.0 ** (0.4 * (ZERO_POINT - 25.94))  # nJy of a count/s
_HSC_UNIT = 10.0 ** (0.4 * (ZERO_POINT - 27.0))  # nJy of a count
_HST_FILES = ("hst_catalog.fits", "hst_images.fits", "hst_psfs.fits", "acs_noise_correlation.fits")
_COLUMNS = ("IDENT", "MAG", "GAL_HDU", "PSF_HDU", "PIXEL_SCALE", "NOISE_VARIANCE")
_FAINTEST = 1e-4  # of the Gaussian's transfer function, 1 at frequency zero
_LARGEST = 1024  # pixels a side: no stamp is larger
_REACH = 10.0  # fine pixels from the stamp's centre to the galaxy's
_DETECTED = (1 << 5) | (1 << 6)  # bits of the mask that say "here is light": no fault
_HALF = 10  # the cut-out has 2 * 10 + 1 pixels a side


class HstGalaxies(NamedTuple):
    """k galaxies in the order of the catalogue, numpy arrays.

    ``ident`` and ``magnitude`` (k,) are the catalogue's; ``images`` (k, 63, 63) in nJy per fine
    pixel; ``noise`` (k,): standard deviation of a pixel, nJy, where there is an image; ``valid``
    (k, 63, 63): True where the stamp was, elsewhere the image is 0.
    """

    ident: np.ndarray
    magnitude: np.ndarray
    images: np.ndarray
    noise: np.ndarray
    valid: np.ndarray


class SersicFits(NamedTuple):
    """Fits of a Sérsic profile to k galaxies, in the order of the file, numpy arrays (k,).

    ``magnitude``: AB in F814W, the catalogue's own; ``radius``: arcsec along the major axis, of the
    ellipse that holds half of the light; ``sersic``: the index; ``axis_ratio``: minor over major.
    """

    magnitude: np.ndarray
    radius: np.ndarray
    sersic: np.ndarray
    axis_ratio: np.ndarray


class HscBlend(NamedTuple):
    """The i band of the blend, numpy arrays.

    ``image`` (n, m) in nJy per survey pixel and ``variance`` (n, m) in nJy^2; ``flagged`` (n, m):
    True where the survey marks a fault, or where exposures are missing, so that the PSF is another;
    ``psf`` (odd, odd): on survey pixels, sum 1; ``peaks`` (p, 2): row and column of what was found.
    """

    image: np.ndarray
    variance: np.ndarray
    flagged: np.ndarray
    psf: np.ndarray
    peaks: np.ndarray


class CutOut(NamedTuple):
    """One galaxy of the blend, ready to be fitted, numpy arrays.

    ``image`` (21, 21) in nJy and ``variance`` (21, 21) in nJy^2, infinite where a pixel is masked,
    and the image 0; ``offset`` (2,): from the centre of the middle pixel to the galaxy, row and
    column in arcsec; ``psf``: moved by this offset, see `cut_out`.
    """

    image: np.ndarray
    variance: np.ndarray
    psf: np.ndarray
    offset: np.ndarray


# --- HST --------------------------------------------------------------------------------------


def load_hst(folder: str | Path | None = None, *, limit: float = np.inf) -> HstGalaxies:
    """Read the Hubble galaxies and bring them to the fine grid and resolution of the course.

    Only those that the catalogue has brighter than ``limit`` mag: 12 of the 100 for 23.5. Without a
    ``folder`` that has the four files they come from the registry, which may fetch them (if that
    fails, a `registry.OfflineError` names all that are missing). Raises `DataFileError` naming the
    file if one is damaged or does not fit the others, ValueError if no galaxy is as bright.
    """
    if folder:
        paths = [Path(folder) / name for name in _HST_FILES]
    else:
        paths = registry.paths_of(_HST_FILES)
    catalog, correlation = _read_catalog(paths[0]), _read_correlation(paths[3])
    kept = catalog["MAG"] < limit
    if not kept.any():
        brightest = catalog["MAG"].min()
        raise ValueError(f"No galaxy is brighter than {limit}: the brightest has {brightest:.2f}.")
    catalog = {name: values[kept] for name, values in catalog.items()}
    stamps = _read_images(paths[1], catalog["GAL_HDU"])
    psfs = _read_images(paths[2], catalog["PSF_HDU"])
    for stamp, number in zip(stamps, catalog["GAL_HDU"], strict=True):
        _demand(paths[1], max(stamp.shape) <= _LARGEST, f"HDU {number} has {stamp.shape} pixels")
    for psf, number in zip(psfs, catalog["PSF_HDU"], strict=True):
        odd = all(n % 2 == 1 and n <= _LARGEST for n in psf.shape)
        _demand(paths[2], odd, f"HDU {number} has {psf.shape} pixels, expected odd numbers")
        _demand(paths[2], psf.sum() > 0.0, f"the PSF in HDU {number} does not sum to more than 0")

    matched = [_match(*pair, correlation) for pair in zip(stamps, psfs, strict=True)]
    middles = [(np.array(stamp.shape) - 1) / 2 for stamp in stamps]
    # Where the galaxy is in its stamp is seen best in the matched image: evaluate it twice.
    first = [_evaluate(m, middle) for (m, _), middle in zip(matched, middles, strict=True)]
    shifts = photometry.centroid(np.stack(first), photometry.WEIGHT / PIXEL, _REACH)
    images, valid = [], []
    for (modes, _), middle, shift, stamp in zip(matched, middles, shifts, stamps, strict=True):
        centre = middle + shift * PIXEL / HST_PIXEL
        inside = [
            (place >= -0.5) & (place <= n - 0.5)
            for place, n in zip(_places(centre), stamp.shape, strict=True)
        ]
        valid.append(inside[0][:, None] & inside[1][None, :])
        images.append(np.where(valid[-1], _evaluate(modes, centre), 0.0))
    gain = np.array([gain for _, gain in matched])
    return HstGalaxies(
        ident=catalog["IDENT"],
        magnitude=catalog["MAG"],
        images=(_HST_UNIT * np.stack(images)).astype(np.float32),
        noise=(_HST_UNIT * gain * np.sqrt(catalog["NOISE_VARIANCE"])).astype(np.float32),
        valid=np.stack(valid),
    )


def load_sersic_fits(path: str | Path | None = None) -> SersicFits:
    """Read the fits to real galaxies; without a path the file comes from the registry.

    Raises `registry.OfflineError` if it cannot be had, `DataFileError` if it is damaged.
    """
    path = Path(path or registry.path("cosmos_sersic_fits.fits"))
    table = _read_table(path, ("mag_auto", "sersicfit"))
    magnitude, fit = table["mag_auto"], table["sersicfit"]
    alike = magnitude.ndim == 1 and fit.ndim == 2 and fit.shape[1] >= 4
    _demand(path, alike, "mag_auto is not one number in a row, or sersicfit fewer than four")
    _, radius, sersic, axis_ratio = fit.T[:4]  # the first is a surface brightness
    sensible = (radius > 0.0) & (sersic > 0.0) & (axis_ratio > 0.0) & (axis_ratio <= 1.0)
    _demand(path, bool(sensible.all()), "a fit has a size, index or axis ratio that cannot be")
    return SersicFits(magnitude, HST_PIXEL * radius, sersic, axis_ratio)


class _Modes(NamedTuple):
    """Fourier modes of a matched image, as rfft2 lays them out: ``values`` (a, b), with ``rows``
    (a,) and ``columns`` (b,) in cycles per pixel of the stamp."""

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def _match(stamp: np.ndarray, psf: np.ndarray, correlation: np.ndarray) -> tuple[_Modes, float]:
    """The stamp behind the Gaussian in place of its PSF, and what noise of deviation 1 becomes.

    Both per fine pixel. The noise of the stamp has this ``correlation`` (odd, odd), 1 at its
    centre. The transforms have room for the PSF, so that nothing comes round to the other edge.
    """
    n = next_fast_len(max(max(stamp.shape) + max(psf.shape), max(correlation.shape)), real=True)
    sigma = RESOLUTION / np.sqrt(8.0 * np.log(2.0)) / HST_PIXEL
    highest = np.sqrt(-np.log(_FAINTEST) / 2.0) / (np.pi * sigma)  # cycles per pixel
    rows, columns = fftfreq(n), rfftfreq(n)
    held = np.abs(rows) < highest, columns < highest
    rows, columns = rows[held[0]], columns[held[1]]

    def transform(image, middle):
        phase = np.exp(2j * np.pi * (rows[:, None] * middle[0] + columns[None, :] * middle[1]))
        return rfft2(image, s=(n, n))[np.ix_(*held)] * phase

    def centred(image):
        return transform(image, [m // 2 for m in image.shape])

    gauss = np.exp(-2.0 * (np.pi * sigma * np.hypot(rows[:, None], columns[None, :])) ** 2)
    ratio = np.where(gauss > _FAINTEST, gauss, 0.0) * psf.sum() / centred(psf)
    # Each mode stands for its mirror image too, except in the first column, which has both.
    area = (PIXEL / HST_PIXEL) ** 2 * np.where(columns > 0.0, 2.0, 1.0)[None, :]
    power = np.maximum(centred(correlation).real, 0.0)  # below zero by rounding only
    variance = (PIXEL / HST_PIXEL) ** 2 * np.sum(area * power * np.abs(ratio) ** 2) / n**2
    modes = _Modes(area / n**2 * ratio * transform(stamp, (0, 0)), rows, columns)
    return modes, np.sqrt(variance)


def _places(centre: np.ndarray) -> list[np.ndarray]:
    """Rows and columns of the stamp, (63,) each, at which a fine grid about ``centre`` lies."""
    return [c + (np.arange(SIZE) - SIZE // 2) * PIXEL / HST_PIXEL for c in centre]


def _evaluate(modes: _Modes, centre: np.ndarray) -> np.ndarray:
    rows, columns = _places(centre)
    wave_rows = np.exp(2j * np.pi * rows[:, None] * modes.rows)
    wave_columns = np.exp(2j * np.pi * columns[:, None] * modes.columns)
    return (wave_rows @ modes.values @ wave_columns.T).real


# --- HSC --------------------------------------------------------------------------------------


def load_hsc(path: str | Path | None = None) -> HscBlend:
    """Read the i band of the blend; without a path the file comes from the registry.

    Raises `registry.OfflineError` if it cannot be had, `DataFileError` if it is damaged.
    """
    path = Path(path or registry.path("hsc_cosmos_35.npz"))
    try:
        # Opened here, because numpy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
    except FileNotFoundError:
        raise DataFileError(f"{path} is not there: check the path.") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        raise _damaged(path, "it is not a complete .npz file of numbers") from None
    lacking = {"images", "variance", "mask", "psfs", "filters", "catalog"} - set(arrays)
    _demand(path, not lacking, f"it lacks {', '.join(sorted(lacking))}")
    images, variance, mask = arrays["images"], arrays["variance"], arrays["mask"]
    filters, psfs, catalog = arrays["filters"], arrays["psfs"], arrays["catalog"]
    alike = images.ndim == 3 and images.shape == variance.shape == mask.shape
    alike = alike and filters.shape == psfs.shape[:1] == images.shape[:1]
    _demand(path, alike, "images, variance, mask, psfs and filters have shapes that do not fit")
    odd = psfs.ndim == 3 and all(n % 2 == 1 for n in psfs.shape[1:])
    _demand(path, odd, f"the PSFs have shape {psfs.shape}, expected odd numbers of pixels")
    _demand(path, "i" in filters, "it has no i band")
    _demand(path, {"x", "y"} <= set(catalog.dtype.names or ()), "its catalogue has no x and y")
    _demand(path, mask.dtype.kind in "iu", "its mask is not of whole numbers")

    band = filters.tolist().index("i")
    image, variance, psf = (
        np.asarray(a[band], dtype=float) for a in (images, arrays["variance"], psfs)
    )
    finite = np.isfinite(image).all() and np.isfinite(psf).all()
    _demand(path, finite, "image or PSF hold values that are not finite")
    _demand(path, bool((variance > 0.0).all()), "the variance is not positive everywhere")
    _demand(path, psf.sum() > 0.0, "the PSF does not sum to more than 0")
    peaks = np.stack([catalog["y"], catalog["x"]], axis=-1)
    within = np.all((peaks >= 0) & (peaks <= np.array(image.shape) - 1))
    _demand(path, bool(within) and len(peaks) > 0, "a peak is not in the image, or there is none")
    return HscBlend(
        image=_HSC_UNIT * image,
        variance=_HSC_UNIT**2 * variance,
        flagged=(mask[band] & ~_DETECTED) != 0,
        psf=psf / psf.sum(),
        peaks=np.rint(peaks).astype(int),
    )


def cut_out(blend: HscBlend, peak: int = TARGET) -> CutOut:
    """The 21 x 21 survey pixels around one peak, with all masked that is not its galaxy's.

    Masked are pixels beyond the image's edge, flagged ones, those nearer to another peak, and those
    where a star as bright as another peak would send more than the noise and more than 5 % of the
    light that is there.

    A galaxy is not centred on a pixel of the survey, but the fine grid's centre is one. So the PSF
    is moved, in Fourier space, by the galaxy's ``offset`` from there: fitted with it, the galaxy
    itself is in the middle of the fine grid, as those of the simulator are. The offset is that of
    the weighted centroid, at most half a pixel, less the PSF's own. Raises ValueError for a peak
    that there is not, or that has no light of its own.
    """
    if peak not in range(len(blend.peaks)):
        raise ValueError(f"peak must be 0 to {len(blend.peaks) - 1}, got {peak}.")
    row, column = blend.peaks[peak]
    rows, columns = np.indices(blend.image.shape)
    distance = np.hypot(rows - row, columns - column)
    masked = blend.flagged.copy()
    star = np.pad(blend.psf / blend.psf.max(), [(n, n) for n in blend.image.shape])
    middle = np.array(star.shape) // 2
    for y, x in np.delete(blend.peaks, peak, axis=0):
        masked |= np.hypot(rows - y, columns - x) < distance
        light = blend.image[y, x] * star[rows - y + middle[0], columns - x + middle[1]]
        masked |= light > np.maximum(np.sqrt(blend.variance), 0.05 * blend.image)

    window = (slice(row, row + 2 * _HALF + 1), slice(column, column + 2 * _HALF + 1))
    masked = np.pad(masked, _HALF, constant_values=True)[window]
    image = np.where(masked, 0.0, np.pad(blend.image, _HALF)[window])
    variance = np.where(masked, np.inf, np.pad(blend.variance, _HALF)[window])

    width = photometry.WEIGHT / HSC_PIXEL
    side = max(blend.psf.shape)
    square = np.pad(blend.psf, [((side - n) // 2, (side - n) // 2) for n in blend.psf.shape])
    # Where one side is masked, the other must not count either.
    both = np.where(masked[::-1, ::-1], 0.0, image)
    offset = photometry.centroid(both, width, 0.5) - photometry.centroid(square, width)
    if not np.isfinite(offset).all():
        raise ValueError(f"Peak {peak} has no light of its own: all is masked, choose another.")
    return CutOut(image, variance, _shift(blend.psf, offset), offset * HSC_PIXEL)


def _shift(psf: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Move an image of odd size by ``offset`` (2,) pixels, as a band-limited one."""
    ky, kx = (np.fft.fftfreq(n) for n in psf.shape)
    phase = np.exp(-2j * np.pi * (ky[:, None] * offset[0] + kx[None, :] * offset[1]))
    return np.fft.ifft2(np.fft.fft2(psf) * phase).real


# --- reading ----------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[fits.HDUList]:
    """The file as long as it is read; a sentence if that fails, in the body of the `with` too."""
    try:
        # astropy only warns of a file that is cut off.
        with warnings.catch_warnings():
            warnings.simplefilter("error", AstropyWarning)
            with path.open("rb") as file, fits.open(file, memmap=False) as hdus:
                yield hdus
    except FileNotFoundError:
        raise DataFileError(f"{path} is not there: check the path.") from None
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, AstropyWarning):
        raise _damaged(path, "it is not a complete FITS file") from None


def _read_table(path: Path, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """These columns of the first table, none of them empty, finite in every row."""
    with _opened(path) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        names = tables[0].columns.names if tables else []
        lacking = [name for name in columns if name not in names]
        _demand(path, not lacking, f"its table lacks {', '.join(lacking)}")
        table = {name: np.array(tables[0].data[name].tolist()) for name in columns}
    for name, values in table.items():
        _demand(path, len(values) > 0, "its table is empty")
        number = values.dtype.kind in "iuf" and np.isfinite(values).all()
        _demand(path, bool(number), f"{name} is not finite in every row")
    return table


def _read_catalog(path: Path) -> dict[str, np.ndarray]:
    table = _read_table(path, _COLUMNS)
    same = np.allclose(table["PIXEL_SCALE"], HST_PIXEL)
    _demand(path, same, f"PIXEL_SCALE is not {HST_PIXEL} in every row")
    _demand(path, bool((table["NOISE_VARIANCE"] > 0).all()), "a NOISE_VARIANCE is not positive")
    return table


def _read_images(path: Path, numbers: np.ndarray) -> list[np.ndarray]:
    """The images in the HDUs of these ``numbers``, in double precision."""
    images = []
    with _opened(path) as hdus:
        for number in numbers:
            _demand(path, 0 <= number < len(hdus), f"it has {len(hdus)} HDUs, and no {number}")
            data = hdus[int(number)].data
            image = data is not None and data.dtype.names is None and data.ndim == 2
            _demand(path, image, f"HDU {number} is no image of two dimensions")
            images.append(np.asarray(data, dtype=float))
            finite = bool(np.isfinite(images[-1]).all())
            _demand(path, finite, f"HDU {number} holds values that are not finite")
    return images


def _read_correlation(path: Path) -> np.ndarray:
    (image,) = _read_images(path, np.array([0]))
    odd = all(n % 2 == 1 for n in image.shape)
    _demand(path, odd, f"it has {image.shape} pixels, expected odd numbers")
    peak = image[image.shape[0] // 2, image.shape[1] // 2]
    _demand(path, peak > 0.0 and peak >= image.max(), "its centre is not its maximum")
    return image / peak


def _demand(path: Path, holds: bool, what: str) -> None:
    if not holds:
        raise _damaged(path, what)


def _damaged(path: Path, what: str) -> DataFileError:
    return DataFileError(f"{path}: {what}; the file is damaged: delete it and fetch it again.")
