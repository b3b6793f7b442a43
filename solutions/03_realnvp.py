# ---
# title: Building a RealNVP
# part: Densities
# summary: Bend a Gaussian into two moons with layers you write yourself, within 0.01 nats of the exact density, and use it as a prior.
# minutes: 100
# objectives:
#   - compute the density of a transformed variable, and test a log-determinant against automatic differentiation
#   - write an affine coupling layer, its inverse and its log-determinant, and stack layers into a flow with TFP and flax
#   - train a flow by maximum likelihood, and say in nats how far it is from the exact density
#   - condition a flow on an observation, and check it against the exact posterior
#   - use a flow as a prior, and say when the mode of a posterior misleads
# prerequisites:
#   - Python with NumPy arrays; jax.grad; a first flax network (lesson 01 has one)
#   - densities, Bayes' theorem, determinants
# needs: a CPU is enough; a GPU pays off when you train longer or larger networks
# seconds: 90
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Building a RealNVP
#
# A **normalizing flow** is a density made from a map. Take a Gaussian, bend space with an invertible network,
# and the Gaussian becomes any shape. Unlike most deep generative models, a flow can say how likely a point is: its
# density is exact, not a bound.
#
# **The claim of this lesson:** layers of a dozen lines each, trained in seconds, turn a Gaussian into two moons. The
# simplest kind, *affine*, comes within **0.035 nats** of the exact density, averaged over 50,000 points, the *spline*
# kind within **0.010 nats**. (0.01 nats are a factor of 1.01 in probability.) You will write the layers, and measure
# these numbers.

# %% tags=["context"]
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from tensorflow_probability.substrates import jax as tfp

from dlcourse_utils import diagnostics, flows, widgets
from dlcourse_utils.checks import check, hint, progress, solution
from dlcourse_utils.datasets import two_moons
from dlcourse_utils.plot import realnvp as figures
from dlcourse_utils.train import fit
from dlcourse_utils.verdicts import verdict

tfb, tfd = tfp.bijectors, tfp.distributions

# %% [markdown]
# ## 1 · From a Gaussian to two moons
#
# A point $x$ sits on one of two half circles of radius 1, with probability 1/2 each, anywhere along it, plus Gaussian
# noise of 0.05 in both coordinates. This toy has what makes real densities hard: two separate pieces, thin, curved,
# with ends. It also has what real ones lack: an exact density. It is the integral of a Gaussian along the two
# arcs, which a few hundred nodes give to six digits.

# %%
points = two_moons.simulate(jax.random.key(1), 250_000)
train, test = points[:200_000], points[200_000:]
exact_log_p = two_moons.log_prob(test)
floor = two_moons.entropy()
print(f"Entropy of the two moons, by quadrature: {floor:.4f} nats")
print(f"Mean of -log p over the test points:     {-exact_log_p.mean():.4f} nats")

# %% alt="Left: points of a standard Gaussian. Right: the exact density of the two moons, two interleaved half circles."
figures.claim(test)

# %% [markdown]
# On average over new points, no model can have a lower $-\log p$ than the truth itself, whose average is the entropy. It is the
# **floor** of the loss, and the distance to it is the Kullback-Leibler divergence from the truth to the model. On a finite
# set of points the mean scatters (by 0.003 nats for 50,000 points), so we compare model and truth on the *same* points.

# %% [markdown]
# ## 2 · Change of variables
#
# Let $z$ have density $p_z$ and let $x = f(z)$ with $f$ invertible. A short interval $\mathrm{d}z$ becomes an interval of length
# $|f'(z)|\,\mathrm{d}z$ that holds the same probability, so its density is divided by $|f'|$. In more dimensions the
# factor is that of the area or volume, the determinant of the Jacobian matrix $\partial f / \partial z$:
#
# $$\log p_x(x) = \log p_z(z) - \log\left|\det \frac{\partial f}{\partial z}\right|
# = \log p_z(z) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad z = f^{-1}(x).$$
#
# Where $f$ stretches space the density falls; where it squeezes, the density rises. The second form needs only the map from
# $x$ to $z$ and its own log-determinant, and is the one to train with.


# %%
def bend(z):
    """A map of the plane; it keeps the first coordinate. z: (2,)."""
    return jnp.stack([z[0], z[1] * jnp.exp(0.4 * z[0]) + 0.5 * z[0] ** 2])


def bend_log_det(z):
    """log |det| by hand: the Jacobian is triangular, with 1 and exp(0.4 z1) on its diagonal."""
    return 0.4 * z[0]


@jax.jit
@jax.vmap
def log_det_error(z):
    return jnp.linalg.slogdet(jax.jacfwd(bend)(z))[1] - bend_log_det(z)


difference = jnp.abs(log_det_error(jax.random.normal(jax.random.key(2), (1000, 2)))).max()
print(f"log-determinant by hand and by automatic differentiation differ by {difference:.1e}")

# %% alt="Left: a normal density and its image under the exponential map. Middle: a square grid. Right: the same grid bent; cells that grew are light, cells that shrank are dark, and the points of a Gaussian lie thinner where cells grew."
figures.change_of_variables(bend, bend_log_det)

