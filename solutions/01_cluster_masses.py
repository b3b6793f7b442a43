# ---
# title: How heavy is a galaxy cluster?
# part: Densities
# summary: Turn what a survey sees of a galaxy cluster into a posterior of its mass, within 0.01 nats of the exact one.
# minutes: 90
# objectives:
#   - say which summary of the posterior each regression loss learns, and show it against the exact answer
#   - write a mixture density network with flax and TFP, and train it by maximum likelihood
#   - read the mean, the median, the mode and an interval off a predicted posterior
#   - divide the training prior out of a network's answer and put another prior in
#   - test a posterior by its coverage and by its distance to the truth in nats
# prerequisites:
#   - Python with NumPy arrays; a first look at jax.numpy and at training a network
#   - densities, Bayes' theorem, the normal law
# needs: a CPU is enough; a GPU pays off when you train longer or larger networks
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How heavy is a galaxy cluster?
#
# A galaxy cluster is weighed by what a survey sees of it: how many galaxies it has, and how fast
# they move. The classical answer is one number with one error bar. For one cluster in twelve it is
# wrong by a factor of three or more, mostly where two on one line of sight look like a single heavy one.
#
# **The claim of this lesson:** a small network, trained for a few seconds on simulations, gives the
# whole posterior of the mass, two peaks included. It comes within **0.01 nats** of the exact
# posterior, averaged over 20,000 clusters. (A nat is the unit of a natural logarithm: 0.01 nats are a factor of
# 1.01 in probability.) You will build it, and you will measure that number.

# %% tags=["context"]
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import diagnostics, exact, widgets
from dlcourse_utils.checks import check, hint, progress, solution
from dlcourse_utils.datasets import clusters, splus
from dlcourse_utils.errors import CourseError
from dlcourse_utils.plot import cluster_masses as figures
from dlcourse_utils.train import fit
from dlcourse_utils.verdicts import verdict

tfd = tfp.distributions

# %% [markdown]
# ## 1 · The data, and one number for each cluster
#
# Throughout, $m = \log_{10}(M_{200}/M_\odot)$ is the mass of a cluster, in dex: 0.1 dex is 26 %,
# 0.3 dex is a factor of two. $M_{200}$ is the mass inside the radius $R_{200}$, within which the mean
# density is 200 times the critical one.
#
# No survey measures $m$. It measures four features $x$:
#
# | feature | meaning | unit |
# |---|---|---|
# | `log_richness` | log10 of the number of member galaxies with $M_r < -20$ inside $R_{200}$ | dex |
# | `log_sigma` | log10 of the velocity dispersion of the galaxies along the line of sight | log10 km/s |
# | `log_n` | log10 of the number of galaxies whose velocity was measured | dex |
# | `z` | redshift | none |
#
# The simulator draws a mass, then what is seen of it, from published relations:
# $\sigma = 1177\ \mathrm{km/s}\,[h(z)\,M_{200}/10^{15} M_\odot]^{0.364}$ for the dispersion
# (Munari et al. 2013; $h(z)$ is the Hubble rate in units of 100 km/s/Mpc) and
# $N = 19\,(M_{200}/10^{14} M_\odot)^{0.92}$ for the richness (the slope of Popesso et al. 2007). At fixed mass
# both scatter, by 10 % and 20 %, with a correlation of 0.3: a halo seen along its long axis looks richer and
# faster (White et al. 2010). The richness also scatters by counting, in the form of Saro et al. (2015), and the
# measured dispersion is that of a sample. Velocities are also measured for galaxies fainter than
# $M_r = -20$, so there can be more of them than the richness.
#
# One system in five is two structures on one line of sight, taken for one: 1.65 times too rich, and 1.65 times
# too fast. Its mass $m$ is that of the main structure. Such systems are not rare: 9 of 57 groups had several
# peaks in velocity, and masses too high (Ribeiro et al. 2011).
#
# Masses are drawn flat in $m$ between 13.2 and 15.2, with soft edges. That is a choice of ours and
# not a fact of nature. Remember it.

# %%
train_key, test_key, survey_key = jax.random.split(jax.random.key(1), 3)
train = clusters.simulate(train_key, 300_000)
test = clusters.simulate(test_key, 20_000)

# The simulator's likelihood is known: Bayes' theorem gives the exact posterior on a grid of masses.
grid = jnp.linspace(12.4, 16.0, 301)
log_likelihood = exact.tabulate(clusters.log_likelihood, test.features, grid)
exact_log_p = exact.normalise(log_likelihood + clusters.log_training_prior(grid), grid)

# %% alt="The exact posterior of one cluster has two peaks. The true mass is at the lighter one; the classical mass lies more than 0.4 dex above it."
two_peaked = figures.pick_two_peaked(exact_log_p, grid, train, test)
figures.claim(grid, exact_log_p, train, test, two_peaked)

