"""Lesson 06 as the solution builds it, beside SciPy, scikit-image, GalSim and closed forms."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal, stats
from skimage.restoration import denoise_tv_chambolle

from dlcourse_utils import diagnostics, galaxy_prior, lessons, telescope
from dlcourse_utils.datasets import galaxies, galsim_reference
from dlcourse_utils.galaxy_prior import GalaxyPrior

KEY = jax.random.key(60)
SIGMA = telescope.NOISE


@pytest.fixture(scope="module")
def source():
    return lessons.load("06")


@pytest.fixture(scope="module")
def lesson(source):
    """The exercises as solved, and what the lesson's other cells find when they run, but less."""
    scope = lessons.reference(source)
    _, images = galaxies.simulate(KEY, 520)
    scope["train_x"], scope["test_x"] = images[:512], images[512:]
    scope["kernel"] = telescope.difference_kernel(telescope.moffat())
    scope["noise"] = SIGMA
    scope["A"] = telescope.operator(scope["kernel"])
    scope["observe"] = jax.tree_util.Partial(telescope.apply, scope["A"])
    scope["test_y"] = telescope.observe_noisy(KEY, scope["test_x"], scope["kernel"], SIGMA**2)
    scope["tuning_x"], scope["tuning_y"] = scope["test_x"], scope["test_y"]
    scope["prior"] = galaxy_prior.load()
    for name in ("ascend", "gaussian_of", "starlets", "residuals"):
        (cell,) = (c for c in source.cells if re.search(rf"^def {name}\(", c.source, re.M))
        exec(compile(cell.source, f"<{name}>", "exec"), scope)
    return scope


# --- the telescope ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(20, 7), (9, 17), (63, 125)])
def test_convolution_is_scipys(lesson, n, m):
    rng = np.random.default_rng(n)
    x, kernel = rng.normal(size=(2, 3, n, n)), rng.uniform(size=(m, m))
    full = signal.fftconvolve(x, kernel[None, None] / kernel.sum(), axes=(2, 3))
    expected = full[..., m // 2 : m // 2 + n, m // 2 : m // 2 + n]
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]
    found = lesson["convolve"](*arrays)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    theirs = telescope.convolve(arrays[0], arrays[1] / arrays[1].sum())
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    np.testing.assert_allclose(
        lesson["convolve"](arrays[0][0, 0], arrays[1]), found[0, 0], atol=1e-5
    )


def test_the_telescope_is_galsims(lesson):
    """The way of the lesson, with the bound of its verdict."""

    def observe(x, kernel):
        return telescope.sample(lesson["convolve"](x, kernel) * kernel.sum())

    assert galsim_reference.errors(observe).max() < 1e-3
    blurred = telescope.sample(lesson["convolve"](lesson["test_x"], lesson["kernel"]))
    blurred = blurred * lesson["kernel"].sum()
    np.testing.assert_allclose(lesson["observe"](lesson["test_x"]), blurred, rtol=1e-3, atol=1e-2)


# --- the likelihood and what is left ------------------------------------------------------------


def masked_variance(rng, n, masked=0.1):
    variance = rng.uniform(2.0, 30.0, (n, 21, 21))
    return np.where(rng.uniform(size=variance.shape) < masked, np.inf, variance)


