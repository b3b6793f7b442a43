"""The training loop against a known answer, and on what can go wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlcourse_utils.train import FitError, fit

KEY = jax.random.key(0)


def line(params, x):
    return x @ params["w"] + params["b"]


def loss(params, x, y):
    return jnp.mean((line(params, x) - y) ** 2)


@pytest.fixture
def data():
    x = jax.random.normal(jax.random.key(1), (4000, 3))
    y = x @ jnp.array([1.0, -2.0, 0.5]) + 3.0 + 0.1 * jax.random.normal(jax.random.key(2), (4000,))
    return x, y


@pytest.fixture
def start():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def least_squares(x, y):
    design = np.column_stack([np.asarray(x), np.ones(len(x))])
    return np.linalg.lstsq(design, np.asarray(y), rcond=None)[0]


def test_fit_finds_the_least_squares_line(data, start, capsys):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    result = fit(loss, start, data, key=KEY, optimizer=optimizer, steps=600, label="line")
    exact = least_squares(*data)
    # Noise of the last steps: 0.1 / sqrt(512) a step, averaged by the falling learning rate.
    np.testing.assert_allclose(result.params["w"], exact[:3], atol=3e-3)
    assert float(result.params["b"]) == pytest.approx(exact[3], abs=3e-3)
    assert "line: step 600 of 600" in capsys.readouterr().out


def test_the_callers_parameters_stay_valid(data, start):
    fit(loss, start, data, key=KEY, optimizer=optax.sgd(0.1), steps=3)
    assert float(start["b"]) == 0.0


def test_history_is_of_the_losses(data, start):
    result = fit(
        loss, start, data, key=KEY, optimizer=optax.sgd(0.05), steps=100, held_out=data, reports=10
    )
    history = result.history
    assert history.step.tolist() == list(range(10, 101, 10))
    assert history.held_out[-1] == pytest.approx(float(loss(result.params, *data)), rel=1e-5)
    assert np.isfinite(history.train).all() and history.train[0] > history.train[-1]


def test_same_key_same_result(data, start):
    def run(key):
        return fit(loss, start, data, key=key, optimizer=optax.adam(0.01), steps=20).params

    one, two, other = run(KEY), run(KEY), run(jax.random.key(9))
    assert bool(jnp.all(one["w"] == two["w"])) and bool(jnp.any(one["w"] != other["w"]))


def test_early_stopping_returns_the_best(start):
    """Four points, held-out from another line: the held-out loss rises, training stops."""
    x = jax.random.normal(jax.random.key(3), (4, 3))
    held_out = (jax.random.normal(jax.random.key(4), (100, 3)), jnp.zeros(100))
    result = fit(
        loss,
        start,
        (x, jnp.ones(4)),
        key=KEY,
        optimizer=optax.adam(0.05),
        steps=1000,
        held_out=held_out,
        reports=100,
        patience=3,
    )
    assert result.history.step[-1] < 1000
    assert float(loss(result.params, *held_out)) == pytest.approx(result.history.held_out.min())


def test_a_diverging_loss_is_said(data, start):
    with pytest.raises(FitError, match=r"The loss of line is (nan|inf).*smaller learning rate"):
        fit(loss, start, data, key=KEY, optimizer=optax.sgd(1e6), steps=100, label="line")


def test_a_diverging_loss_keeps_the_last_good_parameters():
    """Plain descent on w^4 converges, until one batch after the second report throws it out."""
    data = (jnp.ones(64),)
    schedule = optax.piecewise_constant_schedule(0.01, {25: 1e9})

    def quartic(w, x):
        return jnp.mean(x) * w**4

    with pytest.raises(FitError, match="`last_good` keeps") as caught:
        fit(
            quartic,
            jnp.array(1.0),
            data,
            key=KEY,
            optimizer=optax.sgd(schedule),
            steps=100,
            reports=10,
        )
    last_good = caught.value.last_good
    assert last_good.history.step[-1] == 20
    np.testing.assert_allclose(last_good.params, _descend(1.0, 20), rtol=1e-5)


def _descend(w, steps):
    for _ in range(steps):
        w -= 0.01 * 4 * w**3
    return w


def test_a_loss_that_is_never_finite_keeps_nothing(data, start):
    with pytest.raises(FitError) as caught:
        fit(
            lambda p, x, y: jnp.log(-1.0 + 0.0 * loss(p, x, y)),
            start,
            data,
            key=KEY,
            optimizer=optax.sgd(0.1),
            steps=4,
        )
    assert caught.value.last_good is None
    assert "last_good" not in str(caught.value) and "held-out" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ((jnp.ones((3, 3)), jnp.ones(4)), "one common, non-zero length"),
        ((jnp.ones((0, 3)), jnp.ones(0)), "one common, non-zero length"),
        ((jnp.ones((2, 3)), jnp.array([1.0, jnp.nan])), "holds NaN"),
        ([jnp.ones((2, 3)), jnp.ones(2)], "must be a tuple"),
        ((), "must be a tuple"),
    ],
)
def test_bad_data_are_refused(start, bad, sentence):
    with pytest.raises(FitError, match=sentence):
        fit(loss, start, bad, key=KEY, optimizer=optax.sgd(0.1), steps=1)


def test_bad_held_out_data_are_refused(data, start):
    common = {"key": KEY, "optimizer": optax.sgd(0.1), "steps": 1}
    with pytest.raises(FitError, match="`held_out` must be a tuple of 2"):
        fit(loss, start, data, held_out=(data[0],), **common)
    with pytest.raises(FitError, match="needs `held_out`"):
        fit(loss, start, data, patience=2, **common)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch_size": -1}, {"reports": 2.5}, {"patience": 0}, {"patience": "3"}],
)
def test_bad_numbers_are_refused(data, start, wrong):
    common = {"key": KEY, "optimizer": optax.sgd(0.1), "steps": 1, "held_out": data} | wrong
    with pytest.raises(FitError, match=f"`{next(iter(wrong))}` must be a whole number"):
        fit(loss, start, data, **common)


def test_a_loss_for_each_row_is_refused(data, start):
    with pytest.raises(FitError, match="must return one number; it has shape"):
        fit(
            lambda p, x, y: (line(p, x) - y) ** 2,
            start,
            data,
            key=KEY,
            optimizer=optax.sgd(0.1),
            steps=1,
        )


def test_a_held_out_loss_that_is_nan_is_said(data, start):
    with pytest.raises(FitError, match="nan on held-out data"):
        fit(
            lambda p, x, y: jnp.where(len(y) == 7, jnp.nan, 1.0) * loss(p, x, y),
            start,
            data,
            key=KEY,
            optimizer=optax.sgd(0.01),
            steps=2,
            held_out=(data[0][:7], data[1][:7]),
        )


def test_numpy_data_do(data, start):
    arrays = tuple(np.asarray(array) for array in data)
    fit(loss, start, arrays, key=KEY, optimizer=optax.sgd(0.1), steps=2)


# --- batches that are simulated --------------------------------------------------------------


def simulate(key):
    """256 rows of the line in the fixture `data`."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.normal(x_key, (256, 3))
    noise = 0.1 * jax.random.normal(noise_key, (256,))
    return x, x @ jnp.array([1.0, -2.0, 0.5]) + 3.0 + noise


