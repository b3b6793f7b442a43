"""What the checks of lesson 07 say of answers that no later cell could use, and of good ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from right_answers import RIGHT, joint_logpdf, sample_by_hand
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils.checks import engine

tfd = tfp.distributions

# Some answers are those of somebody who broadcasts (n, k, k) with (k, k).
pytestmark = pytest.mark.tfp_ranks


def judged(id, answer, seed=0):
    return engine.judge(engine.find(id), answer, seed=seed)


def reference(name):
    return engine.namespace("07")[name]


def cases(id, seed=3):
    return engine.find(id).cases(np.random.default_rng(seed))


def with_globals(source, **scope):
    """A function of a notebook, whose earlier answers are those in ``scope``."""
    exec(source, scope)
    return scope["answer"], scope


# --- against what others have written --------------------------------------------------------


def test_the_references_agree_with_scipy():
    for z, y, variance, observe, prior in cases("07.3").values():
        used = np.isfinite(variance)
        mean = np.asarray(observe(prior.decode(z)))
        normal = scipy.stats.norm(mean[:, used], np.sqrt(variance[used]))
        right = normal.logpdf(y[used]).sum(-1)
        right += scipy.stats.logistic.logpdf(z, prior.place, prior.width).sum(-1)
        np.testing.assert_allclose(
            reference("log_joint")(z, y, variance, observe, prior), right, rtol=1e-4, atol=1e-3
        )
        chi2 = (((y[used] - mean[:, used]) / np.sqrt(variance[used])) ** 2).mean(-1)
        found = reference("predictive_chi2")(z, y, variance, observe, prior)
        np.testing.assert_allclose(found, chi2, rtol=1e-4)


def test_the_guide_has_the_log_det_of_its_jacobian():
    for eps, guide in cases("07.1").values():
        jacobian = jax.vmap(jax.jacfwd(lambda e, guide=guide: guide.forward(e[None])[0]))(eps)
        found = guide.forward_log_det_jacobian(eps, 1)
        np.testing.assert_allclose(found, np.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(guide.inverse(guide.forward(eps) + 0.0), eps, atol=1e-5)
        assert np.ptp(found) > 0.1, "a constant log-det would hide where it is taken"


def test_the_bound_of_a_gaussian_is_the_closed_form():
    """ELBO = log Z - KL; the KL of two Gaussians is that of TFP."""
    rng = np.random.default_rng(5)
    d, n = 3, 20_000
    target = tfd.MultivariateNormalDiag(*np.float32(rng.uniform(0.5, 1.5, (2, d))))
    guide = tfd.MultivariateNormalDiag(*np.float32(rng.uniform(0.5, 1.5, (2, d))))
    found = reference("elbo")(
        jax.random.key(1), guide.bijector, lambda x: target.log_prob(x) + 2.0, (n, d)
    )
    x = guide.sample(n, seed=jax.random.key(2))
    error = np.std(target.log_prob(x) - guide.log_prob(x)) / np.sqrt(n)
    assert abs(found - (2.0 - guide.kl_divergence(target))) < 5 * error


@pytest.mark.parametrize("level", [0.5, 0.68, 0.95])
def test_exact_posteriors_are_covered_as_often_as_the_level_says(level):
    rng = np.random.default_rng(int(100 * level))
    n = 4000
    scale = rng.uniform(0.5, 2.0, (n, 1, 1))
    samples, truth = rng.normal(size=(2, n, 400, 1)) * scale
    share = np.mean(reference("covered")(jnp.float32(samples), jnp.float32(truth[:, 0]), level))
    # A quantile of 400 samples has its own scatter, small beside the binomial error.
    assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / n) + 1 / 400


# --- what cannot be compiled -----------------------------------------------------------------


def sample_with_scipy(eps, bijector):
    log_base = scipy.stats.norm.logpdf(eps).sum(-1)
    return bijector.forward(eps), log_base - bijector.forward_log_det_jacobian(eps, 1)


def elbo_with_a_number(key, bijector, log_joint, shape):
    x, log_q = sample_by_hand(jax.random.normal(key, shape), bijector)
    return float(jnp.mean(log_joint(x) - log_q))


def joint_with_scipy(z, y, variance, observe, prior):
    normal = scipy.stats.norm(np.asarray(observe(prior.decode(z))), np.sqrt(variance))
    return jnp.where(jnp.isfinite(variance), normal.logpdf(y), 0.0).sum((1, 2)) + prior.log_prob(z)


def joint_with_a_mask_as_index(z, y, variance, observe, prior):
    used = jnp.isfinite(variance)
    mean = observe(prior.decode(z))
    normal = tfd.Normal(mean[:, used], jnp.sqrt(variance[used]))
    return normal.log_prob(y[used]).sum(-1) + prior.log_prob(z)


UNTRACEABLE = {
    "07.1": (sample_with_scipy, "log_base = scipy.stats.norm.logpdf(eps)"),
    "07.2": (elbo_with_a_number, "return float(jnp.mean("),
    "07.3": (joint_with_scipy, "normal = scipy.stats.norm(np.asarray("),
    "07.3, indexed": (joint_with_a_mask_as_index, "normal = tfd.Normal(mean[:, used]"),
}


@pytest.mark.parametrize("id", UNTRACEABLE)
def test_what_cannot_be_compiled_is_refused_with_the_students_line(id):
    answer, line = UNTRACEABLE[id]
    found = judged(id[:4], answer)
    assert found.outcome == engine.WRONG and "JAX cannot trace" in found.says, found
    assert line in found.detail and not found.why and not found.next, found


def test_a_mask_as_an_index_has_a_sentence_of_its_own():
    says = judged("07.3", joint_with_a_mask_as_index).says
    assert "has a length that depends on values" in says and "`jnp.where`" in says


def test_outside_of_jit_the_students_own_error_is_told():
    def covered(samples, truth, level):
        low, high = jnp.quantile(samples, jnp.array([0.5 - level / 2, 0.5 + level / 2]), axis=1)
        return low <= truth and truth <= high

    found = judged("07.6", covered)
    assert found.outcome == engine.ERROR and "truth value of an array" in found.says, found
    assert "return low <= truth and truth <= high" in found.detail


# --- the Gaussian of the noise ----------------------------------------------------------------


def log_normals(eps):
    return jax.scipy.stats.norm.logpdf(eps)


@pytest.mark.parametrize(
    ("log_base", "name"),
    [
        (lambda eps: -0.5 * jnp.sum(eps**2, 1) - jnp.log(2 * jnp.pi), "constant_of_a_plane"),
        (
            lambda eps: -0.5 * (jnp.sum(eps**2, 1) + eps.shape[0] * jnp.log(2 * jnp.pi)),
            "constant_per_sample",
        ),
        (lambda eps: jnp.sum(log_normals(eps)), "gaussian_of_all"),
    ],
)
def test_a_mistaken_gaussian_is_named(log_base, name):
    def sample(eps, bijector):
        return bijector.forward(eps), log_base(eps) - bijector.forward_log_det_jacobian(eps, 1)

    assert judged("07.1", sample).diagnosis == name


def test_samples_of_the_inverse_are_named():
    def sample(eps, bijector):
        return bijector.inverse(eps), sample_by_hand(eps, bijector)[1]

    assert judged("07.1", sample).diagnosis == "inverse_returned"


# --- gradients and noise ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (lambda x, log_q: (jax.lax.stop_gradient(x), log_q), "samples_stopped"),
        (lambda x, log_q: (x, jax.lax.stop_gradient(log_q)), "log_q_stopped"),
    ],
)
def test_a_stopped_gradient_is_named(cut, name):
    def elbo(key, bijector, log_joint, shape):
        x, log_q = cut(*sample_by_hand(jax.random.normal(key, shape), bijector))
        return jnp.mean(log_joint(x) - log_q)

    assert judged("07.1", lambda eps, bijector: cut(*sample_by_hand(eps, bijector))).diagnosis == (
        name
    )
    assert judged("07.2", elbo).diagnosis == name


def test_a_stopped_latent_is_seen():
    def log_joint(z, *rest):
        return joint_logpdf(jax.lax.stop_gradient(z), *rest)

    assert (
        judged(
            "07.3", lambda z, y, variance, observe, prior: log_joint(z, y, variance, observe, prior)
        ).diagnosis
        == "gradient"
    )


def elbo_of_noise(draw):
    def elbo(key, bijector, log_joint, shape):
        x, log_q = sample_by_hand(draw(key, shape), bijector)
        return jnp.mean(log_joint(x) - log_q)

    return elbo


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda key, shape: np.float32(np.random.default_rng().normal(size=shape)), "key_ignored"),
        (lambda key, shape: jax.random.normal(jax.random.key(7), shape), "key_ignored"),
        (lambda key, shape: 0.0 * jax.random.normal(key, shape), "no_noise"),
        (lambda key, shape: jax.random.normal(key, (1, shape[1])), "one_sample"),
        (lambda key, shape: jax.random.normal(key, shape)[:1], "one_sample"),
        (lambda key, shape: jax.random.uniform(key, shape), "uniform"),
        (
            lambda key, shape: jnp.tile(jax.random.normal(key, (shape[0], 1)), (1, shape[1])),
            "one_number_per_sample",
        ),
    ],
)
def test_wrong_noise_is_named_however_it_is_drawn(draw, name):
    assert judged("07.2", elbo_of_noise(draw)).diagnosis == name


def test_another_draw_for_log_q_is_named():
    def elbo(key, bijector, log_joint, shape):
        one, two = jax.random.split(key)
        x, _ = sample_by_hand(jax.random.normal(one, shape), bijector)
        _, log_q = sample_by_hand(jax.random.normal(two, shape), bijector)
        return log_joint(x).mean() - log_q.mean()

    assert judged("07.2", elbo).diagnosis == "two_draws"


def at_the_noise(x, eps, log_q, log_joint, bijector):
    return jnp.mean(log_joint(eps) - log_q)


def of_exponentials(x, eps, log_q, log_joint, bijector):
    return jnp.mean(jnp.exp(log_joint(x) - log_q))


def at_the_mean(x, eps, log_q, log_joint, bijector):
    return log_joint(x.mean(0, keepdims=True))[0] - jnp.mean(log_q)


def with_closed_entropy(x, eps, log_q, log_joint, bijector):
    d = eps.shape[1]
    log_det = bijector.forward_log_det_jacobian(eps, 1)
    return jnp.mean(log_joint(x) + log_det) + 0.5 * d * (1 + jnp.log(2 * jnp.pi))


def over_coordinates(x, eps, log_q, log_joint, bijector):
    return jnp.sum(log_joint(x) - log_q) / (eps.shape[0] * eps.shape[1])


@pytest.mark.parametrize(
    ("bound", "name"),
    [
        (at_the_noise, "at_the_noise"),
        (of_exponentials, "exponential"),
        (at_the_mean, "at_the_mean"),
        (with_closed_entropy, "closed_entropy"),
        (over_coordinates, "mean_over_coordinates"),
    ],
)
def test_a_mistaken_bound_is_named_under_all_seeds(bound, name):
    def elbo(key, bijector, log_joint, shape):
        eps = jax.random.normal(key, shape)
        x, log_q = sample_by_hand(eps, bijector)
        return bound(x, eps, log_q, log_joint, bijector)

    assert {judged("07.2", elbo, seed=seed).diagnosis for seed in range(8)} == {name}


# --- earlier answers -------------------------------------------------------------------------

ELBO = """
import jax
def answer(key, bijector, log_joint, shape):
    x, log_q = sample_and_log_prob(jax.random.normal(key, shape), bijector)
    return (log_joint(x) - log_q).mean()
