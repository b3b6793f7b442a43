# ---
# title: Variational inference with flows
# part: Inverse problems
# summary: Train a flow to be the whole posterior of a galaxy behind a telescope, hold it against a long Markov chain, and count whether its error bars are right.
# minutes: 100
# objectives:
#   - write the evidence lower bound, and say what its gap to the evidence is
#   - write a reparametrised sample with its density, and see why noise must be new at every step
#   - say what mean-field, full-rank and flow guides can and cannot represent, and which peaks the reverse KL finds
#   - find the posterior of the latent of a galaxy, and test it with posterior predictive checks and importance weights
#   - measure the coverage of error bars, and say when not to trust them
# prerequisites:
#   - Python with NumPy arrays; jax.grad; Bayes' theorem with Gaussians
#   - lesson 03 for what a flow is; lesson 06 for the telescope and the learned prior
# needs: a CPU is enough; a GPU pays off when you train longer or larger networks
# seconds: 120
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Variational inference with flows
#
# The best image of a galaxy is one answer. What the data allow is a *range* of answers, the **posterior**. A chain samples it, one step after the other, and one has to watch whether it has seen all. **Variational inference** (VI) turns sampling
# into training: take a density $q$ that is easy to sample, a *guide*, and bend it until it is as close to the posterior as it can be. Then it gives as many samples as one wants, each with its density. It also comes without a warranty: $q$ can be too narrow, and it never says so by itself.
#
# **The claim of this lesson:** a flow, trained for half a minute of one core on one image, has for the typical latent of the galaxy the mean and the width that a long Markov chain finds, to 0.2 standard deviations and 15 % (nearly always on the narrow side). Over 104 galaxies drawn from the prior its 68 % intervals contain the
# truth **66 ± 1 % of the time**, and over the brightest quarter of them only 61 ± 3 %. You will write the bound that trains it, and the tests that catch it when it is wrong.

# %% tags=["context"]
import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import (
    diagnostics,
    flows,
    galaxy_posteriors,
    galaxy_prior,
    photometry,
    telescope,
    variational,
    vi_coverage,
    widgets,
)
from dlcourse_utils.checks import check, hint, progress, solution
from dlcourse_utils.datasets import toy_posteriors
from dlcourse_utils.plot import variational as figures
from dlcourse_utils.verdicts import verdict

tfb, tfd = tfp.bijectors, tfp.distributions

# %% [markdown]
# ## 1 · What a telescope does not say
#
# The telescope and the learned prior are those of lesson 06: $y = P(\Pi * x) + n$, with the blur $\Pi$, the sum $P$ into the survey's pixels and the noise $n$, and the image $x = g(z)$, with 33 latents $z$. The night is that with three times the noise, 11.4 nJy in each of 21 x 21 pixels.
# The galaxy was drawn from the prior, so we know the truth. A file holds samples of its posterior, made by eight chains of Hamiltonian Monte Carlo (`scripts/make_galaxy_posteriors.py`). They are the reference of this lesson.

# %%
noise = 3 * telescope.NOISE  # nJy, standard deviation in a pixel of the survey
kernel = telescope.difference_kernel(telescope.moffat())
A = telescope.operator(kernel)
observe = jax.tree_util.Partial(telescope.apply, A)  # images (n, 63, 63) to means (n, 21, 21)
prior = galaxy_prior.load()
decode = jax.jit(galaxy_prior.GalaxyPrior.decode)
from_base = jax.jit(galaxy_prior.GalaxyPrior.from_base)

reference = galaxy_posteriors.load()
y, variance = reference.y[0], reference.variance[0]
chain_z = from_base(prior, reference.samples[0])
truth_z = from_base(prior, reference.truth[:1])
truth_x = decode(prior, truth_z)[0]
chain_x = decode(prior, chain_z)

# %% alt="Above: a blurred and noisy galaxy, the truth, the mean of the posterior samples, and their standard deviation, largest at the centre and along the disc. Below: five samples; all are inclined discs of the same size and direction, with different cores and structure."
figures.posterior(y, truth_x, chain_x.mean(axis=0), chain_x.std(axis=0), chain_x[:5])

# %% [markdown]
# All five samples in the lower row explain the data. Where they differ, the data do not know. The map of the standard deviation says how much, pixel by pixel.
#
# ## 2 · The bound
#
# Call any unknown $x$ (for the galaxy it will be the latents). We want $p(x \mid y) = p(x, y) / p(y)$. The numerator is easy, it is likelihood times prior. The evidence $p(y)$ is an integral that nobody can do. For any density $q$,
#
# $$\log p(y) = \underbrace{E_q\left[ \log p(x, y) - \log q(x) \right]}_{\mathrm{ELBO}} + \mathrm{KL}(q \,\|\, p), \qquad \mathrm{KL}(q \,\|\, p) = E_q\left[ \log \frac{q(x)}{p(x \mid y)} \right] \ge 0.$$
#
# The left side does not depend on $q$. So the ELBO, the evidence lower bound, lies below $\log p(y)$, the gap is the Kullback–Leibler divergence (KL) of $q$ from the posterior, and whoever raises the one lowers the other. The evidence itself is never needed. The part $-E_q[\log q]$ is the **entropy** of $q$: it rewards a wide guide.
#
# To climb the ELBO one needs its gradient. But the average is one over $q$, and $q$ itself depends on the parameters: the gradient cannot simply go inside. The trick is to make samples from noise, $x = f(\epsilon)$ with $\epsilon$ standard Gaussian. The noise has no parameters, so the average over it can wait, and JAX differentiates through $f$. This is **reparametrisation**.

# %% [markdown] exercise="07.1" minutes=10 difficulty=2
# ### A sample and its density
# Return samples $x = f(\epsilon)$ of the guide, and $\log q(x)$ in nats, for noise $\epsilon$ that is standard Gaussian in $d$ dimensions. The bijector has `forward(eps)`, and `forward_log_det_jacobian(eps, 1)`, which is (n,): the 1 says that one axis of `eps` holds the coordinates of a point.
#
# Hint: A change of variables: the density of $\epsilon$, divided by how much $f$ stretches space there. Where $f$ stretches, the density is lower.
#
# Hint: $\log N(\epsilon; 0, I)$ sums over the $d$ coordinates and has $-\frac d2 \log 2\pi$; `tfd.MultivariateNormalDiag` can do it. It is evaluated at $\epsilon$, not at $x$.


# %% exercise="07.1"
def sample_and_log_prob(eps, bijector):
    """Samples x (n, d) of the guide and their log density (n,), in nats, from noise eps (n, d).

    bijector.forward(eps) maps standard Gaussian noise to x, and
    bijector.forward_log_det_jacobian(eps, 1) is log |det dx/deps| (n,).
    """
    # BEGIN SOLUTION
    base = tfd.MultivariateNormalDiag(jnp.zeros(eps.shape[-1]))
    log_det = bijector.forward_log_det_jacobian(eps, 1)
    return bijector.forward(eps), base.log_prob(eps) - log_det
    # END SOLUTION


# %%
sample_and_log_prob = check("07.1", sample_and_log_prob)

