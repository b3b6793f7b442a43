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
    assert caught.value.last_good is None and "last_good" not in str(caught.value)


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


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": -1}, {"reports": 2.5}])
def test_bad_numbers_are_refused(data, start, wrong):
    common = {"key": KEY, "optimizer": optax.sgd(0.1), "steps": 1} | wrong
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
