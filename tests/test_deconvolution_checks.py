"""What the checks of lesson 06 say of answers that no later cell could use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats
from right_answers import RIGHT, posterior_logpdf

from dlcourse_utils.checks import engine

# Some wrong answers are those of somebody who broadcasts (n, k, k) with (k, k).
pytestmark = pytest.mark.tfp_ranks


def judged(id, answer, seed=0):
    return engine.judge(engine.find(id), answer, seed=seed)


def reference(name):
    return engine.namespace("06")[name]


def convolve_with_scipy(x, kernel):
    x, kernel = np.asarray(x), np.asarray(kernel)
    kernel = kernel.reshape((1,) * (x.ndim - 2) + kernel.shape) / kernel.sum()
    return scipy.signal.convolve(x, kernel, mode="same")


def likelihood_with_scipy(y, mean, variance):
    used = np.isfinite(variance)
    width = np.sqrt(np.where(used, variance, 1.0))
    return np.where(used, scipy.stats.norm.logpdf(y, mean, width), 0.0).sum((-2, -1))


def surprise_with_a_mask_as_index(y, mean, variance):
    used = jnp.isfinite(variance)
    parts = [(y[i][u] - mean[i][u]) ** 2 / variance[i][u] for i, u in enumerate(used)]
    reduced = jnp.stack([jnp.mean(part) for part in parts])
    return reduced, (reduced - 1) * jnp.sqrt(jnp.array([len(part) for part in parts]) / 2)


UNTRACEABLE = {
    "06.1": convolve_with_scipy,
    "06.2": likelihood_with_scipy,
    "06.3": lambda y, variance, prior: (
        prior.mean_x
        + prior.cov_xy @ np.linalg.solve(prior.cov_yy + np.diag(variance), y - prior.mean_y)
    ),
    "06.4": lambda z, y, variance, observe, prior: (
        -likelihood_with_scipy(y, observe(prior.decode(z)), variance) - prior.log_prob(z)
    ),
    "06.5": lambda *arguments: np.asarray(RIGHT["06.5"][0](*arguments)),
    "06.6": surprise_with_a_mask_as_index,
}


@pytest.mark.parametrize("id", UNTRACEABLE)
def test_what_cannot_be_compiled_is_refused(id):
    found = judged(id, UNTRACEABLE[id])
    assert found.outcome == engine.WRONG and "JAX cannot trace" in found.says


def test_the_references_agree_with_scipy():
    ((x, kernel),) = engine.find("06.1").cases(np.random.default_rng(3)).values()
    blurred = reference("convolve")(x, kernel)
    np.testing.assert_allclose(blurred, convolve_with_scipy(x, kernel), atol=1e-5)
    images = engine.find("06.2").cases(np.random.default_rng(3)).values()
    for y, mean, variance in images:
        right = likelihood_with_scipy(y, mean, variance)
        np.testing.assert_allclose(reference("log_likelihood")(y, mean, variance), right, rtol=1e-5)
        nu = np.isfinite(variance).sum((-2, -1))
        normal = scipy.stats.chi2(nu)
        reduced, excess = reference("surprise")(y, mean, variance)
        np.testing.assert_allclose(
            excess, (nu * reduced - normal.mean()) / normal.std(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("made_up", [1.0, 37.0, 1e6])
def test_masked_pixels_that_count_are_told_whatever_their_variance(made_up):
    def terms(y, mean, variance):
        variance = jnp.where(jnp.isinf(variance), made_up, variance)
        return (y - mean) ** 2 / variance, jnp.log(2 * jnp.pi * variance)

    def counted(y, mean, variance):
        return -0.5 * jnp.sum(sum(terms(y, mean, variance)), axis=(-2, -1))

    def data_zeroed(y, mean, variance):
        return counted(y * jnp.isfinite(variance), mean, variance)

    def logarithm(y, mean, variance):
        misfit, norm = terms(y, mean, variance)
        return -0.5 * jnp.sum(misfit * jnp.isfinite(variance) + norm, axis=(-2, -1))

    found = [judged("06.2", answer).diagnosis for answer in (counted, data_zeroed, logarithm)]
    # Divided by a million, the misfit is lost in rounding, and the logarithm is what is left.
    expected = ["masked_counted", "data_zeroed", "masked_logarithm"]
    assert found == (expected if made_up < 1e5 else ["masked_logarithm"] * 3)


@pytest.mark.parametrize("name", ["masked_counted", "data_zeroed", "masked_logarithm"])
def test_of_masked_pixels_no_number_is_made_up(name):
    (wrong,) = (s.wrong for s in engine.find("06.2").suspects if s.name == name)
    detail = judged("06.2", wrong).detail
    assert "(0 no, 1 yes): expected 0, got 1" in detail and "log density" not in detail


@pytest.mark.parametrize(
    ("add", "name"),
    [
        (lambda g, variance: jnp.eye(len(g.mean_x)) * variance, "size_of_x"),
        # Wrong at any size: of the size nothing is said.
        (lambda g, variance: 3.0 * jnp.diag(variance), "value"),
    ],
)
def test_a_filter_that_is_right_for_one_size_only_is_named(add, name):
    def wiener(y, variance, prior):
        weights = jnp.linalg.solve(prior.cov_yy + add(prior, variance), y - prior.mean_y)
        return prior.mean_x + prior.cov_xy @ weights

    assert judged("06.3", wiener).diagnosis == name


def test_a_nan_gradient_is_named_though_the_value_is_right():
    def log_likelihood(y, mean, variance):
        density = jax.scipy.stats.norm.pdf(y, mean, jnp.sqrt(variance))
        return jnp.where(variance < jnp.inf, jnp.log(density), 0.0).sum((-2, -1))

    assert judged("06.2", log_likelihood).diagnosis == "log_of_zero"


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        (
            "06.2",
            lambda y, mean, variance: RIGHT["06.2"][0](y, jax.lax.stop_gradient(mean), variance),
        ),
        ("06.4", lambda z, *rest: posterior_logpdf(jax.lax.stop_gradient(z), *rest)),
    ],
)
def test_a_stopped_gradient_is_seen(id, answer):
    assert judged(id, answer).diagnosis == "gradient"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        # Other ways to the same mistakes.
        (
            lambda x, k: (
                jnp.fft.ifft2(jnp.fft.fft2(x) * jnp.fft.fft2(jnp.fft.ifftshift(k / k.sum()))).real
            ),
            "wraps_around",
        ),
        (
            lambda x, k: jax.scipy.signal.correlate2d(x, k / k.sum(), mode="same"),
            "correlation",
        ),
        (lambda x, k: jax.scipy.signal.convolve2d(x, k, mode="same"), "not_normalised"),
        (lambda x, k: jax.scipy.signal.convolve2d(x, k / k.sum(), mode="valid"), "valid"),
        (lambda x, k: jax.scipy.signal.convolve2d(x, k / k.sum()), "full"),
    ],
)
def test_a_mistake_is_named_however_it_is_written(answer, name):
    assert judged("06.1", answer).diagnosis == name


def test_one_image_at_a_time_is_named():
    def convolve(x, kernel):
        full = jax.scipy.signal.convolve2d(x, kernel / kernel.sum(), mode="full")
        half = kernel.shape[-1] // 2
        return full[half : half + len(x), half : half + len(x)]

    assert judged("06.1", convolve).diagnosis == "one_image"


def with_globals(source, **scope):
    """A function of a notebook, whose earlier answers are those in ``scope``."""
    exec(source, scope)
    return scope["answer"], scope


POSTERIOR = """
def answer(z, y, variance, observe, prior):
    return -log_likelihood(y, observe(prior.decode(z)), variance) - prior.log_prob(z)