# %% [markdown] exercise="07.2" minutes=10 difficulty=2
# ### The bound
# Return an estimate of the ELBO from as many samples of the guide as `shape` says, $\frac1n \sum_i \left[ \log p(x_i, y) - \log q(x_i) \right]$. Draw the noise from `key`, and use your function of exercise 07.1.
#
# Hint: `jax.random` has a function for Gaussian noise, which takes a key and a shape. The key comes from outside, so that each step of the training has its own.
#
# Hint: Both logarithms are taken at the *same* samples. The mean is over samples; coordinates were summed before.


# %% exercise="07.2"
def elbo(key, bijector, log_joint, shape):
    """Estimate of the evidence lower bound in nats, a scalar, from samples of a guide.

    shape is (n, d): n samples of d numbers. log_joint(x) is log p(x, y) (n,) of points x (n, d);
    bijector is as in `sample_and_log_prob`.
    """
    # BEGIN SOLUTION
    eps = jax.random.normal(key, shape)
    x, log_q = sample_and_log_prob(eps, bijector)
    return jnp.mean(log_joint(x) - log_q)
    # END SOLUTION


# %%
elbo = check("07.2", elbo)

# %% [markdown]
# ### A posterior that is known
#
# Twenty simulated Cepheids of one galaxy whose distance is known. Their absolute magnitude falls on a line in $t = \log_{10}$ of the period in days,
# $M = a + b t$, with a scatter of $\sigma = 0.2$ mag. Unknown are the zero point $a$ and the slope $b$; the prior is a Gaussian of width 1 in both (mag, mag per dex). Then the posterior is Gaussian
# too, with precision $\Lambda = D^T D / \sigma^2 + S^{-1}$ (the rows of $D$ are $(1, t_i)$, $S$ is the covariance of the prior), and even the evidence has a closed form. No period is near one day, where $t = 0$:
# a more negative $b$ needs a larger $a$, and the two unknowns are strongly correlated.
#
# We try two Gaussian guides. The **full-rank** one is $x = m + L \epsilon$ with a triangular $L$. It can be the posterior itself. The **mean-field** one has a diagonal $L$: one width for each unknown, no correlation.
# Each step draws 512 samples from a *new* key, and Adam climbs your ELBO. All toys share this loop.

# %%
STEPS = 1000
cepheids = toy_posteriors.cepheids()
# The targets of sections 2 and 3: a number says which, so that no target needs a compilation of its own.
TARGETS = (cepheids.log_joint, toy_posteriors.banana, toy_posteriors.two_peaks)


def gaussian(params):
    """The guide x = m + L eps; without "lower" L is diagonal."""
    lower = jnp.tril(params["lower"], -1) * jax.lax.stop_gradient(params["full"])
    scale = lower + jnp.diag(jnp.exp(params["log_scale"]))
    return tfb.Chain([tfb.Shift(params["mean"]), tfb.ScaleMatvecTriL(scale)])


def gaussian_start(full):
    """Parameters of a Gaussian of width 1 at the origin; ``full`` is 1., or 0. for mean-field."""
    zeros = np.zeros(2, np.float32)
    return {"mean": zeros, "log_scale": zeros, "lower": np.zeros((2, 2), np.float32), "full": full}


# %%
@partial(jax.jit, static_argnames=("guide", "samples"))
def train(guide, params, target, rate, keys, powers, samples=128):
    """Adam up the ELBO of target number ``target``, with a key and a power for each step.

    A loop inside of jit: compiled once for each kind of guide, 1,000 steps take 0.1 s.

    ``rate`` is the first learning rate; it fades to zero. Returns the parameters and the ELBO (k,) of each step. The log density is multiplied by
    the power in ``powers`` (k,): less than 1 makes the target flatter.
    """
    fade = optax.cosine_decay_schedule(1.0, STEPS)
    adam = optax.adam(lambda step: rate * fade(step))
    # Far from the target gradients are huge, and Adam remembers them for long: clip them.
    optimizer = optax.flatten(optax.chain(optax.clip_by_global_norm(10.0), adam))

    def loss(params, key, power):
        def log_joint(x):
            return power * jax.lax.switch(target, TARGETS, x)

        return -elbo(key, guide(params), log_joint, (samples, 2))

    def step(state, now):
        params, opt_state = state
        value, slope = jax.value_and_grad(loss)(params, *now)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), -value

    state = params, optimizer.init(params)
    (params, _), curve = jax.lax.scan(step, state, (keys, powers))
    return params, curve


new_keys = jax.random.split(jax.random.key(11), STEPS)
as_it_is = np.ones(STEPS, np.float32)
exact = cepheids.posterior()
found, curves = {}, {}
for name, full in {"full-rank": 1.0, "mean-field": 0.0}.items():
    params, curve = train(gaussian, gaussian_start(full), 0, 0.02, new_keys, as_it_is, 512)
    params, curves[name] = jax.device_get((params, curve))
    scale = np.tril(params["lower"], -1) * full + np.diag(np.exp(params["log_scale"]))
    found[name] = params["mean"], scale @ scale.T

# %% alt="Left: ellipses in the plane of zero point and slope. The exact posterior is long, thin and tilted; the full-rank guide lies on it; the mean-field guide is upright and fits inside of its narrow width. Right: the ELBO of both guides rises; that of the full-rank guide reaches the log evidence, that of the mean-field guide stays 1.1 nats below."
figures.gaussians(
    exact[:2], found, curves, exact.log_evidence, ("zero point a (mag)", "slope b (mag per dex)")
)

# %% tags=["verdict"]
mean, covariance = found["full-rank"]
spread = np.sqrt(np.diag(exact.covariance))
verdict(
    "full-rank: largest error of the mean, over the posterior's standard deviation",
    np.max(np.abs(mean - exact.mean) / spread),
    high=0.01,
)
verdict(
    "full-rank: error of the covariance, over its norm",
    np.linalg.norm(covariance - exact.covariance) / np.linalg.norm(exact.covariance),
    high=0.02,
)
# 100 steps of 512 samples.
last, error = diagnostics.mean_with_error(curves["full-rank"][-100:])
verdict(
    "full-rank: log evidence - ELBO",
    exact.log_evidence - last,
    low=-0.02,
    high=0.02,
    unit="nats",
    error=error,
)
precision = np.linalg.inv(exact.covariance)
widths = np.diag(found["mean-field"][1])
verdict(
    "mean-field: largest error of the variances, over 1 / Lambda_ii",
    np.max(np.abs(widths * np.diag(precision) - 1)),
    high=0.02,
)
gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
last, error = diagnostics.mean_with_error(curves["mean-field"][-100:])
verdict(
    f"mean-field: log evidence - ELBO, less {gap:.3f} from the closed form",
    exact.log_evidence - last - gap,
    low=-0.02,
    high=0.02,
    unit="nats",
    error=error,
)
short = 1 / (np.diag(precision) * np.diag(exact.covariance))
print(f"Mean-field variances over the true ones, 1 / (Lambda_ii Sigma_ii): {short.round(3)}")

