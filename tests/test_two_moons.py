"""The two moons: geometry against scikit-learn, densities and posteriors against quadrature."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, spatial, special, stats
from sklearn import datasets

from dlcourse_utils.datasets import two_moons

KEY = jax.random.key(30)
# Compiled once for each number of points; the noise is an argument.
SLOPES = jax.jit(jax.vmap(jax.grad(two_moons.log_prob), in_axes=(0, None)))
# A fine rule in double precision, independent of the module's: Simpson with 3001 angles.
ANGLES = np.linspace(0.0, np.pi, 3001)
OUTER = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
INNER = np.stack([1.0 - np.cos(ANGLES), 0.5 - np.sin(ANGLES)], axis=1)


def reference_log_prob(x, noise):
    """Log density of each point (n, 2), by Simpson's rule."""
    values = []
    for point in np.asarray(x, dtype=float):
        square = [np.sum((arc - point) ** 2, axis=1) for arc in (OUTER, INNER)]
        least = min(s.min() for s in square)
        total = sum(np.exp(-0.5 * (s - least) / noise**2) for s in square)
        integral = integrate.simpson(total, x=ANGLES) / (2 * np.pi)
        values.append(np.log(integral) - 0.5 * least / noise**2 - np.log(2 * np.pi * noise**2))
    return np.array(values)


def grid(low, high, step):
    """Points (n, 2) of a square grid from ``low`` to ``high``, both pairs."""
    axes = (np.arange(a, b + step / 2, step) for a, b in zip(low, high, strict=True))
    x, y = np.meshgrid(*axes, indexing="ij")
    return jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), dtype=jnp.float32)


def everything(noise):
    """A grid that holds the density but for exp(-6^2 / 2): for sums over the plane."""
    return grid((-1 - 6 * noise, -0.5 - 6 * noise), (2 + 6 * noise, 1 + 6 * noise), noise / 2)


# --- geometry --------------------------------------------------------------------------------


def test_arcs_are_those_of_make_moons():
    x, label = datasets.make_moons(400, shuffle=False)
    own = np.take_along_axis(np.asarray(two_moons.distance(x)), label[:, None], axis=1)
    np.testing.assert_allclose(own, 0.0, atol=3e-7)  # a few roundings of numbers up to 2
    # Far from the ends the density on an arc is that of a line: 1 / (2 pi) per length, two arcs.
    line = np.log(1 / (2 * np.pi)) - 0.5 * np.log(2 * np.pi * 0.03**2)
    middle = x[np.r_[150:155, 350:355]]
    # The curvature changes it by 1 + noise^2 / 8 at most: 1e-4.
    np.testing.assert_allclose(two_moons.log_prob(middle, 0.03), line, atol=3e-4)


def test_distance_is_to_the_nearest_point():
    x = grid((-2.0, -1.5), (3.0, 2.0), 0.23)
    expected = [spatial.cKDTree(arc).query(x)[0] for arc in (OUTER, INNER)]
    # The tree's points are 0.001 apart: off by (0.0005)^2 / (2 d), and by 0.0005 on the arc.
    np.testing.assert_allclose(two_moons.distance(x), np.stack(expected, axis=1), atol=6e-4)


