"""The mock clusters: their likelihood against brute force, their relations, their masses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from dlcourse_utils import exact
from dlcourse_utils.datasets import clusters

KEY = jax.random.key(20)
GRID = jnp.linspace(12.4, 16.0, 301)


def posterior(features, grid):
    table = exact.tabulate(clusters.log_likelihood, features, grid)
    return exact.normalise(table + clusters.log_training_prior(grid)[None, :], grid)


def reference_log_likelihood(x, m, r=clusters.RELATIONS):
    """The same density in double precision with scipy, by brute-force quadrature over ln sigma."""
    richness, measured = x[0] * np.log(10), x[1] * np.log(10)
    n, z = round(10 ** x[2]), x[3]
    hubble = 0.6766 * np.sqrt(0.3111 * (1 + z) ** 3 + 0.6889)
    total = 0.0
    for weight, boost_n, boost_s, scatter_n, scatter_s in (
        (1 - r.superposed_fraction, 0, 0, r.richness_scatter, r.sigma_scatter),
        (
            r.superposed_fraction,
            r.superposed_richness_boost,
            r.superposed_sigma_boost,
            r.superposed_richness_scatter,
            r.superposed_sigma_scatter,
        ),
    ):
        mean_n = np.log(19 * 10 ** (0.92 * (m - 14))) + boost_n
        mean_s = np.log(1177 * (hubble * 10 ** (m - 15)) ** 0.364) + boost_s
        covariance = np.array(
            [
                [scatter_n**2 + np.exp(-mean_n), 0.3 * scatter_n * scatter_s],
                [0.3 * scatter_n * scatter_s, scatter_s**2],
            ]
        )
        joint = stats.multivariate_normal([mean_n, mean_s], covariance)
        log_sigma = np.linspace(measured - 4, measured + 4, 8001)
        # s^2 (n - 1) / sigma^2 is chi-squared: density of ln s.
        u = (n - 1) * np.exp(2 * (measured - log_sigma))
        chi = stats.chi2.pdf(u, n - 1) * 2 * u
        points = np.stack([np.full_like(log_sigma, richness), log_sigma], axis=1)
        total += weight * integrate.simpson(chi * joint.pdf(points), x=log_sigma)
    return np.log(total) + 2 * np.log(np.log(10))


def test_likelihood_agrees_with_scipy():
    sample = clusters.simulate(KEY, 40)
    ours = clusters.log_likelihood(sample.features, sample.log_mass)
    theirs = [
        reference_log_likelihood(np.float64(x), float(m))
        for x, m in zip(sample.features, sample.log_mass, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_likelihood_is_normalised():
    """Integrated over both features it is one, at fixed mass, number of velocities and redshift."""
    richness, sigma = jnp.linspace(-1.5, 3.5, 401), jnp.linspace(1.2, 4.0, 401)
    a, b = (axis.ravel() for axis in jnp.meshgrid(richness, sigma, indexing="ij"))
    for log_mass, n, z in ((13.4, 5, 0.03), (14.3, 40, 0.1), (15.1, 200, 0.19)):
        x = jnp.stack([a, b, jnp.full_like(a, jnp.log10(n)), jnp.full_like(a, z)], axis=-1)
        density = jnp.exp(clusters.log_likelihood(x, jnp.full_like(a, log_mass))).reshape(401, 401)
        total = np.trapezoid(np.trapezoid(density, sigma, axis=1), richness)
        assert total == pytest.approx(1.0, abs=1e-4)


def test_posterior_is_converged_on_the_grid():
    """A grid five times finer and a wider one give the same density to 1e-4 of its peak."""
    sample = clusters.simulate(KEY, 200)
    coarse = jnp.exp(posterior(sample.features, GRID))
    fine_grid = jnp.linspace(12.1, 16.3, 1751)
    fine = jnp.exp(posterior(sample.features, fine_grid))
    fine_at = jax.vmap(lambda row: jnp.interp(GRID, fine_grid, row))(fine)
    # Every point of the coarse grid is one of the fine grid.
    assert jnp.max(jnp.abs(coarse - fine_at) / fine_at.max(axis=1, keepdims=True)) < 1e-4
    for table, grid in ((coarse, GRID), (fine, fine_grid)):
        np.testing.assert_allclose(np.trapezoid(table, grid, axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("target", [(1.3, 2.75, 1.4, 0.1), (1.9, 2.95, 1.7, 0.12)])
def test_posterior_agrees_with_rejection(target):
    """Masses of simulated clusters that look like the target are draws from its posterior."""
    many = clusters.simulate(jax.random.key(3), 1_000_000)
    width = jnp.array([0.03, 0.015, 0.06, 0.2])
    near = jnp.all(jnp.abs(many.features - jnp.array(target)[None, :]) < width[None, :], axis=1)
    assert near.sum() > 300
    # The posterior of each accepted cluster, at its own features: free of the window's width.
    log_p = posterior(many.features[near], GRID)
    pit = exact.cdf_at(log_p, GRID, many.log_mass[near])
    assert stats.kstest(np.asarray(pit), "uniform").pvalue > 1e-3


def test_pit_of_the_whole_catalogue_is_uniform():
    sample = clusters.simulate(jax.random.key(4), 20_000)
    log_p = posterior(sample.features, GRID)
    pit = exact.cdf_at(log_p, GRID, sample.log_mass)
    assert stats.kstest(np.asarray(pit), "uniform").pvalue > 1e-3


def test_measured_dispersion_is_that_of_drawn_members():
    """The catalogue's dispersions are distributed as standard deviations of drawn velocities."""
    log_mass = jnp.full(60_000, 14.5)
    relations = clusters.RELATIONS._replace(superposed_fraction=0.0)
    sample = clusters.simulate(KEY, 60_000, log_mass=log_mass, relations=relations)
    n = np.round(10 ** np.asarray(sample.features[:, 2])).astype(int)
    few = n == 20
    assert few.sum() > 300
    rng = np.random.default_rng(0)
    z = np.asarray(sample.features[few, 3])
    richness = np.asarray(sample.features[few, 0]) * np.log(10)
    mean_n = np.log(19 * 10 ** (0.92 * 0.5))
    var_n, cov = 0.2**2 + np.exp(-mean_n), 0.3 * 0.2 * 0.1
    hubble = np.asarray(clusters.hubble_rate(z))
    mean = np.log(1177 * (hubble * 10**-0.5) ** 0.364) + cov / var_n * (richness - mean_n)
    true = np.exp(mean + np.sqrt(0.1**2 - cov**2 / var_n) * rng.standard_normal(few.sum()))
    drawn = (true[:, None] * rng.standard_normal((few.sum(), 20))).std(axis=1, ddof=1)
    measured = 10 ** np.asarray(sample.features[few, 1])
    assert stats.ks_2samp(drawn / np.exp(mean), measured / np.exp(mean)).pvalue > 1e-3


