# ---
# title: Denoising score matching
# part: Diffusion
# summary: Train a network to remove noise, find that it has learned the gradient of the log density, sample with it in four ways and solve inverse problems, each step beside the exact answer.
# minutes: 120
# objectives:
#   - say what a score is, and get it from a denoiser by Tweedie's formula
#   - train a noise-conditioned denoiser, and measure how far its score is from the exact one
#   - sample by Langevin steps, annealed HMC, a reverse-time SDE and an ODE, and know the bias of each
#   - use a learned score as a prior, and say what the usual posterior samplers approximate
#   - test a posterior sampler on a Gaussian field, where the exact answer is the Wiener filter
# prerequisites:
#   - Python with NumPy arrays; jax.grad; a flax network (lesson 01 has one)
#   - Gaussian densities, Bayes' theorem, Fourier transforms (section 7)
# needs: a CPU is enough; a GPU pays off when you train longer or larger networks
# seconds: 90
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Denoising score matching
#
# Taking the noise out of a picture seems a modest task. A network that does it well, for every amount of
# noise, knows the whole probability density of such pictures. This lesson shows why, and what it is good for.
#
# **The claim of this lesson:** a network that has only ever been shown noisy points and their clean versions, for half a
# minute, gives the gradient of the log density with a squared error **below 0.5 %** of its mean square, at every noise level from 0.02 to 2.
# Points drawn with it cannot be told from true ones: two classifiers that try are right in
# **at most 51.5 %** of the cases. You will write the loss and the samplers, and measure these numbers.

# %% tags=["context"]
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from dlcourse_utils import diagnostics, diffusion, field_denoiser, two_sample, widgets
from dlcourse_utils.checks import check, hint, progress, solution
from dlcourse_utils.datasets import random_fields, two_moons
from dlcourse_utils.plot import score_matching as figures
from dlcourse_utils.train import fit
from dlcourse_utils.verdicts import verdict

# %% [markdown]
# ## 1 · Two moons, blurred
#
# A point $x$ sits on one of two half circles of radius 1, with probability 1/2 each, plus Gaussian noise of 0.05 in both
# coordinates. Add more noise, $x_\sigma = x + \sigma \varepsilon$ with standard Gaussian numbers $\varepsilon$. The density
# of $x_\sigma$, called $p_\sigma$, is that of the same arcs with a noise of $\sqrt{0.05^2 + \sigma^2}$. So $p_\sigma$ is known exactly for
# every $\sigma$, by quadrature along the arcs: every number below can be held against the truth.
#
# The **score** of a density is the gradient of its logarithm with respect to the point,
#
# $$s(x, \sigma) = \nabla_x \log p_\sigma(x).$$
#
# It points uphill, to where points are likelier. A constant factor of $p$ drops out of it. So a score needs no
# normalisation, which is the integral that nobody can do in a thousand dimensions. Hyvärinen (2005) was the first to fit a model by its score, Song & Ermon (2019) to
# sample with one at many noise levels. (In statistics "score" also names the
# gradient with respect to *parameters*. Here it is always with respect to $x$.)
#
# Below, the exact score is drawn, and held beside another quadrature in double precision: once by automatic differentiation of the
# log density, once by finite differences of it.


# %% tags=["context"]
def exact_score(x, sigma):
    """Score of p_sigma at points x (n, 2), exact; sigma is one number or a column (n, 1)."""
    return two_moons.score(x, jnp.sqrt(two_moons.NOISE**2 + sigma**2))


# %% alt="Three panels for noise levels 0.1, 0.4 and 1.5: the density of the blurred two moons and arrows of its score. With little noise the arrows point straight to the nearest moon; with much noise the density is one round hill and all arrows point to its middle."
points = two_moons.simulate(jax.random.key(1), 220_000)
train, test = points[:200_000], points[200_000:]

figures.claim(exact_score, (0.1, 0.4, 1.5))