# %% [markdown]
# The curve is the exact posterior $p(m \mid x)$ of one simulated cluster. It has two peaks: one heavy
# cluster, or two lighter ones in line. One number with one error bar cannot say that.
#
# ### The classical answer
#
# In logarithms the relation between dispersion and mass is a straight line. Fit it to clusters of
# known mass, then read off the mass of the next one.
#
# This is the first of seven exercises. Replace the `...`, run the cell, then run the cell with `check`: it
# says what is right or wrong, and why. `hint("01.1")` gives a hint and `solution("01.1")` the solution. An
# exercise that you skip is filled in by the reference, so the notebook always runs to its end.

# %% [markdown] exercise="01.1" minutes=8 difficulty=1
# ### The M–σ relation
# Fit $\log_{10} M = a \log_{10} \sigma + b$ by least squares, and measure the scatter of the masses
# around the line: the standard deviation of the residuals, in dex.
#
# Hint: The slope of the least-squares line $v = a u + b$ is the covariance of $u$ and $v$ over the variance of $u$.
#
# Hint: The line passes through the two means, which gives the intercept.
#
# Hint: A residual is $\log_{10} M - (a \log_{10} \sigma + b)$. The scatter is `jnp.std` of all of them.


# %% exercise="01.1"
def fit_m_sigma(sigma, mass):
    """Least-squares line of log10 mass on log10 sigma.

    sigma: (n,) in km/s; mass: (n,) in Msun.
    Returns (slope, intercept, scatter): the scatter of the masses around the line, in dex.
    """
    # BEGIN SOLUTION
    log_sigma, log_mass = jnp.log10(sigma), jnp.log10(mass)
    centred = log_sigma - log_sigma.mean()
    slope = jnp.mean(centred * log_mass) / jnp.mean(centred**2)
    intercept = log_mass.mean() - slope * log_sigma.mean()
    scatter = jnp.std(log_mass - (slope * log_sigma + intercept))
    return slope, intercept, scatter
    # END SOLUTION


# %%
fit_m_sigma = check("01.1", fit_m_sigma)

# %% alt="Left: mass against velocity dispersion with the fitted line; clusters that are two structures in line lie below it. Middle: mass against richness. Right: histogram of the residuals of the line, with a tail of clusters that look too heavy."
sigma, mass = 10 ** train.features[:, 1], 10**train.log_mass
slope, intercept, scatter = fit_m_sigma(sigma, mass)
print(f"log10 M = {slope:.2f} log10 sigma {intercept:+.2f}, scatter {scatter:.3f} dex")
figures.data(train, slope, intercept, scatter)

# %% [markdown]
# The line has a scatter of 0.3 dex: a factor of two. The structures in line (pink) sit below
# it: they look heavier than they are, by a factor of 2.3 on average. The richness helps to tell, and the number of velocities says
# how far to trust the dispersion. A network can use all four features.

# %% [markdown]
# ## 2 · A network that returns one number
#
# The network is a multilayer perceptron with three hidden layers of 64 units. Only its outputs will
# change in this lesson. Inputs are standardised. In flax a module holds no numbers: `init(key, x)` draws the
# parameters from a random key, `apply(params, x)` evaluates the network with them, and `@nn.compact` lets the
# layers be declared where they are used.

# %%
x_mean, x_std = train.features.mean(axis=0), train.features.std(axis=0)


class MLP(nn.Module):
    """Features (n, 4) to outputs (n, n_outputs)."""

    n_outputs: int

    @nn.compact
    def __call__(self, x):
        h = (x - x_mean) / x_std
        for _ in range(3):
            h = nn.silu(nn.Dense(64)(h))
        return nn.Dense(self.n_outputs)(h)


# %% [markdown] exercise="01.2" minutes=5 difficulty=1
# ### Mean squared error
# Write $\frac{1}{n}\sum_i (f_i - m_i)^2$. Mind the shapes: the network returns a column $(n, 1)$,
# the masses are a vector $(n,)$.
#
# Hint: What is the shape of `prediction - target` if one is (n, 1) and the other (n,)? Try it with n = 3.
#
# Hint: `prediction[:, 0]` is the column as a vector.


# %% exercise="01.2"
def mse(prediction, target):
    """Mean squared error in dex squared; prediction: (n, 1), target: (n,); returns a scalar."""
    # BEGIN SOLUTION
    return jnp.mean((prediction[:, 0] - target) ** 2)
    # END SOLUTION


# %%
mse = check("01.2", mse)


# %% [markdown]
# The mean absolute error needs no exercise. Both networks are trained in the same way: batches of 512
# clusters, Adam, and a learning rate that falls to zero.


# %%
def mae(prediction, target):
    return jnp.mean(jnp.abs(prediction[:, 0] - target))


def adam(steps):
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps))


train_mean = train.log_mass.mean()


def train_point_network(loss, label, steps=2_200):
    """Train on m minus its mean, so that an untrained network is not 14 dex off."""
    net = MLP(n_outputs=1)
    params = jax.jit(net.init)(jax.random.key(2), train.features[:1])
    result = fit(
        lambda params, x, m: loss(net.apply(params, x), m - train_mean),
        params,
        (train.features, train.log_mass),
        key=jax.random.key(3),
        optimizer=adam(steps),
        steps=steps,
        label=label,
    )
    return net.apply(result.params, test.features)[:, 0] + train_mean


