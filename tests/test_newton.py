"""Damped Gauss-Newton descents, beside SciPy's minimisers in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from dlcourse_utils import newton
from dlcourse_utils.newton import NewtonError

TIMES = np.linspace(0.0, 3.0, 12)
SHARED = {"times": jnp.asarray(TIMES, jnp.float32), "pull": jnp.float32(0.3)}
N, BATCH = 7, 3  # the last of three batches is filled up


def model(z, times):
    """Of rows (n, 3): an amplitude, the logarithm of a rate, and a background; (n, k)."""
    return z[:, :1] * jnp.exp(-jnp.exp(z[:, 1:2]) * times[None]) + z[:, 2:]


def objective(z, y, variance, shared):
    """Half of chi^2, a Gaussian prior, and a pull that no residual knows of."""
    misfit = 0.5 * jnp.sum((y - model(z, shared["times"])) ** 2 / variance, axis=1)
    return misfit + 0.5 * jnp.sum(z**2, axis=1) + shared["pull"] * jnp.log(jnp.cosh(z[:, 0]))


def gradient(z, *rest):
    return jax.grad(lambda z: objective(z, *rest).sum())(z)


def residuals(z, y, variance, shared):
    return jnp.concatenate([model(z[None], shared["times"])[0] / jnp.sqrt(variance), z])


@pytest.fixture(scope="module")
def problem():
    """Decays with noise that differs from row to row and pixel to pixel, one of them masked."""
    rng = np.random.default_rng(60)
    truth = np.stack([rng.uniform(1, 5, N), rng.normal(0, 0.4, N), rng.uniform(0, 1, N)], axis=1)
    mean = truth[:, :1] * np.exp(-np.exp(truth[:, 1:2]) * TIMES) + truth[:, 2:]
    variance = rng.uniform(0.01, 0.1, (N, 1)) * rng.uniform(0.5, 2.0, mean.shape)
    y = mean + np.sqrt(variance) * rng.normal(size=mean.shape)
    variance[2, 4] = np.inf
    return np.array([[1.0, 0.0, 0.0]]).repeat(N, axis=0), y, variance


@pytest.fixture(scope="module")
def found(problem):
    z, *data = problem
    return newton.minimise(objective, gradient, residuals, z, tuple(data), (SHARED,), batch=BATCH)


def scipy_finds(start, y, variance, pull):
    """The same problem with NumPy; the pull c log cosh z as the square of its root."""
    pull = float(pull)

    def all_residuals(z):
        mean = z[0] * np.exp(-np.exp(z[1]) * TIMES) + z[2]
        return np.concatenate(
            [(y - mean) / np.sqrt(variance), z, [np.sqrt(2 * pull * np.log(np.cosh(z[0])))]]
        )

    best = optimize.least_squares(all_residuals, start, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    assert best.success
    return best.x, best.cost


def test_each_row_ends_where_scipy_does(problem, found):
    z, y, variance = problem
    assert found.z.shape == (N, 3) and found.value.shape == (N,) and found.path.shape == (45, N)
    for i in range(N):
        x, cost = scipy_finds(z[i], y[i], variance[i], SHARED["pull"])
        np.testing.assert_allclose(found.z[i], x, rtol=2e-3, atol=2e-3)
        assert found.value[i] == pytest.approx(cost, rel=1e-5)
    # Rows are told apart, and the start was not the answer.
    assert np.ptp(found.z[:, 0]) > 0.5 and np.all(found.path[0] > found.value)


def test_the_path_never_rises_and_ends_at_the_value(problem, found):
    z, *data = problem
    start = np.asarray(objective(*(jnp.asarray(a, jnp.float32) for a in (z, *data)), SHARED))
    assert np.all(np.diff(np.concatenate([start[None], found.path]), axis=0) <= 0.0)
    np.testing.assert_array_equal(found.path[-1], found.value)
    again = np.asarray(objective(*(jnp.asarray(a, jnp.float32) for a in (found.z, *data)), SHARED))
    np.testing.assert_allclose(found.value, again, rtol=1e-6)


def test_a_row_does_not_depend_on_the_others(problem, found):
    z, *data = problem
    order = np.array([6, 2])
    some = tuple(a[order] for a in data)
    alone = newton.minimise(objective, gradient, residuals, z[order], some, (SHARED,), batch=BATCH)
    np.testing.assert_allclose(alone.z, found.z[order], rtol=1e-3, atol=1e-3)


def test_what_is_shared_counts(problem, found):
    z, *data = problem
    shared = {"times": SHARED["times"], "pull": jnp.float32(20.0)}
    pulled = newton.minimise(objective, gradient, residuals, z, tuple(data), (shared,), batch=BATCH)
    for i in (0, N - 1):
        x, _ = scipy_finds(z[i], data[0][i], data[1][i], 20.0)
        np.testing.assert_allclose(pulled.z[i], x, rtol=2e-3, atol=2e-3)
    assert np.all(found.z[:, 0] - pulled.z[:, 0] > 0.05)


def test_a_curved_valley():
    """Rosenbrock's, in 4 dimensions: along the valley the curvature is 1e-3 of that across."""

    def parts(z, scale):
        even, odd = z[..., ::2], z[..., 1::2]
        return jnp.concatenate([10.0 * scale * (odd - even**2), 1.0 - even], axis=-1)

    def cost(z, scale):
        return 0.5 * jnp.sum(parts(z, scale[:, None]) ** 2, axis=1)

    def slope(z, scale):
        return jax.grad(lambda z: cost(z, scale).sum())(z)

    z = np.array([[-1.2, 1.0, -1.2, 1.0], [0.0, 2.0, 3.0, -1.0]])
    scale = np.array([1.0, 0.5])
    found = newton.minimise(cost, slope, parts, z, (scale,), steps=200, every=1, batch=2)
    np.testing.assert_allclose(found.z, 1.0, atol=1e-3)
    assert found.value.max() < 1e-6
    for start, size in zip(z, scale, strict=True):
        theirs = optimize.minimize(
            lambda x, size=size: (
                50.0 * size**2 * np.sum((x[1::2] - x[::2] ** 2) ** 2)
                + 0.5 * np.sum((1.0 - x[::2]) ** 2)
            ),
            start,
        )
        np.testing.assert_allclose(theirs.x, 1.0, atol=1e-3)


