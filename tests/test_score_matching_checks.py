"""What the checks of lesson 09 say of answers that no later cell could use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlcourse_utils.checks import engine

# Some wrong answers are those of somebody who broadcasts (n, 2) with (2,).
pytestmark = pytest.mark.tfp_ranks


def judged(id, answer):
    return engine.judge(engine.find(id), answer)


def gaussian(key, x):
    return jax.random.normal(key, x.shape)


UNTRACEABLE = {
    "09.1": lambda x, s, score: np.asarray(x) + np.asarray(s) ** 2 * np.asarray(score(x, s)),
    "09.4": lambda k, x, score, t: x + t * score(x) + np.sqrt(2 * t) * gaussian(k, x),
    "09.5": lambda k, x, s, n, score: (
        x + (s**2 - n**2) * score(x, s) + np.sqrt(s**2 - n**2) * gaussian(k, x)
    ),
    "09.6": lambda s, x, score: np.asarray(-s * score(x, s)),
    "09.7": lambda x, y, m, noise, s: m * (y - x) / (float(noise) ** 2 + float(s) ** 2),
}


@pytest.mark.parametrize("id", UNTRACEABLE)
def test_what_cannot_be_compiled_is_refused(id):
    found = judged(id, UNTRACEABLE[id])
    assert found.outcome == engine.WRONG and "JAX cannot trace" in found.says


def test_a_loss_in_numpy_cannot_be_trained():
    def dsm_loss(denoiser, x, sigma, noise):
        error = (np.asarray(denoiser(x + sigma * noise, sigma)) - x) / sigma
        return np.mean(np.sum(error**2, axis=-1))

    assert judged("09.2", dsm_loss).diagnosis == "no_gradient"


def test_a_stopped_gradient_is_seen():
    def dsm_loss(denoiser, x, sigma, noise):
        clean = jax.lax.stop_gradient(denoiser(x + sigma * noise, sigma))
        return jnp.mean(jnp.sum(((clean - x) / sigma) ** 2, axis=-1))

    assert judged("09.2", dsm_loss).diagnosis == "gradient"


@pytest.mark.parametrize(
    ("draw", "size", "name"),
    [
        (lambda k, x: gaussian(jax.random.split(k)[1], x), lambda t: jnp.sqrt(t), "no_two"),
        (lambda k, x: gaussian(jax.random.key(5), x), lambda t: jnp.sqrt(2 * t), "fixed_key"),
        (lambda k, x: gaussian(k, x), lambda t: t, "no_root"),
        (
            lambda k, x: 2.0 * jax.random.uniform(k, x.shape) - 1.0,
            lambda t: jnp.sqrt(2 * t),
            "uniform",
        ),
    ],
)
def test_a_mistake_is_named_whatever_numbers_were_drawn(draw, size, name):
    def langevin_step(key, x, score, step):
        return x + step * score(x) + size(step) * draw(key, x)

    assert judged("09.4", langevin_step).diagnosis == name


def test_a_score_called_with_its_arguments_exchanged_says_so():
    found = judged("09.6", lambda sigma, x, score: -sigma * score(sigma, x))
    assert found.outcome == engine.ERROR and "all points at once" in found.says


def another_score(x, sigma):
    """A score from another cell, for the argument ``score``."""
    return -x / (0.3 + sigma**2)


WITHOUT_THE_ARGUMENT = {
    "09.1": lambda x, s, score: x + s**2 * another_score(x, s),
    "09.2": lambda denoiser, x, s, noise: jnp.mean(
        jnp.sum(((another_score(x + s * noise, s) - x) / s) ** 2, axis=-1)
    ),
    "09.3": lambda net, x, s: x + s * another_score(x, s),
    "09.4": lambda k, x, score, t: x + t * another_score(x, 0.1) + jnp.sqrt(2 * t) * gaussian(k, x),
    "09.5": lambda k, x, s, n, score: (
        x + (s**2 - n**2) * another_score(x, s) + jnp.sqrt(s**2 - n**2) * gaussian(k, x)
    ),
    "09.6": lambda s, x, score: -s * another_score(x, s),
}


@pytest.mark.parametrize("id", WITHOUT_THE_ARGUMENT)
def test_an_argument_that_is_never_called_is_told(id):
    found = judged(id, WITHOUT_THE_ARGUMENT[id])
    name = {"09.2": "denoiser", "09.3": "net"}.get(id, "score")
    assert found.outcome == engine.WRONG and f"argument `{name}` is never called" in found.says


CALLED_WRONGLY = {
    "09.1": (lambda x, s, score: x + s**2 * score(x), "`score(x, sigma)`"),
    "09.2": (
        lambda denoiser, x, s, noise: jnp.mean((denoiser(x + s * noise) - x) ** 2),
        "`denoiser(x, sigma)`",
    ),
    "09.3": (lambda net, x, s: x + s * net(x), "`net(x, t)`"),
    "09.4": (lambda k, x, score, t: x + t * score(x, t), "`score(x)`"),
    "09.5": (lambda k, x, s, n, score: x + (s**2 - n**2) * score(x), "`score(x, sigma)`"),
    "09.6": (lambda s, x, score: -s * score(x, level=s), "`score(x, sigma)`"),
}


@pytest.mark.parametrize("id", CALLED_WRONGLY)
def test_a_missing_or_extra_argument_is_told_in_the_names_of_the_lesson(id):
    answer, call = CALLED_WRONGLY[id]
    found = judged(id, answer)
    assert found.outcome == engine.ERROR and f"is called as {call}" in found.says
    assert "locals" not in found.says and "toy" not in found.says and "field" not in found.says


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_noise_of_a_constant_size_is_not_called_by_another_name(size):
    def reverse_step(key, x, sigma, next_sigma, score):
        drift = (sigma**2 - next_sigma**2) * score(x, sigma)
        return x + drift + size * gaussian(key, x)

    assert judged("09.5", reverse_step).diagnosis == "noise_whatever_next_level"


def langevin_with(noise):
    def langevin_step(key, x, score, step):
        return x + step * score(x) + jnp.sqrt(2 * step) * noise(key, x)

    return langevin_step


def reverse_with(noise):
    def reverse_step(key, x, sigma, next_sigma, score):
        delta = sigma**2 - next_sigma**2
        return x + delta * score(x, sigma) + jnp.sqrt(delta) * noise(key, x)

    return reverse_step


STEPS = {"09.4": langevin_with, "09.5": reverse_with}
# 5 % off in size, or in the mean; and three ways to draw.
A_LITTLE_WRONG = {
    "too little": lambda z: 0.95 * z,
    "too much": lambda z: 1.05 * z,
    "shifted": lambda z: z + 0.05,
}
DRAWS = (
    gaussian,
    lambda key, x: gaussian(jax.random.split(key)[1], x),
    lambda key, x: jax.vmap(lambda k: jax.random.normal(k, (2,)))(jax.random.split(key, len(x))),
)


@pytest.mark.parametrize("change", A_LITTLE_WRONG)
@pytest.mark.parametrize("id", STEPS)
def test_noise_that_is_wrong_by_five_per_cent_is_found(id, change):
    """Limits are six Monte Carlo errors, and these mistakes are five or more beyond them."""
    for seed in range(6):
        draw = DRAWS[seed % len(DRAWS)]
        right = engine.judge(engine.find(id), STEPS[id](draw), seed=seed)
        assert right.outcome == engine.RIGHT, right
        answer = STEPS[id](lambda key, x, draw=draw: A_LITTLE_WRONG[change](draw(key, x)))
        found = engine.judge(engine.find(id), answer, seed=seed)
        assert found.outcome == engine.WRONG
        if change == "shifted":
            assert found.diagnosis == "uniform" and "not standard Gaussian" in found.says
        else:
            assert found.diagnosis in {"value", "factor"}
            assert "size of the noise" in found.says and "size of the noise" in found.detail