mse_prediction = train_point_network(mse, "mean squared error")
mae_prediction = train_point_network(mae, "mean absolute error")

# %% [markdown]
# ### Why the predictions flatten
#
# Compare what the network says with the true mass: light clusters come out too heavy, heavy ones too
# light (next figure, left). Is the network at fault?
#
# Take the loss apart. For a given $x$ the masses are spread as $p(m \mid x)$, and
#
# $$\mathbb{E}\big[(f - m)^2 \mid x\big] = \big(f - \mathbb{E}[m \mid x]\big)^2 + \mathrm{Var}[m \mid x].$$
#
# The last term does not depend on $f$. So the best network returns the **mean of the posterior**, and
# the posterior contains the **training prior** $p(m)$:
#
# $$f^\star(x) = \mathbb{E}[m \mid x] = \frac{\int m\, p(x \mid m)\, p(m)\, \mathrm{d}m}{\int p(x \mid m)\, p(m)\, \mathrm{d}m}.$$
#
# For a Gaussian prior of variance $\tau^2$ around $\mu$, and a measurement $\hat m$ with Gaussian error
# $s$, this is $f^\star = \mu + \frac{\tau^2}{\tau^2 + s^2}\,(\hat m - \mu)$: pulled towards the middle of
# the training masses. With our flat prior the pull is felt at the two ends, beyond which the prior says
# that there is nothing. (The small dip in between is that of the structures in line: a likely single cluster
# is given some chance of being a lighter one.)

# %% alt="Left: the mean error against true mass is positive at the light end and negative at the heavy end, the same for the network and for the exact posterior mean. Right: the mean error against predicted mass is zero for both."
exact_mean, exact_std = exact.mean_and_std(exact_log_p, grid)
figures.flattening(test.log_mass, mse_prediction, exact_mean)

# %% [markdown]
# Left: the exact posterior mean flattens just as the network does, so it is no failure of the training.
# Right: among clusters with the same *predicted* mass, the true ones average to the prediction. That is
# all that a posterior mean promises, and only for clusters drawn as the training set was.
#
# The absolute error leads to another summary. Its derivative with respect to $f$ is the probability below
# $f$ minus the probability above it, which is zero at the **median**. Compare each network with the exact
# summary that it should have learned.

# %% alt="Two panels of histograms of the difference to the exact mean and to the exact median. The network trained with squared error is narrower around the mean, the one trained with absolute error around the median."
exact_median = exact.quantile(exact_log_p, grid, 0.5)
figures.losses(mse_prediction, mae_prediction, exact_mean, exact_median, exact_std)


# %% tags=["verdict"]
def rms(values):
    return float(jnp.sqrt(jnp.mean(values**2)))


sigma_unit = float(exact_std.mean())
distance = rms(mse_prediction - exact_mean) / sigma_unit
verdict("MSE network to the exact posterior mean, rms", distance, high=0.10, unit="posterior σ")
distance = rms(mae_prediction - exact_median) / sigma_unit
verdict("L1 network to the exact posterior median, rms", distance, high=0.12, unit="posterior σ")

# %% [markdown] think=true
# **Think.** You double the number of training clusters at the heavy end and change nothing else. The
# likelihood $p(x \mid m)$ is the same. Do the network's predictions for heavy clusters change? Should they?
#
# Answer: They rise. The training prior now has more heavy clusters, the posterior mean follows, and the
# network learns it. Whether it should depends on the sky: a prediction is right for clusters that are drawn as
# the training set was. Section 5 changes the prior after training, without simulating again.

# %% [markdown]
# ## 3 · A network that returns a density
#
# A **mixture density network** (Bishop 1994) returns the parameters of a density instead of a number:
#
# $$q(m \mid x) = \sum_{k=1}^{K} w_k(x)\; \mathcal{N}\big(m;\, \mu_k(x),\, s_k(x)\big).$$
#
# The weights must be positive and sum to one, and the scales must be positive. A network's outputs are any
# real numbers, so the last step turns them into what they must be. The $3K$ outputs are three blocks of $K$,
# called $a$, $b$ and $c$:
#
# $$w = \mathrm{softmax}(a), \qquad \mu = 14.2 + 0.6\, b, \qquad s = 0.01 + 0.6\, \log(1 + e^{c}).$$
#
# The constants 14.2 and 0.6 are the middle and the spread of the training masses: an untrained network,
# whose outputs are near zero, then starts from a sensible density. The 0.01 dex keep a component from
# collapsing onto a single cluster.

# %% tags=["context"]
N_COMPONENTS = 6
MASS_CENTRE, MASS_SCALE = 14.2, 0.6  # dex
MIN_SCALE = 0.01  # dex

