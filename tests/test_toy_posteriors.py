"""Toy posteriors: the line against scipy, the densities of the plane against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dlcourse_utils.datasets import toy_posteriors as toys

PLANE = toys.plane()
DENSITIES = {
    "banana": (toys.banana, toys.BANANA_LOG_NORMALISER),
    "two peaks": (toys.two_peaks, toys.PEAKS_LOG_NORMALISER),
}


# --- the line ----------------------------------------------------------------------------------


def test_evidence_is_the_density_of_the_data():
    """Under the prior the data are Gaussian, with mean D m and covariance D S D^T + noise^2."""
    line = toys.cepheids()
    design = np.stack([np.ones(20), line.t.astype(float)], axis=1)
    covariance = design @ np.diag(line.prior_std**2.0) @ design.T + line.noise**2 * np.eye(20)
    expected = stats.multivariate_normal(design @ line.prior_mean, covariance)
    found = line.posterior().log_evidence
    assert found == pytest.approx(expected.logpdf(line.magnitude), abs=1e-9)


def test_posterior_is_that_of_a_joint_gaussian():
    """Mean and covariance by conditioning (a, b) on the data, with no precision matrix."""
    line = toys.cepheids(n=7, seed=3)
    design = np.stack([np.ones(7), line.t.astype(float)], axis=1)
    prior = np.diag(line.prior_std**2.0)
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + line.noise**2 * np.eye(7))
    found = line.posterior()
    mean = line.prior_mean + gain @ (line.magnitude - design @ line.prior_mean)
    np.testing.assert_allclose(found.mean, mean, atol=1e-9)
    np.testing.assert_allclose(found.covariance, prior - gain @ design @ prior, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_log_joint_is_posterior_times_evidence(seed):
    line = toys.cepheids(seed=seed)
    exact = line.posterior()
    x = np.random.default_rng(2).multivariate_normal(exact.mean, 4 * exact.covariance, size=50)
    posterior = stats.multivariate_normal(exact.mean, exact.covariance).logpdf(x)
    found = jax.jit(lambda line, x: line.log_joint(x))(line, jnp.asarray(x, jnp.float32))
    # 22 terms of up to 1e2 in single precision.
    np.testing.assert_allclose(found, posterior + exact.log_evidence, atol=2e-4)


def test_zero_point_and_slope_are_strongly_correlated():
    covariance = toys.cepheids().posterior().covariance
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert -0.97 < correlation < -0.9


def test_lines_without_a_posterior():
    line = toys.cepheids()
    with pytest.raises(toys.ToyPosteriorError, match="NaN or infinite"):
        line._replace(magnitude=np.full(20, np.nan)).posterior()
    for name, value in (("noise", 0.0), ("prior_std", np.array([1.0, -1.0]))):
        with pytest.raises(toys.ToyPosteriorError, match="must be positive"):
            line._replace(**{name: value}).posterior()


# --- the plane ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSITIES)
def test_normalisers_against_quadrature(name):
    log_p, log_normaliser = DENSITIES[name]
    found = PLANE.log_normaliser(log_p(jnp.asarray(PLANE.points)))
    # What lies outside of the grid: x_1 beyond 6.5, 4.3 standard deviations of the banana.
    assert found == pytest.approx(log_normaliser, abs=3e-5)
    fine = toys.plane(step=0.05)
    finer = fine.log_normaliser(log_p(jnp.asarray(fine.points)))
    assert found == pytest.approx(finer, abs=1e-5)


def reference(name, x, y):
    """The normalised densities again, by scipy, in double precision."""
    if name == "banana":
        return stats.norm.pdf(x, 0, 1.5) * stats.norm.pdf(y, 0.5 * (x**2 - 2.25), 0.5)
    peaks = zip(toys.WEIGHTS, toys.CENTRES, toys.WIDTHS, strict=True)
    return sum(w * stats.norm.pdf(x, c[0], s) * stats.norm.pdf(y, c[1], s) for w, c, s in peaks)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_against_scipy(name):
    log_p, log_normaliser = DENSITIES[name]
    x = np.random.default_rng(4).uniform(-3, 3, size=(200, 2)).astype(np.float32)
    expected = reference(name, *x.T.astype(float))
    np.testing.assert_allclose(
        log_p(jnp.asarray(x)), np.log(expected) + log_normaliser, rtol=1e-5, atol=1e-4
    )
    total = integrate.dblquad(lambda y, x: reference(name, x, y), -8, 8, -8, 20, epsabs=1e-4)[0]
    assert total == pytest.approx(1.0, abs=1e-3)


def test_each_peak_has_its_weight():
    p = np.exp(np.asarray(toys.two_peaks(jnp.asarray(PLANE.points)), float))
    to_centres = np.linalg.norm(PLANE.points[:, None] - toys.CENTRES[None], axis=-1) / toys.WIDTHS
    share = p[to_centres[:, 0] < to_centres[:, 1]].sum() / p.sum()
    # The two overlap by less than the share of a Gaussian beyond 3.9 standard deviations.
    assert share == pytest.approx(toys.WEIGHTS[0], abs=3e-4)
    assert toys.WEIGHTS.sum() == pytest.approx(1.0)


def test_a_valley_lies_between_the_peaks():
    """As deep as its words say, seen from the lower peak."""
    along = np.linspace(0, 1, 400)[:, None]
    path = (1 - along) * toys.CENTRES[0] + along * toys.CENTRES[1]
    log_p = np.asarray(toys.two_peaks(jnp.asarray(path, jnp.float32)))
    assert min(log_p[0], log_p[-1]) - log_p.min() == pytest.approx(6.0, abs=0.1)


def gaussian_table(mean, covariance):
    return stats.multivariate_normal(mean, covariance).logpdf(PLANE.points)


def test_divergence_and_moments_of_gaussians_in_closed_form():
    mean, covariance = np.array([0.5, 1.0]), np.array([[1.0, 0.6], [0.6, 2.0]])
    other = np.array([[2.0, -0.5], [-0.5, 1.5]])
    q, p = gaussian_table(mean, covariance) + 3.0, gaussian_table([0.0, 0.0], other) - 2.0
    inverse = np.linalg.inv(other)
    expected = np.trace(inverse @ covariance) + mean @ inverse @ mean - 2.0
    expected += np.log(np.linalg.det(other) / np.linalg.det(covariance))
    assert PLANE.divergence(q, p) == pytest.approx(0.5 * expected, abs=1e-6)
    assert PLANE.divergence(q, q) == pytest.approx(0.0, abs=1e-12)
    found = PLANE.moments(q)
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1], covariance, atol=1e-6)


def test_a_guide_that_is_zero_somewhere_has_a_divergence():
    p = gaussian_table([0.0, 0.0], np.eye(2))
    half = np.where(PLANE.points[:, 0] > 0.05, p, -np.inf)
    # Half of a Gaussian: ln 2, less what the line of points in the middle has.
    share = np.exp(p)[PLANE.points[:, 0] > 0.05].sum() / np.exp(p).sum()
    assert PLANE.divergence(half, p) == pytest.approx(-np.log(share), abs=1e-9)


def test_tables_that_the_grid_cannot_judge():
    p = gaussian_table([0.0, 0.0], np.eye(2))
    with pytest.raises(toys.ToyPosteriorError, match="on the edge of the grid"):
        PLANE.divergence(gaussian_table([0.0, 19.5], np.eye(2)), p)
    with pytest.raises(toys.ToyPosteriorError, match="evaluate the log density at `points`"):
        PLANE.log_normaliser(p[:-1])
