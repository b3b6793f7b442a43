"""The carrier of the samplers: noise levels, chains and the ODE solver, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlcourse_utils.diffusion import SamplerError, noise_levels, require_moves, run_chain, solve_ode

KEY = jax.random.key(50)
X = jax.random.normal(jax.random.key(51), (40, 2))


# --- noise levels ----------------------------------------------------------------------------


def test_noise_levels_fall_by_a_constant_factor():
    levels = noise_levels(5, 2.0, 0.02)
    assert levels.dtype == np.float32
    expected = 2.0 * 100.0 ** -np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(levels, expected, rtol=1e-6)
    np.testing.assert_array_equal(noise_levels(2, 3.0, 1.0), [3.0, 1.0])


@pytest.mark.parametrize(
    ("largest", "smallest"),
    [(0.02, 2.0), (1.0, 1.0), (2.0, 0.0), (2.0, -1.0), (np.nan, 1.0), (2.0, np.nan), (np.inf, 1.0)],
)
def test_noise_levels_that_do_not_fall_are_refused(largest, smallest):
    with pytest.raises(ValueError, match="fall from a largest to a smallest, both positive; got"):
        noise_levels(5, largest, smallest)


@pytest.mark.parametrize("n", [1, 0, -3])
def test_fewer_than_two_noise_levels_are_refused(n):
    with pytest.raises(ValueError, match=f"n of at least 2: both ends; got {n}"):
        noise_levels(n, 2.0, 0.02)


# --- chains ----------------------------------------------------------------------------------


def recur(key, state, factor, shift):
    """Without chance: x -> factor * x + shift, and the number of steps."""
    x, count = state
    x = factor * x + shift
    return (x, count + 1), {"x": x, "first": x[0, 0]}


def test_a_chain_goes_through_its_inputs_in_order():
    factors = np.array([0.5, -2.0, 1.5, 3.0], np.float32)
    shifts = np.arange(8.0, dtype=np.float32).reshape(4, 1, 2)
    last, kept = run_chain(
        recur, KEY, (X, jnp.zeros((), int)), (factors, jnp.asarray(shifts)), label="recurrence"
    )
    x, seen = np.asarray(X, float), []
    for factor, shift in zip(factors, shifts, strict=True):
        x = factor * x + shift
        seen.append(x)
    np.testing.assert_allclose(last[0], x, rtol=1e-5, atol=1e-5)
    assert int(last[1]) == 4
    np.testing.assert_allclose(kept["x"], np.stack(seen), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kept["first"], kept["x"][:, 0, 0])


def draw(key, state, _):
    z = jax.random.normal(key, state.shape)
    return state + z, z


def test_each_step_has_a_key_of_its_own():
    last, drawn = run_chain(draw, KEY, X, (jnp.zeros(50),), label="walk")
    assert len(np.unique(drawn[:, 0, 0])) == 50
    np.testing.assert_allclose(last, X + drawn.sum(axis=0), atol=1e-5)
    same, _ = run_chain(draw, KEY, X, (jnp.zeros(50),), label="walk")
    other, _ = run_chain(draw, jax.random.key(52), X, (jnp.zeros(50),), label="walk")
    np.testing.assert_array_equal(last, same)
    assert np.all(last != other)
    # Steps are independent: neighbours correlate by less than 4 / sqrt(their number).
    drawn = np.asarray(drawn, float)
    assert abs(np.mean(drawn[1:] * drawn[:-1])) < 4 / drawn[1:].size ** 0.5


def test_what_is_not_kept_is_none():
    _, kept = run_chain(
        lambda key, x, factor: (factor * x, None), KEY, X, (jnp.ones(3),), label="nothing"
    )
    assert kept is None


def too_long(key, x, size):
    """Langevin for a standard Gaussian: x grows by 1 - size at each step."""
    return x - size * x + jnp.sqrt(2 * size) * jax.random.normal(key, x.shape), None


def test_a_chain_that_diverges_names_its_step_and_size():
    """A factor of -100 a step: float32 ends at 3.4e38, between steps 19 and 20."""
    with pytest.raises(SamplerError) as caught:
        run_chain(too_long, KEY, jnp.ones((1, 1)), (jnp.full(60, 101.0),), label="Langevin")
    sentence = str(caught.value)
    assert "Langevin: the chain left the finite numbers at step 20 of 60" in sentence
    assert "(its inputs there: 101)" in sentence and "Make its steps smaller" in sentence


def test_a_nan_in_one_part_of_the_state_is_found_at_its_step():
    def step(key, state, sigma, next_sigma):
        x, log_p = state
        return (x, log_p + jnp.log(next_sigma - 0.2)), None

    levels = jnp.array([1.0, 0.5, 0.25, 0.125, 0.0625])
    with pytest.raises(SamplerError, match=r"SDE: .* step 3 of 4 \(its inputs there: 0.25, 0.125"):
        run_chain(step, KEY, (X, jnp.zeros(40)), (levels[:-1], levels[1:]), label="SDE")


# --- the ODE ---------------------------------------------------------------------------------

# Points of a Gaussian of variance V, blurred by sigma, have the score -x / (V + sigma^2). Its
# probability flow keeps x / sqrt(V + sigma^2), and log density grows by minus the divergence.
V = 0.3
DOWN = (2.0, 0.7, 0.3, 0.02)
FINE = {"tolerance": 1e-5}


def velocity(sigma, x):
    return sigma * x / (V + sigma**2)


def flow(x, levels):
    """Where points x of the first of the levels are at each of them."""
    variance = V + np.reshape(levels, (-1, 1, 1)) ** 2
    return np.asarray(x, float) * np.sqrt(variance / variance[0])


@pytest.mark.parametrize("levels", [DOWN, DOWN[::-1], (0.5, 0.45, 0.42, 0.4)])
def test_the_flow_of_a_gaussian_in_closed_form(levels):
    path = solve_ode(velocity, X, levels, **FINE)
    expected = flow(X, levels)
    np.testing.assert_array_equal(path.states[0], X)
    # Ten times the tolerance of a step, for several steps.
    np.testing.assert_allclose(path.states[-1], expected[-1], rtol=1e-4, atol=1e-5)
    # In between an interpolation of lower order.
    np.testing.assert_allclose(path.states, expected, rtol=1e-3, atol=1e-5)


def test_there_and_back():
    down = solve_ode(velocity, X, DOWN, **FINE).states[-1]
    back = solve_ode(velocity, down, DOWN[::-1], **FINE).states[-1]
    np.testing.assert_allclose(back, X, rtol=2e-4, atol=1e-5)


def test_the_tolerance_is_met_and_costs_calls():
    errors, calls = [], []
    for tolerance in (1e-2, 1e-5):
        path = solve_ode(velocity, X, DOWN, tolerance=tolerance)
        errors.append(np.sqrt(np.mean((path.states[-1] - flow(X, DOWN)[-1]) ** 2)))
        calls.append(path.calls)
        assert errors[-1] < 3 * tolerance
    assert errors[1] < 0.1 * errors[0] and calls[1] > calls[0]


def test_a_state_of_several_arrays():
    """The log density of points that follow the flow: d / 2 log of the ratio of variances."""

    def with_divergence(sigma, state):
        x, gained = state
        return velocity(sigma, x), jnp.full_like(gained, 2 * sigma / (V + sigma**2))

    levels = noise_levels(7, 2.0, 0.05)
    x, gained = solve_ode(with_divergence, (X, jnp.zeros(len(X))), levels, **FINE).states
    assert x.shape == (7, 40, 2) and gained.shape == (7, 40)
    np.testing.assert_allclose(x, flow(X, levels), rtol=1e-3, atol=1e-5)
    expected = np.log((V + levels.astype(float) ** 2) / (V + 4.0))
    np.testing.assert_allclose(gained, np.tile(expected[:, None], 40), rtol=1e-3)


def test_calls_are_counted():
    counted = []

    def counting(sigma, x):
        jax.debug.callback(lambda sigma: counted.append(float(sigma)), sigma)
        return velocity(sigma, x)

    path = solve_ode(counting, X, noise_levels(20, 2.0, 0.02), **FINE)
    jax.effects_barrier()
    assert path.calls == len(counted)
    assert min(counted) > 0.0199 and max(counted) < 2.001
    # Levels in between are interpolated, not stepped to: calls do not depend on their number.
    assert path.calls == solve_ode(velocity, X, DOWN, **FINE).calls


def test_a_limit_of_steps_is_said():
    with pytest.raises(SamplerError, match=r"from sigma = 2 to 0\.02 within 3 steps"):
        solve_ode(velocity, X, DOWN, max_steps=3)


def test_a_velocity_that_is_nan_is_said():
    with pytest.raises(SamplerError, match="a wrong sign or a NaN makes the steps shrink"):
        solve_ode(lambda sigma, x: jnp.where(sigma < 0.5, jnp.nan, x), X, DOWN)


@pytest.mark.parametrize(
    "levels",
    [(2.0, 0.0), (-2.0, -1.0), (1.0,), (), (2.0, np.nan), (1.0, 2.0, 0.5), (1.0, 1.0), (2, 2, 1)],
)
def test_bad_levels_are_refused(levels):
    with pytest.raises(ValueError, match="needs two or more noise levels, positive, that rise or"):
        solve_ode(velocity, X, levels)


def test_a_chain_that_stands_still_is_named():
    require_moves(np.array([0.5, 0.02]), np.array([1.0, 0.1]), label="HMC")
    with pytest.raises(SamplerError, match=r"HMC: 0.1% .* step 2 of 2 .*there: 0.1\)"):
        require_moves(np.array([0.5, 0.001]), np.array([1.0, 0.1]), label="HMC")
    with pytest.raises(SamplerError, match="nan%"):
        require_moves(np.array([0.5, np.nan]), np.array([1.0, 0.1]), label="HMC")


def test_a_chain_does_not_start_from_nan():
    with pytest.raises(SamplerError, match="starts from NaN"):
        run_chain(
            lambda key, x, i: (x, None),
            jax.random.key(0),
            jnp.array([jnp.nan]),
            (np.arange(2),),
            label="chain",
        )
