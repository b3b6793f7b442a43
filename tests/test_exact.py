"""Tabulated posteriors against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dlcourse_utils import exact

GRID = jnp.linspace(-6.0, 6.0, 401)
MEAN, STD = jnp.array([0.0, 1.3, -0.7]), jnp.array([0.5, 0.8, 1.0])


@pytest.fixture
def log_p():
    unnormalised = -0.5 * ((GRID[None, :] - MEAN[:, None]) / STD[:, None]) ** 2 + 40.0
    return exact.normalise(unnormalised, GRID)


def test_normal_laws(log_p):
    np.testing.assert_allclose(
        log_p, stats.norm.logpdf(GRID, MEAN[:, None], STD[:, None]), atol=1e-4
    )
    mean, std = exact.mean_and_std(log_p, GRID)
    np.testing.assert_allclose(mean, MEAN, atol=1e-5)
    np.testing.assert_allclose(std, STD, atol=1e-5)
    for level in (0.16, 0.5, 0.975):
        expected = stats.norm.ppf(level, MEAN, STD)
        np.testing.assert_allclose(exact.quantile(log_p, GRID, level), expected, atol=2e-3)


def test_density_and_probability_below_a_value(log_p):
    value = jnp.array([0.21, 2.9, -3.3])
    expected = stats.norm.logpdf(value, MEAN, STD)
    np.testing.assert_allclose(exact.log_prob_at(log_p, GRID, value), expected, atol=1e-4)
    below = stats.norm.cdf(value, MEAN, STD)
    np.testing.assert_allclose(exact.cdf_at(log_p, GRID, value), below, atol=3e-4)


def test_values_at_the_ends_of_the_grid(log_p):
    ends = jnp.array([-6.0, 6.0, -5.99])
    found = exact.log_prob_at(log_p, GRID, ends)
    np.testing.assert_allclose(found, stats.norm.logpdf(ends, MEAN, STD), rtol=1e-4, atol=1e-3)


def log_density(x, value):
    return -0.5 * (value - x[..., 0]) ** 2 - 0.1 * x[..., 1]


@pytest.mark.parametrize("n", [1, 23, 2000, 4001])
def test_tabulate_any_number_of_rows(n):
    features = jax.random.normal(jax.random.key(0), (n, 2))
    table = exact.tabulate(log_density, features, GRID)
    expected = log_density(np.asarray(features)[:, None, :], np.asarray(GRID)[None, :])
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)


def test_valley():
    two = jnp.logaddexp(-0.5 * ((GRID + 2) / 0.5) ** 2, -0.5 * ((GRID - 2) / 0.5) ** 2)
    uneven = jnp.logaddexp(-0.5 * ((GRID + 2) / 0.5) ** 2, -0.5 * ((GRID - 2) / 0.5) ** 2 - 3.0)
    one = -0.5 * GRID**2
    depth = exact.valley(jnp.stack([two, uneven, one]))
    # Halfway between the peaks each is 4 std away: 8 nats down, ln 2 up.
    np.testing.assert_allclose(depth[0], 8.0 - np.log(2.0), atol=1e-3)
    # The two curves cross where 2 (x + 2)^2 = 2 (x - 2)^2 + 3, at 0.1875; the lower peak is -3.
    crossing = 2 * 2.1875**2
    assert depth[1] == pytest.approx(crossing - np.log(2.0) - 3.0, abs=1e-2)
    assert depth[2] == 0.0