def test_distance_in_closed_form():
    x = jnp.array([[0.0, 0.0], [0.0, 3.0], [1.3, -0.4], [0.0, -2.0], [1.0, 0.0], [1.0, 0.5]])
    outer = [1.0, 2.0, 0.5, 5**0.5, 0.0, 1.25**0.5 - 1.0]
    inner = [1.25**0.5 - 1.0, 2.5, 1.0 - 0.9**0.5, 7.25**0.5 - 1.0, 0.5, 1.0]
    found = two_moons.distance(x)
    np.testing.assert_allclose(found, np.stack([outer, inner], axis=1), atol=3e-7)
    # At a centre, on an arc and at an end of it, where a square root has no derivative.
    slope = jax.jacobian(two_moons.distance)(jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.5]]))
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_points_lie_about_the_arcs():
    x = two_moons.simulate(KEY, 40_000)
    assert x.shape == (40_000, 2) and x.dtype == jnp.float32
    turned = jnp.array([[1.0, 0.5]]) - x
    distance = two_moons.distance(x)
    outer = np.asarray(distance[:, 0] < distance[:, 1])
    assert outer.mean() == pytest.approx(0.5, abs=4 * 0.5 / 200)
    for points in (x[outer], turned[~outer]):
        # In the middle of an arc the offset from the circle is the noise, the angle uniform.
        angle = np.arctan2(points[:, 1], points[:, 0])
        middle = (angle > 0.3) & (angle < np.pi - 0.3)
        offset = np.linalg.norm(points, axis=1)[middle] - 1.0
        assert offset.std() == pytest.approx(0.05, rel=4 / (2 * middle.sum()) ** 0.5)
        uniform = (angle[middle] - 0.3) / (np.pi - 0.6)
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_simulate_is_seeded_and_takes_its_noise():
    one, two = (two_moons.simulate(KEY, 500, noise=0.2) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert bool(jnp.any(two_moons.simulate(jax.random.key(31), 500, noise=0.2) != one))
    same = two_moons.simulate(KEY, 500, noise=0.1)
    arc = 2 * same - one  # the same angles and normal variables: half the noise
    np.testing.assert_allclose(two_moons.distance(arc).min(axis=1), 0.0, atol=1e-6)


# --- the density -----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.03, 0.05, 0.3])
def test_log_prob_near_the_arcs(noise):
    x = two_moons.simulate(KEY, 300, 3 * noise)  # three times too far out
    ends = jnp.array([[1.0, 0.0], [-1.0, -5 * noise], [2.0 + 4 * noise, 0.5], [0.0, 0.5]])
    x = jnp.concatenate([x, ends])
    x = x[two_moons.distance(x).min(axis=1) < 6 * noise]
    # What the course asks for; a wrong weight or normaliser is off by 1e-2 and more.
    np.testing.assert_allclose(
        two_moons.log_prob(x, noise), reference_log_prob(x, noise), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("point", [(0.3, 0.95), (-1.05, -0.1), (0.5, 0.25), (1.9, 0.1)])
def test_log_prob_agrees_with_adaptive_quadrature(point):
    point = np.array(point, dtype=np.float32).astype(float)

    def integrand(t):
        outer = np.array([np.cos(t), np.sin(t)])
        inner = np.array([1 - np.cos(t), 0.5 - np.sin(t)])
        square = (np.sum((point - arc) ** 2) for arc in (outer, inner))
        return sum(np.exp(-0.5 * s / 0.05**2) for s in square) / (2 * np.pi)

    breaks = np.linspace(0.0, np.pi, 41)[1:-1]
    value, _ = integrate.quad(integrand, 0.0, np.pi, points=breaks, limit=200, epsabs=0)
    expected = np.log(value) - np.log(2 * np.pi * 0.05**2)
    found = two_moons.log_prob(point.astype(np.float32))
    assert found == pytest.approx(expected, abs=1e-5)


def test_log_prob_far_away_and_its_gradient():
    x = grid((-5.0, -5.0), (5.0, 5.0), 0.5)
    for noise in (0.03, 0.05):
        expected = reference_log_prob(x, noise)
        np.testing.assert_allclose(two_moons.log_prob(x, noise), expected, rtol=1e-3, atol=1e-5)
        assert bool(jnp.all(jnp.isfinite(SLOPES(x, noise))))


def test_gradient_against_differences():
    x = two_moons.simulate(KEY, 20)
    for axis in (0, 1):
        step = 1e-4 * np.eye(2)[axis]
        up, down = (reference_log_prob(np.asarray(x) + s * step, 0.05) for s in (1, -1))
        slope = SLOPES(x, 0.05)[:, axis]
        # The third derivative times step^2 / 6: 1e5 * 2e-9. Single precision: 1e-7 / 0.05^2.
        np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=1e-4, atol=5e-4)


def test_half_turn_changes_nothing():
    x = two_moons.simulate(KEY, 500)
    turned = jnp.array([[1.0, 0.5]]) - x
    # Rounding x by 6e-8 moves the value by 6e-8 * 6 / 0.05 at 6 noise.
    np.testing.assert_allclose(two_moons.log_prob(turned), two_moons.log_prob(x), atol=1e-5)
    np.testing.assert_allclose(
        two_moons.distance(turned)[:, ::-1], two_moons.distance(x), atol=3e-7
    )


@pytest.mark.parametrize("shape", [(), (0,)])
def test_any_shape(shape):
    x = jnp.full((*shape, 2), 0.3)
    value = two_moons.log_prob(x)
    assert value.shape == shape and value.dtype == jnp.float32
    assert two_moons.distance(x).shape == (*shape, 2)
    assert two_moons.posterior_mean(x, 0.1).shape == (*shape, 2)
    assert two_moons.posterior_mode(x, 0.1).shape == (*shape, 2)
    assert two_moons.log_prob_given_first(x, 0.2, 0.1).shape == shape


def test_blocks_and_transformations_agree():
    x = two_moons.simulate(KEY, 1025)  # one block and one point
    mapped = jax.jit(jax.vmap(two_moons.log_prob, in_axes=(0, None)))(x, 0.05)
    np.testing.assert_allclose(mapped, two_moons.log_prob(x), rtol=1e-5, atol=1e-5)
    mean = jax.jit(two_moons.posterior_mean)(x, 0.1)
    np.testing.assert_allclose(mean[-1], two_moons.posterior_mean(x[-1], 0.1), atol=1e-6)
    mode = jax.vmap(lambda y: two_moons.posterior_mode(y, 0.1))(x[:5])
    np.testing.assert_allclose(mode, two_moons.posterior_mode(x[:5], 0.1), atol=1e-3)


def test_fifty_thousand_points_in_a_moment():
    x = two_moons.simulate(KEY, 50_000)
    compiled = jax.jit(two_moons.log_prob).lower(x).compile()
    # All nodes of all points at once would take 64 MB an array.
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6
    start = time.process_time()
    jax.block_until_ready(compiled(x))
    assert time.process_time() - start < 2  # of processor time, 0.1 when nothing else runs


# --- the score -------------------------------------------------------------------------------

# Another fine rule in double precision: trapezoid with 4,001 angles.
FINE_ANGLES = np.linspace(0.0, np.pi, 4_001)
FINE_OUTER = np.stack([np.cos(FINE_ANGLES), np.sin(FINE_ANGLES)], axis=1)
FINE_ARCS = np.concatenate([FINE_OUTER, np.array([1.0, 0.5]) - FINE_OUTER])
FINE_WEIGHTS = np.full(8_002, 1 / 8_000)
FINE_WEIGHTS[[0, 4_000, 4_001, 8_001]] /= 2


def reference_score(x, noise):
    """Mean offset of each point (n, 2) from the nodes behind it, over the variance."""
    offset = FINE_ARCS - np.asarray(x, dtype=float)[:, None]
    log_weights = -0.5 * np.sum(offset**2, axis=-1) / noise**2
    weights = FINE_WEIGHTS * np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkd->nd", weights, offset) / noise**2


@pytest.mark.parametrize("noise", [0.03, 0.05, 0.3, 2.0])
def test_score_against_quadrature_and_automatic_differentiation(noise):
    near = two_moons.simulate(KEY, 60, 1.5 * noise)
    far = jnp.array([[5.0, -4.0], [-6.0, 0.3], [0.5, 0.25], [0.0, 0.0], [1.0, 0.5], [-1.0, 0.0]])
    x = jnp.concatenate([near, far])
    found = two_moons.score(x, noise)
    assert found.shape == x.shape and found.dtype == jnp.float32
    expected = reference_score(x, noise), SLOPES(x, noise)
    for other in expected:
        # Offsets from nodes of size 1 have a rounding of 1e-7, and so have their weights.
        np.testing.assert_allclose(found[:60], other[:60], rtol=1e-5, atol=3e-6 / noise**2)
        # 100 noises away the nodes are not dense enough for more than 1e-3, as for log_prob.
        np.testing.assert_allclose(found[60:], other[60:], rtol=1e-3, atol=3e-6 / noise**2)


def test_score_against_differences():
    x = np.asarray(two_moons.simulate(KEY, 20, 0.2), dtype=float)
    found = two_moons.score(x, 0.2)
    for axis in (0, 1):
        step = 1e-4 * np.eye(2)[axis]
        up, down = (reference_log_prob(x + s * step, 0.2) for s in (1, -1))
        # The third derivative times step^2 / 6: 1e3 * 2e-9; the values are good to 1e-12.
        np.testing.assert_allclose(found[:, axis], (up - down) / 2e-4, rtol=1e-5, atol=5e-5)


def test_score_takes_a_column_of_noise():
    x = two_moons.simulate(KEY, 1_030, 0.5)  # a block and six points
    column = jnp.linspace(0.04, 2.0, 1_030)[:, None]
    found = two_moons.score(x, column)
    for i in (0, 500, 1_023, 1_024, 1_029):
        alone = two_moons.score(x[i], float(column[i, 0]))
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(jax.jit(two_moons.score)(x, column), found)
    shaped = two_moons.score(x.reshape(2, 515, 2), column.reshape(2, 515, 1))
    np.testing.assert_allclose(shaped.reshape(-1, 2), found, rtol=1e-5, atol=1e-4)
    assert two_moons.score(x[:0], 0.1).shape == (0, 2)
    np.testing.assert_allclose(
        two_moons.score(x[:9]), two_moons.score(x[:9], two_moons.NOISE), rtol=1e-6
    )


@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_mean_score_is_zero_and_its_square_is_the_curvature(noise):
    """E s = 0, and E s s^T = -E of the Jacobian: integration by parts."""
    x = two_moons.simulate(KEY, 20_000, noise)
    s = np.asarray(two_moons.score(x, noise), dtype=float)
    error = s.std(axis=0) / 20_000**0.5
    assert np.all(np.abs(s.mean(axis=0)) < 4 * error)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(two_moons.score), in_axes=(0, None)))(x, noise)
    total = s[:, :, None] * s[:, None, :] + np.asarray(jacobian, dtype=float)
    assert np.all(np.abs(total.mean(axis=0)) < 4 * total.std(axis=0) / 20_000**0.5)