def test_likelihood_is_scipys(lesson):
    rng = np.random.default_rng(62)
    variance, mean = masked_variance(rng, 5), rng.normal(0.0, 50.0, (5, 21, 21))
    y = mean + rng.normal(0.0, 4.0, mean.shape)
    used = np.isfinite(variance)
    deviation = np.sqrt(np.where(used, variance, 1.0))
    expected = np.where(used, stats.norm.logpdf(y, mean, deviation), 0.0).sum(axis=(1, 2))
    found = lesson["log_likelihood"](*(jnp.asarray(a, jnp.float32) for a in (y, mean, variance)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (~used).any(axis=(1, 2)).all()


def test_surprise_of_pure_noise_is_that_of_chi_squared(lesson):
    """One mask for all, so that all have one law; its excess has mean 0 and variance 1."""
    n, rng = 4_000, np.random.default_rng(63)
    variance = np.broadcast_to(masked_variance(rng, 1), (n, 21, 21)).astype(np.float32)
    mean = rng.normal(0.0, 50.0, (1, 21, 21))
    used = np.isfinite(variance)
    y = mean + np.sqrt(np.where(used, variance, 0.0)) * rng.normal(size=variance.shape)
    mean = np.broadcast_to(mean, y.shape)
    surprise = jax.jit(lesson["surprise"])
    reduced, excess = (
        np.asarray(a, dtype=float)
        for a in surprise(*(jnp.asarray(a, jnp.float32) for a in (y, mean, variance)))
    )
    count = int(used[0].sum())
    assert 380 < count < 420
    assert stats.kstest(reduced * count, stats.chi2(count).cdf).pvalue > 1e-3
    assert excess.mean() == pytest.approx(0.0, abs=4 / n**0.5)
    # The variance of a variance: 2, and 12 / count for the tail of chi^2.
    assert excess.var() == pytest.approx(1.0, abs=4 * ((2 + 12 / count) / n) ** 0.5)


# --- Gaussian priors --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(lesson):
    """64 pixels, of which 16 sums are seen; its mean, covariance, operator and noise."""
    rng = np.random.default_rng(64)
    rows, columns = np.divmod(np.arange(64), 8)
    distance = np.hypot(np.subtract.outer(rows, rows), np.subtract.outer(columns, columns))
    covariance = 2.0 * np.exp(-distance / 3.0)
    blur = np.exp(-0.5 * (np.subtract.outer(np.arange(8), np.arange(8)) / 1.2) ** 2)
    operator = np.kron(blur[::2], blur[1::2])
    mean, variance = rng.normal(size=64), rng.uniform(0.3, 3.0, 16)
    cov_xy = covariance @ operator.T
    parts = mean, operator @ mean, cov_xy, operator @ cov_xy
    prior = lesson["Gaussian"](*(jnp.asarray(a, jnp.float32) for a in parts))
    return mean, covariance, operator, variance, prior


def test_wiener_is_the_dense_solution_of_the_precision_form(lesson, small):
    mean, covariance, operator, variance, prior = small
    y = np.random.default_rng(65).normal(0.0, 5.0, 16)
    weight = np.linalg.inv(covariance)
    precision = weight + operator.T @ (operator / variance[:, None])
    expected = np.linalg.solve(precision, weight @ mean + operator.T @ (y / variance))
    found = lesson["wiener"](*(jnp.asarray(a, jnp.float32) for a in (y, variance)), prior)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_wiener_is_calibrated(lesson, small):
    """Draws of the Gaussian: errors have the posterior's covariance, and no link with the data."""
    mean, covariance, operator, variance, prior = small
    n, rng = 4_000, np.random.default_rng(66)
    x = mean + rng.normal(size=(n, 64)) @ np.linalg.cholesky(covariance).T
    y = x @ operator.T + np.sqrt(variance) * rng.normal(size=(n, 16))
    wiener = jax.jit(jax.vmap(lesson["wiener"], in_axes=(0, None, None)))
    data, noise = (jnp.asarray(a, jnp.float32) for a in (y, variance))
    error = np.asarray(wiener(data, noise, prior), dtype=float) - x
    seen = operator @ covariance @ operator.T + np.diag(variance)
    gain = covariance @ operator.T @ np.linalg.inv(seen)
    posterior = covariance - gain @ operator @ covariance
    chi2 = np.sum(error * np.linalg.solve(posterior, error.T).T, axis=1)
    assert stats.kstest(chi2, stats.chi2(64).cdf).pvalue > 1e-3
    assert np.trace(posterior) < 0.8 * np.trace(covariance)  # the data say something
    link = (error.T @ (y - operator @ mean)) / n
    scatter = np.sqrt(np.outer(np.diag(posterior), np.diag(seen)) / n)
    assert np.abs(link / scatter).max() < 5.0  # of 1024 numbers


def test_covariance_of_galaxies_is_that_of_all_their_turns(lesson):
    """Beside NumPy's, of eight times as many images. The lesson's has the mean of the unturned
    galaxies taken off, which is their error of the mean more: one part in 512."""
    images = np.asarray(lesson["train_x"], dtype=float)
    shares = images / images.sum(axis=(1, 2), keepdims=True)
    turned = [np.rot90(s, k, (1, 2)) for s in (shares, shares.swapaxes(1, 2)) for k in range(4)]
    every = np.concatenate(turned).reshape(-1, 3969)
    operator = np.asarray(lesson["A"], dtype=float)
    found = lesson["gaussian"]
    np.testing.assert_allclose(found.mean_x, every.mean(axis=0), rtol=1e-3, atol=1e-7)
    offset = every - every.mean(axis=0)
    expected = offset.T @ (offset @ operator.T) / len(every)
    assert np.linalg.norm(found.cov_xy - expected) < 0.01 * np.linalg.norm(expected)
    np.testing.assert_allclose(found.mean_y, operator @ found.mean_x, rtol=1e-3)
    scale = np.abs(found.cov_yy).max()
    np.testing.assert_allclose(found.cov_yy, operator @ found.cov_xy, atol=1e-3 * scale)


def test_strength_goes_from_the_data_to_the_prior(lesson):
    y, gaussian = lesson["test_y"], lesson["gaussian"]
    weak, own, strong = (lesson["restore_gaussian"](y, gaussian, s) for s in (1e-2, 1.0, 1e8))
    flux = np.asarray(y.sum(axis=(1, 2)))[:, None, None]
    shape = np.asarray(gaussian.mean_x).reshape(1, 63, 63)
    np.testing.assert_allclose(strong / flux, shape.repeat(len(y), 0), atol=1e-3 * shape.max())
    misfit = [np.mean((y - lesson["observe"](x)) ** 2) for x in (weak, own, strong)]
    assert misfit[0] < misfit[1] < misfit[2]


# --- edges and sparsity -----------------------------------------------------------------------


def test_steps_are_the_largest_that_are_safe(lesson):
    operator = np.asarray(lesson["A"], dtype=float)
    largest = np.linalg.eigvalsh(operator @ operator.T).max()
    assert lesson["RATE"] == pytest.approx(1.0 / largest, rel=1e-4)


@pytest.mark.parametrize("strength", [0.05, 0.5])
def test_total_variation_is_scikit_images(lesson, strength):
    """The dual goes on from call to call, as it does from step to step of the lesson."""
    place = np.linspace(-1, 1, 63)
    square = (np.abs(place[:, None]) < 0.5) & (np.abs(place[None] - 0.2) < 0.3)
    x = 5.0 + 3.0 * square + np.random.default_rng(67).normal(0.0, 0.3, (63, 63))
    expected = denoise_tv_chambolle(x, weight=strength, eps=1e-9, max_num_iter=5000)
    shrink = jax.jit(lesson["total_variation"])
    batch, dual = jnp.asarray(x, jnp.float32)[None], jnp.zeros((2, 1, 63, 63))
    for _ in range(400):
        found, dual = shrink(batch, np.float32(strength), dual)
    np.testing.assert_allclose(found[0], expected, atol=0.02)
    assert np.abs(expected - x).max() > 0.1


def test_starlets_take_apart_what_they_put_together(lesson):
    x = np.random.default_rng(68).uniform(1.0, 9.0, (2, 63, 63)).astype(np.float32)
    whole, _ = lesson["starlets"](jnp.asarray(x), 0.0, None)
    np.testing.assert_allclose(whole, x, atol=1e-5)
    # Shrunk to nothing: only what four smoothings by B3 splines with gaps leave.
    smooth = x.astype(float)
    for level in range(4):
        spline = np.zeros(4 * 2**level + 1)
        spline[:: 2**level] = np.array([1, 4, 6, 4, 1]) / 16
        for axis in (1, 2):
            smooth = ndimage.convolve1d(smooth, spline, axis=axis, mode="nearest")
    left, _ = lesson["starlets"](jnp.asarray(x), 100.0, None)
    np.testing.assert_allclose(left, smooth, rtol=1e-4)
    dark, _ = lesson["starlets"](jnp.asarray(-x), 0.0, None)
    assert np.all(np.asarray(dark) == 0.0)


# --- the learned prior ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def observed(lesson):
    """Four galaxies of the prior with noise, some of their pixels masked."""
    rng = np.random.default_rng(69)
    z = galaxy_prior.GalaxyPrior.sample(lesson["prior"], KEY, 4)
    variance = masked_variance(rng, 4, 0.05).astype(np.float32)
    mean = np.asarray(lesson["observe"](lesson["prior"].decode(z)))
    used = np.isfinite(variance)
    y = mean + np.sqrt(np.where(used, variance, 0.0)) * rng.normal(size=mean.shape)
    return z, jnp.asarray(np.where(used, y, 0.0), jnp.float32), jnp.asarray(variance)


def test_gradient_is_that_of_finite_differences(lesson, observed):
    """In double precision, along each latent of two galaxies."""
    with diagnostics.double_precision():
        z, y, variance = (np.asarray(a[:2]).astype(float) for a in observed)
        double = partial(jax.tree.map, lambda a: jnp.asarray(np.asarray(a).astype(float)))
        prior = GalaxyPrior(double(lesson["prior"].params))
        observe = jax.tree_util.Partial(telescope.apply, double(lesson["A"]))
        y, variance = jnp.asarray(y), jnp.asarray(variance)

        @jax.jit
        def value(z):
            return lesson["negative_log_posterior"](z, y, variance, observe, prior)

        step, rows = 1e-4, np.eye(33)
        up, down = (
            np.stack([value(jnp.asarray(z + s * row)) for row in rows], axis=1)
            for s in (step, -step)
        )
        found = jax.jit(lambda z: lesson["gradient"](z, y, variance, observe, prior))(z)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, (up - down) / (2 * step), rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def judge(lesson):
    """The lesson's negative log posterior of latents, given observations."""
    compiled = jax.jit(lesson["negative_log_posterior"])
    return lambda z, *data: compiled(z, *data, lesson["observe"], lesson["prior"])


def test_posterior_is_that_of_the_library_and_its_constants(lesson, judge, observed):
    z, y, variance = observed
    found = judge(*observed)
    slopes = jax.jit(lesson["gradient"])(*observed, lesson["observe"], lesson["prior"])
    for k in range(4):
        bare, slope = galaxy_prior._minus_log_posterior(
            z[k], lesson["prior"], y[k], variance[k], lesson["A"]
        )
        used = np.asarray(variance[k])[np.isfinite(variance[k])]
        constants = 0.5 * np.log(2 * np.pi * used).sum()
        assert float(found[k]) == pytest.approx(float(bare) + constants, rel=1e-4)
        np.testing.assert_allclose(slopes[k], slope, atol=1e-2 * np.abs(slope).max())


def test_descents_end_where_scipy_hardly_finds_a_way_on(lesson, judge, observed):
    """From the latent that made the data; then the fit is as good as noise allows."""
    z, y, variance = observed
    found = lesson["restore"](y, variance, z)
    assert np.all(found.value < np.asarray(judge(*observed)) - 1.0)
    further = [
        galaxy_prior.most_probable(lesson["prior"], y[k], variance[k], lesson["A"], found.z[k])[0]
        for k in range(4)
    ]
    left = found.value - np.asarray(judge(jnp.asarray(np.stack(further)), y, variance))
    assert np.median(left) < 0.1 and left.max() < 0.5
    mean = lesson["observe"](lesson["prior"].decode(jnp.asarray(found.z)))
    _, excess = lesson["surprise"](y, mean, variance)
    assert np.abs(np.asarray(excess)).max() < 4.0


def test_starts_begin_with_an_average_shape_for_each_galaxy(lesson, observed):
    _, y, _ = observed
    start = np.asarray(lesson["starts_for"](8, y, 3)).reshape(4, 3, 33)
    rough = np.asarray(galaxy_prior.rough_start(y))
    np.testing.assert_array_equal(start[:, 0], rough)
    np.testing.assert_array_equal(start[:, :, -1], rough[:, -1:].repeat(3, 1))
    shapes = start[:, 1:, :-1]
    assert shapes.std() == pytest.approx(1.0, abs=4 / (2 * shapes.size) ** 0.5)