# %% [markdown] exercise="01.3" minutes=12 difficulty=2
# ### From outputs to a mixture
# Turn the outputs $(n, 3K)$ into a `tfd.MixtureSameFamily` of $n$ densities: the first $K$ columns are $a$,
# the next $K$ are $b$, the last $K$ are $c$ of the formulas above.
#
# Hint: `jnp.split(array, 3, axis=-1)` cuts an array into three blocks of columns.
#
# Hint: `tfd.Categorical(logits=a)` applies the softmax over the last axis for you; `nn.softplus(c)` is $\log(1 + e^c)$.
#
# Hint: `tfd.MixtureSameFamily(weights, components)` takes the components as one `tfd.Normal(loc, scale)` whose last axis has length $K$.


# %% exercise="01.3"
def mixture(outputs):
    """Outputs (n, 3 * N_COMPONENTS) to a tfd.MixtureSameFamily with batch shape (n,); mass in dex."""
    # BEGIN SOLUTION
    a, b, c = jnp.split(outputs, 3, axis=-1)
    loc = MASS_CENTRE + MASS_SCALE * b
    scale = MIN_SCALE + MASS_SCALE * nn.softplus(c)
    return tfd.MixtureSameFamily(tfd.Categorical(logits=a), tfd.Normal(loc, scale))
    # END SOLUTION


# %%
mixture = check("01.3", mixture)

# %% [markdown]
# ### What the loss measures
#
# Train by maximum likelihood: minimise the mean of $-\log q(m_i \mid x_i)$. Over many clusters it tends to
#
# $$-\mathbb{E}\big[\log q(m \mid x)\big] = \underbrace{-\mathbb{E}\big[\log p(m \mid x)\big]}_{\text{entropy, the floor}} + \underbrace{\mathbb{E}\big[\log p(m \mid x) - \log q(m \mid x)\big]}_{\text{mean KL divergence, at least } 0}.$$
#
# The floor is the uncertainty that the data leave, whatever the method. The rest is the distance from the
# network to the truth, and it is zero only if $q = p$. Here $p$ is known, so we see how far there is to go. (The
# entropy of a density can be negative: these posteriors are narrower than one dex.)

# %% [markdown] exercise="01.4" minutes=8 difficulty=2
# ### The loss of a density
# Write the mean negative log-likelihood of a batch, in nats (natural logarithms).
#
# Hint: A TFP distribution has `log_prob(m)`: the natural logarithm of its density.
#
# Hint: For batch shape (n,) and masses (n,) it returns (n,), one value for each cluster. Print that shape.


# %% exercise="01.4"
def nll(density, mass):
    """Mean negative log-likelihood in nats; density: a TFP distribution of batch (n,); mass: (n,)."""
    # BEGIN SOLUTION
    return -jnp.mean(density.log_prob(mass))
    # END SOLUTION


# %%
nll = check("01.4", nll)


# %%
class MDN(nn.Module):
    """Features (n, 4) to a density of the mass, one for each cluster."""

    @nn.compact
    def __call__(self, x):
        return mixture(MLP(n_outputs=3 * N_COMPONENTS)(x))


mdn, steps = MDN(), 2_400
trained = fit(
    lambda params, x, m: nll(mdn.apply(params, x), m),
    jax.jit(mdn.init)(jax.random.key(4), train.features[:1]),
    (train.features, train.log_mass),
    key=jax.random.key(5),
    optimizer=adam(steps),
    steps=steps,
    batch_size=256,
    held_out=(test.features, test.log_mass),
    label="mixture density network",
)

# %% [markdown]
# The held-out loss comes down to the floor, and no further. A network that memorised its training clusters would go on
# lowering their loss while the held-out loss rose: only the held-out loss is honest.

# %% alt="The held-out loss of the mixture density network falls to the entropy of the exact posterior, the floor, within the first seconds."
floor = -exact.log_prob_at(exact_log_p, grid, test.log_mass).mean()
figures.training(trained.history, floor)

# %% [markdown]
# ## 4 · What to read off a posterior
#
# A catalogue has room for a few numbers only. Which ones? For a skewed or two-peaked posterior the mean,
# the median and the mode lie apart, and mean ± one standard deviation need not hold 68 %.

# %% [markdown] exercise="01.5" minutes=15 difficulty=3
# ### Summaries of a posterior
# The posterior is tabulated: `log_p` is its logarithm on an even grid, up to a constant for each cluster.
# Return its mean, its standard deviation, its median, its mode and the ends of the central 68 % interval.
#
# Hint: $p$ is `jnp.exp(log_p)` divided by its integral, which is the sum over the grid times the grid's step.
#
# Hint: The cumulative probability is `jnp.cumsum(p, axis=-1) * step`. The median is where it crosses 0.5, the ends of the central 68 % interval where it crosses 0.16 and 0.84.
#
# Hint: `jnp.argmax(cdf >= 0.5, axis=-1)` is the index of the first grid point at or past the crossing.
#
# Hint: "Up to a constant" may be a large one, and `exp` overflows at 88. Subtract each row's maximum first.