def test_fit_learns_from_a_function_of_a_key(start, data, capsys):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    result = fit(
        loss, start, simulate, key=KEY, optimizer=optimizer, steps=600, held_out=data, label="line"
    )
    # Noise of the last steps: 0.1 / sqrt(256) a step, averaged by the falling learning rate.
    np.testing.assert_allclose(result.params["w"], [1.0, -2.0, 0.5], atol=5e-3)
    assert float(result.params["b"]) == pytest.approx(3.0, abs=5e-3)
    # The loss of the truth is 0.01: of 4,000 squares, with the error sqrt(2 / 4000) of it.
    assert result.history.held_out[-1] == pytest.approx(0.01, rel=0.1)
    assert "held-out 0.01" in capsys.readouterr().out


def test_each_step_has_a_batch_of_its_own():
    """The gradient is the batch: steps of size 1 add the batches up."""
    seen = []

    def dot(w, x):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x)
        return jnp.sum(w * x)

    def run(key):
        seen.clear()
        result = fit(
            dot,
            jnp.zeros(3),
            lambda key: (jax.random.normal(key, (3,)),),
            key=key,
            optimizer=optax.sgd(1.0),
            steps=25,
            batch_size=7,  # not used
        )
        jax.effects_barrier()
        return np.asarray(result.params), np.array(seen)

    params, batches = run(KEY)
    assert batches.shape == (25, 3) and len(np.unique(batches)) == 75
    np.testing.assert_allclose(params, -batches.sum(axis=0), rtol=1e-5, atol=1e-5)
    same, _ = run(KEY)
    other, _ = run(jax.random.key(9))
    np.testing.assert_array_equal(params, same)
    assert np.all(params != other)


@pytest.mark.parametrize(
    ("held_out", "sentence"),
    [
        ((jnp.ones((3, 3)), jnp.ones(4)), "arrays of `held_out` need one common, non-zero length"),
        ((jnp.ones((2, 3)), jnp.array([1.0, jnp.nan])), "`held_out` holds NaN"),
        ([jnp.ones((2, 3)), jnp.ones(2)], "`held_out` must be a tuple of arrays"),
        ((), "`held_out` must be a tuple of arrays"),
    ],
)
def test_bad_held_out_data_beside_a_function_are_refused(start, held_out, sentence):
    common = {"key": KEY, "optimizer": optax.sgd(0.1), "steps": 1}
    with pytest.raises(FitError, match=sentence):
        fit(loss, start, simulate, held_out=held_out, **common)
    with pytest.raises(FitError, match="needs `held_out`"):
        fit(loss, start, simulate, patience=2, **common)


def test_early_stopping_beside_a_function(start):
    """The held-out line is another one: its loss rises soon."""
    x = jax.random.normal(jax.random.key(4), (100, 3))
    result = fit(
        loss,
        start,
        simulate,
        key=KEY,
        optimizer=optax.adam(0.05),
        steps=1000,
        held_out=(x, x @ jnp.array([0.3, -0.3, 0.3])),
        reports=100,
        patience=3,
    )
    assert result.history.step[-1] < 1000
    assert result.history.held_out.argmin() == len(result.history.step) - 4


def test_what_goes_wrong_with_a_function_is_said(start):
    common = {"key": KEY, "steps": 100, "label": "line"}
    with pytest.raises(FitError, match=r"The loss of line is (nan|inf).*smaller learning rate"):
        fit(loss, start, simulate, optimizer=optax.sgd(1e6), **common)
    with pytest.raises(FitError, match=r"must return one number; it has shape \(256,\)"):
        fit(
            lambda p, x, y: (line(p, x) - y) ** 2,
            start,
            simulate,
            optimizer=optax.sgd(0.1),
            **common,
        )


def test_a_function_that_returns_no_batch_is_refused(start):
    """An array would be taken apart into its rows."""
    with pytest.raises(FitError, match="must return a batch: a tuple of arrays"):
        fit(
            loss,
            start,
            lambda key: jax.random.normal(key, (2, 3)),
            key=KEY,
            optimizer=optax.sgd(0.1),
            steps=1,
        )