# %% [markdown]
# The full-rank guide *is* the posterior, and its ELBO is the log evidence, $\log p(y)$, with hardly any scatter: where $q = p$, the difference $\log p(x, y) - \log q(x)$ is the same number for all $x$. The mean-field guide finds the right mean, but
# its variances are $1/\Lambda_{ii}$, that of a *cut* through the ellipse, in place of $\Sigma_{ii}$, that of its shadow: here 0.12 times as much, so that error bars are three times too small. What it lacks is the gap,
# $\mathrm{KL}(q\,\|\,p) = \frac12 \left( \sum_i \log \Lambda_{ii} - \log \det \Lambda \right)$. In practice $p$ is not known and neither is the gap; only the scatter of the bound, which does not vanish, hints at it.

# %% [markdown] think=true
# **Think.** What happens if you draw the noise once, and use the same key at every step? What if there is only *one* sample, and it never changes?
#
# Answer: Then the mean over samples is no estimate of an expectation any more: it is a fixed function of the parameters, and Adam fits the guide to *these* samples. With one sample, $x = m + L\epsilon$ is one point. It climbs to
# the mode of the joint density, and $L$ grows without end: $m = \hat x - L\epsilon$ makes up for it, and $\log\det L$ is all in the bound that still changes. The one sample sits at the mode $\hat x$, the guide around it becomes infinitely wide, and the estimated bound grows without end. With hundreds of samples a Gaussian guide has too few parameters to go far wrong, but a flow has plenty: section 3 shows it.

# %% [markdown]
# ## 3 · Posteriors that are not Gaussian
#
# Two densities on a plane, known but for their normaliser, as posteriors are. The *banana* is a Gaussian bent to a parabola. The *two peaks* hold 35 % and 65 % of the probability. On a grid we can integrate, so the
# divergence of any guide from them is known.
#
# The flow is a RealNVP (lesson 03): couplings that shift and scale one number by amounts that depend on the other, with a swap after each, and a shift and a scale at the end. We need both directions: the training pushes noise through, and its density on the grid needs the inverse.


# %%
class Net(nn.Module):
    """Shift and log-scale (n, 1) each, from the number (n, 1) that a coupling keeps."""

    @nn.compact
    def __call__(self, kept):
        for _ in range(2):
            kept = nn.silu(nn.Dense(32, bias_init=nn.initializers.normal(0.5))(kept))
        small = nn.initializers.normal(0.01)
        shift, raw = jnp.split(nn.Dense(2, kernel_init=small)(kept), 2, axis=-1)
        return shift, 2.0 * jnp.tanh(0.5 * raw)


N_LAYERS = 6


def flow(params):
    """A RealNVP of the plane. The couplings are one loop, compiled once, not six copies."""

    def push(eps):
        def layer(state, weights):
            x, log_det = state
            kept, moved = jnp.split(x, 2, axis=-1)
            shift, log_scale = Net().apply(weights, kept)
            x = jnp.concatenate([moved * jnp.exp(log_scale) + shift, kept], axis=-1)
            return (x, log_det + log_scale[:, 0]), None

        return jax.lax.scan(layer, (eps, jnp.zeros(len(eps))), params["nets"])[0]

    def pull(x):
        def layer(state, weights):
            x, log_det = state
            moved, kept = jnp.split(x, 2, axis=-1)
            shift, log_scale = Net().apply(weights, kept)
            x = jnp.concatenate([kept, (moved - shift) * jnp.exp(-log_scale)], axis=-1)
            return (x, log_det - log_scale[:, 0]), None

        state = x, jnp.zeros(len(x))
        return jax.lax.scan(layer, state, params["nets"], reverse=True)[0]

    couplings = tfb.Inline(
        forward_fn=lambda eps: push(eps)[0],
        forward_log_det_jacobian_fn=lambda eps: push(eps)[1],
        inverse_fn=lambda x: pull(x)[0],
        inverse_log_det_jacobian_fn=lambda x: pull(x)[1],
        forward_min_event_ndims=1,
    )
    return tfb.Chain(
        [tfb.Shift(params["mean"]), tfb.Scale(log_scale=params["log_scale"]), couplings]
    )


@jax.jit
def flow_start(key):
    """Parameters of a flow that is nearly a Gaussian, of width e."""
    nets = jax.vmap(lambda key: Net().init(key, jnp.zeros((1, 1))))(jax.random.split(key, N_LAYERS))
    return {"mean": jnp.zeros(2), "log_scale": jnp.ones(2), "nets": nets}


@partial(jax.jit, static_argnames="guide")
def log_density(guide, params, x):
    """Log density (n,) of a guide at points x (n, 2)."""
    bijector = guide(params)
    base = tfd.MultivariateNormalDiag(jnp.zeros(2))
    return base.log_prob(bijector.inverse(x)) + bijector.inverse_log_det_jacobian(x, 1)


plane = toy_posteriors.plane()
target_tables = [jax.jit(log_p)(plane.points) for log_p in TARGETS[1:]]


def fit_on_plane(guide, start, target, powers=as_it_is):
    """Train a guide on target 1 or 2; its table on the plane, and KL(q || p) in nats."""
    rate, samples = (0.02, 512) if guide is gaussian else (0.01, 128)
    params, _ = train(guide, start, target, rate, new_keys, powers, samples)
    table = np.asarray(log_density(guide, params, plane.points))
    return table, plane.divergence(table, target_tables[target - 1])


start = flow_start(jax.random.key(12))
banana = {
    "mean-field": fit_on_plane(gaussian, gaussian_start(0.0), 1),
    "full-rank": fit_on_plane(gaussian, gaussian_start(1.0), 1),
    "RealNVP": fit_on_plane(flow, start, 1),
}


# %% alt="Three panels with the same banana-shaped density. The mean-field and the full-rank guide are the same upright ellipse at its bend; the flow follows it into both arms."
def show_guides(log_p, guides):
    figures.densities(
        (plane.first, plane.second),
        log_p,
        {name: table for name, (table, _) in guides.items()},
        {name: f"KL(q‖p) {divergence:.3f} nats" for name, (_, divergence) in guides.items()},
    )


show_guides(target_tables[0], banana)

# %% tags=["verdict"]
verdict("RealNVP on the banana: KL(q || p)", banana["RealNVP"][1], low=0.0, high=0.03, unit="nats")

# %% [markdown]
# The banana is its own mirror image, and here the best full-rank Gaussian turns out to be upright too, so that it is no better than mean-field: both sit where they fit *inside*. A large $q$ where $p$ is small costs much in $\mathrm{KL}(q\,\|\,p) = E_q[\log q - \log p]$; a small $q$ where $p$ is large costs
# little. So a guide that cannot have the right shape is usually too narrow, and its error bars are too.
#
# **The same noise at every step.** Now a flow, as the *Think* cell asked: the same start and the same banana, but the key of the first step for all steps.

# %%
same_key = jnp.broadcast_to(new_keys[:1], new_keys.shape)
params, curve = train(flow, start, 1, 0.01, same_key, as_it_is)


@jax.jit
def on_new_noise(params):
    return elbo(jax.random.key(13), flow(params), toy_posteriors.banana, (4096, 2))


print(f"log normaliser of the banana            {toy_posteriors.BANANA_LOG_NORMALISER:9.2f} nats")
print(f"ELBO on the noise of the training       {curve[-1]:9.2f} nats")
print(f"ELBO of the same guide on other samples {on_new_noise(params):9.2f} nats")