# %% [markdown] exercise="03.1" minutes=8 difficulty=1
# ### The loss of a flow
# Write the mean of $-\log p_x(x_i)$ over a batch for a standard Gaussian $p_z$ in $d$ dimensions, in nats. `inverse`
# returns $z$ and the log-determinant of $\partial z/\partial x$.
#
# Hint: $\log p_z(z) = -\frac{1}{2} \sum_j z_j^2 - \frac{d}{2} \log 2\pi$, or the `log_prob` of a TFP distribution.
#
# Hint: Sum over the coordinates of a point (the last axis), average over the points.
#
# Hint: `inverse` returns the log-determinant of $x \to z$. Look at the second form of the equation for its sign.


# %% exercise="03.1"
def nll(x, inverse):
    """Mean negative log-likelihood of points x (n, d), in nats; a scalar.

    inverse(x) returns z (n, d), standard Gaussian under the model, and log |det dz/dx| (n,).
    """
    # BEGIN SOLUTION
    z, log_det = inverse(x)
    base = tfd.MultivariateNormalDiag(jnp.zeros(x.shape[-1]))
    return -jnp.mean(base.log_prob(z) + log_det)
    # END SOLUTION


# %%
nll = check("03.1", nll)

# %% [markdown]
# ## 3 · The affine coupling
#
# We need maps that are flexible, invertible, and whose determinant is cheap. A general $d \times d$ determinant costs
# $d^3$ operations, and a general network has no inverse. RealNVP (Dinh et al. 2017) solves all three with one idea: split
# the coordinates in two halves, keep the first, and shift and scale the second by amounts that depend on the first.
#
# $$y_1 = x_1, \qquad y_2 = x_2 \odot e^{s(x_1)} + t(x_1).$$
#
# The network that gives $s$ and $t$ is never inverted, so it can be anything. The Jacobian is triangular, and its
# log-determinant is the sum of $s$ over the coordinates of the second half.
#
# **Bound the scale.** $e^s$ overflows in single precision at $s = 89$, and a large $s$ in one layer wrecks the
# training of all. With the raw output $r$ of the network, use
#
# $$s = 2 \tanh(r / 2),$$
#
# which is $r$ for small $r$ and stays between $-2$ and $2$. (Another smooth bound of a few units, near zero at $r = 0$, will do, if
# the inverse has the same.) In this section $x$ goes into a coupling and $y$ comes out; in a stack, the first coupling's $x$ is $z$, and the
# last one's $y$ is the data.

# %% tags=["context"]
MAX_LOG_SCALE = 2.0


class Net(nn.Module):
    """The network inside a coupling: inputs (..., k) to outputs (..., n_outputs)."""

    n_outputs: int
    width: int = 32

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            # flax starts biases at zero: with one input all units would then bend at the origin.
            x = nn.silu(nn.Dense(self.width, bias_init=nn.initializers.normal(0.5))(x))
        # Small last weights: an untrained coupling hardly moves a point.
        return nn.Dense(self.n_outputs, kernel_init=nn.initializers.normal(0.01))(x)


# %% [markdown] exercise="03.2" minutes=12 difficulty=2
# ### Forward through a coupling
# Return $y$ and the log-determinant of $\partial y/\partial x$. `net(x1)` returns $t$ and $r$ side by side.
#
# Hint: `flows.halves(x)` gives both halves, as `jnp.split(x, 2, axis=-1)` does; `jnp.concatenate` with `axis=-1` joins them.
#
# Hint: The first half of `net(x1)` is $t$, the second half is $r$. Both have the shape of the second half of x.
#
# Hint: The log-determinant is one number for each point: sum $s$ over the last axis, `axis=-1`. Count axes from the end, so that
# a single point of shape (d,) works too.


# %% exercise="03.2"
def forward(x, net):
    """Points x (..., d), d even, through a coupling: y (..., d) and log |det dy/dx| (...).

    net(x1) maps the first half (..., d/2) to shift and raw log-scale side by side, (..., d).
    """
    # BEGIN SOLUTION
    x1, x2 = flows.halves(x)
    shift, raw = jnp.split(net(x1), 2, axis=-1)
    log_scale = MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE)
    y = jnp.concatenate([x1, x2 * jnp.exp(log_scale) + shift], axis=-1)
    return y, log_scale.sum(axis=-1)
    # END SOLUTION


# %%
forward = check("03.2", forward)

# %% [markdown] exercise="03.3" minutes=8 difficulty=2
# ### And back
# Return $x$ and the log-determinant of the *inverse* map, $\partial x/\partial y$. The first half was kept, so the network
# can be asked again.
#
# Hint: $y_1 = x_1$: `net` gets the first half of y.
#
# Hint: Undo the steps in reverse order: first take the shift away, then divide by the scale.
#
# Hint: The determinant of the inverse map is one over that of the forward map.


