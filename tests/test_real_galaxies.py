"""Loaders of the real galaxies: made-up files with known answers, the real ones beside GalSim."""

import os
import warnings

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import distance_transform_cdt

from dlcourse_utils import photometry, registry, telescope
from dlcourse_utils.datasets import real_galaxies
from dlcourse_utils.datasets.galaxies import PIXEL, RESOLUTION, SIZE, ZERO_POINT
from dlcourse_utils.datasets.real_galaxies import HSC_PIXEL, HST_PIXEL, DataFileError

galsim = pytest.importorskip("galsim", reason="GalSim is not installed")

HST_PSF = galsim.Gaussian(fwhm=0.11)
VARIANCE = 4e-6  # (counts/s)^2
SPREAD = 1.2  # pixels: of the Gaussian that made-up noise is smoothed with


def hst_stamp(profile, n, x=0.0, y=0.0):
    """Effective image on Hubble pixels, counts/s; x, y in arcsec from the stamp's centre."""
    seen = galsim.Convolve(profile.shift(x, y), HST_PSF)
    return seen.drawImage(nx=n, ny=n, scale=HST_PIXEL, method="no_pixel").array.astype(float)


def write_hst(folder, stamps, magnitudes=None, **columns):
    """The four files of made-up galaxies, whose noise is white noise behind a Gaussian."""
    n = len(stamps)
    table = {
        "IDENT": np.arange(n) + 7,
        "MAG": np.full(n, 22.0) if magnitudes is None else np.array(magnitudes),
        "GAL_HDU": np.arange(n),
        "PSF_HDU": np.arange(n),
        "PIXEL_SCALE": np.full(n, HST_PIXEL),
        "NOISE_VARIANCE": np.full(n, VARIANCE),
    } | columns
    kinds = {"i": "J", "f": "D"}
    fields = [
        fits.Column(name, kinds[np.asarray(v).dtype.kind], array=v)
        for name, v in table.items()
        if v is not None
    ]
    psf = HST_PSF.drawImage(nx=51, ny=65, scale=HST_PIXEL, method="no_pixel").array
    offset = np.arange(81) - 40
    # Noise smoothed with a Gaussian has the correlation of a Gaussian 2^(1/2) times as wide.
    correlation = np.exp(-(np.hypot(*np.meshgrid(offset, offset)) ** 2) / (4 * SPREAD**2))
    write = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(fields)]).writeto
    write(folder / "hst_catalog.fits", overwrite=True)
    for name, images in [
        ("hst_images.fits", stamps),
        ("hst_psfs.fits", [3.0 * psf] * n),  # any sum counts as all of the light
        ("acs_noise_correlation.fits", [9e-6 * correlation]),
    ]:
        first, *others = images
        hdus = [fits.PrimaryHDU(first), *map(fits.ImageHDU, others)]
        fits.HDUList(hdus).writeto(folder / name, overwrite=True)


# --- HST --------------------------------------------------------------------------------------


def test_a_known_galaxy_comes_out_at_the_resolution_of_the_course(tmp_path):
    fwhm, flux = 0.45, 20.0  # arcsec, counts/s
    galaxy = galsim.Gaussian(fwhm=fwhm, flux=flux).shear(g1=0.2, g2=0.1)
    # Even, odd, larger and smaller than the fine grid, off centre.
    cases = [(118, 0, 0), (119, 0, 0), (160, 0.2, -0.15), (92, -0.05, 0.1), (60, 0.013, 0)]
    write_hst(tmp_path, [hst_stamp(galaxy, n, x, y) for n, x, y in cases])
    found = real_galaxies.load_hst(tmp_path)
    assert found.images.shape == found.valid.shape == (5, SIZE, SIZE)
    assert found.ident.tolist() == [7, 8, 9, 10, 11] and (found.magnitude == 22.0).all()

    expected = galsim.Convolve(galaxy, galsim.Gaussian(fwhm=RESOLUTION))
    expected = expected.drawImage(nx=SIZE, ny=SIZE, scale=PIXEL, method="no_pixel").array
    expected = expected * 10 ** (0.4 * (ZERO_POINT - 25.94))
    for image, valid in zip(found.images, found.valid, strict=True):
        np.testing.assert_allclose(image[valid], expected[valid], atol=1e-3 * expected.max())
        assert (image[~valid] == 0).all()
    # Its numbers: the size in quadrature, the magnitude by the zero point of ACS.
    numbers = photometry.measure(found.images[:4])
    radius = photometry.measure(expected).half_light_radius
    np.testing.assert_allclose(numbers.half_light_radius, radius, rtol=1e-3)
    assert radius == pytest.approx(0.5 * np.hypot(fwhm, RESOLUTION), rel=0.03)
    np.testing.assert_allclose(numbers.magnitude, 25.94 - 2.5 * np.log10(flux), atol=2e-3)