def log_density(x, sigma, n=1001):
    """log p_sigma of points x (k, 2), by Simpson's rule over n angles of both arcs."""
    t = jnp.linspace(0.0, jnp.pi, n)
    outer = jnp.stack([jnp.cos(t), jnp.sin(t)], axis=-1)
    square = jnp.stack(
        [jnp.sum((x[:, None] - arc[None]) ** 2, axis=-1) for arc in (outer, _CORNER - outer)]
    )
    variance = two_moons.NOISE**2 + sigma**2
    weights = jnp.array([1.0, *[4.0, 2.0] * (n // 2 - 1), 4.0, 1.0]) / (6 * (n - 1))
    terms = -0.5 * square / variance - jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(terms, axis=(0, 2), b=weights[None, None])


@jax.jit
def score_twice(x, sigma, h=1e-4):
    """The score by automatic differentiation and by central differences; two arrays (n, 2)."""
    by_grad = jax.grad(lambda x: log_density(x, sigma).sum())(x)
    up, down = (
        jnp.stack([log_density(x + move[None], sigma) for move in sign * h * jnp.eye(2)], axis=-1)
        for sign in (1, -1)
    )
    return by_grad, (up - down) / (2 * h)


_CORNER = np.array([[1.0, 0.5]])
worst = []
for sigma in (0.02, 0.2, 2.0):
    x = test[:200] + sigma * jax.random.normal(jax.random.key(2), (200, 2))
    ours = np.asarray(exact_score(x, sigma))
    with diagnostics.double_precision():
        others = jax.device_get(score_twice(jnp.asarray(x, float), sigma))
    worst += [np.abs(ours - other).max() / np.abs(other).max() for other in others]
verdict("exact score against autodiff and finite differences", max(worst), high=1e-5)

# %% [markdown]
# ## 2 · A denoiser is a score
#
# Which clean point is behind a noisy one? Many can be, and the answer with the least squared error on average is the mean of all of them,
# each weighted with its posterior probability, $E[x \mid x_\sigma]$. **Tweedie's formula** (Efron 2011) says that this mean is one step
# along the score:
#
# $$E[x \mid x_\sigma] = x_\sigma + \sigma^2\, s(x_\sigma, \sigma).$$
#
# It is exact, for every density blurred by a Gaussian. The proof is one line: differentiate
# $p_\sigma(x_\sigma) = \int p(x)\, \mathcal{N}(x_\sigma; x, \sigma^2)\, \mathrm{d}x$ under the integral, where the Gaussian gives the
# factor $(x - x_\sigma)/\sigma^2$, and divide by $p_\sigma$.

# %% [markdown] exercise="09.1" minutes=6 difficulty=1
# ### Tweedie's formula
# Return the posterior mean of the clean point, $E[x \mid x_\sigma] = x_\sigma + \sigma^2 s(x_\sigma, \sigma)$. No training, no model: a law of all
# densities blurred by a Gaussian.
#
# Hint: `score(x, sigma)` gives the score of $p_\sigma$ at each point, an array of the same shape as x.
#
# Hint: The score is one over a length, so it takes a square of a length, the variance, to make a step of it.


# %% exercise="09.1"
def denoise(x, sigma, score):
    """Posterior mean (n, 2) of the clean points behind noisy points x (n, 2).

    sigma is the standard deviation of the noise, one number or a column (n, 1);
    score(x, sigma) is the score of the noisy density, (n, 2).
    """
    # BEGIN SOLUTION
    return x + sigma**2 * score(x, sigma)
    # END SOLUTION


# %%
denoise = check("09.1", denoise)

# %% alt="Left: noisy points with arrows to their posterior means, which lie on or between the moons. Right: means of clean points in cells of the noisy plane against the formula, on the diagonal."
sigma = 0.3
noisy = train + sigma * jax.random.normal(jax.random.key(3), train.shape)
figures.tweedie(train, noisy, denoise(noisy, sigma, exact_score))

# %% [markdown]
# On the right, among all points whose noisy version fell into the same small cell, the clean ones average to what the formula says. Read backwards, it says: whoever has the best denoiser $D(x, \sigma)$ has the score,
#
# $$s(x, \sigma) = \frac{D(x, \sigma) - x}{\sigma^2}.$$
#
# And a denoiser can be *learned*, from clean points alone: add noise yourself, and ask for the clean point back.
#
# ## 3 · Denoising score matching
#
# The mean squared error over pairs has its minimum at the posterior mean: write
# $D - x = (D - E[x \mid x_\sigma]) + (E[x \mid x_\sigma] - x)$; the second part has mean zero at every $x_\sigma$, so the cross term vanishes,
#
# $$E\,|D(x_\sigma, \sigma) - x|^2 = E\,|D - E[x \mid x_\sigma]|^2 + E\,|E[x \mid x_\sigma] - x|^2 ,$$
#
# and only the first part depends on $D$. The second is a floor which no network gets below. Divide by $\sigma^2$, and the first part is
# $\sigma^2 E\,|s_D - s|^2$: the error of the score, in units in which all noise levels count alike. This is **denoising score matching** (Vincent 2011).

# %% [markdown] exercise="09.2" minutes=10 difficulty=2
# ### The loss
# Add the noise, denoise, and return the mean over the points of the squared distance to the clean point *in units of the noise*,
#
# $$L = \frac{1}{n} \sum_i \frac{|D(x_i + \sigma_i \varepsilon_i, \sigma_i) - x_i|^2}{\sigma_i^2}.$$
#
# Hint: First make the noisy points, $x_i + \sigma_i \varepsilon_i$: each point has its own noise and its own level.
#
# Hint: The distance is to the clean point `x`: sum its square over the two coordinates (`axis=-1`), then average over the points.
#
# Hint: `sigma` is a column (n, 1). Divide the difference by it *before* squaring, and shapes fit by themselves.


# %% exercise="09.2"
def dsm_loss(denoiser, x, sigma, noise):
    """Denoising score matching: mean squared error in units of the noise, a scalar.

    denoiser(x, sigma) maps noisy points (n, 2) and their levels (n, 1) to clean points (n, 2);
    x (n, 2) are clean points, sigma (n, 1) levels and noise (n, 2) standard Gaussian numbers.
    """
    # BEGIN SOLUTION
    noisy = x + sigma * noise
    error = (denoiser(noisy, sigma) - x) / sigma
    return jnp.mean(jnp.sum(error**2, axis=-1))
    # END SOLUTION


# %%
dsm_loss = check("09.2", dsm_loss)

# %% [markdown]
# One network shall serve all noise levels. Its task changes with the level: for tiny noise it must return its input, for huge noise
# the mean of all points. Karras et al. (2022) build both limits in, and leave to the network $F$ what is between: its inputs and its targets
# then have a size near one at every level.

# %% tags=["context"]
CENTRE, SPREAD = jnp.array([[0.5, 0.25]]), 0.7  # mean of the two moons, and their size
SMALLEST, LARGEST = 0.02, 2.0  # noise levels


class Net(nn.Module):
    """Points near one (n, 2) and a number for the noise level (n, 1) to an output (n, n_outputs)."""

    width: int = 64
    n_outputs: int = 2

    @nn.compact
    def __call__(self, x, t):
        # Waves of several lengths: a network is slow to bend along one smooth input.
        waves = t * 2.0 ** jnp.arange(1.0, 5.0)[None, :]
        x = jnp.concatenate([x, t, jnp.sin(waves), jnp.cos(waves)], axis=-1)
        for _ in range(5):
            # flax starts biases at zero: the bends of all units would then meet at the origin.
            x = nn.silu(nn.Dense(self.width, bias_init=nn.initializers.normal(0.5))(x))
        return nn.Dense(self.n_outputs)(x)


# %% [markdown] exercise="09.3" minutes=10 difficulty=2
# ### A network for every noise level
# Return the denoised points
#
# $$D(x, \sigma) = \mu + c_\mathrm{skip}\,(x - \mu) + c_\mathrm{out}\,F\!\left(c_\mathrm{in}\,(x - \mu),\ \tfrac{1}{4} \ln \sigma\right)$$
#
# with $\mu$ = `CENTRE`, $\sigma_d$ = `SPREAD`, and
#
# $$c_\mathrm{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \qquad
# c_\mathrm{out} = \frac{\sigma\,\sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \qquad
# c_\mathrm{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}.$$
#
# Hint: Begin with the size of a noisy point, $\sqrt{\sigma^2 + \sigma_d^2}$: all three factors are made of it.
#
# Hint: The network sees the point about its centre, scaled with `c_in`, and `jnp.log(sigma) / 4` as its second argument.
#
# Hint: Without the network (F = 0) it would be the best linear denoiser: near the centre for much noise, near x for little.


# %% exercise="09.3"
def precondition(net, x, sigma):
    """Denoised points (n, 2) of noisy points x (n, 2) with noise levels sigma (n, 1).

    net(x, t) is a network of points near one (n, 2) and of t = log(sigma) / 4 (n, 1).
    """
    # BEGIN SOLUTION
    total = jnp.sqrt(sigma**2 + SPREAD**2)
    offset = x - CENTRE
    c_skip = SPREAD**2 / total**2
    c_out = sigma * SPREAD / total
    return CENTRE + c_skip * offset + c_out * net(offset / total, jnp.log(sigma) / 4)
    # END SOLUTION


# %%
precondition = check("09.3", precondition)

# %% [markdown]
# Every batch is made anew: clean points, one noise level each, evenly spread in $\log \sigma$, and noise. The levels go
# a little beyond the range that we use, because a network is worst at the end of what it has seen. And each clean point comes twice, with noise
# of opposite signs: for small noise, most of the scatter of the gradient cancels between the two.


# %%
def draw(key, n=512):
    """Clean points (2n, 2), noise levels (2n, 1) and noise (2n, 2): each point with both signs."""
    row_key, level_key, noise_key = jax.random.split(key, 3)
    x = train[jax.random.randint(row_key, (n,), 0, len(train))]
    # One level in each of n equal steps of log sigma.
    u = (jnp.arange(n)[:, None] + jax.random.uniform(level_key, (n, 1))) / n
    sigma = 0.5 * SMALLEST * (3.0 * LARGEST / SMALLEST) ** u
    noise = jax.random.normal(noise_key, (n, 2))
    return jnp.tile(x, (2, 1)), jnp.tile(sigma, (2, 1)), jnp.concatenate([noise, -noise])


def denoiser_of(net, params):
    """The denoiser D(x, sigma) of a network; sigma is one number or a column (n, 1)."""

    def denoiser(x, sigma):
        column = jnp.broadcast_to(sigma, (len(x), 1))
        return precondition(partial(net, params), x, column)

    return denoiser


start = jax.jit(Net().init)(jax.random.key(5), jnp.zeros((1, 2)), jnp.zeros((1, 1)))
denoiser_fit = fit(
    lambda params, *batch: dsm_loss(denoiser_of(Net().apply, params), *batch),
    start,
    draw,
    key=jax.random.key(4),
    optimizer=optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 4_000))
    ),
    steps=4_000,
    label="denoiser",
)
denoiser = denoiser_of(Net().apply, denoiser_fit.params)


@jax.jit
def score_with(params, x, sigma):
    """The score (n, 2) of a denoiser with these parameters, by Tweedie's formula."""
    return (denoiser_of(Net().apply, params)(x, sigma) - x) / sigma**2


learned_score = partial(score_with, denoiser_fit.params)


# %% [markdown]
# How good is it? Take points from $p_\sigma$ at ten levels, and compare with the exact score there: the *relative error* is
# $E\,|s_\theta - s|^2 / E\,|s|^2$.

# %% alt="Left: exact and learned arrows of the score on the density for noise 0.2; they coincide but for some far from the moons. Middle: map of the error for the same noise, small where there are points, larger on the ridge between the moons and in the corners. Right: relative error against noise level, below the band of 0.5 per cent everywhere."
LEVELS = np.geomspace(SMALLEST, LARGEST, 10, dtype=np.float32)
N = 10_000
level_noise = np.asarray(jax.random.normal(jax.random.key(6), (N, 2)))
held_out = np.asarray(test[:N])
at_levels = [
    (x := held_out + sigma * level_noise, column := np.full((N, 1), sigma), exact_score(x, column))
    for sigma in LEVELS
]