# %% [markdown]
# A *lower bound* above what it bounds: the flow has learned where its 128 samples fall, puts them on the ridge and stretches space around each. Other samples can land far away, some so far that the mean falls below minus two million.
#
# ### Two peaks
#
# The same training on the two peaks. A Gaussian has two ways to be wrong. The reverse divergence $\mathrm{KL}(q\,\|\,p)$, the one of the ELBO, makes it cover one peak and forget the other. The *forward* one, $\mathrm{KL}(p\,\|\,q)$, is least where $q$ has
# the mean and the covariance of $p$: it covers both, and the valley between. (It takes an average over $p$, which we have on the grid, and do not have in practice.)
#
# A flow could have two peaks. Does it find them? Once as before; and once by **annealing**: the target is raised to a power that grows from 0.1 to 1 over the first half of the steps. A flat target joins the peaks, and the flow is spread over both before they part.

# %%
mean, covariance = plane.moments(target_tables[1])
best_forward = -0.5 * np.einsum(
    "ni,ij,nj->n", plane.points - mean, np.linalg.inv(covariance), plane.points - mean
)
rising = np.minimum(0.1 ** (1 - 2 * np.arange(STEPS) / STEPS), 1.0).astype(np.float32)
peaks = {
    "Gaussian, reverse KL": fit_on_plane(gaussian, gaussian_start(1.0), 2),
    "Gaussian, forward KL": (best_forward, plane.divergence(best_forward, target_tables[1])),
    "RealNVP": fit_on_plane(flow, start, 2),
    "RealNVP, annealed": fit_on_plane(flow, start, 2, powers=rising),
}

# %% alt="Four panels with the same two peaks. The Gaussian of reverse KL lies on the broad peak only, that of forward KL covers both and the valley between. The flow trained as before lies on one peak; the annealed one on both."
show_guides(target_tables[1], peaks)

# %% tags=["verdict"]
to_peaks = np.linalg.norm(plane.points[:, None] - toy_posteriors.CENTRES, axis=-1)
narrow = np.argmin(to_peaks / toy_posteriors.WIDTHS, axis=1) == 0
share = {name: jax.nn.softmax(table)[narrow].sum() for name, (table, _) in peaks.items()}
print(f"{'guide':22s} KL(q||p)   in the narrow peak (truth {toy_posteriors.WEIGHTS[0]})")
for name, (_, divergence) in peaks.items():
    print(f"{name:22s} {divergence:8.3f}   {share[name]:.3f}")
error = abs(share["RealNVP, annealed"] - toy_posteriors.WEIGHTS[0])
verdict("annealed RealNVP: error of the weight of the narrow peak", error, high=0.05)
verdict("RealNVP without annealing, which misses a peak: share of it", share["RealNVP"], high=0.05)

# %% [markdown]
# The annealed flow keeps a thin bridge between the peaks, as flows do (lesson 03). Without annealing the flow has all it needs to represent both peaks, and finds one: the loss is an average over *its own* samples, and where it has none, it learns nothing. Its divergence is then about $-\log 0.65 = 0.43$ nats, and its ELBO too low by as much. That again does
# not show, as the evidence is not known. Remember this for galaxies: a guide that starts from one mode describes that mode.

# %% [markdown]
# ## 4 · The galaxy
#
# Back to the sky, with 33 unknowns in place of two. First what the guide must match.

# %% [markdown] exercise="07.3" minutes=8 difficulty=1
# ### The joint density of a galaxy and its image
# Return $\log p(y \mid z) + \log p(z)$ of each latent, for *one* observed image: the Gaussian likelihood of lesson 06 with a variance in each pixel, and the density of the prior.
#
# Hint: From the latents to the data: decode, then observe, (n, k, k). Sum the log densities of the pixels, over the last two axes.
#
# Hint: A masked pixel has an infinite variance. Put a harmless number in its place (`jnp.where`), and set its term to zero afterwards.


# %% exercise="07.3"
def log_joint(z, y, variance, observe, prior):
    """log p(y | z) + log p(z) (n,) in nats of latents z (n, d), for one observed image.

    y and variance (k, k) are the image and the variance of the noise in each pixel, infinite (and y
    0) where it is masked; observe(x) gives the mean observation (n, k, k) of images x (n, s, s);
    prior.decode(z) gives these images and prior.log_prob(z) a log density (n,).
    """
    # BEGIN SOLUTION
    used = jnp.isfinite(variance)
    finite = jnp.where(used, variance, 1.0)
    mean = observe(prior.decode(z))
    terms = (y[None] - mean) ** 2 / finite[None] + jnp.log(2 * jnp.pi * finite)[None]
    log_likelihood = -0.5 * jnp.sum(jnp.where(used[None], terms, 0.0), axis=(-2, -1))
    return log_likelihood + prior.log_prob(z)
    # END SOLUTION


# %%
log_joint = check("07.3", log_joint)


# %% [markdown]
# **The guide.** A posterior is the prior, cut down by the data. So let the guide start there: it is a copy of the prior's own flow, a RealNVP of ten couplings, whose weights may now change. The prior's flow makes
# a galaxy's latent from 33 Gaussian numbers $u$; the guide first squeezes and moves these numbers, by an affine layer, and then applies its couplings:
#
# $$z = \mathrm{flow}_\phi(m + L\,\epsilon).$$
#
# At the start $m$ is the mode of the posterior of $u$ (not the same galaxy as the mode of the posterior of $z$: a density changes with its coordinates), found by Gauss–Newton as in lesson 06, and $L L^T$ is the inverse of the Gauss–Newton curvature there: a **Laplace approximation**, without the second derivatives of the model. Several descents look for other modes first: an affine layer can start at one only. In the code $m$ is called `centre` and $L$ `scale`.
#
# **A quieter gradient.** The parameters act on $\log q$ in two ways: they move the samples, and they change the density at a sample that stays where it is. The average of the second part over $q$ is zero, as the integral of $q$ is 1 whatever the parameters are.
# From 32 samples it is not zero, it is noise, and it is still there when the guide is right. So we take it out (Roeder et al. 2017): to the joint density that your `elbo` gets we add a number that is zero, and whose gradient is this part.


# %% tags=["context"]
def maps(params, start):
    """The guide's maps, from noise eps (n, 33) to latents z (n, 33) and back, each with its log-det (n,).

    start: mode (33,) of the posterior in the base of the prior's flow, and a lower triangular factor
    (33, 33) of the covariance there.
    """
    mode, factor = start
    low = params["scale"]  # its diagonal holds logarithms
    scale = factor @ (jnp.tril(low, -1) + jnp.diag(jnp.exp(jnp.diagonal(low))))
    centre = mode + factor @ params["shift"]
    log_volume = jnp.sum(jnp.log(jnp.diagonal(scale)))

    def push(eps):
        z, log_det = galaxy_prior.flow(params["flow"], centre + eps @ scale.T)
        return z, log_det + log_volume

    def pull(z):
        u, log_det = galaxy_prior.inverse_flow(params["flow"], z)
        eps = jax.scipy.linalg.solve_triangular(scale, (u - centre).T, lower=True).T
        return eps, log_det - log_volume

    return push, pull


def guide(params, start):
    """The bijector of a galaxy's guide, from noise eps (n, 33) to latents z (n, 33)."""
    push, pull = maps(params, start)
    return tfb.Invert(flows.as_bijector(pull, push))  # its log-det is that of `push`


