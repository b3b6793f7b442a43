"""Training of guides: exact answers, new noise at every step, failures that keep what is good."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from dlcourse_utils import galaxy_prior, variational
from dlcourse_utils.galaxy_prior import DIM

TRUE_MEAN, TRUE_STD = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.5])


def gaussian_elbo(params, key, mean, std):
    """Of a Gaussian guide with independent coordinates, for a target that is one too."""
    eps = jax.random.normal(key, (32, 3))
    width = jnp.exp(params["log_std"])
    x = params["mean"][None] + width[None] * eps
    log_q = -0.5 * jnp.sum(eps**2, axis=1) - jnp.sum(params["log_std"])
    log_p = -0.5 * jnp.sum(((x - mean[None]) / std[None]) ** 2, axis=1)
    return jnp.mean(log_p - log_q)


START = {"mean": np.zeros(3), "log_std": np.zeros(3)}
ADAM = optax.adam(optax.cosine_decay_schedule(0.05, 800))
DATA = (TRUE_MEAN.astype(np.float32), TRUE_STD.astype(np.float32))


def train(elbo=gaussian_elbo, params=START, data=DATA, steps=800, **options):
    options = {"key": jax.random.key(0), "optimizer": ADAM} | options
    return variational.train(elbo, params, data, steps=steps, **options)


def test_finds_a_gaussian_and_its_evidence():
    fit = train()
    # At the optimum every sample has the same log ratio: the estimate has no noise left.
    np.testing.assert_allclose(fit.params["mean"], TRUE_MEAN, atol=0.02)
    np.testing.assert_allclose(np.exp(fit.params["log_std"]), TRUE_STD, rtol=0.02)
    # Of the target without its constant, log of (2 pi)^(3/2) prod std; the guide lacks it too.
    assert fit.bound[-1] == pytest.approx(np.sum(np.log(TRUE_STD)), abs=1e-3)
    assert fit.bound.shape == (800,)
    assert np.mean(fit.bound[:20]) < np.mean(fit.bound[-20:]) - 1.0


def test_every_step_has_a_key_of_its_own():
    def noisy(params, key):
        return jax.random.normal(key) + 0.0 * params

    fit = train(noisy, np.float32(0.0), (), steps=200)
    assert len(np.unique(fit.bound)) == 200
    assert scipy.stats.kstest(fit.bound, "norm").pvalue > 1e-3
    again = train(noisy, np.float32(0.0), (), steps=200)
    np.testing.assert_array_equal(fit.bound, again.bound)
    other = train(noisy, np.float32(0.0), (), steps=200, key=jax.random.key(1))
    assert not np.any(fit.bound == other.bound)


def test_one_compilation_serves_many_posteriors():
    traced = []

    def counted(params, key, mean, std):
        traced.append(None)
        return gaussian_elbo(params, key, mean, std)

    train(counted, steps=3)
    first = len(traced)
    train(counted, data=(DATA[1], DATA[0]), steps=3)
    assert len(traced) == first > 0


def test_numpy_counts_are_counts_and_steps_to_keep_must_exist():
    assert train(steps=np.int64(3), keep=(2,)).bound.shape == (3,)
    for keep in ((3,), (-1,)):
        with pytest.raises(variational.VariationalError, match="keep must name steps from 0 to 2"):
            train(steps=3, keep=keep)
    with pytest.raises(variational.VariationalError, match="must be one number, it is"):
        train(lambda params, key, mean, std: (0.0, params), steps=3)


def test_keeps_the_parameters_of_the_steps_asked_for():
    fit = train(steps=60, keep=(0, 7, 59))
    assert len(fit.kept) == 3
    np.testing.assert_array_equal(fit.kept[0]["mean"], START["mean"])
    after_seven = train(steps=7)
    np.testing.assert_allclose(fit.kept[1]["mean"], after_seven.params["mean"], rtol=1e-6)


def test_the_callers_parameters_stay():
    params = jax.tree.map(jnp.asarray, START)
    train(params=params, steps=2)
    np.testing.assert_array_equal(params["mean"], START["mean"])


def breaks_at_two(params, key):
    """Rises for ever, and has no logarithm beyond 2."""
    return params + 0.0 * jnp.log(2.0 - params)


def test_a_diverging_bound_names_the_step_and_keeps_the_last_good():
    # Steps of 0.05 from 0: beyond 2 after some forty of them.
    with pytest.raises(variational.VariationalError, match=r"nan at step 4\d: the guide") as caught:
        train(breaks_at_two, np.float32(0.0), (), optimizer=optax.sgd(0.05), steps=100)
    good = caught.value.last_good
    assert good.bound.shape == (25,)
    assert float(good.params) == pytest.approx(25 * 0.05, rel=1e-4)
    assert np.isfinite(good.bound).all()
    assert "last_good" in str(caught.value)


def gradient_breaks_at_two(params, key):
    """Its value stays finite where its gradient does not: of the square root at zero."""
    return params + 0.0 * jnp.sqrt(jnp.maximum(2.0 - params, 0.0))


@pytest.mark.parametrize("steps", [42, 50])
def test_a_parameter_that_is_not_finite_is_an_error_and_not_the_last_good(steps):
    sgd = optax.sgd(0.05)
    with pytest.raises(variational.VariationalError, match=r"not finite|nan at step 4") as caught:
        train(
            gradient_breaks_at_two,
            np.float32(0.0),
            (),
            optimizer=sgd,
            steps=steps,
            keep=(0, 30, 41),
        )
    good = caught.value.last_good
    assert float(good.params) == pytest.approx(25 * 0.05, rel=1e-4)
    assert len(good.kept) == 1 and np.isfinite(good.kept[0])


def test_a_gradient_that_is_not_finite_in_the_only_step_is_an_error():
    with pytest.raises(variational.VariationalError, match="A parameter is not finite at step 1:"):
        train(lambda params, key: params * jnp.sqrt(0.0 * params), np.float32(1.0), (), steps=1)


def test_a_bound_that_was_never_finite_has_nothing_to_go_on_with():
    with pytest.raises(variational.VariationalError, match="nan at step 1:") as caught:
        train(breaks_at_two, np.float32(3.0), (), steps=30)
    assert caught.value.last_good is None


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_refuses_a_number_of_steps(steps):
    with pytest.raises(variational.VariationalError, match="whole number of at least 1"):
        train(steps=steps)


def test_refuses_a_bound_for_each_sample():
    with pytest.raises(variational.VariationalError, match=r"shape \(3,\): take the mean"):
        train(lambda params, key: params["mean"], data=())


def test_flow_of_the_prior_has_the_log_determinant_of_its_jacobian():
    prior = galaxy_prior.load()
    couplings = prior.params["flow"]
    u = jax.random.normal(jax.random.key(5), (8, DIM))
    z, log_det = galaxy_prior.flow(couplings, u)
    np.testing.assert_array_equal(z, prior.from_base(u))
    back, inverse_log_det = galaxy_prior.inverse_flow(couplings, z)
    np.testing.assert_allclose(back, u, atol=1e-4)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-3)
    jacobian = jax.vmap(jax.jacfwd(lambda u: galaxy_prior.flow(couplings, u[None])[0][0]))(u)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.float64(jacobian))[1], atol=1e-3)