# %% exercise="01.5"
def summarise(log_p, grid):
    """Summaries of n posteriors; log_p: (n, g), up to a constant for each row; grid: (g,), even steps.

    Returns a dict of arrays (n,): mean, std, median, mode, low and high (central 68 % interval).
    """
    # BEGIN SOLUTION
    step = grid[1] - grid[0]
    p = jnp.exp(log_p - log_p.max(axis=-1, keepdims=True))
    p = p / (p.sum(axis=-1, keepdims=True) * step)
    mean = (p * grid).sum(axis=-1) * step
    variance = (p * (grid - mean[:, None]) ** 2).sum(axis=-1) * step
    cdf = jnp.cumsum(p, axis=-1) * step

    def quantile(level):
        return grid[jnp.argmax(cdf >= level, axis=-1)]

    return {
        "mean": mean,
        "std": jnp.sqrt(variance),
        "median": quantile(0.5),
        "mode": grid[jnp.argmax(p, axis=-1)],
        "low": quantile(0.16),
        "high": quantile(0.84),
    }
    # END SOLUTION


# %%
summarise = check("01.5", summarise)


# %% alt="The network's posterior of one skewed cluster: mean, median and mode lie apart, and the central 68 % interval differs from mean plus or minus one standard deviation."
@jax.jit
def evaluate(params, features, grid):
    # TFP wants the masses in front of the batch: (g, 1) against (n,) gives (g, n).
    return mdn.apply(params, features).log_prob(grid[:, None]).T


def mdn_log_p(features, grid):
    """Log posterior (n, g) of the network on a grid of masses."""
    return evaluate(trained.params, features, grid)


log_q = mdn_log_p(test.features, grid)
summaries = summarise(log_q, grid)
skewed = int(jnp.argmax(jnp.abs(summaries["mean"] - summaries["median"]) / summaries["std"]))
figures.summaries(grid, log_q, summaries, test.log_mass, skewed)

# %% tags=["verdict"]
m_sigma = slope * test.features[:, 1] + intercept
scatter_m_sigma = rms(test.log_mass - m_sigma)
scatter_mdn = rms(test.log_mass - summaries["mean"])
scatter_floor = rms(test.log_mass - exact_mean)
scatter_median = rms(test.log_mass - summaries["median"])
print("Scatter of the true masses around")
print(f"  the M–σ relation           {scatter_m_sigma:.4f} dex")
print(f"  the network's median       {scatter_median:.4f} dex")
print(f"  the network's mean         {scatter_mdn:.4f} dex")
print(f"  the exact posterior mean   {scatter_floor:.4f} dex, the floor")
verdict("scatter of the MDN mean over that of M–σ", scatter_mdn / scatter_m_sigma, high=1.0)
verdict("scatter of the MDN mean over the floor", scatter_mdn / scatter_floor, high=1.02)

# %% [markdown]
# ## 5 · Another prior
#
# The network's answer belongs to clusters whose masses are flat in $m$. The sky is not like that: light
# haloes far outnumber heavy ones. Their density at each redshift is the **halo mass function**
# $p_\mathrm{sky}(m \mid z)$ (Tinker et al. 2008), here above $m = 13.5$.
#
# No new training is needed. Bayes' theorem says where the prior sits, $q(m \mid x) \propto p(x \mid m)\, p_\mathrm{train}(m)$, so
# divide the old prior out and multiply the new one in:
#
# $$p_\mathrm{sky}(m \mid x) \propto q(m \mid x)\; \frac{p_\mathrm{sky}(m \mid z)}{p_\mathrm{train}(m)}.$$

# %% [markdown] exercise="01.6" minutes=8 difficulty=2
# ### Change the prior
# Write this with logarithms, and normalise the result so that it integrates to one over the grid.
#
# Hint: A product of densities is a sum of their logarithms; a quotient is a difference.
#
# Hint: To normalise, subtract the logarithm of the integral of `exp` over the grid: `jnp.trapezoid(jnp.exp(...), grid, axis=-1)`.
#
# Hint: `exp` overflows for large numbers. Subtract each row's maximum first: the normalisation takes it out again.


# %% exercise="01.6"
def change_prior(log_p, log_old_prior, log_new_prior, grid):
    """Log posterior under a new prior, normalised; all arguments but grid are logs of densities.

    log_p: (n, g); log_old_prior: (g,); log_new_prior: (n, g); grid: (g,), even steps. Returns (n, g).
    """
    # BEGIN SOLUTION
    log_product = log_p - log_old_prior + log_new_prior
    log_product -= log_product.max(axis=-1, keepdims=True)  # so that exp cannot overflow
    integral = jnp.trapezoid(jnp.exp(log_product), grid, axis=-1)
    return log_product - jnp.log(integral)[:, None]
    # END SOLUTION


# %%
change_prior = check("01.6", change_prior)

# %% [markdown]
# Test it on a survey of 20,000 clusters drawn from the mass function. The exact posterior under the new
# prior is known as well, and the *gap*, the mean of its log density at the true masses minus that of the network,
# is the KL divergence from above. It cannot be negative, but for its error.