def galaxy_elbo(params, key, y, variance, start, observe, prior):
    """ELBO of a galaxy's guide in nats, from 32 samples, without the part of its gradient that is noise."""
    _, pull = maps(params, start)
    base = tfd.MultivariateNormalDiag(jnp.zeros(galaxy_prior.DIM))

    def joint(z):
        eps, log_det = pull(jax.lax.stop_gradient(z))  # samples that stay where they are
        log_q = base.log_prob(eps) + log_det
        zero = log_q - jax.lax.stop_gradient(log_q)  # but its gradient is not
        return log_joint(z, y, variance, observe, prior) + zero

    return elbo(key, guide(params, start), joint, (32, galaxy_prior.DIM))


GUIDE_STEPS = 600


def two_rates():
    """Adam; the couplings, which know galaxies already, learn slowly."""
    rates = {
        name: optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, 30, GUIDE_STEPS))
        for name, rate in {"slow": 1e-3, "fast": 1e-2}.items()
    }
    groups = {"flow": "slow", "shift": "fast", "scale": "fast"}
    return optax.chain(optax.clip_by_global_norm(20.0), optax.multi_transform(rates, groups))


OPTIMIZER = two_rates()


def fit_guide(key, y, variance, start, observe, prior, keep=()):
    """Train a guide on one image y (21, 21); it starts as the prior's flow upon a Gaussian."""
    dim = galaxy_prior.DIM
    params = {"flow": prior.params["flow"], "shift": np.zeros(dim), "scale": np.zeros((dim, dim))}
    data = (y, variance, start, observe, prior)
    return variational.train(
        galaxy_elbo, params, data, key=key, optimizer=OPTIMIZER, steps=GUIDE_STEPS, keep=keep
    )


@jax.jit
def draw(params, key, y, variance, start, observe, prior):
    """1,000 samples z of a guide with log p(z, y) and log q(z)."""
    eps = jax.random.normal(key, (1000, galaxy_prior.DIM))
    z, log_q = sample_and_log_prob(eps, guide(params, start))
    return z, log_joint(z, y, variance, observe, prior), log_q


# %%
ROWS = {"the galaxy": 0, "with a hole": 7}  # of the reference
rows = list(ROWS.values())
starts = galaxy_posteriors.laplace(reference.y[rows], reference.variance[rows], A, prior)
problems = {  # everything that a guide is trained on
    name: (reference.y[row], reference.variance[row], (mode, factor), observe, prior)
    for (name, row), mode, factor in zip(ROWS.items(), starts.mode, starts.factor, strict=True)
}
print("share of the four descents that end within 1 nat of the best:")
print(", ".join(f"{name} {share:.0%}" for name, share in zip(ROWS, starts.agreement, strict=True)))

# %% alt="The ELBO against the step: it rises steeply at first, then slowly by a few nats, with noise, and flattens. Each point is the mean of ten steps."
looks = (0, 10, 20, 30, 40, 60, 80, 120, 200, 400, GUIDE_STEPS - 1)
began = time.process_time()
fit = fit_guide(jax.random.key(1), *problems["the galaxy"], keep=looks)
training_seconds = time.process_time() - began
z, log_p, log_q = draw(fit.params, jax.random.key(2), *problems["the galaxy"])
steps = np.arange(GUIDE_STEPS).reshape(-1, 10).mean(axis=1)
figures.bound({"guide": (steps, fit.bound.reshape(-1, 10).mean(axis=1))})

# %% tags=["verdict"]
# Of all cores together, so that other work on the machine does not count.
verdict("training of the guide, with compilation", training_seconds, high=60, unit="core seconds")

# %% [markdown]
# At the start the guide is the Laplace approximation, far below the range of the figure. Each point is the mean of ten steps; the curve has noise, because every step estimates the bound from 32 new samples. Now watch the posterior form.

# %% alt="Animation: mean and standard deviation of the galaxy's image under the guide; the mean, a thin disc, hardly changes; the standard deviation shrinks, most of it in the first 60 steps."
moments = []
for params in fit.kept:
    images = decode(prior, draw(params, jax.random.key(3), *problems["the galaxy"])[0])
    moments.append((np.asarray(images.mean(axis=0)), np.asarray(images.std(axis=0))))
means, stds = map(np.stack, zip(*moments, strict=True))
figures.forming(means, stds, np.array(looks))

# %% alt="The same panels as at the beginning, now from the guide: mean, standard deviation map and five samples look like those of the chains."
x = decode(prior, z)
figures.posterior(y, truth_x, x.mean(axis=0), x.std(axis=0), x[:5])

# %% [markdown]
# ## 5 · Does the posterior fit the data?
#
# The first test needs nothing but the data. Each posterior sample says what the telescope should have seen; the difference to what it did see must look like noise.

# %% [markdown] exercise="07.4" minutes=6 difficulty=1
# ### Does the posterior fit?
# Return $\chi^2$ per used pixel of *each* posterior sample: how far the image that the telescope would see of it, without noise, is from the data.
#
# Hint: $\chi^2_i = \sum_j (y_j - \mu_{ij})^2 / \sigma_j^2$ with $\mu_i$ the mean observation of sample $i$. One number for each sample: do not average images first.
#
# Hint: Dividing by an infinite variance gives zero, which is right for the sum. The number of used pixels must not count these.


# %% exercise="07.4"
def predictive_chi2(z, y, variance, observe, prior):
    """chi^2 per used pixel (n,) of posterior samples z (n, d), for one observed image y (k, k).

    variance (k, k) is infinite, and y 0, where a pixel is masked; observe and prior are those of `log_joint`.
    """
    # BEGIN SOLUTION
    mean = observe(prior.decode(z))
    chi2 = jnp.sum((y[None] - mean) ** 2 / variance[None], axis=(-2, -1))
    return chi2 / jnp.sum(jnp.isfinite(variance))
    # END SOLUTION


# %%
predictive_chi2 = check("07.4", predictive_chi2)

# %% tags=["verdict"]
chi2 = predictive_chi2(z, y, variance, observe, prior)
residual = (y - observe(x)) / noise  # (1000, 21, 21), each with its own sample
of_mean = residual.mean(axis=0)  # the telescope is linear: this is the residual of the mean image
# Three times the scatter between galaxies, sqrt(2 / 441).
verdict("χ² per pixel of this galaxy's posterior samples, mean", np.mean(chi2), low=0.8, high=1.2)
print(f"scatter of χ² per pixel between the 1,000 samples: {np.std(chi2):.3f}")
print(f"χ² per pixel of the mean image: {np.mean(of_mean**2):.3f}")
coverage = vi_coverage.load()
chi2_of_all, error = diagnostics.mean_with_error(coverage["prior"].chi2)
verdict(
    "χ² per pixel of posterior samples, mean of 104 galaxies from the prior",
    chi2_of_all,
    low=0.95,
    high=1.05,
    error=error,
)

# %% alt="Left: the residual of the posterior mean on survey pixels, without structure. Right: power of the residuals of samples in rings of spatial frequency, around one, in or at the edge of the band of white noise."
distance = np.hypot(np.fft.fftfreq(21)[:, None], np.fft.fftfreq(21)) / telescope.SURVEY_PIXEL
ring = np.digitize(distance, np.linspace(0.0, 3.0, 9))  # eight rings, and the corners