"""


@pytest.mark.parametrize("jitted", [False, True])
def test_a_wrong_earlier_answer_is_not_found_a_second_time(jitted):
    wrong = engine.find("07.1").suspects[0].wrong
    answer, scope = with_globals(ELBO, sample_and_log_prob=wrong)
    if jitted:
        answer = jax.jit(answer, static_argnums=3)
    assert judged("07.2", answer).outcome == engine.RIGHT
    assert scope["sample_and_log_prob"] is wrong, "the notebook's own function must come back"


# --- masks, samples, weights, intervals ------------------------------------------------------


@pytest.mark.parametrize("made_up", [1.0, 37.0])
def test_masked_pixels_that_count_are_told_whatever_their_variance(made_up):
    def joint(z, y, variance, observe, prior):
        variance = jnp.where(jnp.isinf(variance), made_up, variance)
        terms = (y - observe(prior.decode(z))) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return -0.5 * jnp.sum(terms, axis=(1, 2)) + prior.log_prob(z)

    def chi2(z, y, variance, observe, prior):
        used = jnp.isfinite(variance)
        squares = (y - observe(prior.decode(z))) ** 2 / jnp.where(used, variance, made_up)
        return jnp.sum(squares, axis=(1, 2)) / used.sum()

    assert judged("07.3", joint).diagnosis == "masked_counted"
    assert judged("07.4", chi2).diagnosis == "masked_counted"


@pytest.mark.parametrize(
    ("norm", "name"),
    [(lambda v: jnp.log(v), "no_two_pi"), (lambda v: jnp.zeros_like(v), "no_logarithm")],
)
def test_a_missing_constant_is_not_laid_on_the_masked_pixels(norm, name):
    def joint(z, y, variance, observe, prior):
        used = jnp.isfinite(variance)
        finite = jnp.where(used, variance, 1.0)
        terms = (y - observe(prior.decode(z))) ** 2 / finite + norm(finite)
        return -0.5 * jnp.sum(jnp.where(used, terms, 0.0), axis=(1, 2)) + prior.log_prob(z)

    found = judged("07.3", joint)
    assert found.diagnosis == name
    assert found.detail.startswith("log density: expected "), found.detail


def pixels(terms):
    """An answer to 07.4: the sum of terms(y, mean, variance) over the pixels, per used pixel."""

    def chi2(z, y, variance, observe, prior):
        found = terms(y, observe(prior.decode(z)), variance)
        return jnp.sum(found, axis=(1, 2)) / jnp.sum(jnp.isfinite(variance))

    return chi2


def minus_two_log_p(y, mean, variance):
    used = jnp.isfinite(variance)
    normal = tfd.Normal(mean, jnp.sqrt(jnp.where(used, variance, 1.0)))
    return jnp.where(used, -2 * normal.log_prob(y), 0.0)


def chi2_over_samples(z, y, variance, observe, prior):
    squares = (y - observe(prior.decode(z))) ** 2 / variance
    return jnp.sum(squares, axis=0) / jnp.sum(jnp.isfinite(variance))


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (pixels(lambda y, mean, variance: (y - mean) / jnp.sqrt(variance)), "not_squared"),
        (pixels(lambda y, mean, variance: 0.5 * (y - mean) ** 2 / variance), "half"),
        (pixels(lambda y, mean, variance: (y - mean) ** 2 / mean), "pearson"),
        (pixels(minus_two_log_p), "deviance"),
        (chi2_over_samples, "over_samples"),
    ],
)
def test_a_mistaken_chi2_is_named(answer, name):
    assert judged("07.4", answer).diagnosis == name


def test_noise_of_ones_own_is_told_whatever_it_is():
    def chi2(z, y, variance, observe, prior):
        noise = jax.random.normal(jax.random.key(11), (len(z), *y.shape))
        mean = observe(prior.decode(z))
        replicated = mean + noise * jnp.sqrt(jnp.where(jnp.isinf(variance), 1.0, variance))
        return jnp.mean((y - replicated) ** 2 / variance, axis=(1, 2))

    assert judged("07.4", chi2).diagnosis == "noise_added"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda p, q: weighed(jnp.exp(p - q)), "unstable"),
        (lambda p, q: weighed(jnp.exp(p - q - jnp.mean(p - q))), "not_the_largest_subtracted"),
        (lambda p, q: weighed(jnp.exp(p - q - jnp.min(p - q))), "not_the_largest_subtracted"),
        (lambda p, q: weighed(p - q), "scaled_logarithms"),
        (lambda p, q: weighed(jax.nn.softmax(q - p)), "inverse_ratio"),
        (lambda p, q: (jax.nn.softmax(p - q), weighed(jax.nn.softmax(p))[1]), "value"),
    ],
)
def test_a_mistaken_weight_is_named(answer, name):
    assert judged("07.5", lambda log_joint, log_q: answer(log_joint, log_q)).diagnosis == name


def around_the_median(samples, level):
    middle = jnp.median(samples, axis=1)
    reach = jnp.quantile(jnp.abs(samples - middle[:, None]), level, axis=1)
    return middle - reach, middle + reach


def weighed(weights):
    weights = weights / weights.sum()
    return weights, 1 / (len(weights) * jnp.sum(weights**2))


@pytest.mark.parametrize(
    ("ends", "name"),
    [
        (
            lambda s, p: (s.mean(1) - s.std(1) / 8.0, s.mean(1) + s.std(1) / 8.0),
            "one_standard_error",
        ),
        (
            lambda s, p: (jnp.quantile(s, 1 - p, axis=1), jnp.quantile(s, p, axis=1)),
            "level_as_quantile",
        ),
        (lambda s, p: tuple(jnp.percentile(s, jnp.array([16.0, 84.0]), axis=1)), "level_ignored"),
        (lambda s, p: (s.min(axis=1), s.max(axis=1)), "whole_range"),
        (
            lambda s, p: (jnp.quantile(s, 0.5 - p, axis=1), jnp.quantile(s, 0.5 + p, axis=1)),
            "level_on_either_side",
        ),
        (lambda s, p: around_the_median(s, p), "around_the_median"),
    ],
)
def test_a_wrong_interval_is_named(ends, name):
    def covered(samples, truth, level):
        low, high = ends(samples, level)
        return (low <= truth) & (truth <= high)

    assert judged("07.6", covered).diagnosis == name


def test_a_mean_over_the_coordinates_is_not_called_numbers():
    def covered(samples, truth, level):
        return RIGHT["07.6"][0](samples, truth, level).mean(1)

    assert judged("07.6", covered).diagnosis == "fraction_of_coordinates"


# --- words -----------------------------------------------------------------------------------


def test_several_things_have_and_are():
    def importance(change):
        return lambda log_joint, log_q: change(*RIGHT["07.5"][0](log_joint, log_q))

    says = judged("07.5", importance(lambda w, f: (w[:, None], f))).says
    assert says.startswith("The weights of `importance` have shape (6, 1)")
    says = judged("07.5", importance(lambda w, f: (w + w**2, f))).says
    assert says == "The weights of `importance` have the wrong values."
    says = judged("07.5", importance(lambda w, f: (w, f + f**2))).says
    assert says == "The effective fraction of `importance` has the wrong value."
    says = judged("07.5", importance(lambda w, f: (3 * w, f))).says
    assert says == "The weights of `importance` are 3 times the right values, always."
