"""Photometry: closed forms, GalSim's sizes and adaptive moments, scikit-image's PSNR."""

import numpy as np
import pytest
from scipy.optimize import brentq
from skimage.metrics import peak_signal_noise_ratio

from dlcourse_utils import photometry
from dlcourse_utils.datasets.galaxies import PIXEL, RESOLUTION, SIZE, ZERO_POINT

galsim = pytest.importorskip("galsim", reason="GalSim is not installed")


def draw(profile, x=0.0, y=0.0, n=SIZE):
    """Surface brightness at the pixel centres times the pixel's area; x, y in pixels."""
    moved = profile.shift(PIXEL * x, PIXEL * y)
    return moved.drawImage(nx=n, ny=n, scale=PIXEL, method="no_pixel").array


def blurred(profile):
    return galsim.Convolve(profile, galsim.Gaussian(fwhm=RESOLUTION))


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fwhm", [RESOLUTION, 0.3, 0.6, 1.0])
def test_gaussian_radius_and_concentration(fwhm):
    images = [draw(galsim.Gaussian(fwhm=fwhm), x, y) for x, y in [(0, 0), (0.5, 0.3), (-1, 1.4)]]
    found = photometry.measure(np.stack(images))
    np.testing.assert_allclose(found.half_light_radius, fwhm / 2, rtol=2e-3)
    # r^2 is exponentially distributed: r80 / r20 = (ln 5 / ln 1.25)^(1/2).
    np.testing.assert_allclose(found.concentration, 2.5 * np.log10(np.log(5) / np.log(1.25)), 2e-3)


def test_exponential_disc_inside_of_the_largest_circle():
    scale, edge = 0.3, PIXEL * SIZE / 2
    image = draw(blurred(galsim.Exponential(scale_radius=scale)), 0.3, -0.2)
    found = photometry.measure(image)

    def inside(radius):
        return 1 - (1 + radius / scale) * np.exp(-radius / scale)

    def radius(fraction):
        return brentq(lambda r: inside(r) - fraction * inside(edge), 1e-3, edge)

    # The blur adds to r20 most: by r -> (r^2 + s^2 ln 2)^(1/2), from the two radii of Gaussians.
    blur = RESOLUTION / 2.355
    expected = {f: np.hypot(radius(f), blur * (-2 * np.log(1 - f)) ** 0.5) for f in (0.2, 0.5, 0.8)}
    assert found.half_light_radius == pytest.approx(expected[0.5], rel=0.02)
    concentration = 5 * np.log10(expected[0.8] / expected[0.2])
    assert found.concentration == pytest.approx(concentration, abs=0.05)
    assert 2.5 < concentration < 2.8  # without a blur and an edge it would be 2.80


@pytest.mark.parametrize("index", [0.7, 1.5, 4.0])
def test_radii_against_the_integral_of_a_fine_image(index):
    """GalSim's own half-light radius, on pixels five times finer, of the light in our circle."""
    profile = blurred(galsim.Sersic(n=index, half_light_radius=0.45, trunc=1.7))
    found = photometry.measure(draw(profile, 0.4, 0.3))
    fine = profile.drawImage(nx=5 * SIZE, ny=5 * SIZE, scale=PIXEL / 5, method="no_pixel")
    offset = (np.arange(5 * SIZE) - (5 * SIZE - 1) / 2) * PIXEL / 5
    outside = np.hypot(offset[:, None], offset[None, :]) > PIXEL * SIZE / 2
    fine.array[outside] = 0.0
    assert found.half_light_radius == pytest.approx(fine.calculateHLR(), rel=0.01)


def test_a_steeper_profile_is_more_concentrated():
    profiles = [galsim.Sersic(n=n, half_light_radius=0.4) for n in (0.5, 1, 2, 4)]
    found = photometry.measure(np.stack([draw(blurred(p)) for p in profiles])).concentration
    assert np.all(np.diff(found) > 0.1) and found[0] < 2.4 and found[-1] > 3.3


def test_centroid_is_found_whatever_the_width_and_the_pixel():
    places = np.array([(0.0, 0.0), (1.5, -1.2), (-0.3, 1.9)])
    for fwhm in (0.2, 0.6, 1.1):
        profile = galsim.Gaussian(fwhm=fwhm).shear(g1=0.2)
        images = np.stack([draw(profile, x, y) for y, x in places])
        found = photometry.centroid(images, photometry.WEIGHT / PIXEL)
        np.testing.assert_allclose(found, places, atol=0.02)
    # The one beyond the reach stops there.
    assert np.abs(photometry.centroid(images, 7.0, 1.0)).max() == 1.0
    wide = galsim.Gaussian(fwhm=0.6).shift(0.2, -0.1).drawImage(nx=21, ny=21, scale=0.2)
    np.testing.assert_allclose(photometry.centroid(wide.array, 2.0), [-0.5, 1.0], atol=0.01)
    with pytest.raises(ValueError, match="images must have shape"):
        photometry.centroid(np.ones(63), 2.0)


# --- ellipticity -----------------------------------------------------------------------------


@pytest.mark.parametrize("g1, g2", [(0.0, 0.0), (0.2, 0.0), (0.0, -0.4), (-0.3, 0.2)])
def test_ellipticity_of_a_gaussian_under_the_weight(g1, g2):
    width, shear = 0.25, galsim.Shear(g1=g1, g2=g2)
    q = (1 - shear.g) / (1 + shear.g)
    # Inverse covariances add up; the axes of the sheared one are width / q^(1/2), width q^(1/2).
    major, minor = (1 / (1 / (width**2 * f) + 1 / photometry.WEIGHT**2) for f in (1 / q, q))
    expected = (major**0.5 - minor**0.5) / (major**0.5 + minor**0.5)
    image = draw(galsim.Gaussian(sigma=width).shear(shear), 0.7, -0.4)
    assert photometry.measure(image).ellipticity == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("index", [1.0, 2.5])
