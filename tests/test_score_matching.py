"""Lesson 09 as the solution builds it: its denoiser, samplers and posterior on exact scores.

For a Gaussian of variance V every sampler has its law in closed form, biases included; for the two
moons the score and the moments are exact. No network is trained here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import diffusion, lessons, two_sample
from dlcourse_utils.datasets import two_moons

KEY = jax.random.key(90)
V = 0.3
N = 20_000


@pytest.fixture(scope="module")
def lesson():
    return lessons.reference(lessons.load("09"))


def gaussian_score(x, sigma=0.0):
    return -x / (V + sigma**2)


def gaussian_log_prob(x):
    return -0.5 * np.sum(np.asarray(x, float) ** 2, axis=-1) / V


def moons_score(x, sigma):
    return two_moons.score(x, jnp.sqrt(two_moons.NOISE**2 + sigma**2))


def assert_variance(x, expected, sigmas=4):
    """Independent Gaussian numbers, mean zero: their mean square has the error sqrt(2 / n)."""
    ratio = np.mean(np.asarray(x, float) ** 2) / expected
    assert ratio == pytest.approx(1.0, abs=sigmas * (2 / x.size) ** 0.5)


# --- the denoiser ----------------------------------------------------------------------------


def test_tweedie_gives_the_exact_posterior_mean(lesson):
    sigma = jnp.geomspace(0.03, 2.0, 300)[:, None]
    x = two_moons.simulate(KEY, 300) + sigma * jax.random.normal(KEY, (300, 2))
    mean = lesson["denoise"](x, sigma, moons_score)
    for i in (0, 150, 299):
        exact = two_moons.posterior_mean(x[i], float(sigma[i, 0]))
        np.testing.assert_allclose(mean[i], exact, atol=2e-5)


def test_the_loss_exceeds_its_minimum_by_the_error_of_the_score(lesson):
    """Pythagoras: another denoiser costs its mean square distance from the best, over sigma^2."""
    keys, n = jax.random.split(KEY, 3), 8_000
    x = two_moons.simulate(keys[0], n)
    sigma = 0.02 * 100.0 ** jax.random.uniform(keys[1], (n, 1))
    noise = jax.random.normal(keys[2], (n, 2))
    noisy = x + sigma * noise
    best = lesson["denoise"](noisy, sigma, moons_score)
    change = 0.3 * sigma * jnp.cos(3.0 * noisy[:, ::-1])

    def loss(denoised):
        return float(lesson["dsm_loss"](lambda x, sigma: denoised, x, sigma, noise))

    expected = np.mean(np.sum((change / sigma) ** 2, axis=1))
    # What is left is twice the mean of change * (best - x), whose mean is zero at every point.
    cross = 2 * np.sum(np.asarray(change * (best - x) / sigma**2, float), axis=1)
    assert loss(best + change) - loss(best) == pytest.approx(expected, abs=4 * cross.std() / n**0.5)


def test_without_its_network_the_denoiser_is_best_for_a_gaussian(lesson):
    centre, spread = lesson["CENTRE"], lesson["SPREAD"]
    x = 2.0 * jax.random.normal(KEY, (50, 2))
    sigma = jnp.geomspace(0.02, 2.0, 50)[:, None]
    found = lesson["precondition"](lambda x, t: jnp.zeros_like(x), x, sigma)
    expected = lesson["denoise"](x, sigma, lambda x, s: (centre - x) / (spread**2 + s**2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_inputs_and_targets_of_the_network_have_size_one(lesson):
    centre, spread = lesson["CENTRE"], lesson["SPREAD"]
    for sigma in (0.02, 0.3, 2.0):
        clean = centre + spread * jax.random.normal(jax.random.key(91), (N, 2))
        noisy = clean + sigma * jax.random.normal(jax.random.key(92), (N, 2))
        seen = []

        def net(x, t, seen=seen):
            seen.append((x, t))
            return jnp.zeros_like(x)

        column = jnp.full((N, 1), sigma)
        without = lesson["precondition"](net, noisy, column)
        unit = lesson["precondition"](lambda x, t: jnp.ones_like(x), noisy, column) - without
        ((inputs, t),) = seen
        assert_variance(inputs, 1.0)
        assert_variance((clean - without) / unit, 1.0)
        np.testing.assert_allclose(t, np.log(sigma) / 4, rtol=1e-6)


# --- Langevin, reverse SDE, flow: laws in closed form ----------------------------------------


@pytest.mark.parametrize("size", [0.05, 0.5, 1.0, 1.5])
def test_langevin_has_the_bias_of_its_step(lesson, size):
    """Variance V / (1 - tau / 2V) at rest; with tau = V it is twice too large."""

    def step(key, x, tau):
        return lesson["langevin_step"](key, x, gaussian_score, tau), None

    at_rest = V / (1 - size / 2)
    x = np.sqrt(at_rest) * jax.random.normal(KEY, (N, 2))
    taus = jnp.full(60, size * V)
    x, _ = diffusion.run_chain(step, KEY, x, (taus,), label="Langevin")
    assert_variance(x, at_rest)
    # From elsewhere: what is left of the difference is (1 - tau / V)^2 at each step.
    y, _ = diffusion.run_chain(step, KEY, jnp.zeros((N, 2)), (taus,), label="Langevin")
    assert_variance(y, at_rest * (1 - (1 - size) ** 120))


@pytest.mark.parametrize("corrector", [0.0, 0.1])
def test_the_reverse_sde_has_the_variance_of_its_recursion(lesson, corrector):
    levels = diffusion.noise_levels(9, 2.0, 0.02)
    variance = V + 2.0**2
    x = np.sqrt(variance) * jax.random.normal(KEY, (N, 2))
    x = lesson["reverse_sde"](gaussian_score, KEY, x, levels, "reverse SDE", corrector)
    for sigma, next_sigma in zip(levels[:-1].astype(float), levels[1:].astype(float), strict=True):
        removed = sigma**2 - next_sigma**2
        variance = variance * (1 - removed / (V + sigma**2)) ** 2 + removed
        tau = corrector * next_sigma**2
        variance = variance * (1 - tau / (V + next_sigma**2)) ** 2 + 2 * tau
    assert variance > 1.3 * V  # 9 levels are few: the recursion has a bias that is seen
    assert_variance(x, variance)


def test_the_flow_keeps_the_shape_of_a_gaussian(lesson):
    velocity = partial(lesson["flow_velocity"], score=gaussian_score)
    x = jax.random.normal(KEY, (50, 2))
    end = diffusion.solve_ode(velocity, x, (2.0, 0.02), tolerance=1e-5).states[-1]
    expected = np.sqrt((V + 0.02**2) / (V + 4.0)) * np.asarray(x)
    np.testing.assert_allclose(end, expected, rtol=1e-4, atol=1e-5)


def test_the_flow_gives_the_exact_density_of_the_moons(lesson):
    """log p falls by the divergence along a path, from the exact value at its other end."""

    def with_divergence(sigma, state):
        def velocity(x):
            return lesson["flow_velocity"](sigma, x, moons_score)

        x, _ = state
        rows = [jnp.broadcast_to(row, x.shape) for row in jnp.eye(2)[:, None, :]]
        slopes = [jax.jvp(velocity, (x,), (row,))[1] for row in rows]
        return velocity(x), slopes[0][:, 0] + slopes[1][:, 1]

    x = two_moons.simulate(KEY, 200, float(np.hypot(0.02, 0.05)))
    path = diffusion.solve_ode(with_divergence, (x, jnp.zeros(200)), (0.02, 2.0), tolerance=1e-4)
    far, gained = (state[-1] for state in path.states)
    found = two_moons.log_prob(far, float(np.hypot(2.0, 0.05))) + gained
    exact = two_moons.log_prob(x, float(np.hypot(0.02, 0.05)))
    # Errors of a step are 1e-4 of the state; slopes of log p are up to 3 / 0.054.
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.01


# --- HMC -------------------------------------------------------------------------------------


def leapfrog(x, p, score, size, n):
    """The leapfrog scheme in double precision."""
    s = score(x)
    for _ in range(n):
        p = p + 0.5 * size * s
        x = x + size * p
        s = score(x)
        p = p + 0.5 * size * s
    return x, p


@pytest.mark.parametrize(
    ("score", "log_prob", "size", "agree"),
    [
        # Simpson's rule is exact for a linear score: only rounding at the threshold is left.
        (gaussian_score, gaussian_log_prob, 0.7, 0.999),
        # The moons with the steps of the lesson, and with larger ones.
        (partial(moons_score, sigma=0.1), None, 0.4, 0.998),
        (partial(moons_score, sigma=0.1), None, 1.0, 0.96),
    ],
    ids=["Gaussian", "moons", "moons, long steps"],
)
def test_the_acceptance_is_that_of_the_exact_density(lesson, score, log_prob, size, agree):
    """The same moves, judged with differences of the exact log density."""
    if log_prob is None:
        noise = float(np.hypot(0.1, 0.05))
        size *= noise
        x = two_moons.simulate(KEY, 8_000, noise)

        def log_prob(x):
            return np.asarray(two_moons.log_prob(x, noise), float)

    else:
        x = V**0.5 * jax.random.normal(KEY, (N, 2))
    moved, accepted = jax.jit(lambda key, x: lesson["hmc_step"](key, x, score, size))(KEY, x)
    momentum_key, accept_key = jax.random.split(KEY)
    p = np.asarray(jax.random.normal(momentum_key, x.shape))
    uniform = np.asarray(jax.random.uniform(accept_key, (len(x),)))
    end, p_end = leapfrog(x, p, score, size, 4)
    ratio = log_prob(end) - log_prob(x) - 0.5 * np.sum(p_end**2 - p**2, axis=1)
    expected = np.log(uniform) < ratio
    assert np.mean(accepted == expected) >= agree
    # Both kinds of answers are frequent enough to be compared.
    assert np.mean(~expected) > 0.5 * (1 - agree)
    np.testing.assert_allclose(
        moved, np.where(np.asarray(accepted)[:, None], end, x), rtol=1e-4, atol=1e-4
    )


def test_hmc_rests_at_a_gaussian_and_finds_it(lesson):
    """Steps of 1.2 deviations: unadjusted, the variance would end 1 / (1 - 0.36) too large."""
    size = 1.2 * V**0.5

    def step(key, x, _):
        x, accepted = lesson["hmc_step"](key, x, gaussian_score, size, 3)
        return x, accepted.mean()

    for start in (1.0, 3.0):
        x = start * V**0.5 * jax.random.normal(KEY, (N, 2))
        x, accepted = diffusion.run_chain(step, KEY, x, (jnp.arange(60),), label="HMC")
        assert_variance(x, V)
        assert 0.5 < accepted[-1] < 0.95


def test_hmc_takes_fields_with_a_step_for_each(lesson):
    size = V**0.5 * jnp.linspace(0.2, 0.9, 4_000)[:, None, None]

    def step(key, x, _):
        x, accepted = lesson["hmc_step"](key, x, gaussian_score, size, 5)
        return x, accepted

    x = V**0.5 * jax.random.normal(KEY, (4_000, 4, 3))
    x, accepted = diffusion.run_chain(step, KEY, x, (jnp.arange(20),), label="HMC")
    assert accepted.shape == (20, 4_000)
    short, long = x[:2_000], x[2_000:]
    assert_variance(short, V)
    assert_variance(long, V)
    assert accepted[:, :2_000].mean() > accepted[:, 2_000:].mean() + 0.02


def moments(x):
    """The mean of the moons and their second moments about (1/2, 1/4), with errors; (5,) each."""
    offset = np.asarray(x, float) - np.array([0.5, 0.25])
    a, b = offset.T
    terms = np.stack([a, b, a * a, a * b, b * b])
    return terms.mean(axis=1), terms.std(axis=1) / len(x) ** 0.5


def exact_moments(noise):
    """Of two half circles: cos has the variance 1/2, sin 1/2 - (2 / pi)^2 about 2 / pi."""
    up = 2 / np.pi - 0.25
    second = [0.75 + noise**2, -0.5 * up, 0.5 - 4 / np.pi**2 + up**2 + noise**2]
    return np.array([0.0, 0.0, *second])


@pytest.mark.tfp_ranks
@pytest.mark.filterwarnings("ignore:shape requires ndarray or scalar arguments")  # TFP's own
def test_hmc_rests_at_the_moons_as_that_of_tfp_does(lesson):
    """20 steps that are large enough to be refused often; acceptance and moments are compared."""
    sigma = 0.3
    noise = float(np.hypot(sigma, 0.05))
    x = two_moons.simulate(KEY, 2_000, noise)
    size = 1.5 * noise

    def step(key, x, _):
        x, accepted = lesson["hmc_step"](key, x, partial(moons_score, sigma=sigma), size)
        return x, accepted.mean()

    def log_prob(x):
        return two_moons.log_prob(x, noise)

    kernel = tfp.mcmc.HamiltonianMonteCarlo(log_prob, size, num_leapfrog_steps=4)

    def tfp_step(key, x, _):
        x, info = kernel.one_step(x, kernel.bootstrap_results(x), seed=key)
        return x, info.is_accepted.mean()

    ours, accepted = diffusion.run_chain(step, KEY, x, (jnp.arange(20),), label="HMC")
    theirs, rate = diffusion.run_chain(tfp_step, KEY, x, (jnp.arange(20),), label="TFP")
    for points in (ours, theirs):
        mean, error = moments(points)
        assert np.all(np.abs(mean - exact_moments(noise)) < 4 * error)
    # 40,000 decisions each. Moves of one chain go together a little: twice the error of counting.
    rates = float(accepted.mean()), float(rate.mean())
    assert rates[0] < 0.95
    assert rates[0] == pytest.approx(rates[1], abs=2 * 4 * (0.25 * 2 / 40_000) ** 0.5)


# --- all samplers, with the exact score ------------------------------------------------------


@pytest.fixture(scope="module")
def samples(lesson):
    """10,000 points of each sampler, as the lesson takes them, but for fewer steps of HMC."""
    n, smallest = 10_000, lesson["SMALLEST"]
    begin = two_moons.simulate(jax.random.key(93), n, float(np.hypot(lesson["LARGEST"], 0.05)))
    levels = partial(diffusion.noise_levels, largest=lesson["LARGEST"], smallest=smallest)
    down = np.repeat(levels(12), 2)
    velocity = partial(lesson["flow_velocity"], score=moons_score)
    found = {
        "annealed HMC": lesson["anneal"](moons_score, KEY, begin, down, "annealed HMC")[0],
        "reverse SDE": lesson["reverse_sde"](moons_score, KEY, begin, levels(61), "reverse SDE"),
        "flow": diffusion.solve_ode(velocity, begin, levels(2)).states[-1],
    }
    finish = jax.jit(lambda x: 0.5 * (x + lesson["denoise"](x, smallest, moons_score)))
    return {name: finish(x) for name, x in found.items()}


NAMES = ["annealed HMC", "reverse SDE", "flow"]


def test_no_classifier_tells_the_samples(samples):
    truth = two_moons.simulate(jax.random.key(94), 10_000)
    told = two_sample.accuracies(samples, truth, key=jax.random.key(95))
    for name in NAMES:
        # The lesson's band; the error is 0.0035.
        assert max(told[name]) <= 0.515, name


@pytest.mark.parametrize("name", NAMES)
def test_moments_of_the_samples(samples, name):
    mean, error = moments(samples[name])
    # Besides chance, a bias of the finite number of levels.
    assert np.all(np.abs(mean - exact_moments(two_moons.NOISE)) < 4 * error + 0.005)
    surprise = -np.asarray(two_moons.log_prob(samples[name]), float)
    error = surprise.std() / 10_000**0.5
    assert surprise.mean() == pytest.approx(two_moons.entropy(), abs=4 * error + 0.02)


# --- an observation --------------------------------------------------------------------------


def test_the_likelihood_without_noise_in_x_is_exact(lesson):
    x = two_moons.simulate(KEY, 100)
    y, mask = jnp.array([[0.5, 0.0]]), jnp.array([[1.0, 0.0]])
    found = two_moons.score(x) + lesson["likelihood_score"](x, y, mask, 0.3, 0.0)
    exact = two_moons.score_given_first(x, 0.0, 0.5, 0.3)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=4e-3)


def test_the_likelihood_is_exact_for_white_noise_of_any_level(lesson):
    """A flat prior: given y, x is Gaussian, and stays so when it is blurred."""
    x, y = jax.random.normal(KEY, (5, 6, 6)), jax.random.normal(jax.random.key(96), (1, 6, 6))
    mask = (y > 0.0).astype(float)
    found = lesson["likelihood_score"](x, y, mask, 0.4, 0.7)

    def log_likelihood(x):
        return jnp.sum(mask * jax.scipy.stats.norm.logpdf(y, x, (0.4**2 + 0.7**2) ** 0.5))

    np.testing.assert_allclose(found, jax.grad(log_likelihood)(x), rtol=1e-5, atol=1e-6)