# --- the entropy -----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.03, 0.05, 0.2])
def test_entropy_is_the_mean_surprise(noise):
    surprise = -two_moons.log_prob(two_moons.simulate(KEY, 50_000, noise), noise)
    surprise = np.asarray(surprise, dtype=float)
    error = surprise.std() / 50_000**0.5
    assert two_moons.entropy(noise) == pytest.approx(surprise.mean(), abs=3.5 * error)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_entropy_is_the_integral_over_the_plane(noise):
    log_p = np.asarray(two_moons.log_prob(everything(noise), noise), dtype=float)
    # Steps of half a noise: the sum errs by exp(-2 pi^2 2^2), the edges by exp(-18).
    cell = (noise / 2) ** 2
    assert cell * np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)
    expected = -cell * np.sum(np.exp(log_p) * log_p)
    assert two_moons.entropy(noise) == pytest.approx(expected, abs=1e-4)


# --- given an observation --------------------------------------------------------------------


@pytest.mark.parametrize(("y", "obs_noise"), [(0.4, 0.1), (-0.8, 0.02), (2.5, 0.3)])
def test_log_prob_given_first_is_normalised(y, obs_noise):
    # Equidistant sums of smooth densities: steps of 0.01 are half the smallest deviation.
    x = grid((-1.5, -1.0), (2.5, 1.5), 0.01)
    log_p = np.asarray(two_moons.log_prob_given_first(x, y, obs_noise), dtype=float)
    assert 1e-4 * np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4)
    # Bayes: the shape is that of prior times likelihood.
    near = log_p > log_p.max() - 12
    shape = reference_log_prob(x[near][::97], 0.05)
    shape += stats.norm.logpdf(y, np.asarray(x[near][::97, 0], dtype=float), obs_noise)
    # Both terms are rounded at values up to 12 / obs_noise: 1e-4 with room.
    assert np.ptp(log_p[near][::97] - shape) < 1e-4


