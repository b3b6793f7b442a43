"""What the checks of lesson 09 say of answers that no later cell could use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlcourse_utils.checks import engine


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