def test_ellipticity_against_the_moments_of_hsm(index):
    """HSM with round moments has this weight, once ours is as wide as the one that it finds."""
    profile = blurred(galsim.Sersic(n=index, half_light_radius=0.35, trunc=1.5))
    image = draw(profile.shear(g1=0.25, g2=-0.3), 0.6, 0.8)
    hsm = galsim.hsm.FindAdaptiveMom(galsim.Image(image, scale=PIXEL), round_moments=True)
    found = photometry.measure(image, weight=hsm.moments_sigma * PIXEL).ellipticity
    assert hsm.observed_shape.g > 0.1
    assert found == pytest.approx(hsm.observed_shape.g, abs=1e-3)


def test_noise_moves_the_numbers_little():
    rng = np.random.default_rng(60)
    image = draw(blurred(galsim.Exponential(half_light_radius=0.4).shear(g1=0.3)).withFlux(1000.0))
    noise = 0.6  # peak over noise: 30
    exact = photometry.measure(image)
    noisy = photometry.measure(image + noise * rng.normal(size=(200, SIZE, SIZE)))
    # The sum of the pixels is unbiased, and its error is that of n^2 pixels.
    error = noise * SIZE
    assert noisy.flux.std() == pytest.approx(error, rel=0.2)  # 200 draws: 5 %
    assert noisy.flux.mean() == pytest.approx(1000.0, abs=5 + 4 * error / 200**0.5)
    assert np.median(noisy.ellipticity) == pytest.approx(exact.ellipticity, abs=0.01)
    assert noisy.ellipticity.std() < 0.03
    assert np.median(noisy.half_light_radius) == pytest.approx(exact.half_light_radius, rel=0.02)


# --- flux, tables, bad input -----------------------------------------------------------------


def test_flux_and_magnitude():
    images = np.stack([draw(galsim.Gaussian(fwhm=0.5, flux=f)) for f in (1.0, 1000.0, 3631e9)])
    found = photometry.measure(images)
    np.testing.assert_allclose(found.flux, [1.0, 1000.0, 3631e9], rtol=1e-4)
    # 3631 Jy is the zero point of AB, which 31.4 rounds.
    np.testing.assert_allclose(found.magnitude, [ZERO_POINT, ZERO_POINT - 7.5, 0.0], atol=2e-3)


def test_shapes_and_blocks_do_not_matter():
    rng = np.random.default_rng(61)
    images = np.stack([draw(galsim.Gaussian(fwhm=f)) for f in rng.uniform(0.2, 0.9, 70)])
    found = photometry.measure(images.reshape(2, 35, SIZE, SIZE))
    assert all(values.shape == (2, 35) for values in found)
    for index in (0, 34, 65, 69):
        alone = photometry.measure(images[index])
        assert [np.shape(value) for value in alone] == [()] * 5
        for one, many in zip(alone, found, strict=True):
            np.testing.assert_allclose(one, many.ravel()[index], rtol=1e-5, atol=1e-6)
    assert all(values.shape == (0,) for values in photometry.measure(images[:0]))


def test_a_bad_image_has_nan_for_its_own_numbers_only():
    good = draw(blurred(galsim.Exponential(half_light_radius=0.4)))
    holed = good.copy()
    holed[30, 30] = np.nan
    found = photometry.measure(np.stack([good, holed, -good, 0 * good, good]))
    for name, values in found._asdict().items():
        assert np.isfinite(values[[0, 4]]).all() and values[0] == values[4]
        # A sum is a number even where a magnitude is none.
        assert np.isnan(values[1:4]).tolist() == [True, name != "flux", name != "flux"]


@pytest.mark.parametrize("shape", [(63,), (63, 62), (2, 63, 1), (5, 5)])
def test_shapes_that_are_no_stamp(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(..., n, n\)"):
        photometry.measure(np.ones(shape))
    with pytest.raises(ValueError, match=r"estimate must have shape"):
        photometry.psnr(np.ones(shape), np.ones(shape))


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match="weight must be positive and finite"):
        photometry.measure(np.ones((9, 9)), weight=weight)


# --- PSNR ------------------------------------------------------------------------------------


def test_psnr_against_scikit_image():
    rng = np.random.default_rng(62)
    truth = np.stack([draw(galsim.Gaussian(fwhm=f, flux=800.0)) for f in (0.2, 0.5, 0.9)])
    estimate = (truth + rng.normal(size=truth.shape)).astype(np.float32)
    expected = [
        peak_signal_noise_ratio(t, e, data_range=t.max())
        for t, e in zip(truth, estimate, strict=True)
    ]
    np.testing.assert_allclose(photometry.psnr(estimate, truth), expected, rtol=1e-5)
    np.testing.assert_allclose(photometry.psnr(estimate[1], truth[1]), expected[1], rtol=1e-5)
    # Ten times the error is 20 dB less, whatever the unit.
    worse = photometry.psnr(7 * (truth + 10 * (estimate - truth)), 7 * truth)
    np.testing.assert_allclose(worse, np.array(expected) - 20, atol=1e-3)


def test_psnr_of_bad_images():
    good = draw(galsim.Gaussian(fwhm=0.5))
    holed = np.where(good == good.max(), np.nan, good)
    found = photometry.psnr(
        np.stack([good, holed, good, good]), np.stack([good, good, holed, -good])
    )
    assert found[0] == np.inf and np.isnan(found[1:]).all()
    with pytest.raises(ValueError, match="must have one shape"):
        photometry.psnr(good[None], good)