# %%
survey = clusters.simulate(survey_key, 20_000, survey=True)
survey_grid = jnp.linspace(clusters.SURVEY_LOW, clusters.SURVEY_HIGH, 301)
log_sky = clusters.log_mass_function(survey_grid, survey.features[:, 3:])
log_likelihood = exact.tabulate(clusters.log_likelihood, survey.features, survey_grid)
survey_exact = exact.normalise(log_likelihood + log_sky, survey_grid)
before = mdn_log_p(survey.features, survey_grid)
after = change_prior(before, clusters.log_training_prior(survey_grid), log_sky, survey_grid)

# %% alt="Three clusters of the survey: the network's posterior under the training prior, the same after the change of prior, which favours the lighter peak, and the exact posterior under the new prior on top of it."
figures.prior_change(survey_grid, before, after, survey_exact, survey.log_mass)

# %% tags=["verdict"]
gap = exact.log_prob_at(survey_exact, survey_grid, survey.log_mass) - exact.log_prob_at(
    after, survey_grid, survey.log_mass
)
mean_gap, error = diagnostics.mean_with_error(gap)
verdict("gap after the change of prior", mean_gap, low=-0.005, high=0.02, unit="nats", error=error)
bias_before = summarise(before, survey_grid)["mean"] - survey.log_mass
bias_after = summarise(after, survey_grid)["mean"] - survey.log_mass
print(f"Mean error of the posterior mean: {bias_before.mean():+.3f} dex with the training prior,")
print(f"{bias_after.mean():+.3f} dex with the mass function.")

# %% [markdown]
# ### Where it must fail
#
# Dividing by the training prior brings back only what the network has seen. Beyond the training masses there were no
# examples: there $q$ is a guess, and dividing a guess by a number near zero makes it a loud guess. The next figure asks
# the network about clusters far outside, beside the exact answer under a wide flat prior.

# %% alt="Posterior mean and 68 % interval against true mass from 12.6 to 16. With the training prior the network falls behind outside of the training masses. Divided out within the training masses it agrees with the exact answer there, away from the ends. Divided out everywhere it is wrong by more than one dex even inside."
probe_mass = jnp.repeat(jnp.linspace(12.6, 16.0, 40), 500)
probe = clusters.simulate(jax.random.key(6), len(probe_mass), log_mass=probe_mass)


def probe_network(grid):
    """The network's answer under a flat prior on this grid."""
    flat, old = jnp.zeros((len(probe_mass), len(grid))), clusters.log_training_prior(grid)
    return summarise(change_prior(mdn_log_p(probe.features, grid), old, flat, grid), grid)


wide = jnp.linspace(11.5, 17.0, 301)
inside = jnp.linspace(clusters.TRAIN_LOW, clusters.TRAIN_HIGH, 301)
figures.edges(
    probe_mass,
    {
        "exact, flat prior": summarise(
            exact.tabulate(clusters.log_likelihood, probe.features, wide), wide
        ),
        "network, training prior": summarise(mdn_log_p(probe.features, wide), wide),
        "network, flat in the shaded range": probe_network(inside),
        "network, flat everywhere": probe_network(wide),
    },
)

# %% [markdown]
# Each curve is the mean over 500 clusters. With its training prior the network falls behind outside of the shaded range.
# Divided out inside that range only, it agrees with the exact answer, but for the last 0.3 dex at either end, where its
# new prior stops and the exact one goes on. Divided out everywhere, it is wrong even for clusters well inside: the far tail of a Gaussian
# component, negligible before, is divided by almost nothing. The error bars give no warning. **A new prior must vanish
# where the training prior does; what the simulations left out cannot be brought back.**

# %% [markdown]
# ## 6 · Ground truth
#
# Now hold the whole posterior against the exact one, for eight clusters and then for 20,000.

# %% alt="Eight panels: the network's posterior on top of the exact posterior for eight clusters, the first with two peaks; the true mass is marked."
figures.eight_clusters(grid, log_q, exact_log_p, test, two_peaked)

# %% [markdown]
# On real data there is no exact posterior. What can always be tested is **coverage**, as long as simulations
# can be drawn: an interval that claims 68 % must hold the true mass of 68 % of the clusters. Write $u_i$ for the
# posterior probability below the true mass of cluster $i$ (the *probability integral transform*, PIT). If the
# posterior is right, the $u_i$ are uniform between 0 and 1.

# %% [markdown] exercise="01.7" minutes=8 difficulty=2
# ### Coverage
# Return the fraction of clusters whose true mass lies inside the central interval of probability $L$, the one
# that leaves $(1-L)/2$ on either side, given the PIT values.
#
# Hint: The central 68 % interval reaches from the 16 % to the 84 % point: which $u$ are inside?
#
# Hint: The mass is inside if $|u - 1/2| \leq L/2$.


# %% exercise="01.7"
def coverage(pit, level):
    """Fraction of the true values in the central interval of probability level; pit: (n,); a scalar."""
    # BEGIN SOLUTION
    return jnp.mean(jnp.abs(pit - 0.5) <= level / 2)
    # END SOLUTION