def test_log_prob_given_first_broadcasts_its_observation():
    x, y = two_moons.simulate(KEY, 12).reshape(3, 4, 2), jnp.array([[0.1], [0.5], [1.2]])
    found = two_moons.log_prob_given_first(x, y, 0.1, 0.04)
    for row in range(3):
        alone = two_moons.log_prob_given_first(x[row], y[row, 0], 0.1, 0.04)
        np.testing.assert_allclose(found[row], alone, rtol=1e-5, atol=1e-5)


def reference_score_given_first(x, sigma, y, obs_noise, noise, step=1e-4):
    """Central differences of the log of the posterior, convolved on a grid, at points (n, 2)."""
    # What is summed is smooth on this scale, and the sum errs by 2 exp(-2 pi^2 / 0.8^2) = 8e-14.
    width = 0.8 * (noise**-2 + obs_noise**-2 + sigma**-2) ** -0.5
    clean = np.asarray(grid((-1 - 6 * noise, -0.5 - 6 * noise), (2.5, 1.5), width), dtype=float)
    clean = clean[spatial.cKDTree(FINE_ARCS).query(clean)[0] < 6 * noise]
    log_p = reference_log_prob(clean, noise) - 0.5 * ((y - clean[:, 0]) / obs_noise) ** 2
    moves = step * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    square = np.sum((np.asarray(x, float)[:, None, None] + moves[:, None] - clean) ** 2, axis=-1)
    up_and_down = special.logsumexp(log_p - 0.5 * square / sigma**2, axis=-1).reshape(-1, 2, 2)
    return (up_and_down[..., 0] - up_and_down[..., 1]) / (2 * step)


