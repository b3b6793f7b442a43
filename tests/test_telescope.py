"""The telescope: GalSim's images, closed forms, scipy's convolutions, its own transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, signal, special

from dlcourse_utils import registry, telescope
from dlcourse_utils.datasets import galsim_reference
from dlcourse_utils.datasets.galaxies import PIXEL, RESOLUTION, SIZE, ZERO_POINT
from dlcourse_utils.telescope import FACTOR, SURVEY_PIXEL, SURVEY_SIZE, TelescopeError

SIGMA = RESOLUTION / np.sqrt(8 * np.log(2))
STAMP = (SURVEY_SIZE, SURVEY_SIZE)


@pytest.fixture(scope="module")
def kernel():
    return telescope.difference_kernel(telescope.moffat())


@pytest.fixture(scope="module")
def measured():
    """The PSF of Hyper Suprime-Cam, 43 x 43 at 0.168 arcsec, that ships with the reference."""
    with np.load(registry.path("galsim_reference.npz"), allow_pickle=False) as file:
        return file["hsc_psf"].astype(float)


def middle(image, size):
    edge = (image.shape[-1] - size) // 2
    return image[..., edge : edge + size, edge : edge + size]


def gaussian(sigma, size, pixel):
    r2 = np.add.outer(*2 * [(pixel * (np.arange(size) - size // 2)) ** 2])
    return np.exp(-r2 / (2 * sigma**2)) * pixel**2 / (2 * np.pi * sigma**2)


def draw(galsim, profile, size, pixel, method="no_pixel"):
    image = galsim.Image(size, size, scale=pixel, dtype=float)
    # Finer than GalSim's defaults, which aim at 5e-3 of the flux.
    fine = galsim.GSParams(folding_threshold=1e-3, kvalue_accuracy=1e-6, maxk_threshold=1e-4)
    return profile.withGSParams(fine).drawImage(image, method=method).array


# --- point-spread functions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "within"),
    [((0.7, 3.0, 0, 0), 1e-5), ((0.5, 4.0, 0.1, -0.05), 3e-5), ((1.0, 2.5, 0, 0.1), 3e-4)],
)
def test_moffat_against_galsim(law, within):
    galsim = pytest.importorskip("galsim")
    fwhm, beta, e1, e2 = law
    profile = galsim.Moffat(beta, fwhm=fwhm).shear(g1=e1, g2=e2)
    profile = galsim.Convolve(profile, galsim.Pixel(SURVEY_PIXEL))
    expected = draw(galsim, profile, 127, PIXEL)
    psf = telescope.moffat(*law)
    assert psf.sum() == pytest.approx(1.0, abs=1e-12)
    # The wings beyond the stamp are what scaling to 1 adds: 2e-4 for the last one.
    assert np.abs(middle(psf, 127) - expected).max() < within * expected.max()


def test_depth_in_closed_form():
    """5 sigma of the matched filter: F sqrt(sum of PSF^2) / noise; the sum by Parseval's theorem.

    The transform of a Moffat law is a Bessel function, that of the pixel a sinc.
    """
    radius = 0.5 * telescope.SEEING / np.sqrt(2 ** (1 / 3) - 1)

    def power(kx, ky):
        q = 2 * np.pi * radius * np.hypot(kx, ky)
        moffat = 0.5 * q**2 * special.kv(2, q)
        return (moffat * np.sinc(kx * SURVEY_PIXEL) * np.sinc(ky * SURVEY_PIXEL)) ** 2

    k = np.linspace(-4, 4, 801) + 1e-6
    squares = SURVEY_PIXEL**2 * power(k[:, None], k[None]).sum() * (k[1] - k[0]) ** 2
    faintest = 5 * telescope.NOISE / np.sqrt(squares)
    assert ZERO_POINT - 2.5 * np.log10(faintest) == pytest.approx(25.92, abs=0.01)
    psf = np.asarray(telescope.sample(jnp.asarray(middle(telescope.moffat(), 501))))
    assert np.sum(psf**2) == pytest.approx(squares, rel=1e-4)


def test_difference_of_gaussians_is_a_gaussian():
    psf = 40.0 * gaussian(0.3, 127, PIXEL)  # counts, not a sum of 1
    found = telescope.difference_kernel(psf)
    expected = gaussian(np.sqrt(0.3**2 - SIGMA**2), 125, PIXEL)
    # What is left out, below 1e-6 in each mode, is less than that of the peak.
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("fwhm", "within"), [(0.5, 3e-3), (0.7, 1e-4)])
def test_coarse_and_fine_images_of_a_psf_give_the_same_kernel(fwhm, within):
    fine = telescope.moffat(fwhm)
    coarse = fine[1::FACTOR, 1::FACTOR]  # the middle, pixel 250, is among these
    assert coarse.shape == (167, 167) and coarse.argmax() == 83 * 167 + 83
    found = telescope.difference_kernel(coarse, SURVEY_PIXEL)
    # What is lost are frequencies beyond those that pixels of 0.168 arcsec can hold.
    kernel = telescope.difference_kernel(fine)
    assert np.abs(found - kernel).max() < within * kernel.max()


def test_kernel_gives_the_psf_back(kernel, measured):
    coarse = telescope.difference_kernel(measured, SURVEY_PIXEL)
    # The measured one has 1e-3 of its power at the highest frequency of its pixels: it rings.
    for psf, step, found, within in [
        (telescope.moffat(), 1, kernel, 1e-5),
        (measured, FACTOR, coarse, 2e-4),
    ]:
        again = signal.fftconvolve(found, gaussian(SIGMA, 31, PIXEL), mode="same")
        again = again[62 % step :: step, 62 % step :: step] * step**2
        again, expected = middle(again, 31), middle(psf, 31)
        np.testing.assert_allclose(again, expected, rtol=0, atol=within * psf.max())


# --- against GalSim ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def galsim_cases(measured):
    """50 galaxies behind 10 PSFs as GalSim draws them: kernels, x (50, 129, 129), y (50, 21, 21).

    x reaches 33 pixels further than the stamp on each side, for light comes from there too.
    """
    galsim = pytest.importorskip("galsim")
    rng = np.random.default_rng(60)

    def shear(largest):
        e, angle = rng.uniform(0, largest), rng.uniform(0, 2 * np.pi)
        return {"g1": e * np.cos(angle), "g2": e * np.sin(angle)}

    resolution = galsim.Gaussian(fwhm=RESOLUTION)
    kernels, x, y = [], [], []
    for number in range(50):
        if number % 10 == 9:
            kernels.append(telescope.difference_kernel(measured, SURVEY_PIXEL))
            # Band limited, nearly. GalSim's default, quintic polynomials, gives another PSF between
            # the pixels: 3e-3 of the peak off here, and off the truth where that is known.
            image = galsim.Image(measured, scale=SURVEY_PIXEL)
            psf = galsim.InterpolatedImage(image, x_interpolant="lanczos15", flux=1)
            method = "no_pixel"
        else:
            fwhm, beta, e = rng.uniform(0.5, 1.0), rng.uniform(2.5, 4.0), shear(0.1)
            kernels.append(telescope.difference_kernel(telescope.moffat(fwhm, beta, *e.values())))
            psf, method = galsim.Moffat(beta, fwhm=fwhm).shear(**e), "auto"
        radius = rng.uniform(0.15, 0.8)
        if number % 3 == 0:
            disc = galsim.Exponential(half_light_radius=radius, flux=70).shear(**shear(0.5))
            bulge = galsim.DeVaucouleurs(half_light_radius=0.4 * radius, flux=30)
            galaxy = disc + bulge.shear(**shear(0.2))
        else:
            index = rng.choice([0.5, 0.8, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
            galaxy = galsim.Sersic(index, half_light_radius=radius, flux=100).shear(**shear(0.5))
        galaxy = galaxy.shift(*rng.uniform(-0.2, 0.2, 2))
        x.append(draw(galsim, galsim.Convolve(galaxy, resolution), 129, PIXEL))
        y.append(draw(galsim, galsim.Convolve(galaxy, psf), SURVEY_SIZE, SURVEY_PIXEL, method))
    return jnp.stack(kernels), jnp.asarray(np.array(x), jnp.float32), np.array(y)


def test_fifty_galaxies_and_psfs_against_galsim(galsim_cases):
    kernels, x, y = galsim_cases
    found = np.asarray(jax.jit(jax.vmap(telescope.observe))(x, kernels))
    error = np.abs(middle(found, SURVEY_SIZE) - y).max(axis=(1, 2)) / y.max(axis=(1, 2))
    print(
        f"worst of 50: {error.max():.1e}, Moffat alone {np.delete(error, np.s_[9::10]).max():.1e}"
    )
    assert error.max() < 3e-4
    # What the stamp cuts off is another matter, and is no error of the operator: some per cent.
    cut = jax.jit(jax.vmap(telescope.observe))(middle(x, SIZE), kernels)
    lost = np.abs(np.asarray(cut) - y).max(axis=(1, 2)) / y.max(axis=(1, 2))
    print(f"light from outside the stamp: up to {lost.max():.1e}, median {np.median(lost):.1e}")
    assert 0.01 < lost.max() < 0.05


def test_shipped_reference_from_the_parameters_to_the_image():
    error = galsim_reference.errors()
    assert error.shape == (50,)
    assert error.max() < 5e-4
    shifted = galsim_reference.errors(lambda x, k: telescope.observe(jnp.roll(x, 1, -1), k))
    assert shifted.min() > 0.01


def test_galsim_draws_the_shipped_reference(load_script):
    pytest.importorskip("galsim")
    script = load_script("make_galsim_reference")
    with np.load(registry.path("galsim_reference.npz"), allow_pickle=False) as file:
        stored = dict(file)
    for name, values in script.cases(stored["hsc_psf"]).items():
        np.testing.assert_allclose(stored[name], values, rtol=1e-6, err_msg=name)
    some = [1, 15, 26, 33, 40]  # one behind each PSF
    expected = stored["images"][some]
    found = script.draw(stored, some)
    assert np.all(np.abs(found - expected).max((1, 2)) < 1e-5 * expected.max((1, 2)))


def test_flux_of_a_compact_source(kernel):
    x = np.zeros((1, 315, 315))
    x[0] = 1000.0 * gaussian(0.1, 315, PIXEL)
    blurred = np.asarray(jax.jit(telescope.observe)(jnp.asarray(x, jnp.float32), kernel), float)
    # The rest of the light is further out than the kernel reaches: a square around the source.
    radius = 0.5 * telescope.SEEING / np.sqrt(2 ** (1 / 3) - 1)
    half = 62.5 * PIXEL
    outside, _ = integrate.quad(
        lambda angle: 4 / np.pi * (1 + (half / np.cos(angle) / radius) ** 2) ** -2, 0, np.pi / 4
    )
    assert 5e-4 < outside < 2e-3
    assert blurred.sum() / x.sum() == pytest.approx(1 - outside, abs=1e-4)


# --- the operator ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size"), [((9, 9), (5, 5)), ((12, 7), (3, 13)), ((2, 3, 8, 8), (15, 15))]
)
def test_convolve_against_scipy_and_the_plain_sum(shape, size):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=shape), rng.normal(size=size)
    found = np.asarray(telescope.convolve(jnp.asarray(x), jnp.asarray(kernel)))
    assert found.shape == shape and found.dtype == np.float32
    images = x.reshape(-1, *shape[-2:])
    # "same" of scipy centres on the larger of the two: "full" and its middle say what is meant.
    rows, columns = (slice(k // 2, k // 2 + n) for k, n in zip(size, shape[-2:], strict=True))
    for one, got in zip(images, found.reshape(images.shape), strict=True):
        by_fft = signal.fftconvolve(one, kernel)[rows, columns]
        by_sum = signal.convolve2d(one, kernel)[rows, columns]
        np.testing.assert_allclose(by_fft, by_sum, atol=1e-12)
        np.testing.assert_allclose(got, by_sum, atol=2e-5)


def test_light_that_leaves_does_not_come_back(kernel):
    x = np.zeros((SIZE, SIZE), np.float32)
    x[0, SIZE - 1] = 1.0
    found = np.asarray(telescope.convolve(jnp.asarray(x), kernel))
    # The kernel with its middle at the corner: the rest of it is outside.
    expected = kernel[62:, :SIZE]
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert found[-1, 0] < 1e-3 * found[0, -1]


def test_survey_pixels_are_where_they_should_be():
    x = np.zeros((SIZE, SIZE), np.float32)
    x[31, 31] = x[1, 61] = 1.0
    one = np.zeros((1, 1), np.float32) + 1.0
    y = np.asarray(telescope.observe(jnp.asarray(x), jnp.asarray(one)))
    assert y[10, 10] == pytest.approx(9.0) and y[0, 20] == pytest.approx(9.0)
    assert np.abs(y).sum() == pytest.approx(18.0, abs=1e-4)


def test_matrix_and_fft_are_the_same_map():
    law = (0.8, 2.7, 0.1, 0.05)  # no symmetry to hide behind
    kernel = telescope.difference_kernel(telescope.moffat(*law))
    kernel = kernel.at[62, 70].add(0.01)
    x = jax.random.normal(jax.random.key(2), (2, 3, SIZE, SIZE))
    matrix = telescope.operator(kernel)
    assert matrix.shape == (441, 3969) and matrix.dtype == jnp.float32
    expected = jax.jit(telescope.observe)(x, kernel)
    np.testing.assert_allclose(telescope.apply(matrix, x), expected, atol=1e-4)
    np.testing.assert_allclose(telescope.apply(matrix, x[0, 0]), expected[0, 0], atol=1e-4)


def test_adjoint(kernel):
    x = jax.random.normal(jax.random.key(3), (4, SIZE, SIZE))
    y = jax.random.normal(jax.random.key(4), (4, *STAMP))

    @jax.jit
    def observe(x):
        return telescope.observe(x, kernel)

    (back,) = jax.jit(jax.linear_transpose(observe, x))(y)
    left = np.vdot(np.asarray(observe(x), float), np.asarray(y, float))
    right = np.vdot(np.asarray(x, float), np.asarray(back, float))
    size = np.linalg.norm(observe(x)) * np.linalg.norm(y)
    assert abs(left - right) < 1e-5 * size
    matrix = np.asarray(telescope.operator(kernel), float)
    expected = np.asarray(y, float).reshape(4, -1) @ matrix
    np.testing.assert_allclose(back.reshape(4, -1), expected, atol=1e-5 * np.abs(expected).max())


def test_gradients_are_finite_with_masked_pixels(kernel):
    variance = jnp.full(STAMP, 4.0).at[3:6, 5].set(jnp.inf)

    def misfit(x, kernel, variance):
        y = telescope.observe_noisy(jax.random.key(5), x, kernel, variance)
        return jnp.sum(y**2 / variance)

    x = jnp.ones((SIZE, SIZE))
    gradients = jax.jit(jax.grad(misfit, argnums=(0, 1, 2)))(x, kernel, variance)
    for gradient in gradients:
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


# --- noise -------------------------------------------------------------------------------------


def test_noise_has_the_variance_of_the_map(kernel):
    n = 4000
    variance = jnp.linspace(1.0, 30.0, 441).reshape(STAMP).at[0, :7].set(jnp.inf)
    x = jnp.asarray(100.0 * gaussian(0.3, SIZE, PIXEL), jnp.float32)
    mean = np.asarray(jax.jit(telescope.observe)(x, kernel), float)
    draws = jax.vmap(lambda key: telescope.observe_noisy(key, x, kernel, variance))
    y = jax.jit(draws)(jax.random.split(jax.random.key(6), n))
    masked = ~np.isfinite(np.asarray(variance))
    y = np.asarray(y, float)
    assert masked.sum() == 7 and (y[:, masked] == 0).all()
    y, mean, variance = y[:, ~masked], mean[~masked], np.asarray(variance, float)[~masked]
    pull = (y.mean(axis=0) - mean) / np.sqrt(variance / n)
    assert np.abs(pull).max() < 4.5  # 434 numbers
    ratio = (y.var(axis=0, ddof=1) / variance - 1) / np.sqrt(2 / (n - 1))
    assert np.abs(ratio).max() < 4.8  # a little skewed
    together = np.corrcoef(y[:, 100:140].T) - np.eye(40)
    assert np.abs(together).max() < 4.8 / np.sqrt(n)  # 780 pairs: no pixel knows of another


def test_one_variance_each(kernel):
    x = jnp.zeros((2, SIZE, SIZE))
    each = jnp.stack([jnp.full(STAMP, 1.0), jnp.full(STAMP, 100.0)])
    observe = jax.jit(telescope.observe_noisy)
    y = np.asarray(observe(jax.random.key(7), x, kernel, each))
    error = (2 * 441) ** -0.5
    np.testing.assert_allclose(y.std(axis=(1, 2)), [1, 10], rtol=4 * error)
    same = np.asarray(observe(jax.random.key(8), x, kernel, 100.0))
    assert same.std() == pytest.approx(10.0, rel=3 * error)


# --- bad input ---------------------------------------------------------------------------------

GOOD = gaussian(0.3, 43, PIXEL)


def with_value(value):
    psf = GOOD.copy()
    psf[5, 7] = value
    return psf


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: telescope.moffat(0.0), r"No Moffat has fwhm = 0\.0"),
        (lambda: telescope.moffat(float("nan")), "No Moffat has fwhm = nan"),
        (lambda: telescope.moffat(0.7, 1.0), r"beta = 1\.0.*take fwhm > 0, beta > 1"),
        (lambda: telescope.moffat(0.7, 3.0, 0.8, 0.7), "an ellipticity below 1"),
        (lambda: telescope.difference_kernel(with_value(np.nan)), "The PSF holds NaN or infinite"),
        (lambda: telescope.difference_kernel(0 * GOOD), "The PSF sums to 0 and cannot be scaled"),
        (lambda: telescope.difference_kernel(-GOOD), "The PSF sums to -1 and cannot be scaled"),
        (lambda: telescope.difference_kernel(GOOD - GOOD.mean()), "look at its background"),
        (lambda: telescope.difference_kernel(GOOD[1:]), r"an odd number of pixels.*\(42, 43\)"),
        (lambda: telescope.difference_kernel(GOOD[None]), r"an odd number.*\(1, 43, 43\)"),
        (lambda: telescope.difference_kernel(GOOD[2:]), r"not centred: its peak is \(-1, 0\)"),
        (lambda: telescope.difference_kernel(np.fft.ifftshift(GOOD)), r"its peak is \(-21, -21\)"),
        (lambda: telescope.difference_kernel(GOOD, 0.0), "must be positive, got 0.0"),
        (lambda: telescope.difference_kernel(GOOD, 0.01), "sharper than the resolution"),
        (lambda: telescope.difference_kernel(np.eye(1)), "sharper than the resolution"),
        (lambda: telescope.difference_kernel(GOOD, 1.0), "larger than the image: .* pixel, 1.0"),
        (lambda: telescope.convolve(jnp.ones(9), GOOD), r"x must have shape .*got \(9,\)"),
        (
            lambda: telescope.convolve(jnp.ones((21, 63)), GOOD),
            r"larger than the image .*\(41, 125\)",
        ),
        (lambda: telescope.convolve(jnp.ones((63, 63)), GOOD[:, 1:]), r"odd number .*\(43, 42\)"),
        (lambda: telescope.sample(jnp.ones((63, 64))), "sides that are multiples of 3"),
        (lambda: telescope.operator(GOOD), r"must have shape \(125, 125\), got \(43, 43\)"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, sentence):
    with pytest.raises(TelescopeError, match=sentence) as told:
        call()
    assert "\n" not in str(told.value) and str(told.value).endswith(".")


Y, V = np.zeros(STAMP), np.ones(STAMP)
MASKED = np.where(np.arange(21) < 3, np.inf, V)


def test_observations_that_can_be_fitted_pass():
    telescope.check_observation(Y, V)
    telescope.check_observation(np.where(np.isinf(MASKED), np.nan, Y), MASKED)
    telescope.check_observation(jnp.zeros((4, *STAMP)), jnp.asarray(MASKED))
    telescope.check_observation(np.zeros((4, *STAMP)), np.stack(4 * [V]))


@pytest.mark.parametrize(
    ("y", "variance", "sentence"),
    [
        (Y, V * 0, "The variance holds 441 values that are not positive"),
        (Y, np.where(MASKED > 1, -1.0, V), "The variance holds 63 values"),
        (Y, np.where(MASKED > 1, np.nan, V), "The variance holds 63 values"),
        (Y, V * np.inf, "All pixels of an image are masked"),
        (np.stack([Y, Y]), np.stack([V, V * np.inf]), "All pixels of an image are masked"),
        (Y + np.nan, MASKED, "y holds 378 values that are not finite"),
        (np.stack([Y, Y + np.inf]), V, "y holds 441 values that are not finite"),
        (Y[1:], V, r"got \(20, 21\) and \(21, 21\)"),
        (Y, V[None], r"got \(21, 21\) and \(1, 21, 21\)"),
        (Y, 1.0, r"got \(21, 21\) and \(\)"),
    ],
)
def test_observations_that_cannot_be_fitted_are_refused(y, variance, sentence):
    with pytest.raises(TelescopeError, match=sentence):
        telescope.check_observation(y, variance)