# %% exercise="03.3"
def inverse(y, net):
    """Points y (..., d) back through the coupling: x (..., d) and log |det dx/dy| (...).

    net is the network of `forward`.
    """
    # BEGIN SOLUTION
    y1, y2 = flows.halves(y)
    shift, raw = jnp.split(net(y1), 2, axis=-1)
    log_scale = MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE)
    x = jnp.concatenate([y1, (y2 - shift) * jnp.exp(-log_scale)], axis=-1)
    return x, -log_scale.sum(axis=-1)
    # END SOLUTION


# %%
inverse = check("03.3", inverse)


# %% tags=["verdict"]
def wild_net(x1):
    return 3.0 * jnp.sin(jnp.concatenate([2.0 * x1, 5.0 * x1], axis=-1))


x = jax.random.normal(jax.random.key(16), (10_000, 2))
back, _ = inverse(forward(x, wild_net)[0], wild_net)
verdict("one coupling, there and back, largest error", jnp.abs(back - x).max(), high=1e-4)

# %% alt="Three matrices of six rows and columns. That of one coupling is lower triangular: ones on the first half of the diagonal, scales on the second, and one filled block. That of a coupling with the halves swapped is upper triangular. Their product is no longer triangular."
weights = jax.random.normal(jax.random.key(3), (3, 6))
point = jax.random.normal(jax.random.key(4), (6,))


def one_coupling(x):
    return forward(x, lambda x1: jnp.tanh(x1 @ weights))[0]


def swapped_coupling(x):
    return jnp.roll(one_coupling(jnp.roll(x, 3)), 3)


@jax.jit
def jacobians(point):
    return jax.jacfwd(one_coupling)(point), jax.jacfwd(swapped_coupling)(one_coupling(point))


one, swapped = jacobians(point)
figures.jacobians({"one coupling": one, "halves swapped": swapped, "both": swapped @ one})

# %% [markdown]
# One coupling is triangular, so its determinant is the product of its diagonal. Two couplings with swapped halves are not, and
# the determinant of a product is still the product of the determinants: the log-determinants add up.
#
# ## 4 · The stack
#
# TFP calls an invertible map a *bijector*. `tfb.Chain` joins bijectors, and `tfd.TransformedDistribution` makes a
# density out of a base density and a bijector. `coupling` turns your two functions into a bijector. `standardise` carries
# the mean and the spread of the two moons, so that the networks work with numbers near one.

# %% tags=["context"]
CENTRE, SPREAD = (0.50, 0.25), (0.87, 0.50)  # mean and standard deviation of the two moons


def coupling(net):
    """The couplings of exercises 03.2 and 03.3 as a TFP bijector."""
    return flows.as_bijector(lambda x: forward(x, net), lambda y: inverse(y, net))


def standardise():
    """From numbers near one to the scale of the data."""
    return tfb.Chain([tfb.Shift(jnp.array(CENTRE)), tfb.Scale(jnp.array(SPREAD))])


# %% [markdown] exercise="03.4" minutes=12 difficulty=2
# ### Stack the layers
# Return a `tfd.TransformedDistribution` of a standard Gaussian in two dimensions. The list of its chain begins with
# `standardise()`, followed for each net by a coupling and a swap of the two coordinates. `tfb.Chain` applies the *last*
# bijector of its list to $z$ first, so `standardise()` has the last word.
#
# Hint: `tfb.Permute([1, 0])` swaps the two coordinates. Without it every layer would keep the same one.
#
# Hint: Start with a list that holds `standardise()`, and let it grow in a loop over the nets.
#
# Hint: The base is `tfd.MultivariateNormalDiag(jnp.zeros(2))`: one event of two numbers, not two events of one.


# %% exercise="03.4"
def stack(nets, coupling):
    """The density of points (..., 2): a tfd.TransformedDistribution.

    In the list of its chain: standardise(), then coupling(net) and a swap for each net, in order.
    """
    # BEGIN SOLUTION
    layers = [standardise()]
    for net in nets:
        layers += [coupling(net), tfb.Permute([1, 0])]
    base = tfd.MultivariateNormalDiag(jnp.zeros(2))
    return tfd.TransformedDistribution(base, tfb.Chain(layers))
    # END SOLUTION


# %%
stack = check("03.4", stack)


# %% [markdown]
# In flax the parameters live outside of the module. `flow.apply(params)` gives the density with these parameters; it has
# `log_prob(x)` and `sample(n, seed=key)`, and works under `jit`, `vmap` and `grad`.


# %%
class Flow(nn.Module):
    """The density of points (..., 2), behind a stack of couplings with a network in each."""

    coupling: Callable
    n_outputs: int
    n_layers: int
    first: int = 0  # use the couplings from this one ...
    last: int | None = None  # ... to before this one

    # setup, not compact: two methods use the same networks.
    def setup(self):
        self.nets = [Net(self.n_outputs) for _ in range(self.n_layers)]

    def __call__(self, y=None):
        nets = self.nets[self.first : self.last]
        return stack(nets if y is None else [given(net, y) for net in nets], self.coupling)

    def start(self, inputs):
        """Show each network its inputs (n, k) once: flax then knows the shapes of the weights."""
        for net in self.nets:
            net(inputs)