@pytest.mark.parametrize(
    ("sigma", "y", "obs_noise", "noise"),
    [(0.2, 0.5, 0.3, 0.05), (2.0, -0.3, 0.3, 0.05), (0.1, 1.2, 0.1, 0.08)],
)
def test_score_given_first_against_a_convolution(sigma, y, obs_noise, noise):
    x = two_moons.simulate(KEY, 12, 0.1) + sigma * jax.random.normal(KEY, (12, 2))
    found = two_moons.score_given_first(x, sigma, y, obs_noise, noise)
    assert found.shape == (12, 2) and found.dtype == jnp.float32
    expected = reference_score_given_first(x, sigma, y, obs_noise, noise)
    # Single precision: offsets of size 1, over variances of 0.01 and more.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("y", "obs_noise"), [(0.5, 0.3), (-0.9, 0.05), (3.0, 1.0)])
def test_score_given_first_without_blur_is_a_slope(y, obs_noise):
    x = two_moons.simulate(KEY, 100)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: two_moons.log_prob_given_first(x, y, obs_noise))))
    found = two_moons.score_given_first(x, 0.0, y, obs_noise)
    # Single precision: 1e-7 of y and the nodes over the smallest variance, 1 / 1250.
    np.testing.assert_allclose(found, slope(x), rtol=1e-4, atol=4e-3)
    # Bayes: prior's score and likelihood's add up.
    pull = (y - x[:, 0]) / obs_noise**2
    expected = two_moons.score(x) + jnp.stack([pull, jnp.zeros(100)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=4e-3)


def test_score_given_first_with_a_useless_observation_is_the_score():
    x = two_moons.simulate(KEY, 200, 0.4)
    found = two_moons.score_given_first(x, 0.3, 0.5, 1e4)
    np.testing.assert_allclose(found, two_moons.score(x, np.hypot(0.3, 0.05)), atol=1e-4)


def test_score_given_first_takes_a_column():
    x = two_moons.simulate(KEY, 7, 0.5)
    column = jnp.linspace(0.0, 2.0, 7)[:, None]
    found = two_moons.score_given_first(x, column, 0.5, 0.3)
    for i in range(7):
        alone = two_moons.score_given_first(x[i], float(column[i, 0]), 0.5, 0.3)
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.03, 0.3, 1.0])
def test_posterior_mean_is_one_step_along_the_score(sigma):
    """Tweedie's formula: the mean behind a point is sigma^2 times the score away."""
    x = two_moons.simulate(KEY, 200) + sigma * jax.random.normal(KEY, (200, 2))
    step = sigma**2 * two_moons.score(x, (0.05**2 + sigma**2) ** 0.5)
    np.testing.assert_allclose(two_moons.posterior_mean(x, sigma), x + step, atol=2e-5)


