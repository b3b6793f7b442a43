"""The denoiser of log-normal fields: its symmetries, what its weights reach, and bad files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlcourse_utils import field_denoiser, registry, weights
from dlcourse_utils.datasets import random_fields
from dlcourse_utils.field_denoiser import SIZE, FieldDenoiser, FieldDenoiserError
from dlcourse_utils.weights import WeightsError

KEY = jax.random.key(50)
DENOISE = jax.jit(FieldDenoiser().apply)
COUNT = 256


@pytest.fixture(scope="module")
def params():
    return field_denoiser.load()


@pytest.fixture(scope="module")
def fields():
    power = random_fields.power(SIZE)
    return random_fields.log_normal(random_fields.simulate(KEY, COUNT, power))


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("train_field_denoiser")


def noisy(fields, sigma):
    return fields + sigma * jax.random.normal(jax.random.key(51), fields.shape)


def gaussian(x, sigma):
    """The Wiener filter with the power of the log-normal field."""
    power = random_fields.log_normal_power(random_fields.power(SIZE))
    return x + sigma**2 * random_fields.score(x, sigma, power)


# --- the weights -----------------------------------------------------------------------------


# Loss over that of the Wiener filter, as measured when the weights were made, and 2 % more.
@pytest.mark.parametrize(("sigma", "ratio"), [(0.05, 0.85), (0.2, 0.61), (0.8, 0.56), (3.0, 0.67)])
def test_error_is_far_below_that_of_the_wiener_filter(params, fields, sigma, ratio):
    x = noisy(fields, sigma)
    own, wiener = (
        np.mean(np.square(d - fields), axis=(1, 2))
        for d in (DENOISE(params, x, sigma), gaussian(x, sigma))
    )
    assert own.mean() < ratio * wiener.mean()


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.5])
def test_errors_do_not_go_with_the_answer(params, fields, sigma):
    """What is left of the field is uncorrelated with every function of the input.

    That marks the posterior mean. Tried: a constant, the answer D, and D for dense pixels only.
    """
    x = noisy(fields, sigma)
    found = np.asarray(DENOISE(params, x, sigma), dtype=float)
    rest = np.asarray(fields, dtype=float) - found
    for tried in (np.ones_like(found), found, found * (found > 1.0)):
        slope = np.mean(rest * tried, axis=(1, 2)) / np.mean(tried**2)
        error = slope.std() / COUNT**0.5
        # 1 % is what training may leave, beside the error of this measurement.
        assert abs(slope.mean()) < 0.01 * max(1.0, sigma) + 3.5 * error
        assert error < 0.02


def test_little_noise_leaves_little_to_do(params, fields):
    found = DENOISE(params, fields, field_denoiser.SIGMAS[0])
    assert float(jnp.sqrt(jnp.mean((found - fields) ** 2))) < 0.015


# --- the network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: jnp.roll(x, (5, 11), axis=(1, 2)),
        lambda x: x[:, ::-1],
        lambda x: jnp.swapaxes(x, 1, 2),
    ],
)
def test_moves_and_turns_with_the_field(params, fields, turn):
    x = noisy(fields[:4], 0.4)
    found, turned = DENOISE(params, x, 0.4), DENOISE(params, turn(x), 0.4)
    np.testing.assert_allclose(turned, turn(found), atol=1e-4)


def test_fields_of_a_batch_do_not_meet(params, fields):
    sigma = jnp.array([0.05, 0.4, 2.0])
    x = noisy(fields[:3], 0.4)
    together = DENOISE(params, x, sigma)
    for row in range(3):
        alone = DENOISE(params, x[row : row + 1], float(sigma[row]))
        np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-4)


def test_a_peak_beyond_all_training_is_not_blown_up(params):
    x = jnp.zeros((1, SIZE, SIZE)).at[0, 10:13, 10:13].set(300.0)
    found = np.asarray(DENOISE(params, x, 0.3))
    assert found.max() < 301.5 and found.min() > -3.0


@pytest.mark.parametrize(
    ("shape", "sigma", "sentence"),
    [
        ((SIZE, SIZE), 0.1, r"x must have shape \(b, n, n\), got \(32, 32\): give a batch"),
        ((2, SIZE, 8), 0.1, r"x must have shape \(b, n, n\), got \(2, 32, 8\)"),
        ((2, SIZE, SIZE), 0.0, r"sigma must be positive and finite, got 0\.0"),
        ((2, SIZE, SIZE), float("nan"), "sigma must be positive and finite, got nan"),
        ((2, SIZE, SIZE), jnp.float32(-0.5), r"sigma must be positive and finite, got -0\.5"),
        ((2, SIZE, SIZE), jnp.array([0.1, 0.0]), r"sigma must be positive and finite, got 0\.0"),
        ((2, SIZE, SIZE), np.array([np.nan, 0.1]), "sigma must be positive and finite, got nan"),
        ((2, SIZE, SIZE), np.array([0.1, np.inf]), "sigma must be positive and finite, got inf"),
        ((2, SIZE, SIZE), jnp.ones(3), r"one number or one for each of 2 fields, got 3"),
    ],
)
def test_bad_input_is_told_in_a_sentence(params, shape, sigma, sentence):
    with pytest.raises(FieldDenoiserError, match=sentence):
        FieldDenoiser().apply(params, jnp.zeros(shape), sigma)


def test_levels_that_jit_does_not_know_pass(params):
    found = DENOISE(params, jnp.zeros((2, SIZE, SIZE)), jnp.array([0.1, -1.0]))
    assert found.shape == (2, SIZE, SIZE)


# --- the script ------------------------------------------------------------------------------


def test_untrained_network_is_near_the_wiener_filter(fields):
    x = noisy(fields, 0.5)
    params = jax.jit(FieldDenoiser().init)(KEY, x[:1], 0.5)
    own, wiener = (jnp.mean((d - fields) ** 2) for d in (DENOISE(params, x, 0.5), gaussian(x, 0.5)))
    assert own < 1.3 * wiener


def test_script_trains(script):
    network, wiener = script.compare(script.train(60, 4), 0.5, 64)
    assert network < 0.85 * wiener


def test_weights_of_the_loss_depend_on_the_input_only(script, fields):
    """And are those of the precision: nearly 1 / sigma^2 where the noise is small."""
    x, sigma = noisy(fields[:2], 0.01), jnp.full(2, 0.01)
    dense = np.asarray(fields[:2]) > 0.0
    np.testing.assert_allclose(np.asarray(script.weight(x, sigma))[dense], 1e4, rtol=1e-3)


# --- the file --------------------------------------------------------------------------------


def test_file_says_what_it_is():
    with np.load(registry.path("field_denoiser.npz"), allow_pickle=False) as stored:
        assert stored["version"] == field_denoiser.VERSION
        text = str(stored["provenance"])
    assert "scripts/train_field_denoiser.py" in text and "seed" in text


def test_saved_weights_come_back(params, tmp_path):
    path = tmp_path / "mine.npz"
    field_denoiser.save(path, params, "a test")
    jax.tree.map(np.testing.assert_array_equal, field_denoiser.load(path), params)


def test_a_file_of_another_version_names_the_script(params, tmp_path):
    path = tmp_path / "old.npz"
    weights.save(path, params, field_denoiser.VERSION + 1, "a test")
    with pytest.raises(WeightsError, match=r"make the file with scripts/train_field_denoiser\.py"):
        field_denoiser.load(path)