"""
GRADIENT = """
import jax
def helper(*arguments):
    return negative_log_posterior(*arguments)
def answer(z, y, variance, observe, prior):
    return jax.grad(lambda z: helper(z, y, variance, observe, prior).sum())(z)
"""


@pytest.mark.parametrize("jitted", [False, True])
def test_a_wrong_earlier_answer_is_not_found_a_second_time(jitted):
    wrong = engine.find("06.2").suspects[0].wrong
    answer, scope = with_globals(POSTERIOR, log_likelihood=wrong)
    assert judged("06.4", jax.jit(answer) if jitted else answer).outcome == engine.RIGHT
    assert scope["log_likelihood"] is wrong, "the notebook's own function must come back"
    answer, scope = with_globals(GRADIENT, negative_log_posterior=lambda z, *rest: z.sum())
    assert judged("06.5", jax.jit(answer) if jitted else answer).outcome == engine.RIGHT
    assert scope["negative_log_posterior"].__name__ == "<lambda>"


def test_an_earlier_answer_comes_back_after_an_error():
    answer, scope = with_globals(
        POSTERIOR.replace("prior.decode(z)", "z"), log_likelihood=reference("surprise")
    )
    found = judged("06.4", answer)
    assert found.outcome == engine.ERROR and "takes images (n, s, s)" in found.says
    assert scope["log_likelihood"] is reference("surprise")


def test_a_prior_of_the_image_says_what_log_prob_takes():
    def negative_log_posterior(z, y, variance, observe, prior):
        x = prior.decode(z)
        return -reference("log_likelihood")(y, observe(x), variance) - prior.log_prob(x)

    found = judged("06.4", negative_log_posterior)
    assert found.outcome == engine.ERROR and "`prior.log_prob` takes latents (n, d)" in found.says


def misfit(z, y, variance, observe, prior):
    squares = (y - observe(prior.decode(z))) ** 2 / variance
    return 0.5 * jnp.sum(squares + jnp.log(variance), axis=(-2, -1))


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda z, *rest: misfit(z, *rest) - rest[-1].log_prob(z), "mask_ignored"),
        (lambda z, *rest: posterior_logpdf(z, *rest) + jnp.log(-jnp.exp(z[:, 0])), "not_finite"),
    ],
)
def test_the_mask_is_blamed_only_for_what_it_does(answer, name):
    assert (
        judged(
            "06.4", lambda z, y, variance, observe, prior: answer(z, y, variance, observe, prior)
        ).diagnosis
        == name
    )


def test_a_gradient_that_is_not_called_is_told_so():
    found = judged("06.5", lambda z, *rest: jax.grad(total))
    assert found.outcome == engine.WRONG and "returns a function" in found.says


@pytest.mark.parametrize("excess_of_mean", [False, True])
def test_a_mean_over_all_pixels_is_named(excess_of_mean):
    def surprise(y, mean, variance):
        nu = jnp.isfinite(variance).sum((-2, -1))
        squares = (y - mean) ** 2 / variance
        averaged = jnp.mean(squares, axis=(-2, -1))
        reduced = averaged if excess_of_mean else jnp.sum(squares, axis=(-2, -1)) / nu
        return averaged, (reduced - 1) * jnp.sqrt(nu / 2)

    assert judged("06.6", surprise).diagnosis == "mean_over_all_pixels"


def total(z, *rest):
    return posterior_logpdf(z, *rest).sum()


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (jax.grad(total, argnums=4), "by_weights"),
        (jax.value_and_grad(total), "value_and_gradient"),
        (jax.jacobian(posterior_logpdf), "jacobian"),
        (jax.grad(lambda *a: posterior_logpdf(*a).mean()), "mean_over_galaxies"),
        (jax.grad(lambda *a: posterior_logpdf(*a)[0]), "first_galaxy"),
    ],
)
def test_what_was_differentiated_is_named(answer, name):
    assert judged("06.5", lambda z, *rest: answer(z, *rest)).diagnosis == name