def train_flow(flow, steps, data, batch_size=512, held_out=None, label="flow"):
    """Maximum likelihood; data: points (n, 2), and observations (n, 1) if the flow sees them."""

    def loss(params, x, *y):
        bijector = flow.apply(params, *y).bijector
        return nll(x, lambda x: (bijector.inverse(x), bijector.inverse_log_det_jacobian(x, 1)))

    schedule = optax.cosine_decay_schedule(1e-2, steps)
    # A net sees one coordinate of the point, and the observation if there is one.
    inputs = jnp.zeros((1, 1 + sum(y.shape[1] for y in data[1:])))
    return fit(
        loss,
        flow.init(jax.random.key(5), inputs, method=Flow.start),
        data,
        key=jax.random.key(6),
        # One point far off the moons can have a huge gradient: clip it. Flat: one long vector
        # is updated faster than a hundred small arrays.
        optimizer=optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))),
        steps=steps,
        batch_size=batch_size,
        held_out=held_out,
        label=label,
    )


# Compiled once for each flow and each shape. jit keeps what it has compiled: when you change an exercise, run this cell and
# those below it again.
@partial(jax.jit, static_argnums=0)
def log_prob(flow, params, x):
    """Log density of points x (n, 2)."""
    return flow.apply(params).log_prob(x)


@partial(jax.jit, static_argnums=0)
def push(flow, params, z):
    """Points z (n, 2) of the Gaussian through all layers."""
    return flow.apply(params).bijector.forward(z)


def sample(flow, params, key, n=50_000):
    """Points (n, 2) of the flow: those of its base, pushed through."""
    return push(flow, params, flow.apply(params).distribution.sample(n, seed=key))


affine = Flow(coupling, n_outputs=2, n_layers=12)

# %% [markdown]
# ### Without the swap
#
# What if every layer kept the same coordinate? A second swap inside of each layer undoes the first. Train such a stack,
# and look at the coordinate that is never changed.

# %%
unswapped = Flow(
    lambda net: tfb.Chain([coupling(net), tfb.Permute([1, 0])]), n_outputs=2, n_layers=2
)
trained = train_flow(unswapped, 300, (train,), 256, label="without swaps")
unswapped_samples = sample(unswapped, trained.params, jax.random.key(7))

# %% alt="Left: samples of the stack without swaps smear around the two moons. Right: histogram of the kept coordinate: that of the samples is a Gaussian, that of the two moons has peaks at the ends of the arcs."
figures.kept_coordinate(unswapped_samples, test, CENTRE[0], SPREAD[0])

# %% [markdown] think=true
# **Think.** A stack of couplings with swaps, but in which every network returns zeros: which density is it? And a stack in
# which no scale depends on $x_1$, only the shifts?
#
# Answer: The first is the Gaussian of `standardise`: zero shift and zero log-scale are the identity. The second stretches
# space by the same factor everywhere: its log-determinant is a constant, so the highest density is always the image of $z = 0$,
# and equal areas stay equal. That is NICE (Dinh et al. 2014), the flow before RealNVP.

# %% [markdown]
# ## 5 · Training
#
# Maximum likelihood with your `nll`. On held-out points, which the training never sees, the loss is compared with that of
# the exact density on the same points: the difference can come down to zero, and on average no further.

# %%
held_out = (test[:10_000],)
held_out_floor = -exact_log_p[:10_000].mean()
affine_fit = train_flow(affine, 2_500, (train,), 256, held_out, "affine flow")

# %% alt="The held-out loss of the affine flow above that of the exact density, on a logarithmic axis: it falls with some bumps to about 0.02 nats."
figures.training({"affine": affine_fit.history}, held_out_floor)


# %% tags=["verdict"]
def gap(log_q):
    """Mean of log p - log q over the test points, with its standard error, in nats."""
    return diagnostics.mean_with_error(exact_log_p - log_q)


affine_log_q = log_prob(affine, affine_fit.params, test)
print(f"mean of -log q {-affine_log_q.mean():.4f} nats, of -log p {-exact_log_p.mean():.4f} nats")
mean_gap, error = gap(affine_log_q)
verdict(
    "affine flow: gap to the exact density",
    mean_gap,
    low=-0.005,
    high=0.035,
    unit="nats",
    error=error,
)

# %% [markdown]
# The bumps come from the large steps at the start (a learning rate of 0.01); they fade as the steps get smaller. The band of the
# verdict begins below zero because the measured gap has an error of its own.
#
# ## 6 · Looking inside
#
# First the two tests that every flow should pass, whatever it was trained on. Does the inverse undo the forward map? Is the
# log-determinant that of the Jacobian? The flow works in single precision, so both hold to a few digits. The Jacobian to compare
# with is computed in double precision: where a flow squeezes one direction a thousand times more than another, the
# determinant of a single-precision Jacobian is the less exact of the two.


# %% tags=["verdict"]
@partial(jax.jit, static_argnums=0)
def pull(flow, params, x):
    """Points x (n, 2) back to z (n, 2), and log |det dz/dx| (n,) as the layers add it up."""
    bijector = flow.apply(params).bijector
    return bijector.inverse(x), bijector.inverse_log_det_jacobian(x, 1)