def test_valid_is_where_the_stamp_was(tmp_path):
    galaxy = galsim.Gaussian(fwhm=0.3, flux=20.0)
    write_hst(tmp_path, [hst_stamp(galaxy, n, x) for n, x in [(150, 0), (40, 0), (56, 0.21)]])
    found = real_galaxies.load_hst(tmp_path)
    assert found.valid[0].all()
    for valid, n, x in zip(found.valid[1:], (40, 56), (0.0, 0.21), strict=True):
        place = (np.arange(SIZE) - SIZE // 2) * PIXEL
        columns = np.abs(place + x) <= n * HST_PIXEL / 2
        rows = np.abs(place) <= n * HST_PIXEL / 2
        # The fine pixels at the very edge depend on the last digits of the centroid.
        differ = valid != (rows[:, None] & columns[None, :])
        assert differ.sum() <= valid.any(axis=1).sum() and 0.1 < valid.mean() < 0.4


def test_noise_is_that_of_the_matched_images(tmp_path):
    rng = np.random.default_rng(63)
    k = 2 * np.pi * np.fft.fftfreq(160)
    smooth = np.exp(-0.5 * SPREAD**2 * (k[:, None] ** 2 + k[None, :] ** 2))
    white = np.fft.ifft2(np.fft.fft2(rng.normal(size=(30, 160, 160))) * smooth).real
    write_hst(tmp_path, list(VARIANCE**0.5 * white / white.std()))
    found = real_galaxies.load_hst(tmp_path)
    assert np.ptp(found.noise) < 1e-6 * found.noise[0]
    assert found.valid.all()
    # 30 images of about 300 independent patches each: 0.75 %, of which four are allowed.
    assert found.images.std() == pytest.approx(found.noise[0], rel=0.03)
    # Noise that is taken as white is off by a factor.
    assert found.noise[0] > 1.5 * VARIANCE**0.5 * 10 ** (0.4 * (ZERO_POINT - 25.94))


def test_limit_selects_before_anything_is_matched(tmp_path):
    galaxy = galsim.Gaussian(fwhm=0.4, flux=20.0)
    write_hst(tmp_path, [hst_stamp(galaxy, 90)] * 4, [22.0, 23.4999, 23.5, 25.0])
    found = real_galaxies.load_hst(tmp_path, limit=23.5)
    assert found.ident.tolist() == [7, 8] and len(found.images) == len(found.noise) == 2
    with pytest.raises(
        ValueError, match=r"No galaxy is brighter than 20: the brightest has 22\.00"
    ):
        real_galaxies.load_hst(tmp_path, limit=20)


# --- HSC --------------------------------------------------------------------------------------

PEAKS = [(20, 15), (30, 40), (20, 33)]  # row, column
OFFSET = (0.3, -0.4)  # pixels: of the first galaxy from its peak


def hsc_psf(n=43):
    psf = galsim.Moffat(fwhm=0.65, beta=3.0)
    return psf.drawImage(nx=n, ny=n, scale=HSC_PIXEL, method="no_pixel").array.astype(float)


def write_hsc(path, **changes):
    """Two galaxies and a star in the second of two bands; the other band is only noise."""
    psf = galsim.Moffat(fwhm=0.65, beta=3.0)
    scene = galsim.Image(np.zeros((41, 50)), scale=HSC_PIXEL)
    galaxy = galsim.Convolve(galsim.Gaussian(fwhm=0.5, flux=100.0), psf)
    for profile, (row, column), (dy, dx) in [
        (galaxy, PEAKS[0], OFFSET),
        (galaxy * 0.1, PEAKS[1], (0, 0)),
        (psf * 50.0, PEAKS[2], (0, 0)),
    ]:
        offset = galsim.PositionD(column + dx - 24.5, row + dy - 20)
        profile.drawImage(scene, offset=offset, method="no_pixel", add_to_image=True)
    rng = np.random.default_rng(64)
    mask = np.zeros((2, 41, 50), dtype=np.int32)
    mask[1, 10:30] = 32  # detected: no fault
    mask[1, 23, 17] = 8  # a cosmic ray
    mask[0] = 1
    arrays = {
        "images": np.stack([rng.normal(size=(41, 50)), scene.array]).astype(np.float32),
        "variance": np.full((2, 41, 50), 4e-4, dtype=np.float32),
        "mask": mask,
        "psfs": np.stack([hsc_psf()] * 2),
        "filters": np.array(["g", "i"]),
        "catalog": np.array([(c, r) for r, c in PEAKS], dtype=[("x", float), ("y", float)]),
    } | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.fixture
def blend(tmp_path):
    return real_galaxies.load_hsc(write_hsc(tmp_path / "blend.npz"))


def test_hsc_band_units_and_mask(blend):
    assert blend.image.shape == blend.variance.shape == blend.flagged.shape == (41, 50)
    unit = 10 ** (0.4 * (ZERO_POINT - 27.0))
    assert blend.image.sum() == pytest.approx(160.0 * unit, rel=0.02)  # wings leave the image
    np.testing.assert_allclose(blend.variance, 4e-4 * unit**2, rtol=1e-6)
    assert np.argwhere(blend.flagged).tolist() == [[23, 17]]
    assert blend.psf.sum() == pytest.approx(1.0)
    assert blend.peaks.tolist() == [list(peak) for peak in PEAKS]


def test_cut_out_masks_what_is_not_the_galaxys(blend):
    cut = real_galaxies.cut_out(blend, 0)
    used = np.isfinite(cut.variance)
    assert cut.image.shape == cut.variance.shape == (21, 21)
    telescope.check_observation(cut.image, cut.variance)
    np.testing.assert_array_equal(cut.image[used], blend.image[10:31, 5:26][used])
    assert (cut.image[~used] == 0).all()
    # The cosmic ray; the column half-way to the star at the right, and what the star sends in.
    assert not used[13, 12] and used[13, 11]
    assert not used[10, 20] and used[10, 15] and used[:15, :13].sum() == 15 * 13 - 1
    # The other galaxy is at the image's corner: what is beyond the edge is masked.
    corner = np.isfinite(real_galaxies.cut_out(blend, 1).variance)
    assert not corner[:, 20:].any() and not corner[21:].any() and corner[10, 10:20].all()


def test_cut_out_goes_with_a_galaxy_in_the_middle_of_the_fine_grid(blend):
    cut = real_galaxies.cut_out(blend, 0)
    np.testing.assert_allclose(cut.offset, np.array(OFFSET) * HSC_PIXEL, atol=0.02 * HSC_PIXEL)
    x = galsim.Convolve(galsim.Gaussian(fwhm=0.5, flux=100.0), galsim.Gaussian(fwhm=RESOLUTION))
    x = x.drawImage(nx=SIZE, ny=SIZE, scale=PIXEL, method="no_pixel").array
    x = x * 10 ** (0.4 * (ZERO_POINT - 27.0))
    used, peak = np.isfinite(cut.variance), cut.image.max()

    def worst(psf):
        y = telescope.observe(x, telescope.difference_kernel(psf, pixel=HSC_PIXEL))
        return np.abs(np.asarray(y) - cut.image)[used].max() / peak

    assert worst(cut.psf) < 0.02 and worst(blend.psf) > 0.1


@pytest.mark.parametrize("peak", [-1, 3, 0.5])
def test_peaks_that_are_none(blend, peak):
    with pytest.raises(ValueError, match="peak must be 0 to 2"):
        real_galaxies.cut_out(blend, peak)


def test_a_peak_without_light_of_its_own(blend):
    with pytest.raises(ValueError, match="Peak 0 has no light of its own"):
        real_galaxies.cut_out(blend._replace(flagged=np.ones_like(blend.flagged)), 0)


# --- Sérsic fits ------------------------------------------------------------------------------


def write_fits(path, **changes):
    """Three galaxies with the columns that are read and one that is not."""
    rows = np.arange(24.0).reshape(3, 8) + 0.5
    rows[:, :4] = [[9.0, 10.0, 1.0, 0.5], [9.0, 20.0, 4.0, 1.0], [9.0, 5.0, 0.7, 0.25]]
    columns = {"mag_auto": ("D", np.array([21.0, 22.0, 23.0])), "sersicfit": ("8D", rows)}
    columns |= {"IDENT": ("J", np.arange(3))} | changes
    fields = [fits.Column(name, kind[0], array=kind[1]) for name, kind in columns.items() if kind]
    table = fits.BinTableHDU.from_columns(fields)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    return path


def test_fits_are_read_in_arcsec(tmp_path):
    found = real_galaxies.load_sersic_fits(write_fits(tmp_path / "fits.fits"))
    np.testing.assert_array_equal(found.magnitude, [21.0, 22.0, 23.0])
    np.testing.assert_allclose(found.radius, [0.3, 0.6, 0.15])
    np.testing.assert_array_equal(found.sersic, [1.0, 4.0, 0.7])
    np.testing.assert_array_equal(found.axis_ratio, [0.5, 1.0, 0.25])


FIT_FAULTS = {
    "column": ({"sersicfit": None}, "its table lacks sersicfit"),
    "both": ({"sersicfit": None, "mag_auto": None}, "its table lacks mag_auto, sersicfit"),
    "short": ({"sersicfit": ("3D", np.ones((3, 3)))}, "or sersicfit fewer than four"),
    "single": ({"sersicfit": ("D", np.ones(3))}, "or sersicfit fewer than four"),
    "many": ({"mag_auto": ("2D", np.ones((3, 2)))}, "mag_auto is not one number in a row"),
    "nan": ({"mag_auto": ("D", np.array([21.0, np.nan, 23.0]))}, "mag_auto is not finite"),
    "text": ({"mag_auto": ("4A", np.array(["a", "b", "c"]))}, "mag_auto is not finite"),
    "radius": ({"sersicfit": ("4D", [[9, 0, 1, 0.5]])}, "a fit has a size, index or axis ratio"),
    "index": ({"sersicfit": ("4D", [[9, 9, -1, 0.5]])}, "a fit has a size, index or axis ratio"),
    "ratio": ({"sersicfit": ("4D", [[9, 9, 1, 1.5]])}, "a fit has a size, index or axis ratio"),
}


@pytest.mark.parametrize("fault", FIT_FAULTS)
def test_fits_that_do_not_fit(tmp_path, fault):
    changes, sentence = FIT_FAULTS[fault]
    changes = {
        name: kind and (kind[0], np.resize(kind[1], (3, *np.shape(kind[1])[1:])))
        for name, kind in changes.items()
    }
    path = write_fits(tmp_path / "fits.fits", **changes)
    says(lambda: real_galaxies.load_sersic_fits(path), "fits.fits", sentence)


def test_fits_that_are_cut_off_empty_or_absent(tmp_path):
    path = write_fits(tmp_path / "fits.fits")
    whole = path.read_bytes()
    for part in (b"", b"no fits file", whole[:3000], whole[:-2900]):
        path.write_bytes(part)
        says(lambda: real_galaxies.load_sersic_fits(path), "not a complete FITS file")
    nothing = {"mag_auto": ("D", np.zeros(0)), "sersicfit": ("8D", np.zeros((0, 8)))}
    write_fits(path, **nothing, IDENT=None)
    says(lambda: real_galaxies.load_sersic_fits(path), "its table is empty")
    path.unlink()
    says(lambda: real_galaxies.load_sersic_fits(path), "is not there")


# --- damaged files ----------------------------------------------------------------------------


def says(call, *words):
    """The one sentence of a `DataFileError`, which must have these words."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataFileError) as caught:
            call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    for word in words:
        assert word in text, text


HST_FILES = ["hst_catalog.fits", "hst_images.fits", "hst_psfs.fits", "acs_noise_correlation.fits"]


@pytest.mark.parametrize("name", HST_FILES)
def test_hst_files_that_are_cut_off_or_no_fits(tmp_path, name):
    write_hst(tmp_path, [hst_stamp(galsim.Gaussian(fwhm=0.4, flux=20.0), 64)] * 2)
    whole = (tmp_path / name).read_bytes()
    for part in (b"", b"no fits file", whole[:1000], whole[:3000], whole[:-2900], whole[::-1]):
        (tmp_path / name).write_bytes(part)
        says(lambda: real_galaxies.load_hst(tmp_path), name, "the file is damaged")
    (tmp_path / name).unlink()
    says(lambda: real_galaxies.load_hst(tmp_path), name, "is not there")


def spoiled(image, value):
    image = image.copy()
    image[3, 4] = value
    return image


STAMP = hst_stamp(galsim.Gaussian(fwhm=0.4, flux=20.0), 64)
CATALOG_FAULTS = {
    "column": ({"NOISE_VARIANCE": None}, "its table lacks NOISE_VARIANCE"),
    "nan": ({"MAG": [22.0, np.nan]}, "MAG is not finite in every row"),
    "scale": ({"PIXEL_SCALE": [0.03, 0.05]}, "PIXEL_SCALE is not 0.03"),
    "variance": ({"NOISE_VARIANCE": [1e-6, 0.0]}, "a NOISE_VARIANCE is not positive"),
}


@pytest.mark.parametrize("fault", CATALOG_FAULTS)
def test_catalogues_that_do_not_fit(tmp_path, fault):
    columns, sentence = CATALOG_FAULTS[fault]
    write_hst(tmp_path, [STAMP, STAMP], **columns)
    says(lambda: real_galaxies.load_hst(tmp_path), "hst_catalog.fits", sentence)


def test_images_that_do_not_fit(tmp_path):
    def load():
        return real_galaxies.load_hst(tmp_path)

    write_hst(tmp_path, [STAMP, spoiled(STAMP, np.nan)])
    says(load, "hst_images.fits", "HDU 1 holds values that are not finite")
    write_hst(tmp_path, [STAMP, STAMP[0]])
    says(load, "hst_images.fits", "HDU 1 is no image of two dimensions")
    write_hst(tmp_path, [STAMP, STAMP], GAL_HDU=[0, 2])
    says(load, "hst_images.fits", "it has 2 HDUs, and no 2")
    write_hst(tmp_path, [STAMP, np.zeros((8, 1100))])
    says(load, "hst_images.fits", "HDU 1 has (8, 1100) pixels")
    for data, sentence in [
        (np.ones((64, 51)), "HDU 0 has (64, 51) pixels, expected odd numbers"),
        (np.zeros((65, 51)), "does not sum to more than 0"),
    ]:
        write_hst(tmp_path, [STAMP])
        fits.PrimaryHDU(data).writeto(tmp_path / "hst_psfs.fits", overwrite=True)
        says(load, "hst_psfs.fits", sentence)
    for data, sentence in [
        (np.ones((80, 81)), "expected odd numbers"),
        (np.arange(9.0).reshape(3, 3), "its centre is not its maximum"),
    ]:
        write_hst(tmp_path, [STAMP])
        fits.PrimaryHDU(data).writeto(tmp_path / "acs_noise_correlation.fits", overwrite=True)
        says(load, "acs_noise_correlation.fits", sentence)


HSC_FAULTS = {
    "lacks": ({"psfs": None}, "it lacks psfs"),
    "shape": ({"variance": np.ones((2, 41, 49))}, "shapes that do not fit"),
    "bands": ({"filters": np.array(["g", "r", "i"])}, "shapes that do not fit"),
    "no i": ({"filters": np.array(["g", "r"])}, "it has no i band"),
    "psf size": ({"psfs": np.ones((2, 42, 42))}, "expected odd numbers"),
    "psf sum": ({"psfs": np.zeros((2, 43, 43))}, "does not sum to more than 0"),
    "nan": ({"images": np.full((2, 41, 50), np.nan)}, "not finite"),
    "variance": ({"variance": np.zeros((2, 41, 50))}, "the variance is not positive"),
    "mask": ({"mask": np.zeros((2, 41, 50))}, "its mask is not of whole numbers"),
    "columns": ({"catalog": np.zeros((3, 2))}, "its catalogue has no x and y"),
    "peak": ({"catalog": np.array([(50.0, 3.0)], [("x", float), ("y", float)])}, "a peak is not"),
    "no peak": ({"catalog": np.zeros(0, [("x", float), ("y", float)])}, "or there is none"),
}


@pytest.mark.parametrize("fault", HSC_FAULTS)
def test_blends_that_do_not_fit(tmp_path, fault):
    changes, sentence = HSC_FAULTS[fault]
    path = write_hsc(tmp_path / "blend.npz", **changes)
    says(lambda: real_galaxies.load_hsc(path), "blend.npz", sentence)


def test_blends_that_are_cut_off(tmp_path):
    path = write_hsc(tmp_path / "blend.npz")
    whole = path.read_bytes()
    for part in (b"", b"no zip file", whole[:2000], whole[:-30]):
        path.write_bytes(part)
        says(lambda: real_galaxies.load_hsc(path), "not a complete .npz file")
    np.savez(path, images=np.array([{}], dtype=object))
    says(lambda: real_galaxies.load_hsc(path), "not a complete .npz file")
    path.unlink()
    says(lambda: real_galaxies.load_hsc(path), "is not there")


@pytest.mark.usefixtures("offline")
def test_offline_is_one_sentence():
    for load in (real_galaxies.load_hsc, real_galaxies.load_sersic_fits):
        with pytest.raises(registry.OfflineError, match="the lesson goes on without it"):
            load()
    with pytest.raises(registry.OfflineError, match="the lesson goes on without them") as caught:
        real_galaxies.load_hst()
    assert all(name in str(caught.value) for name in real_galaxies._HST_FILES)


# --- the real files ---------------------------------------------------------------------------

real = pytest.mark.skipif(
    not os.environ.get("DLCOURSE_DATA"), reason="DLCOURSE_DATA is not set: no real data here"
)


@pytest.fixture(scope="module")
def hubble():
    return real_galaxies.load_hst()


@real
def test_real_magnitudes(hubble):
    found = photometry.measure(hubble.images).magnitude
    close = np.abs(found - hubble.magnitude) < 0.1
    bright = hubble.magnitude < 23.5
    assert len(found) == 100 and bright.sum() == 12
    assert close[hubble.magnitude < 24.5].mean() == pytest.approx(0.85, abs=0.03)
    # Number 42 is larger than the stamp, number 49 fainter in its stamp than in the catalogue.
    assert hubble.ident[bright & ~close].tolist() == [42, 49]
    assert np.median(found - hubble.magnitude) == pytest.approx(0.06, abs=0.03)


@real
def test_real_galaxies_are_centred_and_as_large_as_galaxies(hubble):
    bright = hubble.images[hubble.magnitude < 23.5]
    assert np.abs(photometry.centroid(bright, photometry.WEIGHT / PIXEL)).max() < 0.02
    radius = photometry.measure(bright).half_light_radius
    assert 0.15 < radius.min() < radius.max() < 1.1


@real
def test_real_noise_against_the_borders_of_the_stamps(hubble):
    ratios = []
    for image, valid, noise in zip(hubble.images, hubble.valid, hubble.noise, strict=True):
        # A frame of three pixels, one from the edge, where matching has smoothed with nothing.
        depth = distance_transform_cdt(np.pad(valid, 1), metric="chessboard")[1:-1, 1:-1]
        frame = image[(depth > 1) & (depth <= 4)]
        ratios.append(1.4826 * np.median(np.abs(frame - np.median(frame))) / noise)
    low, median, high = np.percentile(ratios, [16, 50, 84])
    assert median == pytest.approx(1.0, abs=0.03)
    assert low > 0.85 and high < 1.2


@real
def test_real_fits_are_those_of_the_catalogue():
    """Another column of the file has the radius of the circle of the same area, in arcsec."""
    found = real_galaxies.load_sersic_fits()
    with fits.open(registry.path("cosmos_sersic_fits.fits")) as hdus:
        circle = np.array(hdus[1].data["hlr"])[:, 0]
    assert len(found.radius) == 100 and found.magnitude.max() < 22.5
    np.testing.assert_allclose(found.radius * np.sqrt(found.axis_ratio), circle, rtol=1e-6)
    assert 0.1 < np.median(found.radius) < 1.0 and 0.5 < np.median(found.sersic) < 3.0


@pytest.fixture(scope="module")
def cosmos():
    return real_galaxies.load_hsc()


@real
def test_real_psf_is_that_of_the_star(cosmos):
    """Peak 0 is a star: the PSF, moved to it, is its image, with no other number than its flux."""
    cut = real_galaxies.cut_out(cosmos, 0)
    used = np.isfinite(cut.variance)

    def misfit(psf):
        psf = psf[11:32, 11:32]
        weight = np.where(used, 1 / cut.variance, 0.0)
        flux = (weight * psf * cut.image).sum() / (weight * psf**2).sum()
        return np.abs(cut.image - flux * psf)[used].max() / cut.image.max()

    assert misfit(cut.psf) < 0.015 and misfit(cosmos.psf) > 0.15


@real
def test_real_target(cosmos):
    """Peak 1 is no star, it is where HSM finds it, and most of its light is there to be fitted."""
    stamp = galsim.Image(cosmos.image[28:45, 23:40])
    psf = galsim.hsm.FindAdaptiveMom(galsim.Image(cosmos.psf)).moments_sigma
    hsm = galsim.hsm.FindAdaptiveMom(stamp)
    assert hsm.moments_sigma > 1.5 * psf
    cut = real_galaxies.cut_out(cosmos)
    row, column = cosmos.peaks[real_galaxies.TARGET]
    expected = [hsm.moments_centroid.y - 9, hsm.moments_centroid.x - 9]
    np.testing.assert_allclose(cut.offset / HSC_PIXEL, expected, atol=0.03)
    used = np.isfinite(cut.variance)
    all_light = cosmos.image[row - 10 : row + 11, column - 10 : column + 11]
    assert used[5:16, 5:16].all() and cut.image.sum() > 0.85 * all_light.sum()
    magnitude = ZERO_POINT - 2.5 * np.log10(all_light.sum())
    assert magnitude == pytest.approx(20.6, abs=0.05)


@real
def test_real_variance_is_that_of_the_empty_sky(cosmos):
    with np.load(registry.path("hsc_cosmos_35.npz"), allow_pickle=False) as stored:
        empty = stored["mask"][2] & (4 | 8 | 32 | 64) == 0
    scatter = cosmos.image[empty].std() / np.sqrt(np.median(cosmos.variance[empty]))
    # 390 pixels: 4 %.
    assert empty.sum() > 300 and scatter == pytest.approx(1.0, abs=0.12)