def spectrum(images):
    """Power (n, 9) of images (n, 21, 21) in rings of spatial frequency, 1 for white noise."""
    power = np.abs(np.fft.fft2(images)) ** 2 / 441
    return np.stack([power[:, ring == r].mean(axis=1) for r in range(1, 10)], axis=1)


white = spectrum(np.random.default_rng(4).standard_normal((1000, 21, 21)))
wavenumber = np.array([distance[ring == r].mean() for r in range(1, 10)])
band = np.quantile(white, [0.025, 0.975], axis=0)
figures.residuals(of_mean, wavenumber, spectrum(np.asarray(residual[:100])), band)

# %% [markdown]
# With the truth drawn from the prior, the truth and a posterior sample have the same distribution once the data are given. So $\chi^2$ per pixel of the samples is 1 on average over galaxies; that of one galaxy scatters by $\sqrt{2/441} = 0.07$. The mean image is closer to the data than its samples are.
# All samples share the one noise of the data: where a ring holds little of the galaxy the bars are short, and a point scatters with the noise, as the grey band says. One of nine may well lie at the edge of its band. What would alarm us is a slope, or several points far outside.
#
# ## 6 · The reference
#
# A posterior that fits can still be too narrow: it may hold only a part of the images that fit. So compare it with one that nobody trained. Hamiltonian Monte Carlo (HMC; Neal 2011) rolls a ball in the landscape of $-\log p$; in the
# limit of many steps its positions are distributed as the posterior, whatever its shape. Each step is accepted or refused by a rule that makes this exact. The chains were run with BlackJAX, and the file says how well they have mixed: $\hat R$ compares the spread between chains with that inside of them, and is 1 where they agree (chains that all miss a peak agree too); the effective samples are as many as independent draws that give the mean equally well.

# %% tags=["verdict"]
verdict("chains of the galaxy: worst R-hat of u and z", reference.r_hat[0], low=1.0, high=1.01)
verdict("chains of the galaxy: least bulk effective samples of u and z", reference.ess[0], low=400)
guide_moments = np.mean(z, axis=0), np.std(z, axis=0)
chain_moments = reference.z_mean[0], reference.z_std[0]
shift = np.abs(guide_moments[0] - chain_moments[0]) / chain_moments[1]
ratio = guide_moments[1] / chain_moments[1]
verdict(
    "guide against chains, shift of the mean, median of 33 latents",
    np.median(shift),
    high=0.2,
    unit="sigma",
)
verdict(
    "guide against chains, |ratio of the widths - 1|, median of 33 latents",
    np.median(np.abs(ratio - 1)),
    high=0.15,
)
print(f"widths, median ratio: {np.median(ratio):.2f}")
print(f"worst latent: shift {shift.max():.2f} sigma; widths {ratio.min():.2f} to {ratio.max():.2f}")

# %% alt="Two panels over the 33 latents: shift of the guide's mean against the chains, around zero, within the band of 0.2 sigma; ratio of the widths, most between 0.85 and 1."
figures.against_reference(guide_moments, chain_moments)


# %% alt="Corner plot of magnitude, radius, ellipticity and two latents: contours of the chains and of the guide lie on each other, the truth inside."
def quantities(z):
    """Magnitude, half-light radius and ellipticity of the images, and two latents; (n, 5)."""
    seen = photometry.measure(decode(prior, z))
    return np.stack([seen.magnitude, seen.half_light_radius, seen.ellipticity, z[:, 0], z[:, 1]], 1)


labels = ("magnitude", "radius (arcsec)", "ellipticity", "$z_1$", "$z_2$")
figures.corner(quantities(chain_z), quantities(z), quantities(truth_z)[0], labels)

# %% [markdown] exercise="07.5" minutes=8 difficulty=2
# ### Weigh the samples
# The means agree. But hardly one of the 33 widths is larger than that of the chains: the guide is narrower, by nearly a tenth for the typical latent. This is the reverse KL of section 3, and the corner plot is too coarse to show it.
#
# The guide $q$ is not the posterior $p$. A sample that $q$ draws too rarely should count for more: $w_i \propto p(x_i, y) / q(x_i)$. Return the weights, scaled to a sum of 1, and the **effective fraction** of the samples, $1 / (n \sum_i w_i^2)$: 1 if all weights are equal, $1/n$ if one sample has all.
#
# Hint: Subtract the largest log weight before you exponentiate: the log weights here are below $-1000$, and $e^{-1000}$ is zero in single precision.
#
# Hint: A function of `jax.nn`, known from classifiers, does both: it turns logarithms into shares that sum to 1.


# %% exercise="07.5"
def importance(log_joint, log_q):
    """Weights (n,) that sum to 1, and the effective fraction of the samples, between 1/n and 1.

    log_joint and log_q (n,) are log p(x, y) and log q(x) at samples x of the guide, in nats.
    """
    # BEGIN SOLUTION
    weights = jax.nn.softmax(log_joint - log_q)
    return weights, 1 / (len(weights) * jnp.sum(weights**2))
    # END SOLUTION


# %%
importance = check("07.5", importance)

# %% alt="Importance weights of 4,000 samples in falling order, on logarithmic axes. Before training a few samples have hundreds of times the mean weight, and most have next to none; after training the curve is flatter, within a factor of ten of one for most samples."
cases = {}
data = problems["the galaxy"]
for name, params in {"before training": fit.kept[0], "after training": fit.params}.items():
    draws = [draw(params, key, *data) for key in jax.random.split(jax.random.key(8), 4)]
    z_i, log_p_i, log_q_i = map(np.concatenate, zip(*draws, strict=True))
    weight, fraction = importance(log_p_i, log_q_i)
    k = diagnostics.pareto_k(log_p_i - log_q_i)
    cases[name] = weight, k
    width = np.std(z_i, axis=0) / reference.z_std[0]
    centre = np.average(z_i, axis=0, weights=weight)
    weighed = np.sqrt(np.average((z_i - centre) ** 2, axis=0, weights=weight)) / reference.z_std[0]
    print(
        f"{name}: Pareto k {k:.2f}, effective fraction {fraction:.1%}; widths over those of the "
        f"chains, median: guide {np.median(width):.2f}, weighted {np.median(weighed):.2f}"
    )
figures.weights(cases)
verdict(
    "weighted samples against chains, ratio of the widths, median of 33 latents",
    np.median(weighed),
    low=0.85,
    high=1.15,
)

# %% [markdown]
# **Pareto's $k$** (Vehtari et al. 2024) is the shape of the tail of the weights. Below 0.7 the weights can be used to correct averages over the guide; above it a few samples decide everything, and the number that one would need, about $10^{1/(1-k)}$, soon is out of reach: 2,000 at 0.7, ten billion at 0.9. (With fewer samples than these 2,000 the limit is lower, $1 - 1/\log_{10} n$.)
#
# Before its training the guide is the Laplace approximation. It is wider than the posterior, and yet somewhere the posterior has probability that it hardly reaches: a few dozen of the 4,000 samples have nearly all the weight, and what they say of the widths means little.
# After the training $k$ is below 0.7, and the weighted samples have the widths of the chains to a few per cent, though they count as few as 4 % of their number. The ELBO, too, says that the second guide is the better one. Whether it is near enough, it cannot say.

