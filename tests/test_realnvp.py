"""The flow of lesson 03 as the solution builds it: a density that other code can use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import lessons

tfd = tfp.distributions
pytestmark = pytest.mark.tfp_ranks
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def lesson():
    return lessons.reference(lessons.load("03"))


def net(k):
    weights = 0.8 * jax.random.normal(jax.random.key(k), (1, 2))
    return lambda x1: jnp.tanh(x1 @ weights)


@pytest.fixture(scope="module")
def density(lesson):
    return lesson["stack"]([net(k) for k in range(4)], lesson["coupling"])


def test_the_density_integrates_to_one(density):
    axes = jnp.linspace(-12, 13, 501), jnp.linspace(-12, 12, 481)  # steps of 0.05
    plane = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    total = jnp.exp(jax.jit(density.log_prob)(plane)).sum() * 0.05**2
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_the_density_is_that_of_its_samples(density):
    """The mean of log p over samples is minus the entropy, which the base and the log-det give."""
    x = density.sample(20_000, seed=KEY)
    z = jax.random.normal(jax.random.key(1), (20_000, 2))
    base = tfd.MultivariateNormalDiag(jnp.zeros(2))
    pushed = base.log_prob(z) - density.bijector.forward_log_det_jacobian(z, 1)
    one, two = np.float64(density.log_prob(x)), np.float64(pushed)
    error = np.hypot(one.std(), two.std()) / np.sqrt(20_000)
    assert abs(one.mean() - two.mean()) < 4.0 * error


def test_jit_vmap_and_grad(density):
    x = jax.random.normal(KEY, (20, 2))
    expected = density.log_prob(x)
    # Rounding: log densities of up to some hundred, times 1e-7, through four layers.
    np.testing.assert_allclose(jax.jit(density.log_prob)(x), expected, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(density.log_prob)(x), expected, atol=1e-4)
    score = jax.grad(lambda x: density.log_prob(x).sum())(x)
    step = 1e-2 * jnp.ones_like(x)
    change = density.log_prob(x + step) - density.log_prob(x - step)
    np.testing.assert_allclose(2.0 * jnp.sum(score * step, axis=1), change, atol=2e-3)


def test_samples_belong_to_their_key(density):
    one, same = (density.sample(5, seed=KEY) for _ in range(2))
    other = density.sample(5, seed=jax.random.key(1))
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)


@pytest.mark.parametrize("d", [2, 4, 6])
def test_coupling_against_automatic_differentiation(lesson, d):
    weights = jax.random.normal(KEY, (d // 2, d))
    x = 2.0 * jax.random.normal(jax.random.key(1), (50, d))

    def there(x):
        return lesson["forward"](x, lambda x1: 2.0 * jnp.tanh(x1 @ weights))

    y, log_det = there(x)
    back, log_det_back = lesson["inverse"](y, lambda x1: 2.0 * jnp.tanh(x1 @ weights))
    jacobian = jax.vmap(jax.jacfwd(lambda x: there(x)[0]))(x)
    np.testing.assert_allclose(back, x, atol=2e-5)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(np.float64(jacobian))[1], atol=1e-5)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-6)


def test_two_nets_out_of_bounds_do_not_overflow(lesson):
    """Raw log-scales of a thousand: what the bound is for."""
    nets = [lambda x1: jnp.concatenate([x1, 1e3 * x1], axis=-1)] * 2
    density = lesson["stack"](nets, lesson["coupling"])
    assert np.isfinite(density.log_prob(jax.random.normal(KEY, (100, 2)))).all()