@partial(jax.jit, static_argnums=0)
def log_det_by_jax(flow, params, x):
    """log |det dz/dx| (n,) at points x (n, 2), by differentiating z(x)."""
    jacobian = jax.vmap(jax.jacfwd(lambda x: flow.apply(params).bijector.inverse(x)))(x)
    return jnp.linalg.slogdet(jacobian)[1]


def examine(name, flow, params):
    # As many points as elsewhere: nothing is compiled anew. 10,000 do for the slow Jacobian.
    z = jax.random.normal(jax.random.key(8), (50_000, 2))
    x = push(flow, params, z)
    back, by_layers = pull(flow, params, x)
    with diagnostics.double_precision():
        in_double = jax.tree.map(lambda a: a.astype(float), (params, x[:10_000]))
        difference = jnp.abs(by_layers[:10_000] - log_det_by_jax(flow, *in_double)).max()
    round_trip = jnp.abs(back - z)[:10_000].max()
    verdict(f"{name}: inverse of forward, largest error of 10,000 points", round_trip, high=1e-4)
    verdict(f"{name}: log-determinant, largest error of 10,000 points", difference, high=1e-4)


examine("affine", affine, affine_fit.params)

# %% [markdown]
# Now push points through the stack, two layers at a time.


# %% alt="Animation: a round cloud of points is sheared and stretched by one pair of layers after another until it lies on two moons. A thin thread of points joins the moons."
@jax.jit
def stages(params, z):
    """Points z (n, 2) after 0, 2, 4, ..., 12 layers of the affine flow, (7, n, 2)."""
    to_data = standardise()
    shown = [to_data.forward(z)]
    for k in range(10, -1, -2):  # the last of the list comes first
        two = affine.clone(first=k, last=k + 2).apply(params).bijector
        shown.append(two.forward(to_data.inverse(shown[-1])))
    return jnp.stack(shown)


figures.animate(stages(affine_fit.params, jax.random.normal(jax.random.key(9), (2000, 2))))

# %% [markdown]
# The colour of a point is its direction in the Gaussian. The layers comb one round cloud into two moons, but never tear
# it. A continuous map with a continuous inverse keeps one piece in one piece, so a thread of probability must join the moons:
# the **bridge**. It can be made thin, at the price of large scales, but not cut.

# %%
# As many cells as there are test points: nothing is compiled anew.
cells, sides = (250, 200), jnp.array([0.028, 0.0275])
axes = tuple(
    low + side * (jnp.arange(float(n)) + 0.5)
    for low, side, n in zip((-3.0, -2.5), sides, cells, strict=True)
)
plane = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
exact_plane = two_moons.log_prob(plane)
affine_plane = log_prob(affine, affine_fit.params, plane)


def integral_of(flow, params):
    """Integral of the density: the mean of four sums, three on planes half a cell aside."""
    asides = sides * jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    sums = [jnp.exp(log_prob(flow, params, plane + aside)).sum() for aside in asides]
    return sides.prod() * jnp.stack(sums).mean()


def far_fraction(samples):
    """Fraction of points farther than four standard deviations of the noise from both arcs."""
    return jnp.mean(two_moons.distance(samples).min(axis=-1) > 4 * two_moons.NOISE)


# %% alt="Logarithm of the density, exact and of the affine flow. The flow follows both moons; a thin thread runs from the end of one to the other, where the exact density is nearly zero."
affine_samples = sample(affine, affine_fit.params, jax.random.key(10))
figures.log_densities(axes, {"exact": exact_plane, "affine flow": affine_plane})

# %% tags=["verdict"]
integral = integral_of(affine, affine_fit.params)
verdict("affine: integral of the density over the plane", integral, low=0.995, high=1.005)
print(f"Farther than 4 noise σ from both arcs: {far_fraction(affine_samples):.2%} of the samples,")
print(f"{far_fraction(test):.3%} of the true points.")

# %% [markdown]
# The density integrates to one although nothing in the training asked for it: it is built in. A wrong log-determinant would
# show here, a badly trained flow would not.
#
# **Keys.** A sample is a function of its key. Two calls with one key give one sample twice, which looks like twice the
# data and is not:

# %%
key = jax.random.key(11)
first_key, second_key = jax.random.split(key)
one, again, first, second = (
    sample(affine, affine_fit.params, k) for k in (key, key, first_key, second_key)
)
print(f"the same key twice: {jnp.mean(one == again):.0%} of the numbers are the same")
print(f"two keys from a split: {jnp.mean(first == second):.0%} of the numbers are the same")

# %% [markdown]
# ## 7 · Splines
#
# An affine coupling has two numbers per point to play with. A **spline coupling** (Durkan et al. 2019) replaces
# $x_2 e^s + t$ by a monotone curve of rational-quadratic pieces: still invertible, still with a derivative that is known, and
# able to squeeze here and stretch there. Nothing else changes: the networks return 23 numbers in place of two (8 widths, 8
# heights, 7 slopes), and `stack` stays as it is.

# %% tags=["context"]
N_BINS = 8