def test_relations_hold_in_the_mean():
    log_mass = jnp.full(50_000, 14.7)
    relations = clusters.RELATIONS._replace(superposed_fraction=0.0)
    sample = clusters.simulate(KEY, 50_000, log_mass=log_mass, relations=relations)
    ln_richness = np.log(10) * np.asarray(sample.features[:, 0])
    expected = np.log(19 * 10 ** (0.92 * 0.7))
    scatter = np.sqrt(0.2**2 + np.exp(-expected))
    assert ln_richness.mean() == pytest.approx(expected, abs=5 * scatter / 50_000**0.5)
    assert ln_richness.std() == pytest.approx(scatter, rel=0.02)
    z = sample.features[:, 3]
    ln_sigma = np.log(10) * np.asarray(sample.features[:, 1])
    scaled = ln_sigma - np.log(1177) - 0.364 * np.log(clusters.hubble_rate(z) * 10**-0.3)
    freedom = 10 ** np.asarray(sample.features[:, 2]) - 1
    # The mean of ln of a sample deviation lies below ln sigma: digamma, not zero.
    bias = 0.5 * (special.digamma(freedom / 2) - np.log(freedom / 2))
    assert (scaled - bias).mean() == pytest.approx(0.0, abs=5 * 0.15 / 50_000**0.5)