@pytest.mark.parametrize("obs_noise", [0.03, 0.3, 1.0])
def test_posterior_mean_against_tweedie(obs_noise):
    y = two_moons.simulate(KEY, 200) + obs_noise * jax.random.normal(KEY, (200, 2))
    seen = (0.05**2 + obs_noise**2) ** 0.5
    slope = SLOPES(y, seen)
    expected = y + obs_noise**2 * slope
    # Single precision of numbers up to 5, summed with weights.
    np.testing.assert_allclose(two_moons.posterior_mean(y, obs_noise), expected, atol=2e-5)


@pytest.mark.parametrize("y", [(0.5, 0.25), (1.4, 0.9), (0.0, 0.0)])
def test_posterior_mean_against_a_grid(y):
    x = np.asarray(everything(0.05), dtype=float)
    log_p = np.asarray(two_moons.log_prob(x)) - 0.5 * ((x - np.array(y)) ** 2).sum(axis=1) / 0.3**2
    expected = special.softmax(log_p.astype(float)) @ x
    # Weights good to 1e-5, the error of log_prob.
    found = two_moons.posterior_mean(jnp.array([y]), 0.3)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("obs_noise", "noise"), [(0.1, 0.05), (0.5, 0.05), (0.3, 0.03), (0.4, 0.2)]
)
def test_no_point_of_a_grid_beats_the_posterior_mode(obs_noise, noise):
    y = two_moons.simulate(KEY, 200, noise)
    y += obs_noise * jax.random.normal(jax.random.key(31), (200, 2))
    mode = two_moons.posterior_mode(y, obs_noise, noise)
    x = grid((-1.5, -1.0), (2.5, 1.5), 0.02)
    log_prior = np.asarray(two_moons.log_prob(x, noise))
    x = np.asarray(x)
    height = np.asarray(two_moons.log_prob(mode, noise))
    height = height - 0.5 * ((mode - y) ** 2).sum(axis=1) / obs_noise**2
    square = spatial.distance.cdist(np.asarray(y), x, "sqeuclidean")
    best = np.max(log_prior[None, :] - 0.5 * square / obs_noise**2, axis=1)
    # 2e-5: the two values are of single precision.
    assert np.all(height >= best - 2e-5)