def relative_errors(score):
    """Mean square of score - exact score over that of the exact one, at each of the LEVELS."""
    errors = []
    for x, column, exact in jax.device_get(at_levels):
        difference = np.asarray(score(x, column)) - exact
        errors.append(np.sum(difference**2) / np.sum(exact**2))
    return np.array(errors)


errors = relative_errors(learned_score)
verdict("score: relative error, worst of ten noise levels", errors.max(), low=0.0, high=0.005)
sigma = np.geomspace(SMALLEST, LARGEST, N, dtype=np.float32)[:, None]  # one for each point
loss = dsm_loss(partial(denoise, score=learned_score), held_out, sigma, level_noise)
floor = dsm_loss(partial(denoise, score=exact_score), held_out, sigma, level_noise)
verdict("loss above its exact minimum", loss / floor - 1, low=-0.002, high=0.02)

figures.learned(exact_score, learned_score, LEVELS, errors)

# %% [markdown]
# The loss itself says little: most of it is the floor, the scatter of clean points about their posterior mean. Without an exact answer one would not know
# whether the network is good. The map shows *where* it is good: where training points fall, at that noise level. The white line is where the density falls to 1 % of its peak. Far away the network was never asked.
#
# ### Why divide by $\sigma^2$?
#
# Three networks, 250 steps each, differ only in the power of $\sigma$ that the squared error is divided by.


# %% alt="Relative error of the score against the noise level for three weights: without a weight the error is large for small noise, with the inverse fourth power it is large at all levels, and the inverse square is good for all."
def weighted_loss(params, x, sigma, noise):
    """The losses of three networks, stacked in params: divided by sigma^0, sigma^2 and sigma^4."""

    def one(params, power):
        error = denoiser_of(Net().apply, params)(x + sigma * noise, sigma) - x
        return jnp.mean(jnp.sum(error**2, axis=-1) / sigma[:, 0] ** power)

    return jax.vmap(one)(params, jnp.array([0.0, 2.0, 4.0])).sum()  # each has its own parameters


trial = fit(
    weighted_loss,
    jax.tree.map(lambda leaf: np.stack(3 * [leaf]), start),
    partial(draw, n=256),
    key=jax.random.key(9),
    # Adam's steps do not depend on the size of a gradient, so the three do not disturb each other.
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 250)),
    steps=250,
    label="three weights, sum of the losses",
)


of_three = jax.device_get(trial.params)
trial_params = [jax.tree.map(lambda leaf, k=k: leaf[k], of_three) for k in range(3)]
weight_errors = [relative_errors(partial(score_with, params)) for params in trial_params]

figures.weights(LEVELS, weight_errors)

# %% [markdown]
# Undivided, the loss is dominated by large noise, where errors are large in absolute terms: small noise is neglected. Divided by $\sigma^4$, which is
# the plain squared error of the score, it is dominated by the few points with the smallest noise, where scores are huge: they decide every step, and in 250 steps little is learned
# at any level. $\sigma^2$ is the balance: worse than the first at the largest noise, where both are good, and far better everywhere else.

# %% [markdown] think=true
# **Think.** The network was trained with noise $\sigma$ *added* to points that already have a noise of 0.05. What does it know of the density of the
# arcs without any noise?
#
# Answer: Nothing directly. Its scores are those of $p_\sigma$, the points' own density blurred by $\sigma$. For $\sigma \to 0$ this is the density of the
# *training points*, own noise included. And if there were only few training points, then as $\sigma \to 0$ the best denoiser would return
# the nearest training point: it would have learned the points by heart. 200,000 points for a noise of 0.02 are enough here; a picture
# model must rely on its network being unable to.

# %% [markdown]
# ## 4 · Sampling
#
# ### Langevin steps
#
# Follow the score uphill, and all points end on a ridge. Add the right amount of noise to each step, and they spread over the whole density instead:
# **Langevin dynamics**. In the limit of small steps, and of many, the points are samples of $p$.

# %% [markdown] exercise="09.4" minutes=6 difficulty=1
# ### A Langevin step
# Return the points after one step of size $\tau$: $x + \tau\, s(x) + \sqrt{2 \tau}\, z$ with fresh standard Gaussian numbers $z$.
#
# Hint: Draw with `jax.random.normal(key, x.shape)`: a number of its own for each coordinate of each point.
#
# Hint: The drift is proportional to the step, the noise to the *square root* of twice the step.


# %% exercise="09.4"
def langevin_step(key, x, score, step):
    """Points x (n, 2) after one Langevin step: drift along the score, and noise; (n, 2).

    score(x) is the score (n, 2) at the points; step is the step size, one number or a column (n, 1).
    """
    # BEGIN SOLUTION
    z = jax.random.normal(key, x.shape)
    return x + step * score(x) + jnp.sqrt(2 * step) * z
    # END SOLUTION


# %%
langevin_step = check("09.4", langevin_step)

# %% [markdown]
# Two things are wrong with it. First, finite steps have a *bias*: each adds noise of variance $2\tau$, and
# the drift does not quite take it away. For a Gaussian of variance $v$ the variance ends at $v/(1 - \tau/2v)$.
# Here: the mean square distance of points from the arcs, for $\sigma = 0.1$ and four step sizes, over that of true points.
#
# Second, no step is large enough to cross the gap between the moons: each moon keeps the share of points that it got at the start. Keep
# samples of Langevin alone, started from a Gaussian around the top of the outer moon, for comparison.


# %%
def langevin(key, x, sigma, step):
    """A step for diffusion.run_chain: it gets a key and its own sigma and step for each turn."""
    return langevin_step(key, x, lambda x: learned_score(x, sigma), step), None