# --- steps that must not be taken ---------------------------------------------------------------


def barrier(z):
    """z - log z: NaN below zero, and lowest at one."""
    return jnp.sum(z - jnp.log(z), axis=1)


def test_steps_to_nan_are_refused():
    def slope(z):
        return 1.0 - 1.0 / z

    def flat(z):
        return 0.1 * z  # so that the first step goes from 3 to -58

    found = newton.minimise(barrier, slope, flat, np.full((1, 1), 3.0), (), batch=1)
    assert np.isfinite(found.path).all()
    assert found.path[0, 0] == pytest.approx(3.0 - np.log(3.0), rel=1e-6)  # where it was
    assert found.z[0, 0] == pytest.approx(1.0, abs=2e-3)


def test_steps_to_a_gradient_of_nan_are_refused():
    """At a finite value: from there no step would ever lead away."""

    def cost(z):
        return jnp.sum(jnp.maximum(z, 0.5) ** 2 - 0.1 * (z < 0.5), axis=1)

    def slope(z):
        return jnp.where(z < 0.5, jnp.nan, 2.0 * z)

    def parts(z):
        return 2.0**0.5 * z

    found = newton.minimise(cost, slope, parts, np.full((1, 1), 4.0), (), batch=1)
    assert 0.5 <= found.z[0, 0] < 0.51