def test_a_fifth_is_superposed_and_looks_heavier():
    sample = clusters.simulate(KEY, 50_000)
    fraction = float(sample.superposed.mean())
    assert fraction == pytest.approx(0.2, abs=5 * (0.16 / 50_000) ** 0.5)
    assert sample.features[sample.superposed, 1].mean() > sample.features[:, 1].mean() + 0.1


def test_training_prior_is_normalised_and_drawn():
    grid = jnp.linspace(12.0, 16.5, 4001)
    density = jnp.exp(clusters.log_training_prior(grid))
    assert jnp.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
    draws = np.asarray(clusters.sample_training_mass(KEY, 20_000))
    cdf = np.concatenate([[0.0], np.cumsum(np.asarray(density))[:-1]]) * float(grid[1] - grid[0])
    pit = np.interp(draws, np.asarray(grid), cdf)
    assert stats.kstest(pit, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("z", [0.02, 0.11, 0.2])
def test_survey_masses_follow_the_mass_function(z):
    grid = jnp.linspace(clusters.SURVEY_LOW, clusters.SURVEY_HIGH, 2001)
    density = jnp.exp(clusters.log_mass_function(grid, jnp.full_like(grid, z)))
    assert jnp.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
    draws = np.asarray(clusters.sample_survey_mass(KEY, jnp.full(20_000, z)))
    pit = np.interp(
        draws, np.asarray(grid), integrate.cumulative_trapezoid(density, grid, initial=0)
    )
    assert stats.kstest(pit, "uniform").pvalue > 1e-3


def test_mass_function_vanishes_outside_the_survey():
    outside = clusters.log_mass_function(jnp.array([13.49, 15.41]), jnp.array([0.1, 0.1]))
    assert bool(jnp.all(jnp.isneginf(outside)))


def test_simulate_is_seeded_and_any_size():
    one, two = clusters.simulate(KEY, 7), clusters.simulate(KEY, 7)
    assert bool(jnp.all(one.features == two.features))
    assert one.features.shape == (7, 4) and one.log_mass.shape == (7,)
    assert clusters.simulate(KEY, 20_001).features.shape == (20_001, 4)
    assert bool(jnp.any(clusters.simulate(jax.random.key(21), 7).features != one.features))


def test_wrong_number_of_masses_is_refused():
    with pytest.raises(ValueError, match="Expected 3 masses"):
        clusters.simulate(KEY, 3, log_mass=jnp.zeros((2,)))


def test_hundred_thousand_clusters_in_seconds():
    import time

    start = time.process_time()
    jax.block_until_ready(clusters.simulate(KEY, 100_000))
    assert time.process_time() - start < 10


def test_velocities_have_the_measured_dispersion_and_their_shape():
    sample = clusters.simulate(KEY, 3000)
    many = np.asarray(sample.features[:, 2]) > 2.29
    kurtosis = {True: [], False: []}
    for index in np.flatnonzero(many)[:150]:
        velocity = np.asarray(clusters.draw_velocities(jax.random.key(index), sample, int(index)))
        assert len(velocity) == round(10 ** float(sample.features[index, 2]))
        assert velocity.std(ddof=1) == pytest.approx(
            10 ** float(sample.features[index, 1]), rel=1e-4
        )
        kurtosis[bool(sample.superposed[index])].append(stats.kurtosis(velocity))
    # Two equal Gaussians 2.6 apart: excess kurtosis -2 d^4 / (1 + d^2)^2 with d = 1.3.
    expected = -2 * 1.3**4 / (1 + 1.3**2) ** 2
    # The standard error of a kurtosis from 200 velocities is at most (24 / 200)^0.5.
    for values, mean in ((kurtosis[True], expected), (kurtosis[False], 0.0)):
        assert np.mean(values) == pytest.approx(mean, abs=4 * (24 / 200 / len(values)) ** 0.5)


@pytest.mark.parametrize("freedom", [4, 5, 19, 198, 199])
def test_chi_squared_draws(freedom):
    draws = clusters._chi_squared(KEY, jnp.full((5000,), float(freedom)))
    assert stats.kstest(np.asarray(draws), stats.chi2(freedom).cdf).pvalue > 1e-3