N_STEPS = 100
sizes = jnp.repeat(jnp.array([0.05, 0.2, 0.5, 1.0]), N // 4)[:, None]
v = 0.1**2 + two_moons.NOISE**2
blurred = test[:N] + 0.1 * jax.random.normal(jax.random.key(10), (N, 2))
moved, _ = diffusion.run_chain(
    langevin,
    jax.random.key(11),
    blurred,
    (np.full(N_STEPS, 0.1, np.float32), np.tile(v * sizes, (N_STEPS, 1, 1))),
    label="Langevin",
)
spread, true_spread = (
    np.square(two_moons.distance(x).min(axis=-1)).reshape(4, -1).mean(axis=-1)
    for x in (moved, blurred)
)
for size, ratio in zip(sizes[:: N // 4, 0], spread / true_spread.mean(), strict=True):
    print(f"step {size:.2f} v: {ratio:.2f} of the true one; Gaussian: {1 / (1 - size / 2):.2f}")

samples = {}
small_step = 0.2 * (SMALLEST**2 + two_moons.NOISE**2)
samples["Langevin alone"], _ = diffusion.run_chain(
    langevin,
    jax.random.key(12),
    jnp.array([[0.0, 1.0]]) + jax.random.normal(jax.random.key(13), (N, 2)),
    (np.full(N_STEPS, SMALLEST, np.float32), np.full((N_STEPS, N, 1), small_step, np.float32)),
    label="Langevin",
)

# %% [markdown]
# ### Annealing, and steps that are corrected
#
# The cure for both. *Annealing*: start at the largest noise, where the density is one hill, and let $\sigma$ fall slowly; points choose
# their moon while there is still a bridge. *Correction*: propose a move, and accept or refuse it so that the bias goes (Metropolis). **HMC**, Hamiltonian Monte Carlo,
# proposes far moves that are rarely refused: a point gets a random momentum and rolls along the score for a few leapfrog steps.
#
# The acceptance needs a difference of log densities, and we have only the score. But a difference is a line integral of the
# gradient, $\log p(x') - \log p(x) = \int s \cdot \mathrm{d}x$, here along the leapfrog path by Simpson's rule. Remy et al. (2023) integrate a learned score in the same spirit.


# %% tags=["context"]
def hmc_step(key, x, score, size, n_leapfrog=4, simpson=True):
    """One HMC step of x (n, ...) with a score of the same shape; new x and acceptance (n,).

    Without simpson the line integral takes the trapezoidal rule: half the calls of the score.
    """
    axes = tuple(range(1, x.ndim))
    momentum_key, accept_key = jax.random.split(key)
    momentum = jax.random.normal(momentum_key, x.shape)

    def leapfrog(_, state):
        x, p, s, gain = state
        p = p + 0.5 * size * s
        end = x + size * p
        s_end = score(end)
        s_middle = score(x + 0.5 * size * p) if simpson else 0.5 * (s + s_end)
        # Simpson's rule for the line integral of the score: the gain in log density.
        gain += jnp.sum(size / 6 * p * (s + 4 * s_middle + s_end), axis=axes)
        return end, p + 0.5 * size * s_end, s_end, gain

    begin = (x, momentum, score(x), jnp.zeros(len(x)))
    end, p, _, gain = jax.lax.fori_loop(0, n_leapfrog, leapfrog, begin)
    log_ratio = gain - 0.5 * jnp.sum(p**2 - momentum**2, axis=axes)
    accepted = jnp.log(jax.random.uniform(accept_key, gain.shape)) < log_ratio
    return jnp.where(jnp.expand_dims(accepted, axes), end, x), accepted


def anneal(score, key, x, sigmas, label):
    """HMC at each of the noise levels, from the first to the last; points and acceptance (k,)."""

    def step(key, x, sigma):
        # A fraction of the width of the density; 4 steps are a quarter of an oscillation.
        size = 0.4 * jnp.sqrt(sigma**2 + two_moons.NOISE**2)
        x, accepted = hmc_step(key, x, lambda x: score(x, sigma), size)
        return x, accepted.mean()

    x, accepted = diffusion.run_chain(step, key, x, (sigmas,), label=label)
    diffusion.require_moves(accepted, sigmas, label=label)
    return x, accepted


# %%
CHOLESKY = jnp.linalg.cholesky(jnp.cov(train.T) + LARGEST**2 * jnp.eye(2))
begin = CENTRE + jax.random.normal(jax.random.key(14), (N, 2)) @ CHOLESKY.T
down = np.repeat(diffusion.noise_levels(15, LARGEST, SMALLEST), 2)
samples["annealed HMC"], acceptance = anneal(
    learned_score, jax.random.key(15), begin, down, "annealed HMC"
)
print(f"accepted: {acceptance.mean():.1%} on average, {acceptance.min():.1%} at least")

# %% [markdown]
# ### Noise in reverse
#
# Adding noise little by little is a random walk. Run backwards in time it is a random walk again, with a drift along the score: the
# **reverse-time SDE** (Anderson 1982; Song et al. 2021). It needs no acceptance and no equilibrium at each level, only one pass.
#
# Why it works: with $t = \sigma^2$, blurring is diffusion, $\partial p/\partial t = \frac{1}{2} \nabla^2 p$. As $\nabla p = s\,p$, this is the same as $-\nabla \cdot (-\frac{1}{2} s\, p)$: points that
# move with the velocity $-\frac{1}{2} s$, without any noise, have the same densities. So on the way *down* a drift of $+\frac{1}{2} s$ takes the blur away. And whoever adds noise of variance
# $\mathrm{d}t$ on the way down must take that away too, by another $\frac{1}{2} s$.

# %% [markdown] exercise="09.5" minutes=10 difficulty=2
# ### A step of the reverse-time SDE
# Take points from noise level $\sigma$ down to $\sigma'$: with $\Delta = \sigma^2 - \sigma'^2$, the variance to be taken away,
# return $x + \Delta\, s(x, \sigma) + \sqrt{\Delta}\, z$.
#
# Hint: `sigma` is the level where the points are, `next_sigma` the smaller one where they go, so $\Delta$ is positive.
#
# Hint: The score is taken at the level where the points *are*.


# %% exercise="09.5"
def reverse_step(key, x, sigma, next_sigma, score):
    """Points x (n, 2) of noise level sigma, one step down to next_sigma; (n, 2).

    score(x, sigma) is the score of p_sigma (n, 2); sigma > next_sigma are numbers.
    """
    # BEGIN SOLUTION
    removed = sigma**2 - next_sigma**2
    z = jax.random.normal(key, x.shape)
    return x + removed * score(x, sigma) + jnp.sqrt(removed) * z
    # END SOLUTION


# %%
reverse_step = check("09.5", reverse_step)


# %% tags=["context"]
def reverse_sde(score, key, x, sigmas, label, corrector=0.1):
    """Points x (n, 2) of the first of the noise levels, taken down to the last; (n, 2).

    A predictor step goes to the next level; a corrector, one Langevin step there, takes back a
    part of its error.
    """

    def step(key, x, sigma, next_sigma):
        predict_key, correct_key = jax.random.split(key)
        x = reverse_step(predict_key, x, sigma, next_sigma, score)
        if corrector:
            tau = corrector * next_sigma**2
            x = langevin_step(correct_key, x, lambda x: score(x, next_sigma), tau)
        return x, None

    return diffusion.run_chain(step, key, x, (sigmas[:-1], sigmas[1:]), label=label)[0]


# %%
steps = diffusion.noise_levels(61, LARGEST, SMALLEST)
samples["reverse SDE"] = reverse_sde(learned_score, jax.random.key(16), begin, steps, "reverse SDE")

# %% [markdown]
# ### Without noise
#
# The first half of that argument alone is a deterministic way down with the same densities at each level: the **probability-flow ODE**.

# %% [markdown] exercise="09.6" minutes=6 difficulty=2
# ### The probability-flow ODE
# Return $\mathrm{d}x/\mathrm{d}\sigma$ for points that move without any noise, so that at each $\sigma$ their density is $p_\sigma$:
#
# $$\frac{\mathrm{d} x}{\mathrm{d} \sigma} = -\frac{1}{2}\,\frac{\mathrm{d} \sigma^2}{\mathrm{d} \sigma}\, s(x, \sigma).$$
#
# Hint: The derivative of $\sigma^2$ with respect to $\sigma$ is $2\sigma$.
#
# Hint: Mind the sign: as $\sigma$ *grows*, points move away from where the density is high, against the score.


# %% exercise="09.6"
def flow_velocity(sigma, x, score):
    """dx/dsigma (n, 2) of the probability-flow ODE at points x (n, 2).

    score(x, sigma) is the score of p_sigma (n, 2); sigma is one number.
    """
    # BEGIN SOLUTION
    return -sigma * score(x, sigma)
    # END SOLUTION


# %%
flow_velocity = check("09.6", flow_velocity)


# %%
def learned_velocity(sigma, x):
    """dx/dsigma (n, 2); SciPy follows it by a Runge-Kutta method of order 5 with adapted steps."""
    return flow_velocity(sigma, x, learned_score)


path = diffusion.solve_ode(learned_velocity, begin, diffusion.noise_levels(60, LARGEST, SMALLEST))
samples["probability-flow ODE"] = path.states[-1]
print(f"The ODE took {path.calls} calls of the network.")

# %% [markdown]
# All samplers end at $\sigma = 0.02$. The rest of the noise goes by one more step of the ODE, in $\sigma^2$: $\mathrm{d}x/\mathrm{d}\sigma^2 = -s/2$, so it is half of Tweedie's step. (The whole step would end at
# posterior means, which scatter too little.) Then compare with 10,000
# true points: the share of points on each moon, and two classifiers (the vote of the 50 nearest neighbours, and a small network)
# that were trained to tell samples from true points (Lopez-Paz & Oquab 2017). Half of their answers would be right by luck.


# %% alt="Four panels of samples with the arcs behind. Langevin alone leaves too many points on one moon; annealed HMC, reverse SDE and ODE fill both evenly."
@partial(jax.jit, static_argnums=0)
def finish(score, x):
    """Take the last bit of noise away: Tweedie's step, halved."""
    return 0.5 * (x + denoise(x, SMALLEST, score))


samples = {name: finish(learned_score, x) for name, x in samples.items()}
told = two_sample.accuracies(samples, test[:N], key=jax.random.key(17))
for name, x in samples.items():
    to_arcs = two_moons.distance(x)
    share = jnp.mean(to_arcs[:, 0] < to_arcs[:, 1])
    if name == "Langevin alone":
        found = " and ".join(f"{accuracy:.1%}" for accuracy in told[name])
        print(f"{name}: {share:.1%} on the outer moon; the classifiers are right in {found}")
        continue
    verdict(f"{name}: share of the outer moon", share, low=0.48, high=0.52, error=0.005)
    verdict(f"{name}: 50 nearest neighbours", told[name].neighbours, high=0.515, error=0.005)
    verdict(f"{name}: small network", told[name].network, high=0.515, error=0.005)

figures.samples(samples)

# %% [markdown]
# Langevin alone fails on the weights: the share of each moon is that of the start. Count the calls of the network: 100 for Langevin,
# 30 × 9 for HMC, 120 for the SDE with its corrector, and least of all for the ODE (printed
# above). All inherit the error of the score. Beyond that, the SDE has an error of the order of its
# steps, the ODE that of its tolerance, and HMC that of its line integral, where the score is not quite a gradient (section 5).
#
# ### The density of a sample
#
# The ODE is an invertible map from the Gaussian at large noise to the moons: a normalizing flow (lesson 03) with a layer for each moment. Along its path
# $\log p$ changes at the rate $-\nabla \cdot v$, the divergence of the velocity. In two dimensions the trace of the Jacobian costs two derivatives.


# %% alt="Left: paths of the probability-flow ODE from the Gaussian to the moons. Right: log density by the ODE against the exact one, along the diagonal."
def velocity_and_rate(sigma, state):
    """dx/dsigma (n, 2) of the points and its divergence (n,), the rate of -log p along a path."""
    x, _ = state

    def velocity(x):
        return learned_velocity(sigma, x)

    rows = [jnp.broadcast_to(row[None], x.shape) for row in jnp.eye(2)]
    derivatives = [jax.jvp(velocity, (x,), (row,))[1] for row in rows]
    return velocity(x), derivatives[0][:, 0] + derivatives[1][:, 1]


at_smallest_noise = test[:2_000] + SMALLEST * jax.random.normal(jax.random.key(18), (2_000, 2))
climbed = diffusion.solve_ode(
    velocity_and_rate, (at_smallest_noise, jnp.zeros(2_000)), (SMALLEST, LARGEST)
)
far, divergence = (state[-1] for state in climbed.states)
base = stats.multivariate_normal.logpdf(far, CENTRE[0], CHOLESKY @ CHOLESKY.T)
flow_log_prob = base + divergence
exact_log_prob = two_moons.log_prob(at_smallest_noise, float(np.hypot(SMALLEST, two_moons.NOISE)))

figures.flow(path.states[:, :150], exact_log_prob, flow_log_prob)

mean, error = diagnostics.mean_with_error(flow_log_prob - exact_log_prob)
verdict(
    "log density by the ODE minus the exact one",
    mean,
    low=-0.03,
    high=0.03,
    unit="nats",
    error=error,
)

# %% [markdown]
# ## 5 · Is it a gradient at all?
#
# A score is a gradient, so its Jacobian is symmetric: in two dimensions, its **curl** $\partial_1 s_2 - \partial_2 s_1$ is zero. A
# network with two outputs knows nothing of that. Then line integrals depend on the path, and there is no density that has this score. The remedy is to let
# the network return *one* number and to differentiate it: an **energy**. Its price is a second derivative in every training step.


# %%
def energy_net(params, x, t):
    """Gradient (n, 2) of a network with one output: a network for exercise 09.3 without curl."""
    return jax.grad(lambda x: Net(n_outputs=1).apply(params, x, t).sum())(x)


# The untrained network of above, with the first of its two outputs only.
energy_start = jax.tree.map(lambda leaf: leaf[..., :1] if leaf.shape[-1] == 2 else leaf, start)


@jax.jit
def energy_score(x, sigma):
    """The score of an energy that was not even trained: without curl by construction."""
    return (denoiser_of(energy_net, energy_start)(x, sigma) - x) / sigma**2


@partial(jax.jit, static_argnums=0)
def curl(score, sigma):
    """Root mean square of the curl over p_sigma, relative to that of the Jacobian."""
    x = test[:2_000] + sigma * level_noise[:2_000]
    # Each point's score depends on that point only: two derivatives give all Jacobians.
    rows = [jnp.broadcast_to(row[None], x.shape) for row in jnp.eye(2)]
    by_first, by_second = (jax.jvp(lambda x: score(x, sigma), (x,), (row,))[1] for row in rows)
    square = jnp.mean(jnp.sum(by_first**2 + by_second**2, axis=-1))
    return jnp.sqrt(jnp.mean((by_first[:, 1] - by_second[:, 0]) ** 2) / square)


def operations(net, params):
    """Floating-point operations in the gradient of the loss for one batch."""
    gradient = jax.jit(jax.grad(lambda p, *batch: dsm_loss(denoiser_of(net, p), *batch)))
    batch = jax.eval_shape(draw, jax.random.key(20))
    return gradient.lower(params, *batch).cost_analysis()["flops"]


for name, score in {"two outputs": learned_score, "energy": energy_score}.items():
    curls = [curl(score, sigma) for sigma in (0.05, 0.2, 1.0)]
    print(f"{name:11s} curl at 0.05, 0.2 and 1: " + ", ".join(f"{value:.1e}" for value in curls))
price = operations(energy_net, energy_start) / operations(Net().apply, start)
print(f"A training step of the energy takes {price:.1f} times the operations.")

# %% [markdown]
# The trained network has a little curl, and so the acceptance of HMC is not exact. The energy has none, trained or not, but for rounding.
#
# ## 6 · Inverse problems
#
# Now something is observed: the first coordinate only, with a noise of 0.3, and the result is $y = -0.3$. Bayes' theorem in scores is a sum,
#
# $$\nabla_x \log p(x \mid y) = \nabla_x \log p(x) + \nabla_x \log p(y \mid x):$$
#
# the prior's score was learned, the likelihood's is known, and no new training is needed when the instrument changes. To sample, the same sum is wanted at every
# noise level, $s(x_\sigma, \sigma) + \nabla \log p_\sigma(y \mid x_\sigma)$. **Here is the catch:** $p_\sigma(y \mid x_\sigma)$, the likelihood of the *noised*
# variable, is not $p(y \mid x)$ with $x_\sigma$ put in. It is an average of the likelihood over all clean points that may be behind $x_\sigma$, and has no
# closed form in general. So people approximate.

# %% [markdown] exercise="09.7" minutes=8 difficulty=2
# ### The likelihood of a noised variable
# An observation $y$ is the clean $x$ plus noise of standard deviation `noise`, where `mask` is 1, and nothing where it is 0. The sampler holds
# $x_\sigma$, not $x$. Pretend that $x_\sigma$ is *all* that is known of $x$, with an error of $\sigma$: then $y - x_\sigma$ has the
# variance `noise`² + σ². Return the gradient of $\log \mathcal{N}(y; x_\sigma, \mathrm{noise}^2 + \sigma^2)$ with respect to $x_\sigma$, over observed
# coordinates only.
#
# Hint: The gradient of $-\frac{1}{2}(y - x)^2/v$ with respect to $x$ is $(y - x)/v$.
#
# Hint: The two errors are independent: their *variances* add up.
#
# Hint: Where nothing is observed nothing pulls: multiply the result with `mask`.


# %% exercise="09.7"
def likelihood_score(x, y, mask, noise, sigma):
    """Gradient (n, ...) of the log-likelihood of y with respect to x (n, ...) of level sigma.

    x are points or images; y and mask are like one of them, or one for each. mask is 1 where y was
    observed, with the standard deviation `noise`, and 0 elsewhere. sigma is one number.
    """
    # BEGIN SOLUTION
    return mask * (y - x) / (noise**2 + sigma**2)
    # END SOLUTION


# %%
likelihood_score = check("09.7", likelihood_score)

# %% [markdown]
# Four ways to the score of the posterior at level $\sigma$:
#
# - *unchanged*: the likelihood as if $x_\sigma$ were clean, with the variance $0.3^2$ at all levels;
# - *convolved*: your function, with $0.3^2 + \sigma^2$ (Remy et al. 2023);
# - *DPS*: the likelihood at the denoised point $D(x_\sigma, \sigma)$, differentiated through the network (Chung et al. 2023, with the likelihood's own variance
#   in place of a tuned step);
# - *exact*: the posterior of this toy is a sum of Gaussians along the arcs, so that its blurred score is known too.
#
# How wrong are they? Take points from the exact posterior (keep points of the moons with the probability of their likelihood), blur them, and compare what each method
# adds to the prior's score with what is right.

# %% alt="Error of the pull of the likelihood against the noise level. All errors vanish for small noise. The unchanged likelihood errs most and its error grows with the noise, that of the convolved one rises and levels off, and that of DPS is the smallest below 0.2 and between the others above."
Y, Y_NOISE = -0.3, 0.3
observed, y = jnp.array([[1.0, 0.0]]), jnp.array([[Y, 0.0]])


def unchanged(x, sigma):
    return likelihood_score(x, y, observed, Y_NOISE, 0.0)


def convolved(x, sigma):
    return likelihood_score(x, y, observed, Y_NOISE, sigma)


@jax.jit
def dps(x, sigma):
    denoised, back = jax.vjp(lambda x: denoiser(x, sigma), x)
    return back(likelihood_score(denoised, y, observed, Y_NOISE, 0.0))[0]


def exact(x, sigma):
    return two_moons.score_given_first(x, sigma, Y, Y_NOISE) - exact_score(x, sigma)


true_points = np.asarray(test)
likelihood = np.exp(-0.5 * ((Y - true_points[:, 0]) / Y_NOISE) ** 2)
keep = np.random.default_rng(27).random(len(test)) < likelihood
posterior_points = true_points[keep][:2_000]


def pull_errors(pull):
    """Root mean square of pull - exact pull over the blurred posterior, in units of 1 / sigma."""
    errors = []
    for sigma in LEVELS:
        x = posterior_points + sigma * level_noise[: len(posterior_points)]
        errors.append(sigma * np.sqrt(2 * np.square(pull(x, sigma) - exact(x, sigma)).mean()))
    return errors


pulls = {"unchanged": unchanged, "convolved": convolved, "DPS": dps}

figures.pulls(LEVELS, {name: pull_errors(pull) for name, pull in pulls.items()})

# %% [markdown]
# With little noise all are right, and DPS soonest. With much noise the unchanged likelihood pulls far too hard: it forgets that $x_\sigma$ says little about $x$. DPS is better than
# the convolved one below 0.2, and worse above, where points choose their moon.
# Sample with the others, by the reverse SDE (the unchanged pull is so hard at first that the steps would overshoot); and with the convolved score by annealed HMC too, which comes to rest at each level.
#
# The exact posterior on a grid is the judge: count samples in cells of 0.2, and compute the Kullback-Leibler divergence from the exact
# probabilities of the cells to the counted ones. (As they are finite, even samples of the exact posterior would not reach zero: the next cell draws some.)

# %%
N_POSTERIOR = 3_000
fine = diffusion.noise_levels(121, LARGEST, SMALLEST)
posterior_scores = {
    name: lambda x, sigma, pull=pull: learned_score(x, sigma) + pull(x, sigma)
    for name, pull in pulls.items()
    if name != "unchanged"
} | {"exact": lambda x, sigma: two_moons.score_given_first(x, sigma, Y, Y_NOISE)}
posterior_samples = {}
for name, score in posterior_scores.items():
    x = reverse_sde(score, jax.random.key(21), begin[:N_POSTERIOR], fine, name, corrector=0.0)
    posterior_samples[f"reverse SDE, {name}"] = finish(score, x)
score = posterior_scores["convolved"]
x, _ = anneal(score, jax.random.key(22), begin[:N_POSTERIOR], down, "annealed HMC")
posterior_samples["annealed HMC, convolved"] = finish(score, x)

# %% alt="Four panels: samples of the posterior by each method on contours of the exact posterior, which is a large piece of the outer moon and a small one of the inner. A fifth: histograms of the second coordinate for two methods beside the exact density."
first = np.linspace(-1.79, 2.79, 230, dtype=np.float32)
second = np.linspace(-1.19, 1.79, 150, dtype=np.float32)
grid = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1)
exact_p = np.exp(two_moons.log_prob_given_first(grid, np.full(grid.shape[:2], Y), Y_NOISE))
cells = (exact_p / exact_p.sum()).reshape(23, 10, 15, 10).sum(axis=(1, 3))
edges = (np.linspace(-1.8, 2.8, 24), np.linspace(-1.2, 1.8, 16))


def kl_to_counts(x):
    """KL divergence from the exact posterior to samples x (n, 2), in cells of 0.2, in nats."""
    likely = cells > 1e-4
    counts = np.histogram2d(*np.asarray(x).T, bins=edges)[0][likely]
    # All unlikely cells count as one; half a sample more in each, so that no logarithm is infinite.
    counts = np.append(counts, len(x) - counts.sum()) + 0.5
    p = np.append(cells[likely], 1 - cells[likely].sum())
    return np.sum(p * np.log(p / (counts / counts.sum())))


divergences = {name: kl_to_counts(x) for name, x in posterior_samples.items()}

figures.posteriors(first, second, exact_p, posterior_samples, divergences)

rng = np.random.default_rng(0)
flat = rng.choice(exact_p.size, (10, N_POSTERIOR), p=exact_p.ravel() / exact_p.sum())
finite = [kl_to_counts(grid.reshape(-1, 2)[draws]) for draws in flat]
nodes_on_outer = two_moons.distance(grid)[..., 0] < two_moons.distance(grid)[..., 1]
share = np.sum(exact_p * nodes_on_outer) / exact_p.sum()
print(f"{'exact':24s} {np.mean(finite):.3f} ± {np.std(finite):.3f} nats, outer moon {share:.0%}")
for name, divergence in divergences.items():
    to_arcs = two_moons.distance(posterior_samples[name])
    share = jnp.mean(to_arcs[:, 0] < to_arcs[:, 1])
    print(f"{name:24s} {divergence:.3f} nats, outer moon {share:.0%}")
approximations = [value for name, value in divergences.items() if "exact" not in name]
verdict(
    "posterior, exact blurred score: KL", divergences["reverse SDE, exact"], high=0.05, unit="nats"
)
verdict("posterior, best approximation: KL", min(approximations), high=0.05, unit="nats")

# %% [markdown]
# The shape of the posterior along each moon is right with annealed HMC: it comes to rest at each level, and at the last one the approximation is exact. But look at the share
# of the outer moon. It was fixed earlier, where the bridge between the moons closed, at a level where the likelihood is still approximate, and no later step can mend it. Only
# the exact blurred score comes near in both. (The rest is its start: a Gaussian that knows nothing of $y$.) So ask of any posterior sampler what it does with separate peaks.
#
# ## 7 · A field: the exact answer is the Wiener filter
#
# Two coordinates become 4,096. A Gaussian random field has a variance of 1 in each pixel and correlations over some 6 pixels; its modes in Fourier
# space are independent, with variances $P(k)$. Blurred by noise, each has $P(k) + \sigma^2$, so the score is known without a network:
#
# $$s(x, \sigma) = -\,\mathcal{F}^{-1}\!\left[\frac{\mathcal{F} x}{P(k) + \sigma^2}\right],$$
#
# with the orthonormal Fourier transform (`norm="ortho"`), for which $P(k) = E\,|\mathcal{F} x|^2$.
#
# A survey sees the field with a noise of 0.5 per pixel, and not everywhere. The posterior is Gaussian too: its mean is the Wiener filter (without holes, it multiplies each mode of the observation with $P/(P + 0.5^2)$), its
# covariance is known. That makes this field the best test of a posterior sampler: does it get the *spread* right, in the holes too?

# %%
SIDE, FIELD_NOISE = 64, 0.5
power = random_fields.power(SIDE)
survey = random_fields.mask(SIDE)
truth_key, noise_key = jax.random.split(jax.random.key(23))
truth = random_fields.simulate(truth_key, 1, power)[0]
sky = survey * (truth + FIELD_NOISE * jax.random.normal(noise_key, truth.shape))

wiener = random_fields.wiener_mean(sky, survey, FIELD_NOISE, power)
wiener_spread = random_fields.wiener_spread(survey, FIELD_NOISE, power)

# %% [markdown]
# The sampler is `hmc_step` from above, with your `likelihood_score`. Only the units change: long and short waves differ by a factor of up to 140 in size, so the steps are taken in
# coordinates $u$ in which all have a size near one, $x = C u$, with a $C$ that is a multiplication in Fourier space. The score with respect to $u$ is
# $C$ times that with respect to $x$. And as the score is linear in $x$, the trapezoidal rule gives its line integral exactly.


# %%
def field_sampler(score, y, survey, precision, sizes, n_leapfrog):
    """A step for diffusion.run_chain: HMC for fields x (n, side, side) at noise level sigma.

    precision(sigma) is a guess of the posterior's precision for each mode, (side, side).
    """

    def step(key, x, sigma):
        scale = precision(sigma) ** -0.5

        def to_x(u):
            return random_fields.filter_modes(u, scale)

        def score_of_u(u):
            x = to_x(u)
            pull = likelihood_score(x, y, survey[None], FIELD_NOISE, sigma)
            return to_x(score(x, sigma) + pull)

        size_key, step_key = jax.random.split(key)
        # Random lengths: with a fixed one, some modes would come back to where they were.
        low, high = sizes
        size = jax.random.uniform(size_key, (len(x), 1, 1), minval=low, maxval=high)
        u = random_fields.filter_modes(x, 1 / scale)
        u, accepted = hmc_step(step_key, u, score_of_u, size, n_leapfrog, simpson=False)
        return to_x(u), accepted.mean()

    return step


N_CHAINS, N_BURN, N_KEPT = 24, 8, 36
gaussian_score = partial(random_fields.score, power=power)
one_move = field_sampler(
    gaussian_score,
    sky[None],
    survey,
    # With a tenth of the observation's own precision: in the holes there is none.
    lambda sigma: 1 / (power + sigma**2) + 0.1 / (FIELD_NOISE**2 + sigma**2),
    sizes=(0.05, 0.25),
    n_leapfrog=20,
)


def keep_fields(key, x, sigma):
    x, accepted = one_move(key, x, sigma)
    return x, (x, accepted)


field_levels = np.concatenate(
    [
        diffusion.noise_levels(12, 10.0, 0.01),  # annealing
        np.full(N_BURN + N_KEPT, 0.01, dtype=np.float32),  # then stay at the last level
    ]
)
begin_fields = field_levels[0] * jax.random.normal(jax.random.key(25), (N_CHAINS, SIDE, SIDE))
_, (kept, accepted) = diffusion.run_chain(
    keep_fields, jax.random.key(24), begin_fields, (field_levels,), label="Gaussian field"
)
fields = np.asarray(kept[-N_KEPT:]).reshape(-1, SIDE, SIDE)
print(f"{len(fields)} fields, {accepted[-N_KEPT:].mean():.0%} of the moves accepted")
diffusion.require_moves(accepted, field_levels, label="Gaussian field")

# %% alt="Seven maps: the true field, the observation with holes, the Wiener mean, the mean of the samples, one sample, and the exact spread beside that of the samples. Means agree; the spread is large in the holes."
field_mean, field_std = fields.mean(axis=0), fields.std(axis=0)
figures.fields(
    {"truth": truth, "observed": sky, "Wiener filter, exact": wiener, "mean of samples": field_mean}
    | {"one sample": fields[-1]},
    {"spread, exact": wiener_spread.std, "spread of samples": field_std},
    survey,
)

rings = np.array([0, 2, 4, 6, 9, 12, 16, 20, 25, 31, 46])
exact_rings = random_fields.in_rings(
    jnp.abs(jnp.fft.fft2(wiener, norm="ortho")) ** 2 + wiener_spread.power, rings
)
ratio = random_fields.binned_power(fields, rings).mean(axis=0) / exact_rings
error = np.sqrt(np.mean((field_mean - wiener) ** 2 / wiener_spread.std**2))
verdict(
    "Gaussian field: rms error of the mean, in posterior σ",
    error,
    high=0.05,
)
print(f"({len(fields)} independent samples would have {len(fields) ** -0.5:.3f})")
variance = (field_std / wiener_spread.std) ** 2
verdict("Gaussian field: pixel variance over the exact one", variance.mean(), low=0.97, high=1.03)
verdict("  in the holes", variance[survey == 0].mean(), low=0.97, high=1.03)
verdict("Gaussian field: spectrum, worst ring", jnp.abs(ratio - 1).max(), low=0, high=0.03)

# %% [markdown] think=true
# **Think: spot the bug.** Two versions of the same score can be found in public notebooks. Both run, both give maps that look right.
#
# ```python
# def score_a(x, sigma):                    # power from np.fft.fft2(field): mean of |F x|^2
#     modes = jnp.fft.fft2(x)
#     return -jnp.fft.ifft2(modes / (power + sigma**2)).real
#
# def score_b(x, sigma):                    # "the field has a variance of one"
#     return -x / (1.0 + sigma**2)
# ```
#
# The next cell tests three scores with one number, $E[-x \cdot s(x)]$ over the number of pixels, for blurred fields $x$. Whatever the density, that number is 1:
# integrate by parts. What do the results say?
#
# Answer: `score_a` mixes conventions. NumPy's transform has no norm, so its power is larger than the variance of a mode by the number of pixels, $64^2$: divide
# by that, and leave $\sigma^2$ alone. As it stands the prior is 4,096 times too broad, and next to nothing is smoothed. `score_b` gives each pixel the right variance, and
# passes the test for exactly this reason! It forgets that neighbours are correlated: it is the score of white noise. So test the modes as well: the same number in
# rings of $k$ is 1 only for the right score. One test that passes proves little; choose a second that would fail.


# %%
unnormalised = power * SIDE**2


def score_a(x, sigma):
    modes = jnp.fft.fft2(x)
    return -jnp.fft.ifft2(modes / (unnormalised + sigma**2)).real


def score_b(x, sigma):
    return -x / (1.0 + sigma**2)


def in_modes(x, s):
    """-x s of fields (n, side, side) in Fourier space, averaged over fields and rings."""
    product = -np.real(np.conj(np.fft.fft2(x, norm="ortho")) * np.fft.fft2(s, norm="ortho"))
    return np.asarray(random_fields.in_rings(product.mean(axis=0), np.array([0, 4, 12, 46])))


keys = jax.random.split(jax.random.key(26))
x = random_fields.simulate(keys[0], N_CHAINS, power) + jax.random.normal(
    keys[1], begin_fields.shape
)
for name, score in {"right": gaussian_score, "a": score_a, "b": score_b}.items():
    s = score(x, 1.0)
    rings_of_three = ", ".join(f"{value:.2f}" for value in in_modes(x, s))
    print(f"{name:6s} all: {-(x * s).mean():.2f}   long, middle, short waves: {rings_of_three}")

# %% [markdown]
# ## 8 · A field that is not Gaussian
#
# Matter in the universe clumps: its density contrast $\delta$ is never below $-1$, and has rare high peaks. A simple model is the **log-normal field**,
# $\delta = e^{g - 1/2} - 1$ with the Gaussian field $g$ from above (Coles & Jones 1991). The Wiener filter with the power spectrum of $\delta$ is still the best *linear* answer. Better ones
# need the score, and that must be learned.
#
# A network was trained for this by the same principle: it is the Wiener filter plus a correction that is learned. Training took some eight minutes
# (`scripts/train_field_denoiser.py`, seed included), so its weights come with the course: 38 kB. Six skies of 32 × 32 pixels, each with a noise of 0.5 and the same holes.
#
# The sampler is that of section 7. It starts from samples of the *linear* answer, which is not far, so the noise need not be large at first. (The score is not linear here, so the trapezoidal
# rule makes its acceptance a rough one; the steps are short enough not to depend on it.) One
# passage of 24 levels gives one sample per chain, and 16 chains per sky, with a noise of 0.05 left.

# %%
PIXELS, N_SKIES, N_DRAWS = 32, 6, 16
holes = random_fields.mask(PIXELS)
lumpy_power = random_fields.log_normal_power(random_fields.power(PIXELS))
keys = jax.random.split(jax.random.key(28), 5)
n_fields = N_SKIES * N_DRAWS
gaussian = random_fields.simulate(keys[0], N_SKIES, random_fields.power(PIXELS))
lumpy = random_fields.log_normal(gaussian)
skies = holes[None] * (lumpy + FIELD_NOISE * jax.random.normal(keys[1], lumpy.shape))

field_params = field_denoiser.load()


def lumpy_score(x, sigma):
    """Learned score of blurred log-normal fields x (n, 32, 32), in groups that fit in the cache."""
    groups = x.reshape(-1, 16, PIXELS, PIXELS)
    denoised = jax.lax.map(
        lambda x: field_denoiser.FieldDenoiser().apply(field_params, x, sigma), groups
    )
    return (denoised.reshape(x.shape) - x) / sigma**2


each_sky = jnp.repeat(skies, N_DRAWS, axis=0)
# Samples of the linear answer's own posterior: constrained realisations (Hoffman & Ribak 1991).
start_fields = random_fields.wiener_samples(
    keys[2], n_fields, each_sky, holes, FIELD_NOISE, lumpy_power
)
linear = random_fields.wiener_mean(skies, holes, FIELD_NOISE, lumpy_power)
lumpy_levels = diffusion.noise_levels(24, 1.0, 0.05)
drawn, accepted = diffusion.run_chain(
    field_sampler(
        lumpy_score,
        each_sky,
        holes,
        # The last part keeps small errors of the score from adding up where nothing is observed.
        lambda sigma: (
            1 / (lumpy_power + sigma**2) + 0.5 / (FIELD_NOISE**2 + sigma**2) + 2 / sigma**2
        ),
        sizes=(0.6, 1.0),
        n_leapfrog=3,
    ),
    keys[3],
    start_fields + lumpy_levels[0] * jax.random.normal(keys[4], start_fields.shape),
    (lumpy_levels,),
    label="log-normal field",
)
drawn = np.asarray(drawn).reshape(N_SKIES, N_DRAWS, PIXELS, PIXELS)
diffusion.require_moves(accepted, lumpy_levels, label="log-normal field")

# %% [markdown]
# The Wiener filter smooths all places alike. The samples know better: low places are smooth, peaks are sharp. Look at the spread, too: a Gaussian posterior would have the same error everywhere that is observed. Here high places are less certain than low ones. Is it right? In 68 % of the
# pixels the truth must lie in the 68 % interval of the samples; and the mean must beat the Wiener filter.

# %% alt="Maps of one sky: the true log-normal field with a few high peaks, the observation with holes, the Wiener filter, the mean of the samples, one sample, and the spread of the samples, which is large in the holes and on the peaks."
figures.fields(
    {
        "truth": lumpy[0],
        "observed": skies[0],
        "Wiener filter": linear[0],
        "mean of samples": drawn[0].mean(axis=0),
        "one sample": drawn[0, 0],
    },
    {"spread of samples": drawn[0].std(axis=0)},
    holes,
)

low, high = np.quantile(drawn, [0.16, 0.84], axis=1, method="weibull")
covered = (low <= lumpy) & (lumpy <= high)
coverage, error = diagnostics.mean_with_error(covered.mean(axis=(1, 2)))
verdict("log-normal field: 68 % intervals cover", coverage, low=0.64, high=0.72, error=error)
in_holes = covered[:, holes == 0].mean(axis=1)
print("  in the holes: {:.3f} ± {:.3f}".format(*diagnostics.mean_with_error(in_holes)))
rms_linear, rms_sampled = (
    np.sqrt(np.square(answer - lumpy).mean(axis=(1, 2))) for answer in (linear, drawn.mean(axis=1))
)
factor, error = diagnostics.mean_with_error(rms_linear / rms_sampled)
verdict("log-normal field: rms error of Wiener over ours", factor, low=1.0, error=error)

# %% [markdown]
# ## 9 · Slide the noise
#
# Move the noise level. Points follow the probability-flow ODE, arrows show the learned score, in units of the noise (at most 5 of them), and the shade is the exact density.
# Where do the points choose their moon? (Most between 0.5 and 0.2, as the hill breaks in two.)

# %% tags=["widget"] alt="The density of the blurred moons at one noise level, arrows of the learned score, and points on their way along the ODE."
widgets.explore_diffusion(
    diffusion.noise_levels(60, LARGEST, SMALLEST),
    path.states[:, :300],
    learned_score,
    start=0.3,
)

# %% [markdown]
# ## 10 · Summary
#
# - The score is the gradient of the log density. It needs no normalisation, and adds up: prior plus likelihood.
# - A denoiser trained on squared error is a score, by Tweedie's formula. Divide the error by $\sigma^2$, so that every level counts.
# - Langevin steps alone have a bias, and never get the weights of separate peaks right. Annealing with HMC, the reverse SDE and the ODE do. The ODE also gives a density.
# - The likelihood of a noised variable is an approximation in all but toy problems. Methods that settle at each level, and end at one where it is
#   exact, forgive it within a peak; the shares of separate peaks are decided earlier, and keep its error.
# - Test a sampler where the answer is known. A Gaussian field costs nothing, and shows a wrong spread at once.
#
# **Limits.** The network knows what its training points know. HMC's acceptance assumes that the score is a gradient. And two numbers between 0 and 1 from classifiers are a
# test of samples, not a proof.
#
# **Go further.** The law of the Gaussian field $g$ behind $\delta$ is known exactly: run HMC on $g$, and compare its means and spreads with those of section 8, pixel by pixel. (Coverage alone
# says little about small errors of both.) Train with 2,000 points in place of 200,000, and watch the error at small noise: does the network learn points by heart? How few levels can the SDE have, with and
# without its corrector, before a classifier sees it?
#
# ## References
#
# - Anderson 1982, *Reverse-time diffusion equation models*, Stochastic Processes and their Applications 12, 313, [doi:10.1016/0304-4149(82)90051-5](https://doi.org/10.1016/0304-4149%2882%2990051-5)
# - Chung, Kim, Mccann, Klasky & Ye 2023, *Diffusion posterior sampling for general noisy inverse problems*, ICLR, [doi:10.48550/arXiv.2209.14687](https://doi.org/10.48550/arXiv.2209.14687)
# - Coles & Jones 1991, *A lognormal model for the cosmological mass distribution*, MNRAS 248, 1, [doi:10.1093/mnras/248.1.1](https://doi.org/10.1093/mnras/248.1.1)
# - Efron 2011, *Tweedie's formula and selection bias*, Journal of the American Statistical Association 106, 1602, [doi:10.1198/jasa.2011.tm11181](https://doi.org/10.1198/jasa.2011.tm11181)
# - Hoffman & Ribak 1991, *Constrained realizations of Gaussian fields: a simple algorithm*, ApJ 380, L5, [doi:10.1086/186160](https://doi.org/10.1086/186160)
# - Hyvärinen 2005, *Estimation of non-normalized statistical models by score matching*, JMLR 6, 695, [jmlr.org/papers/v6/hyvarinen05a](https://www.jmlr.org/papers/v6/hyvarinen05a.html)
# - Karras, Aittala, Aila & Laine 2022, *Elucidating the design space of diffusion-based generative models*, NeurIPS, [doi:10.48550/arXiv.2206.00364](https://doi.org/10.48550/arXiv.2206.00364)
# - Lopez-Paz & Oquab 2017, *Revisiting classifier two-sample tests*, ICLR, [doi:10.48550/arXiv.1610.06545](https://doi.org/10.48550/arXiv.1610.06545)
# - Remy, Lanusse, Jeffrey, Liu, Starck, Osato & Schrabback 2023, *Probabilistic mass-mapping with neural score estimation*, A&A 672, A51, [doi:10.1051/0004-6361/202243054](https://doi.org/10.1051/0004-6361/202243054)
# - Song & Ermon 2019, *Generative modeling by estimating gradients of the data distribution*, NeurIPS, [doi:10.48550/arXiv.1907.05600](https://doi.org/10.48550/arXiv.1907.05600)
# - Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, *Score-based generative modeling through stochastic differential equations*, ICLR, [doi:10.48550/arXiv.2011.13456](https://doi.org/10.48550/arXiv.2011.13456)
# - Vincent 2011, *A connection between score matching and denoising autoencoders*, Neural Computation 23, 1661, [doi:10.1162/NECO_a_00142](https://doi.org/10.1162/NECO_a_00142)

# %%
progress()