@pytest.mark.parametrize("y", [(0.5, 0.2), (0.1, -0.6), (2.3, 0.8), (-0.2, 0.9), (1.2, 0.1)])
def test_posterior_mode_against_scipy(y):
    y = np.array(y, dtype=np.float32).astype(float)

    def loss(x):
        return -reference_log_prob(x[None, :], 0.05)[0] + 0.5 * np.sum((x - y) ** 2) / 0.4**2

    x = grid((-1.2, -0.7), (2.2, 1.2), 0.02)
    log_p = np.asarray(two_moons.log_prob(x)) - 0.5 * ((np.asarray(x) - y) ** 2).sum(axis=1) / 0.16
    start = np.asarray(x, dtype=float)[log_p.argmax()]
    simplex = start + 0.01 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    options = {"xatol": 1e-5, "fatol": 1e-9, "initial_simplex": simplex}
    expected = optimize.minimize(loss, start, method="Nelder-Mead", options=options).x
    found = two_moons.posterior_mode(jnp.asarray(y)[None, :], 0.4)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


# --- bad input -------------------------------------------------------------------------------

X = jnp.zeros((3, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda noise: two_moons.simulate(KEY, 3, noise),
        lambda noise: two_moons.log_prob(X, noise),
        lambda noise: two_moons.score(X, noise),
        two_moons.entropy,
        lambda noise: two_moons.log_prob_given_first(X, 0.0, 0.1, noise),
        lambda noise: two_moons.score_given_first(X, 0.1, 0.0, 0.1, noise),
        lambda noise: two_moons.score_given_first(X, 0.1, 0.0, noise),
        lambda noise: two_moons.posterior_mean(X, 0.1, noise),
        lambda noise: two_moons.posterior_mode(X, 0.1, noise),
        lambda noise: two_moons.log_prob_given_first(X, 0.0, noise),
        lambda noise: two_moons.posterior_mean(X, noise),
        lambda noise: two_moons.posterior_mode(X, noise),
    ],
)
@pytest.mark.parametrize("noise", [0.0, -0.1, float("nan"), np.float32(0.0)])
def test_a_noise_that_is_not_positive_is_refused(call, noise):
    with pytest.raises(ValueError, match=r"noise must be (positive|at least 0\.03), got"):
        call(noise)


def test_a_noise_too_small_for_the_nodes_is_refused():
    with pytest.raises(ValueError, match=r"noise must be at least 0\.03, got 0\.01"):
        two_moons.log_prob(X, 0.01)
    with pytest.raises(ValueError, match=r"noise must be at least 0\.03, got 0\.01"):
        two_moons.score(X, 0.01)
    assert two_moons.MIN_NOISE < two_moons.NOISE
    assert bool(jnp.all(jnp.isfinite(two_moons.simulate(KEY, 3, 0.01))))


def test_one_bad_level_in_a_column_is_refused():
    column = jnp.array([[0.5], [0.01], [0.2]])
    with pytest.raises(ValueError, match=r"noise must be at least 0\.03, got 0\.0[01]"):
        two_moons.score(X, column)
    with pytest.raises(ValueError, match=r"sigma must not be negative, got -0\.5"):
        two_moons.score_given_first(X, -column, 0.0, 0.1)
    # The least noise in single precision is a rounding below it.
    assert bool(jnp.all(jnp.isfinite(two_moons.score(X, jnp.full((3, 1), 0.03)))))


@pytest.mark.parametrize("x", [jnp.zeros((2, 3)), jnp.zeros(3), jnp.float32(1.0)])
@pytest.mark.parametrize(
    "call",
    [
        two_moons.log_prob,
        two_moons.score,
        two_moons.distance,
        lambda x: two_moons.log_prob_given_first(x, 0.0, 0.1),
        lambda x: two_moons.score_given_first(x, 0.1, 0.0, 0.1),
        lambda x: two_moons.posterior_mean(x, 0.1),
        lambda x: two_moons.posterior_mode(x, 0.1),
    ],
)
def test_points_that_are_not_in_the_plane_are_refused(call, x):
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., 2\), got"):
        call(x)