# %% [markdown]
# ## 7 · Are the error bars right?
#
# A chain for every galaxy is what we wanted to avoid. There is a test that needs no chain: draw galaxies *from the prior*, observe them, and count how often the truth is inside of the interval. If the posterior is right, a 68 % interval
# contains the truth in 68 % of the cases, as the truth is then just one more sample of the posterior (Talts et al. 2018). The test is necessary, not sufficient: a guide that ignores the data and returns the prior passes it too. So look at the widths as well, as section 6 did.

# %% [markdown] exercise="07.6" minutes=8 difficulty=2
# ### Is the truth inside?
# For each object and each coordinate, return whether the truth lies inside the *central* interval of the posterior samples that holds a fraction `level` of them.
#
# Hint: It is the spread of the *samples* that counts. The standard error of their mean gets smaller with more samples; the posterior does not.
#
# Hint: Central means that the same share of the samples is left out at either end. `jnp.quantile` takes an axis.


# %% exercise="07.6"
def covered(samples, truth, level):
    """Whether truth (n, d) lies in the central interval of samples (n, s, d); booleans (n, d).

    level, between 0 and 1, is the fraction of the samples inside of the interval.
    """
    # BEGIN SOLUTION
    low = jnp.quantile(samples, (1 - level) / 2, axis=1)
    high = jnp.quantile(samples, (1 + level) / 2, axis=1)
    return (low <= truth) & (truth <= high)
    # END SOLUTION


# %%
covered = check("07.6", covered)

# %% [markdown]
# First one galaxy live, with a guide trained here; then 104, whose guides were trained in the same way (from two descents, not four) by `scripts/make_vi_coverage.py`. The file has the rank of each truth among 255 samples of its guide, and among 255 that were drawn from 4,000 samples by their importance weights.

# %% tags=["verdict"]
key = jax.random.key(vi_coverage.SEED)
drawn_u, drawn_y = galaxy_posteriors.draw(key, len(coverage["prior"].chi2), prior, A, noise)
drawn_z = np.asarray(from_base(prior, drawn_u))
i, key = 3, jax.random.fold_in(key, 1000)  # the keys of the script
live = galaxy_posteriors.laplace(drawn_y[i : i + 1], variance, A, prior, starts=2)
data = drawn_y[i], variance, (live.mode[0], live.factor[0]), observe, prior
params = fit_guide(jax.random.fold_in(key, i), *data).params
live_z, *_ = draw(params, jax.random.fold_in(key, 5000 + i), *data)
hits = covered(live_z[None], drawn_z[i : i + 1], 0.68)
stored = vi_coverage.latents_inside(coverage["prior"].guide, 0.68)[i]
print(f"latents inside of 68 % intervals: live {np.mean(hits):.2f}, from the file {stored:.2f}")
# Ends of an interval from 255 samples err by 0.09 sigma, where one truth in twenty may lie.
verdict("live minus stored", np.mean(hits) - stored, low=-0.15, high=0.15)

# %% tags=["verdict"]
own = coverage["prior"]
for level, low, high in ((0.68, 0.65, 0.71), (0.95, 0.93, 0.97)):
    share, error = diagnostics.mean_with_error(vi_coverage.latents_inside(own.guide, level))
    name = f"104 galaxies from the prior: latents inside of {100 * level:.0f} % intervals"
    verdict(name, share, low=low, high=high, error=error)
share, error = diagnostics.mean_with_error(vi_coverage.pixels_inside(own.guide, own.valid, 0.68))
name = "104 galaxies from the prior: pixels inside of 68 % intervals"
verdict(name, share, low=0.62, high=0.74, error=error)


def percent(shares):
    """The mean of the shares (n,) of n galaxies, and its error, as a text."""
    share, error = diagnostics.mean_with_error(shares)
    return f"{100 * share:.1f} ± {error * 100:.1f} %"


order = np.argsort(drawn_z[:, -1])  # the last latent is the magnitude
parts = {"the brightest quarter": order[:26], "the others": order[26:]}
parts |= {"k up to 0.7": own.pareto_k <= 0.7, "k above 0.7": own.pareto_k > 0.7}
print(f"{'latents':22s} {'guide':15s} {'weighted':15s} k > 0.7")
for name, part in {"all": slice(None), **parts}.items():
    plain, weighed = (
        percent(vi_coverage.latents_inside(ranks, 0.68)[part])
        for ranks in (own.guide, own.weighted)
    )
    print(f"{name:22s} {plain:15s} {weighed:15s} {100 * np.mean(own.pareto_k[part] > 0.7):.0f} %")
print(f"{'pixels':10s} {'all':15s} {'weighted':15s} {'centre':15s} χ²/pixel  k > 0.7")
for name, study in coverage.items():
    every = vi_coverage.pixels_inside(study.guide, study.valid, 0.68)
    weighed = vi_coverage.pixels_inside(study.weighted, study.valid, 0.68)
    centre = vi_coverage.pixels_inside(study.guide, study.valid & vi_coverage.CENTRE, 0.68)
    print(
        f"{name:10s} {percent(every):15s} {percent(weighed):15s} {percent(centre):15s} "
        f"{study.chi2.mean():.3f}     {100 * np.mean(study.pareto_k > 0.7):.0f} %"
    )
for name in ("prior", "simulator"):
    outer = coverage[name].guide.pixels[:, ~vi_coverage.CENTRE]
    print(f"{name}: {np.mean(outer == 0):.1%} of the outer pixels darker than all 255 samples")

# %% alt="Left: share of truths inside against the stated level. Right: observed minus stated level with Monte Carlo bands. Latents and pixels of galaxies from the prior lie a few per cent below zero, pixels of galaxies of the simulator far below, their centres hardly."
levels = np.linspace(0.1, 0.9, 9)
simulator = coverage["simulator"]
shares = {
    "latents, prior": partial(vi_coverage.latents_inside, own.guide),
    "pixels, prior": partial(vi_coverage.pixels_inside, own.guide, own.valid),
    "pixels, simulator": partial(vi_coverage.pixels_inside, simulator.guide, simulator.valid),
    "centre, simulator": partial(
        vi_coverage.pixels_inside, simulator.guide, simulator.valid & vi_coverage.CENTRE
    ),
}
observed, errors = {}, {}
for name, share in shares.items():
    pairs = [diagnostics.mean_with_error(share(level)) for level in levels]
    observed[name], errors[name] = map(np.array, zip(*pairs, strict=True))
figures.coverage(levels, observed, errors)

# %% [markdown]
# **Galaxies of the prior.** Two thirds are inside. Nearly all that is missing to 68 % comes from the brightest quarter, whose posteriors are narrow and bent; the others have what they should, and the mean over all hides this. Where $k$ is below 0.7 the weights mend the rest. Where it is above, and that is a third of the bright galaxies, they do not.
#
# **Galaxies of the simulator.** Guide and telescope are the same, $\chi^2$ is as good and $k$ nearly, and yet only half of the pixels are inside. In the centre, within 0.75 arcsec, nearly as many are as for the prior's own galaxies. What is wrong is the outskirts of the *prior*: its decoder leaves a little light everywhere, and in one outer pixel of five the truth is darker than all 255 samples, where one in 256 should be. No inference can mend that. A chain would have the same gap.
#
# **Galaxies of Hubble.** The truth is an image of Hubble, with noise of its own, so samples get such noise before they are compared, and only pixels count where it is less than the width of the posterior: between 1 and 80 in a galaxy. The share lies two errors below 68 %. With twelve galaxies that is a hint and no more.