# %%
coverage = check("01.7", coverage)

# %% alt="Left: the histogram of the PIT values of network and exact posterior is flat but for noise. Right: coverage minus level stays near zero for both, within about two standard errors."
pit_mdn = exact.cdf_at(log_q, grid, test.log_mass)
pit_exact = exact.cdf_at(exact_log_p, grid, test.log_mass)
figures.calibration(pit_mdn, pit_exact, coverage)

# %% tags=["verdict"]
for name, pit in (("exact", pit_exact), ("MDN", pit_mdn)):
    for level, allowed in ((0.50, 0.015), (0.68, 0.015), (0.95, 0.010)):
        error = diagnostics.binomial_error(level, len(pit))
        label = f"coverage of the {level:.0%} interval, {name}"
        low, high = round(level - allowed, 3), round(level + allowed, 3)
        verdict(label, coverage(pit, level), low=low, high=high, error=error)

# %% [markdown]
# Calibration alone is not enough: a network that returns the training prior for every cluster is perfectly calibrated
# and useless. The distance to the exact posterior has no such loophole. Here is the number of the opening claim.

# %% tags=["verdict"]
log_prob = jax.jit(lambda params, x, m: mdn.apply(params, x).log_prob(m))
log_q_true = log_prob(trained.params, test.features, test.log_mass)
gap = exact.log_prob_at(exact_log_p, grid, test.log_mass) - log_q_true
mean_gap, error = diagnostics.mean_with_error(gap)
verdict("gap to the exact posterior", mean_gap, low=-0.005, high=0.010, unit="nats", error=error)

# %% [markdown] think=true
# **Think.** The gap of a single cluster, $\log p(m \mid x) - \log q(m \mid x)$ at its true mass, is often negative.
# How can the network beat the exact posterior? And why can it not do so on average?
#
# Answer: At one mass $q$ can be higher than $p$; it is then lower somewhere else, because both integrate to one. The
# average over true masses is the Kullback-Leibler divergence, and that is never negative. A clearly negative mean gap,
# beyond its error bar, would mean an error in the exact posterior, or test clusters that did not come from it.

# %% [markdown]
# ## 7 · Real clusters
#
# The catalogue of Werner et al. (2023) lists 101 groups and clusters in the S-PLUS survey, with velocities mostly from
# SDSS. The dispersion and its number of velocities are those of the catalogue. The richness is counted among the members
# with spectra and corrected for the survey's depth, by a factor of 1.75 for the typical cluster: a rougher count than the
# simulator's. The catalogue's masses come from the virial theorem, from the same velocity dispersion.

# %%
try:
    real = splus.load_splus()
    chosen = real.usable & (real.log_mass > clusters.TRAIN_LOW)
    print(
        f"{real.usable.sum()} of {len(chosen)} clusters have at least 3 bright galaxies and 5 velocities;"
    )
    print(f"{chosen.sum()} of these have a virial mass within the training masses, and are used.")
    print(f"{(real.counted[chosen] <= 5).sum()} of them have a richness from 5 galaxies or fewer.")
except CourseError as trouble:
    real = None
    print(trouble)

# %% alt="Left: the network's mass against the virial mass of the real clusters, around the diagonal with a scatter of 0.3 dex; several with a virial mass above 14.2 are far below it. Right: histogram of the pulls beside a standard normal curve."
if real is not None:
    real_features = jnp.asarray(real.features[chosen], dtype=jnp.float32)
    figures.real_clusters(real, chosen, summarise(mdn_log_p(real_features, grid), grid))

# %% [markdown]
# **What the disagreement can mean.** The virial mass is almost a power of the dispersion (with a scatter of 0.03 dex), so
# the left panel compares the network with an M–σ relation of another normalisation. What differs is what the network adds:
# the richness, and the doubt about few velocities. The clusters far below the diagonal have a high dispersion and few bright
# galaxies: two in line, or spectra that missed galaxies where they crowd. The network also carries its training prior, flat
# in $m$, which in section 5 made masses 0.05 dex too high on the sky.
#
# **What it cannot mean.** The virial mass is not the truth, so the scatter is not the network's error, and the pulls need
# not be standard normal. Nothing here tests coverage on the real sky: for that one needs masses measured in another way,
# such as gravitational lensing.

# %% [markdown] think=true
# **Think.** Suppose that the pulls came out as a perfect standard normal. Would the error bars then be proven right?
#
# Answer: No. The two masses share the noise of the dispersion, so their difference is smaller than their errors suggest, while
# the differing relations and counts make it larger. The two can cancel. Only the truth, or an independent measurement,
# proves an error bar.

# %% [markdown]
# ## 8 · Move one cluster
#
# Move the sliders (units as in section 1). Raise `log_sigma` alone: a second peak grows, two in line, and wins. Then lower
# `log_n`: with few velocities the doubt returns. Go on to the ends and network and exact posterior part: no simulated
# cluster has such features, and the network says nothing about it.