def test_a_gradient_of_the_wrong_sign_goes_nowhere(problem):
    z, *data = problem

    def up(*arguments):
        return -gradient(*arguments)

    found = newton.minimise(objective, up, residuals, z, tuple(data), (SHARED,), batch=BATCH)
    # In the end steps are so small that rounding alone makes some of them look good.
    np.testing.assert_allclose(found.z, z, atol=1e-4)
    np.testing.assert_allclose(found.value, found.path[0], rtol=1e-5)


def test_a_coordinate_without_residuals_does_not_stop_the_others():
    def cost(z):
        return 0.5 * (z[:, 0] - 2.0) ** 2

    def slope(z):
        return jnp.stack([z[:, 0] - 2.0, jnp.zeros(len(z))], axis=1)

    def parts(z):
        return z[:1]

    found = newton.minimise(cost, slope, parts, np.array([[7.0, 5.0]]), (), batch=1)
    np.testing.assert_allclose(found.z, [[2.0, 5.0]], atol=1e-3)


# --- compilation and errors ---------------------------------------------------------------------


def test_the_same_functions_are_compiled_once(problem):
    traced = []

    def counted(*arguments):
        traced.append("objective")
        return objective(*arguments)

    def counted_residuals(*arguments):
        traced.append("residuals")
        return residuals(*arguments)

    z, y, variance = problem

    def run(rows, shared):
        return newton.minimise(
            counted,
            gradient,
            counted_residuals,
            z[rows],
            (y[rows], variance[rows]),
            (shared,),
            steps=6,
            batch=BATCH,
        )

    run(slice(0, 7), SHARED)
    assert sorted(traced) == ["objective", "residuals"]
    run(slice(2, 4), {**SHARED, "pull": jnp.float32(1.0)})
    assert len(traced) == 2


@pytest.mark.parametrize(
    ("z", "data", "sentence"),
    [
        (
            np.zeros(3),
            (np.zeros((3, 12)),),
            r"z must have shape \(n, d\).* got \(3,\) and \(3, 12\)",
        ),
        (np.zeros((2, 3)), (np.zeros((3, 12)),), r"n rows: got \(2, 3\) and \(3, 12\)"),
        (np.zeros((2, 3)), (np.zeros((2, 12)), 1.0), r"got \(2, 3\) and \(2, 12\), \(\)"),
        (np.zeros((0, 3)), (np.zeros((0, 12)),), r"n rows: got \(0, 3\)"),
    ],
)
def test_shapes_that_do_not_fit(z, data, sentence):
    with pytest.raises(NewtonError, match=sentence):
        newton.minimise(objective, gradient, residuals, z, data, (SHARED,))


def test_a_start_without_a_value_is_named(problem):
    z, y, variance = problem
    y = y.copy()
    y[5, 3] = np.nan
    with pytest.raises(
        NewtonError, match="Objective or gradient are not finite at start 5: look at its"
    ):
        newton.minimise(objective, gradient, residuals, z, (y, variance), (SHARED,), batch=BATCH)


def test_a_start_without_a_slope_is_named(problem):
    """The root of zero, in a masked pixel, has an infinite slope: 0 * inf, with a finite value."""
    z, *data = problem

    def careless(z, y, variance, shared):
        misfit = jnp.sqrt((y - model(z, shared["times"])) ** 2 / variance)
        return 0.5 * jnp.sum(misfit**2, axis=1)

    def slope(z, *rest):
        return jax.grad(lambda z: careless(z, *rest).sum())(z)

    with pytest.raises(
        NewtonError, match=r"Objective or gradient are not finite at start 2: .* 0 \* inf"
    ):
        newton.minimise(careless, slope, residuals, z, tuple(data), (SHARED,), batch=BATCH)


def test_curvature_is_that_of_a_line_in_any_number_of_batches():
    design = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    def of_line(z, scale):
        return scale * (jnp.asarray(design) @ z)

    scales = np.arange(1.0, 8.0, dtype=np.float32)
    found = newton.curvature(of_line, np.zeros((7, 3)), (scales,), batch=3)
    exact = scales[:, None, None] ** 2 * (design.T @ design)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