# %% [markdown] think=true
# **Think.** A colleague tests her posteriors on 104 galaxies of the *simulator*, finds 60 %, and concludes that her variational inference is too narrow. Which test tells whether it is the inference or the prior that is wrong?
#
# Answer: Galaxies drawn from the prior itself. There the prior is right by construction, so a gap must come from the inference. If they cover and galaxies of the simulator do not, the prior is not the simulator's population (unless the guide fails for galaxies unlike those of the prior, which a chain for one of them tells): a better guide, or a chain of any length, would
# have the same gap.

# %% [markdown]
# ## 8 · A hole in the data
#
# The posterior knows what to do with missing data: a masked pixel says nothing. Here 36 survey pixels beside the centre are masked, as a satellite trail or a neighbour would make us do; it is the same galaxy with the same noise in the other pixels. What is not seen should be more uncertain, but not unknown: blur and prior tie the light of one pixel to that of its neighbours. For the same reason the rest becomes a little wider too. (Where the width is next to nothing the ratio is left out.)

# %% alt="Five panels: the image with a grey hole beside the centre, the posterior mean with the hole outlined, the standard deviation without and with the hole, and their ratio, largest in the hole, near one along the galaxy, grey in the dark outskirts."
hole = ~np.isfinite(reference.variance[7])
fit_hole = fit_guide(jax.random.key(9), *problems["with a hole"])
hole_z, *_ = draw(fit_hole.params, jax.random.key(10), *problems["with a hole"])
hole_x = decode(prior, hole_z)
seen = np.where(hole, np.nan, reference.y[7])
figures.inpainting(seen, hole_x.mean(axis=0), x.std(axis=0), hole_x.std(axis=0))

# %% tags=["verdict"]
with_hole, without = (np.asarray(observe(images)).std(axis=0) for images in (hole_x, x))
seen_truth = np.asarray(observe(truth_x[None]))[0]
beside = ~hole & (seen_truth > 0.05 * seen_truth.max())
wider = with_hole / without  # of what the telescope would see without noise, in its pixels
verdict("hole: widths of masked pixels, with over without, median", np.median(wider[hole]), low=1.2)
verdict("bright pixels outside of the hole: the same", np.median(wider[beside]), low=0.9, high=1.15)
fine_hole = np.kron(hole, np.ones((3, 3), bool))
chain_hole = decode(prior, from_base(prior, reference.samples[7])).std(axis=0)
verdict(
    "hole: width of the pixels inside, guide over chains, median",
    np.median(np.asarray(hole_x.std(axis=0) / chain_hole)[fine_hole]),
    low=0.85,
    high=1.15,
)

# %% [markdown]
# ## 9 · Slide through the posterior
#
# Every position of the slider is a galaxy that the data allow. What stays, the data know; what changes, they do not.

# %% tags=["widget"] alt="The observation, one posterior sample of the galaxy, and the residual of this sample in units of the noise."
widgets.explore_samples(y, x[:60], observe(x[:60]), noise)

# %% [markdown]
# ## 10 · Summary
#
# - The ELBO is a lower bound of the log evidence. Its gap is the divergence of the guide from the posterior, and nobody tells you how large it is.
# - Samples are made from noise, and the noise must be new at every step. The entropy is what keeps the guide from falling into the mode.
# - A guide can only be what its family allows. The reverse KL prefers one peak to the valley between two.
# - Start where you can compute: the mode and its curvature. Bend from there. The prior's own flow is a good guide, because a posterior is a prior, cut down.
# - A posterior is tested, not believed: residuals of its samples, importance weights, a chain for one galaxy, coverage for many. The first sees a misfit, and a guide that is much too wide; only the last three see one that is too narrow.
# - Coverage on the prior's own galaxies tests the inference. Coverage on real ones tests the prior too, once the inference has passed.
#
# **Limits.** The posterior is that under a learned prior. Where the sky has what the prior lacks, error bars can be too small, for chains as for guides. Pareto's $k$ says whether the samples of the guide reach all of the posterior that they have *seen*; a peak that no sample has found, it does not see.
#
# **Go further.** A guide is also a change of coordinates: in its noise $\epsilon$ the posterior is nearly a standard Gaussian if the guide is good, whatever its shape was. Run a chain *there* (Hoffman et al. 2019), with the density $p(f(\epsilon), y)\,|\det \partial f / \partial \epsilon|$, starting from samples of the guide. How long a step is accepted, and how many steps until the widths are those of the reference? And row 6 of the reference is the same galaxy with a third of the noise: train a guide on it. Is it as wide as its chains, and what is $k$?
#
# ## References
#
# - Blei, Kucukelbir & McAuliffe 2017, *Variational inference: a review for statisticians*, JASA 112, 859, [doi:10.1080/01621459.2017.1285773](https://doi.org/10.1080/01621459.2017.1285773)
# - Cabezas, Corenflos, Lao & Louf 2024, *BlackJAX: composable Bayesian inference in JAX*, [doi:10.48550/arXiv.2402.10797](https://doi.org/10.48550/arXiv.2402.10797)
# - Dinh, Sohl-Dickstein & Bengio 2017, *Density estimation using Real NVP*, ICLR, [doi:10.48550/arXiv.1605.08803](https://doi.org/10.48550/arXiv.1605.08803)
# - Hoffman, Sountsov, Dillon, Langmore, Tran & Vasudevan 2019, *NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural transport*, [doi:10.48550/arXiv.1903.03704](https://doi.org/10.48550/arXiv.1903.03704)
# - Kingma & Welling 2014, *Auto-encoding variational Bayes*, ICLR, [doi:10.48550/arXiv.1312.6114](https://doi.org/10.48550/arXiv.1312.6114)
# - Neal 2011, *MCMC using Hamiltonian dynamics*, Handbook of Markov Chain Monte Carlo, [doi:10.48550/arXiv.1206.1901](https://doi.org/10.48550/arXiv.1206.1901)
# - Rezende & Mohamed 2015, *Variational inference with normalizing flows*, ICML, [doi:10.48550/arXiv.1505.05770](https://doi.org/10.48550/arXiv.1505.05770)
# - Roeder, Wu & Duvenaud 2017, *Sticking the landing: simple, lower-variance gradient estimators for variational inference*, NeurIPS, [doi:10.48550/arXiv.1703.09194](https://doi.org/10.48550/arXiv.1703.09194)
# - Talts, Betancourt, Simpson, Vehtari & Gelman 2018, *Validating Bayesian inference algorithms with simulation-based calibration*, [doi:10.48550/arXiv.1804.06788](https://doi.org/10.48550/arXiv.1804.06788)
# - Vehtari, Simpson, Gelman, Yao & Gabry 2024, *Pareto smoothed importance sampling*, JMLR 25, 72, [doi:10.48550/arXiv.1507.02646](https://doi.org/10.48550/arXiv.1507.02646)

# %%
progress()