# %% tags=["widget"] alt="The posterior of one cluster whose features are set by four sliders: network and exact posterior lie on top of each other."
widgets.explore_posterior(
    lambda x: mdn_log_p(x, grid),
    lambda x: clusters.log_likelihood(x[:, None], grid[None]) + clusters.log_training_prior(grid),
    grid,
    start=(1.5, 2.75, 1.5, 0.1),
    xlabel=figures.MASS,
    ranges={
        "log_richness": (1.0, 2.0),
        "log_sigma": (2.6, 3.1),
        "log_n": (0.7, 2.3),
        "z": (0.02, 0.2),
    },
    strip=widgets.Strip(
        "log_sigma", jnp.linspace(2.6, 3.1, 11), lambda s: f"{s:.2f}, sigma {10**s:.0f} km/s"
    ),
)

# %% [markdown]
# ## 9 · What can go wrong
#
# The exact posterior is exact for *this simulator*. Let the sky differ from it: twice as many structures in line. The
# network is as good as before at what it learned, and its posteriors lie too high.

# %% alt="PIT histograms of the network: flat for clusters of the simulator it was trained on, tilted for a sky with twice as many structures in line."
other_sky = clusters.RELATIONS._replace(superposed_fraction=0.4)
other = clusters.simulate(jax.random.key(7), 20_000, relations=other_sky)
pit_other = exact.cdf_at(mdn_log_p(other.features, grid), grid, other.log_mass)
print(
    f"Coverage of the 68% interval: {coverage(pit_mdn, 0.68):.3f} on the simulator's own clusters,"
)
print(f"{coverage(pit_other, 0.68):.3f} on the other sky.")
figures.other_sky(pit_mdn, pit_other)

# %% [markdown]
# - **The simulator is an assumption.** A wrong fraction of structures in line, as here, tilts the PIT, while the
#   coverage of the 68 % interval falls by two points only: look at more than one number.
# - **The training prior** is in every answer. State it, or divide it out.
# - **Outside the training range** the network answers without a warning.
# - **A good average** can hide a bad corner: look at the gap for two-peaked clusters alone.
#
# ## Summary
#
# - Squared error learns the posterior mean, absolute error its median, maximum likelihood the whole posterior.
# - The loss has a floor, the entropy that the data leave. The distance to it is the KL divergence to the truth, in nats.
# - Coverage tests calibration without knowing the exact posterior. The gap in nats tests everything, where there is one.
#
# **Go further.** Ho et al. (2019) let a network see the distribution of the members' velocities and radii itself.
# `clusters.draw_velocities(key, train, i)` draws the velocities of cluster $i$. Add a feature of your own, such as their
# kurtosis, which tells two structures in line from one. Its exact likelihood is out of reach, so coverage will be your
# test. Does the gap to the floor of the four features turn negative? It may: a floor belongs to a set of features, and a
# fifth one can lower it.
#
# ## References
#
# - Bishop 1994, *Mixture density networks*, Aston University NCRG/94/004, <https://publications.aston.ac.uk/id/eprint/373/>
# - Ho et al. 2019, *A robust and efficient deep learning method for dynamical mass measurements of galaxy clusters*, ApJ 887, 25, [doi:10.3847/1538-4357/ab4f82](https://doi.org/10.3847/1538-4357/ab4f82)
# - Munari et al. 2013, *The relation between velocity dispersion and mass in simulated clusters of galaxies*, MNRAS 430, 2638, [doi:10.1093/mnras/stt049](https://doi.org/10.1093/mnras/stt049)
# - Popesso et al. 2007, *RASS-SDSS galaxy cluster survey VII*, A&A 464, 451, [doi:10.1051/0004-6361:20054708](https://doi.org/10.1051/0004-6361:20054708)
# - Ribeiro, Lopes & Trevisan 2011, *Non-Gaussian velocity distributions – the effect on virial mass estimates of galaxy groups*, MNRAS 413, L81, [doi:10.1111/j.1745-3933.2011.01038.x](https://doi.org/10.1111/j.1745-3933.2011.01038.x)
# - Saro et al. 2015, *Constraints on the richness–mass relation and the optical-SZE positional offset distribution for SZE-selected clusters*, MNRAS 454, 2305, [doi:10.1093/mnras/stv2141](https://doi.org/10.1093/mnras/stv2141)
# - Tinker et al. 2008, *Toward a halo mass function for precision cosmology*, ApJ 688, 709, [doi:10.1086/591439](https://doi.org/10.1086/591439)
# - Werner et al. 2023, *S-PLUS DR1 galaxy clusters and groups catalogue using PzWav*, MNRAS, [arXiv:2211.04243](https://arxiv.org/abs/2211.04243)
# - White, Cohn & Smit 2010, *Cluster galaxy dynamics and the effects of large-scale environment*, MNRAS 408, 1818, [doi:10.1111/j.1365-2966.2010.17248.x](https://doi.org/10.1111/j.1365-2966.2010.17248.x)

# %%
progress()