def spline_coupling(net):
    """A coupling whose second half goes through TFP's monotone spline, chosen by the first half."""

    def spline_of(x1):
        return flows.spline(net(x1)[..., None, :])

    def forward(x):
        x1, x2 = flows.halves(x)
        spline = spline_of(x1)
        y = jnp.concatenate([x1, spline.inverse(x2)], axis=-1)
        return y, spline.inverse_log_det_jacobian(x2, 1)

    def inverse(y):
        # Training takes this way, so it gets the cheaper side of the spline.
        y1, y2 = flows.halves(y)
        spline = spline_of(y1)
        x = jnp.concatenate([y1, spline.forward(y2)], axis=-1)
        return x, spline.forward_log_det_jacobian(y2, 1)

    return flows.as_bijector(forward, inverse)


# %%
spline = Flow(spline_coupling, n_outputs=3 * N_BINS - 1, n_layers=4)
spline_fit = train_flow(spline, 2_000, (train,), 512, held_out, "spline flow")

# %% alt="Above: the held-out loss of both flows over that of the exact density; the spline flow comes closer to zero. Below: the logarithm of the spline flow's density, which follows both moons closely, with a haze around them, five and more nats below."
spline_plane = log_prob(spline, spline_fit.params, plane)
figures.training({"affine": affine_fit.history, "spline": spline_fit.history}, held_out_floor)
figures.log_densities(axes, {"exact": exact_plane, "spline flow": spline_plane})

# %% tags=["verdict"]
mean_gap, error = gap(log_prob(spline, spline_fit.params, test))
verdict(
    "spline flow: gap to the exact density",
    mean_gap,
    low=-0.005,
    high=0.010,
    unit="nats",
    error=error,
)
examine("spline", spline, spline_fit.params)
integral = integral_of(spline, spline_fit.params)
verdict("spline: integral of the density over the plane", integral, low=0.995, high=1.005)
spline_samples = sample(spline, spline_fit.params, jax.random.key(12))
fraction = far_fraction(spline_samples)
verdict("spline: samples farther than 4 noise σ from both arcs", fraction, high=0.01)

# %% [markdown] think=true
# **Think: spot the bug.** Builders like this one can be found in public notebooks. It runs, it trains, and the density
# even integrates to one.
#
# ```python
# for net in nets:
#     layers = [coupling(net), tfb.Permute([1, 0])]
# return tfd.TransformedDistribution(gaussian, tfb.Chain(layers))
# ```
#
# The next cell pushes points through the couplings one by one, and pulls them back through the chain. What do its two
# numbers say, and what is the bug?
#
# Answer: `layers =` makes the list anew in every turn of the loop, so that only the last coupling is left: it should be
# `layers +=`. One layer is a valid flow, which is why nothing fails; it is only a poor one. Walking through the layers by hand
# and back through the chain does not return to the start, and the log-determinants of the layers do not add up to that of the
# chain. Such a test compares the model with what you *meant*, and costs four lines.


# %%
def only_the_last(nets):
    for net in nets:
        layers = [coupling(net), tfb.Permute([1, 0])]
    return tfb.Chain(layers)


nets = [lambda x1, k=k: jnp.tanh(x1 @ weights[:1, k : k + 2]) for k in range(4)]


@jax.jit
def compare(z):
    """Points z (n, 2) by hand through all couplings and back by the chain; both log-dets (n,)."""
    x, log_det = z, 0.0
    for net in reversed(nets):  # a chain applies its last bijector first
        x, by_one = forward(x[:, ::-1], net)
        log_det += by_one
    chain = only_the_last(nets)
    return chain.inverse(x), log_det, chain.forward_log_det_jacobian(z)


z = jax.random.normal(jax.random.key(13), (100, 2))
back, by_hand, by_chain = compare(z)
print(f"back at the start to within {jnp.abs(back - z).max():.2g}")
print(f"log-determinants agree to within {jnp.abs(by_hand - by_chain).max():.2g}")

# %% [markdown]
# ## 8 · A conditional flow
#
# Now observe something: the first coordinate only, with a noise of 0.3, so $y = x_1 + 0.3\,\varepsilon$. What is known of $x$ then is
# $p(x \mid y)$: one or two pieces of the arcs. (From here on $y$ is an observation.) Train one flow for all $y$ at once: let every network see $y$ next to its
# input, and maximise $\log q(x_i \mid y_i)$ over simulated pairs. No likelihood is needed, only simulations.

# %% [markdown] exercise="03.5" minutes=6 difficulty=2
# ### A net that sees the observation
# Return a function of $x_1$ alone, which a coupling can use as its net: it evaluates `net` on $x_1$ and $y$ side by side.
#
# Hint: `jnp.concatenate([x1, y], axis=-1)` puts them side by side: (n, 1) and (n, 1) become (n, 2).
#
# Hint: Return a function: `return lambda x1: ...`, or a `def` inside.


# %% exercise="03.5"
def given(net, y):
    """A net for x1 that also sees the observation.

    net maps (n, 2) to outputs (n, k); y is (n, 1). Returns a function from x1 (n, 1) to (n, k).
    """
    # BEGIN SOLUTION
    return lambda x1: net(jnp.concatenate([x1, y], axis=-1))
    # END SOLUTION


# %%
given = check("03.5", given)

# %%
OBSERVED_NOISE = 0.3
noise_key, other_noise_key = jax.random.split(jax.random.key(14))
train_y = train[:, :1] + OBSERVED_NOISE * jax.random.normal(noise_key, (len(train), 1))
test_y = test[:, :1] + OBSERVED_NOISE * jax.random.normal(other_noise_key, (len(test), 1))
conditional = Flow(spline_coupling, n_outputs=3 * N_BINS - 1, n_layers=3)
conditional_fit = train_flow(conditional, 1_000, (train, train_y), label="conditional flow")


@jax.jit
def conditional_log_prob(x, y):
    """Log density of points (n, 2) given one observation."""
    return conditional.apply(conditional_fit.params, jnp.full((len(x), 1), y)).log_prob(x)


# %% [markdown]
# The exact posterior is known: prior times likelihood, normalised along the arcs. Hold the flow against it for three
# observations, then on a grid for 200.

# %% alt="Three panels, one for each observation: the exact posterior in colour, the flow's contours on top. The observation marks a vertical band, and the posterior is what the band leaves of the two moons."
coarse = plane.reshape(*cells, 2)[::2, ::2].reshape(-1, 2)  # steps of about the moons' noise
near = coarse[two_moons.distance(coarse).min(axis=-1) < 6 * two_moons.NOISE]
figures.conditionals(
    axes,
    exact=lambda y: two_moons.log_prob_given_first(plane, y, OBSERVED_NOISE),
    flow=lambda y: conditional_log_prob(plane, y),
    observations=(-0.8, 0.5, 1.9),
    noise=OBSERVED_NOISE,
)


# %% tags=["verdict"]
@jax.jit
def kl_on_grid(y):
    """KL divergence from the exact posterior to the flow, for one observation, in nats."""
    log_p = two_moons.log_prob_given_first(near, y, OBSERVED_NOISE)
    p = jnp.exp(log_p) * 4 * sides.prod()
    return jnp.sum(p * (log_p - conditional_log_prob(near, y)))


kl = jax.lax.map(kl_on_grid, test_y[:200, 0])
mean_kl, error = diagnostics.mean_with_error(kl)
verdict(
    "conditional flow: mean KL of 200 observations",
    mean_kl,
    low=-0.005,
    high=0.05,
    unit="nats",
    error=error,
)

# %% [markdown]
# ## 9 · The flow as a prior
#
# A trained flow knows what points look like, and can be used where the measurement changes later. Let both coordinates be observed
# with a noise of $\tau = 0.1$, twice that of the moons. Bayes' theorem gives $\log p(x \mid y) = \log p(x) + \log \mathcal{N}(y; x, \tau^2) + \mathrm{const.}$,
# and its maximum, the **MAP**, is found by climbing along the gradient.

# %% [markdown] exercise="03.6" minutes=10 difficulty=3
# ### The gradient of a log posterior
# Return the gradient of $\log p(x) + \log \mathcal{N}(y; x, \tau^2)$ with respect to the point $x$, for each of $n$ points.
# The parameters of the flow stay as they are.
#
# Hint: Each log posterior depends on its own point only, so the gradient of their *sum* with respect to x is what we want.
#
# Hint: $\log \mathcal{N}(y; x, \tau^2) = -\frac{1}{2}\,|y - x|^2 / \tau^2 + \mathrm{const.}$ Mind the square.
#
# Hint: `jax.grad` differentiates with respect to the first argument of the function it is given: make that x.


# %% exercise="03.6"
def posterior_score(log_prob, params, x, y, noise):
    """Gradient (n, 2) of the log posterior of points x (n, 2) given observations y (n, 2).

    log_prob(params, x) is the log prior density (n,); noise is the standard deviation of y - x.
    """

    # BEGIN SOLUTION
    def log_posterior(x):
        log_likelihood = -0.5 * jnp.sum((y - x) ** 2, axis=-1) / noise**2
        return jnp.sum(log_prob(params, x) + log_likelihood)

    return jax.grad(log_posterior)(x)
    # END SOLUTION


# %%
posterior_score = check("03.6", posterior_score)

# %%
MEASURED_NOISE = 0.1


def spline_log_prob(params, x):
    return spline.apply(params).log_prob(x)


@jax.jit
def climb(params, y, steps=300):
    """Gradient ascent from y, with steps that fade."""

    def step(k, x):
        rate = 2e-3 * (1.0 - k / steps)
        return x + rate * posterior_score(spline_log_prob, params, x, y, MEASURED_NOISE)

    return jax.lax.fori_loop(0, steps, step, y)


truth = test[:1000]
measured = truth + MEASURED_NOISE * jax.random.normal(jax.random.key(15), truth.shape)
# One more, between the inner moon's end and the outer moon.
measured = jnp.concatenate([measured, jnp.array([[0.0, 0.725]])])
answers = {
    "exact mode": two_moons.posterior_mode(measured, MEASURED_NOISE),
    "MAP of the flow": climb(spline_fit.params, measured),
    "exact mean": two_moons.posterior_mean(measured, MEASURED_NOISE),
}

# %% alt="Left: noisy points with arrows to their posterior modes, which lie on the two moons. Right: the exact posterior of a point measured between the moons has a peak on each; the exact mode is on one, the MAP of the flow on the other, and the mean lies between them where the density is low."
figures.denoising(measured, answers, axes, exact_plane, MEASURED_NOISE)

# %% tags=["verdict"]
to_arcs = two_moons.distance(measured[:-1])
# The ridge between the moons is where both arcs are equally far.
away = jnp.abs(to_arcs[:, 0] - to_arcs[:, 1]) / 2 > 2 * two_moons.NOISE
to_mode = jnp.linalg.norm(answers["MAP of the flow"] - answers["exact mode"], axis=-1)[:-1]
fraction = jnp.mean(to_mode[away] < 0.02)
verdict("MAP within 0.02 of the exact mode, away from the ridge", fraction, low=0.95)
print("Root mean square distance to the true point:")
for name, answer in {"measurement": measured, **answers}.items():
    print(f"  {name:15s} {jnp.sqrt(jnp.mean(jnp.sum((answer[:-1] - truth) ** 2, axis=-1))):.3f}")

# %% [markdown]
# The mean has the smallest squared error, as a posterior mean must. Yet between the moons the mean is a place where no point can
# be, and the mode is a place where one can be, but keeps silent on the other moon. One number with an error bar hides
# that there are two possibilities. Which moon the climb ends on depends on where it starts, and where the two peaks nearly tie, on
# small errors of the flow. And the mode of a density is not where most of its probability must be: a narrow high peak beats
# a broad lower one that holds more. One point is not a posterior; section 8 shows what is.

# %% [markdown] think=true
# **Think.** The affine flow is within 0.035 nats of the truth on average. Could you use it to decide whether a new point comes from the
# two moons or from somewhere else, by its log density?
#
# Answer: With care. That is an average over points *of the moons*. Where no training point ever was, such as on the
# bridge, the flow can be wrong by many nats without any cost in the loss. In high dimensions there is a second reason: a
# typical point of a Gaussian is far from its mode, so a high density does not mean typical.

# %% [markdown]
# ## 10 · Move one point
#
# Move a point of the Gaussian and watch its path through the layers of the affine flow, two at a time (the start is the point after
# `standardise`). Find the line in $z$ that the bridge comes from: on either side of it the point ends on another moon.

# %% tags=["widget"] alt="The path of one point of the Gaussian through the pairs of layers of the affine flow, on the density of the flow."
widgets.explore_path(
    lambda z: stages(affine_fit.params, z),
    axes,
    jnp.exp(affine_plane).reshape(cells),
    start=(0.5, 1.0),
)

# %% [markdown]
# ## 11 · Summary
#
# - A flow is an invertible map with a cheap log-determinant. Its density is exact and normalised; only its shape is learned.
# - A coupling keeps one half and changes the other. Swaps, or permutations, let every coordinate have its turn.
# - Two tests find most bugs: invert, and compare the log-determinant with automatic differentiation. A third compares
#   the loss with the entropy, where that is known.
# - Splines come closer to the truth than affine couplings. Neither can cut one piece into two: a bridge remains.
# - A flow can be conditioned on data, or be a prior for later data. The mode of a posterior is not its summary.
#
# **Limits.** A flow keeps the dimension: it cannot compress, and images need many layers (Glow: Kingma & Dhariwal 2018). Its
# density away from the data is a guess. Papamakarios et al. (2021) review what else can be an invertible layer.
#
# **Go further.** Cut the bridge: use a mixture of two Gaussians as the base (`tfd.MixtureSameFamily`), train it on
# the mean of `-log_prob(x)`, as `nll` knows one Gaussian only, and measure the gap and the far fraction again. How many layers does the affine flow then need for 0.01 nats?
#
# ## References
#
# - Dinh, Krueger & Bengio 2014, *NICE: non-linear independent components estimation*, [arXiv:1410.8516](https://arxiv.org/abs/1410.8516), [doi:10.48550/arXiv.1410.8516](https://doi.org/10.48550/arXiv.1410.8516)
# - Dinh, Sohl-Dickstein & Bengio 2017, *Density estimation using Real NVP*, ICLR, [doi:10.48550/arXiv.1605.08803](https://doi.org/10.48550/arXiv.1605.08803)
# - Durkan, Bekasov, Murray & Papamakarios 2019, *Neural spline flows*, NeurIPS, [doi:10.48550/arXiv.1906.04032](https://doi.org/10.48550/arXiv.1906.04032)
# - Kingma & Dhariwal 2018, *Glow: generative flow with invertible 1×1 convolutions*, NeurIPS, [doi:10.48550/arXiv.1807.03039](https://doi.org/10.48550/arXiv.1807.03039)
# - Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan 2021, *Normalizing flows for probabilistic modeling and inference*, JMLR 22(57), 1, [doi:10.48550/arXiv.1912.02762](https://doi.org/10.48550/arXiv.1912.02762)

# %%
progress()
