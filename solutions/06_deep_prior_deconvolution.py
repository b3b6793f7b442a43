# ---
# title: Deconvolving galaxies with a deep prior
# part: Inverse problems
# summary: Undo the blur of a telescope with classical priors and with one that a network has learned from galaxies, score all of them on the same 200 galaxies, and find out when not to believe the result.
# minutes: 110
# objectives:
#   - write the forward model of a telescope, y = P(Π ∗ x) + n, and check it against GalSim
#   - write a likelihood with a variance map and a mask, and see why it is not enough
#   - write the Wiener filter, the exact posterior mean under a Gaussian prior
#   - find the most probable latent of a deep generative prior, and test that it is the only one
#   - read residuals, chi^2 and the density of a latent, and say when not to believe a restoration
# prerequisites:
#   - Python with NumPy arrays; jax.grad; Fourier transforms
#   - Bayes' theorem with Gaussians; lesson 03 for what a flow is
# needs: a CPU is enough; a GPU pays off when you train longer or larger networks
# seconds: 120
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Deconvolving galaxies with a deep prior
#
# A telescope on the ground blurs a galaxy and adds noise. Many galaxies fit the blurred image equally well, most of them absurd.
# What singles one out is a *prior*: a statement about what galaxies look like, made before looking. This lesson tries several of them on the same images. The
# last one was learned by a network.
#
# **The claim of this lesson:** the restoration that a descent finds most probable under the learned prior is closer to the true galaxy than the best classical
# method, tuned on galaxies of the same kind, **by 1 dB or more in the median** of 200 galaxies that neither has seen. You will write the telescope, the likelihood and the
# posterior. You will also see the same prior invent a galaxy that is not there, and learn how to notice.

# %% tags=["context"]
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import fft, signal, stats

from dlcourse_utils import diagnostics, galaxy_prior, newton, photometry, telescope, widgets
from dlcourse_utils.checks import check, hint, progress, solution
from dlcourse_utils.datasets import galaxies, galsim_reference, real_galaxies
from dlcourse_utils.errors import CourseError
from dlcourse_utils.plot import deconvolution as figures
from dlcourse_utils.train import fit
from dlcourse_utils.verdicts import verdict

# %% [markdown]
# ## 1 · Two hundred galaxies
#
# A simulator draws galaxies whose magnitudes, sizes, shapes and profiles are distributed as in fits to real galaxies of the COSMOS field (its few numbers were chosen on these fits; the test below uses those from magnitude 20 to 22.5, smaller than 1 arcsec): a disc and a bulge with Sérsic
# profiles, and for many discs spiral arms, a bar or clumps of young stars. An image $x$ has 63 x 63 pixels of 0.056 arcsec, in nJy. It is not infinitely
# sharp: it is what a telescope with a resolution of 0.15 arcsec would see, a bit less sharp than Hubble. No method can restore details of any size, so we agree beforehand on how sharp we want to see
# (Magain, Courbin & Sohy 1998).
#
# The telescope is like Subaru's Hyper Suprime-Cam: a blur of 0.7 arcsec, pixels of 0.168 arcsec, and noise of 3.8 nJy in each of its 21 x 21 pixels. All galaxies
# here are between magnitudes 20 and 23.5.

# %%
# As many as the prior was trained on, and other ones; a tenth of them get an image.
many = galaxies.population(jax.random.key(1), 40_960)
catalogue = jax.tree.map(lambda a: a[:4352], many)
x = galaxies.render(catalogue)
train_x, tuning_x, test_x = jnp.split(x, [4096, 4152])
test = jax.tree.map(lambda a: np.asarray(a[4152:4352]), many)

star = telescope.moffat()  # what the telescope makes of a point
kernel = telescope.difference_kernel(star)  # what takes our x, of 0.15 arcsec, to that blur
noise = telescope.NOISE  # nJy, standard deviation in a pixel of the survey
y = telescope.observe_noisy(jax.random.key(2), x[4096:], kernel, noise**2)
tuning_y, test_y = jnp.split(y, [56])
test_variance = np.full(test_y.shape, noise**2, np.float32)

A = telescope.operator(kernel)
observe = jax.tree_util.Partial(telescope.apply, A)  # images (n, 63, 63) to means (n, 21, 21)
prior = galaxy_prior.load()

# %% tags=["verdict"]
try:
    fits = real_galaxies.load_sersic_fits()
    for name in ("radius", "axis_ratio", "sersic"):
        values = []
        for sample in (fits, many):
            magnitude, radius = np.asarray(sample.magnitude), np.asarray(sample.radius)
            kept = (magnitude > 20) & (magnitude < 22.5) & (radius > 0.1) & (radius < 1.0)
            values.append(np.asarray(getattr(sample, name))[kept])
        match = stats.ks_2samp(*values)
        verdict(
            f"simulated against {len(values[0])} real galaxies, {name}: p of KS",
            match.pvalue,
            low=0.01,
        )
except CourseError as trouble:
    print(trouble)

# %% alt="Three rows of five galaxies. Top: what the telescope saw, blurred and noisy, with coarse pixels. Middle: what the learned prior made of it, sharp, with the right size, direction and brightness. Bottom: the true galaxies, of which some have spiral arms and clumps that the restorations lack."
arms = test.arm_amplitude * test.radius
shown = np.argsort(-arms)[[0, 3, 8, 20, 150]]  # from strong arms to none
starts = galaxy_prior.rough_start(test_y)
preview = [
    galaxy_prior.most_probable(prior, test_y[i], test_variance[i], A, starts[i], 80)[0]
    for i in shown
]
figures.stamps(
    {"seen": test_y[shown], "restored": prior.decode(np.stack(preview)), "truth": test_x[shown]}
)

# %% [markdown]
# *Restored* is where this lesson leads to; here it is found by a ready-made function, so that you know what to look forward to. In each figure the images share one stretch, and
# survey pixels are drawn in nJy per *fine* pixel, so that colours compare.
#
# ## 2 · The telescope
#
# What the telescope does to a galaxy is linear:
#
# $$y = P(\Pi * x) + n.$$
#
# - $\Pi * x$: the light of each point is spread over the **point-spread function** (PSF), the picture of a star. As $x$ has a resolution of 0.15 arcsec already, $\Pi$ is what is missing from there to the star's picture.
# - $P$: the survey takes a sample at the centre of each of its pixels, every third fine pixel, times the area of 9. (That a pixel also integrates over its area is part of the measured PSF.)
# - $n$: Gaussian noise, with a variance $\sigma_j^2$ in each pixel. A pixel that is bad, or belongs to another galaxy, is masked: its variance is infinite.

# %% [markdown] exercise="06.1" minutes=12 difficulty=2
# ### Blur an image
# Convolve images with a kernel by FFT. The kernel is a picture of a star, centred on its middle pixel, in counts: scale it to a sum of 1. Light that leaves
# the image at one edge must not come back at the other.
#
# Hint: A product of transforms is a convolution on a ring. Give all three transforms `s=(size, size)`, with a size that leaves room for the image and the kernel: $n + m - 1$.
#
# Hint: `rfft2(..., s=...)` puts the kernel's *corner*, not its middle, at the origin. So the result is shifted by `m // 2` pixels in both directions: cut the n x n pixels that start there.
#
# Hint: Images may have leading axes: index the result with `[..., rows, columns]`.


# %% exercise="06.1"
def convolve(x, kernel):
    """Images x (..., n, n) convolved with a kernel (m, m); (..., n, n).

    m is odd, the centre of the kernel is its middle pixel, and the kernel counts as all of the
    light whatever it sums to. What is outside of the image is dark.
    """
    # BEGIN SOLUTION
    n, m = x.shape[-1], kernel.shape[-1]
    room = (n + m - 1, n + m - 1)
    transfer = jnp.fft.rfft2(kernel / kernel.sum(), s=room)
    transfer = transfer.reshape((1,) * (x.ndim - 2) + transfer.shape)
    blurred = jnp.fft.irfft2(jnp.fft.rfft2(x, s=room) * transfer, s=room)
    inside = slice(m // 2, m // 2 + n)
    return blurred[..., inside, inside]
    # END SOLUTION


# %%
convolve = check("06.1", convolve)
# %% alt="Five panels from left to right: a spiral galaxy; the kernel, a round spot of 0.7 arcsec; the blurred galaxy; its samples in 21 by 21 pixels; the same with noise, and a masked corner in grey."
one = test_x[shown[2]]
blurred = convolve(one, kernel)
sampled = telescope.sample(blurred)
masked = np.full((21, 21), noise**2)
masked[:6, :6] = np.inf
seen = telescope.observe_noisy(jax.random.key(6), one, kernel, masked)
spot = kernel[31:-31, 31:-31] * one.max() / kernel.max()
figures.forward(
    {
        "x": one,
        "Π": spot,
        "Π ∗ x": blurred,
        "P(Π ∗ x)": sampled,
        "y": np.where(np.isinf(masked), np.nan, seen),
    }
)

# %% [markdown]
# Is this what a telescope sees? **GalSim** (Rowe et al. 2015), which surveys use for simulations, draws and blurs with code that shares nothing with ours. A file holds what it makes of 50 galaxies behind five PSFs, one of
# them measured on stars by Hyper Suprime-Cam. The verdict compares the whole way, from the disc and the bulge of a galaxy to the survey's pixels, on a field wide enough that no light is cut off. (In the lesson light from outside of the stamp is left out, in data and model alike.)

# %% tags=["verdict"]
# Your function scales a kernel to 1. This one ends at 3.5 arcsec, where 0.1 % of the light is yet to come.
errors = galsim_reference.errors(lambda x, k: telescope.sample(convolve(x, k) * k.sum()))
verdict("forward model against GalSim, worst of 50, over the peak", errors.max(), high=1e-3)

# %% [markdown]
# A linear map is a matrix: `A` has one row for each of the 441 survey pixels and one column for each of the 3,969 fine ones. On a CPU a product with it, for many galaxies
# at once, is faster than the FFT, and from here on `observe(x)` uses it.
#
# ## 3 · The likelihood is not enough

# %% [markdown] exercise="06.2" minutes=8 difficulty=1
# ### The likelihood of an image
# Return the log density of each image, summed over its pixels,
#
# $$\log p(y \mid \mu) = -\frac12 \sum_{j\ \mathrm{used}} \left[ \frac{(y_j - \mu_j)^2}{\sigma_j^2} + \ln (2 \pi \sigma_j^2) \right].$$
#
# A pixel with an infinite variance is masked. It says nothing, so it adds nothing.
#
# Hint: `variance` is $\sigma^2$, not $\sigma$. Sum over the last two axes: one number for each image.
#
# Hint: An infinite variance makes the logarithm infinite, and `0 * inf` is NaN. Put a harmless number there first (`jnp.where`), then set these pixels' terms to zero.
#
# Hint: Setting the *data* to zero where the mask is does not help: the model's light there would then count as a misfit.


# %% exercise="06.2"
def log_likelihood(y, mean, variance):
    """Log density (n,) in nats of images y (n, k, k) with Gaussian noise about mean (n, k, k).

    variance (n, k, k) is that of the noise in each pixel, in nJy^2; infinite where a pixel is masked.
    """
    # BEGIN SOLUTION
    used = jnp.isfinite(variance)
    finite = jnp.where(used, variance, 1.0)
    terms = (y - mean) ** 2 / finite + jnp.log(2 * jnp.pi * finite)
    return -0.5 * jnp.sum(jnp.where(used, terms, 0.0), axis=(-2, -1))
    # END SOLUTION


# %%
log_likelihood = check("06.2", log_likelihood)
# %% [markdown]
# Now find the image that makes the data most probable: one number for each of the 3,969 pixels, by gradient ascent from zero. The data are 441 numbers. With **positivity** a pixel that a step has made negative
# is set to zero: light is never negative, and that is a prior too, if a weak one.


# %%
@partial(jax.jit, static_argnames="prox")
def ascent_step(x, ahead, state, t, y, observe, strength, prox):
    """One accelerated step up the likelihood in the pixels x (n, 63, 63), then ``prox`` of it."""
    ones = jnp.ones_like(y)
    slope = jax.grad(lambda x: log_likelihood(y, observe(x), ones).sum())(ahead)
    new, state = prox(ahead + RATE * slope, RATE * strength, state)
    t_new = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    return new, new + (t - 1) / t_new * (new - x), state, t_new


def ascend(y, prox, strength=0.0, state=None, steps=100, observe=observe):
    """Images (n, 63, 63) after each step (Beck & Teboulle 2009); ``prox`` enforces a prior."""
    x = ahead = jnp.zeros((len(y), 63, 63))
    t = np.float32(1.0)
    for _ in range(steps):
        x, ahead, state, t = ascent_step(x, ahead, state, t, y, observe, np.float32(strength), prox)
        yield x


# A step must stay below one over the largest curvature, the largest eigenvalue of A A^T.
RATE = np.float32(1 / np.linalg.norm(np.asarray(A @ A.T), 2))


def anything(x, _, state):
    return x, state


def positive(x, _, state):
    return jnp.maximum(x, 0.0), state


# %% alt="Left: median PSNR against gradient steps, for the plain likelihood and with positivity. The plain one rises to a peak after some steps and falls steeply; with positivity it falls later. Right: the same galaxy after few, some and many steps; in the end it is a labyrinth of bright and dark patches."
steps = np.array([1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200])
curves, snapshots = {}, []
for name, prox in {"likelihood": anything, "with positivity": positive}.items():
    seen_at = [x for i, x in enumerate(ascend(tuning_y, prox, steps=200), 1) if i in steps]
    curves[name] = np.array([np.median(photometry.psnr(x, tuning_x)) for x in seen_at])
    snapshots += [x[1] for x in seen_at]
few = [3, 7, 13]
figures.descent(steps, curves, np.stack([snapshots[i] for i in few]), steps[few])

# %% [markdown]
# The quality is measured as **PSNR**, $10 \log_{10}(\max x^2 / \mathrm{MSE})$: 10 dB more is a mean squared error ten times smaller. The likelihood grows with every
# step, and the image gets worse: details that the telescope has blurred away can be anything, and what fits the noise best is noise, amplified. Stopping early
# is a prior in disguise, and nobody has written down which. Let us write priors down.
#
# ## 4 · A Gaussian prior
#
# Take the training galaxies in units of their flux. Their mean $\bar x$ and their covariance $C$ define a Gaussian. It is a poor model of galaxies (its samples are negative in
# places), but with it the posterior is Gaussian too, and its mean is known in closed form: the **Wiener filter**. Why: x and y are jointly Gaussian, with covariances $C$, $C A^T$ and $A C A^T + N$, and the mean of one part of a Gaussian given the other is linear: the covariance of the two, divided by that of what is given, times the surprise.


# %% tags=["context"]
class Gaussian(NamedTuple):
    """A Gaussian prior of images with p pixels, and what it says of their q observed pixels.

    mean_x (p,), mean_y = A mean_x (q,), cov_xy = C A^T (p, q), cov_yy = A C A^T (q, q).
    """

    mean_x: jax.Array
    mean_y: jax.Array
    cov_xy: jax.Array
    cov_yy: jax.Array


# %% [markdown] exercise="06.3" minutes=10 difficulty=2
# ### The Wiener filter
# Return the posterior mean of x given y,
#
# $$E[x \mid y] = \bar x + C A^T \left( A C A^T + N \right)^{-1} (y - A \bar x),$$
#
# where $N$ is diagonal with the variance of the noise in each pixel. The products with A are ready in `prior`.
#
# Hint: `prior.cov_yy` is $A C A^T$, the covariance that galaxies alone give to y. Noise adds to it: `jnp.diag(variance)`.
#
# Hint: Do not invert. `jnp.linalg.solve(matrix, difference)` is faster and keeps more digits.


# %% exercise="06.3"
def wiener(y, variance, prior):
    """Posterior mean (p,) of an image under a Gaussian prior, given one observation y (q,).

    variance (q,) is that of the noise in each pixel, finite; prior is a `Gaussian`.
    """
    # BEGIN SOLUTION
    covariance = prior.cov_yy + jnp.diag(variance)
    weights = jnp.linalg.solve(covariance, y - prior.mean_y)
    return prior.mean_x + prior.cov_xy @ weights
    # END SOLUTION


# %%
wiener = check("06.3", wiener)
# %% [markdown]
# Beside an answer found in another way: on a small image of 12 x 12 pixels, the same posterior mean from the *precision* form, $(C^{-1} + A^T N^{-1} A)^{-1}$, solved densely in double precision with NumPy.

# %% tags=["verdict"]
rng = np.random.default_rng(0)
row = np.arange(12)
distance = np.hypot(*(np.subtract.outer(i, i) for i in np.divmod(np.arange(144), 12)))
C = np.exp(-distance / 4.0)
blur = np.exp(-0.5 * (np.subtract.outer(row, row) / 1.5) ** 2)
A_small = np.kron(blur[::2], blur[::2])  # 36 pixels of 144
variance_small = rng.uniform(0.5, 2.0, 36)
y_small = rng.normal(size=36) * 5.0
mean_small = np.ones(144)
small = (mean_small, A_small @ mean_small, C @ A_small.T, A_small @ C @ A_small.T)
small = Gaussian(*(jnp.asarray(a, jnp.float32) for a in small))
ours = wiener(*(jnp.asarray(a, jnp.float32) for a in (y_small, variance_small)), small)
precision = np.linalg.inv(C) + A_small.T @ (A_small / variance_small[:, None])
right = np.linalg.inv(C) @ mean_small + A_small.T @ (y_small / variance_small)
dense = np.linalg.solve(precision, right)
error = np.linalg.norm(ours - dense) / np.linalg.norm(dense)
verdict("Wiener filter against a dense solve, relative", error, high=1e-4)

# %% [markdown]
# The mean and the covariance of 4,096 galaxies, each turned and mirrored in eight ways, in units of their flux; the flux of a new galaxy is estimated from the sum of its pixels.
# A weaker statement knows the power spectrum of galaxies only, not that they are in the middle of the stamp. It is the Wiener filter of the textbooks.


# %%
def gaussian_of(images):
    """The `Gaussian` of galaxies (n, 63, 63) in units of flux, all their turns and mirrors alike."""
    shares = images / images.sum(axis=(1, 2), keepdims=True)
    mean = shares.mean(axis=0)
    offset = (shares - mean[None]).reshape(-1, 3969)
    cov_xy = (offset.T @ (offset @ A.T) / len(shares)).reshape(63, 63, 21, 21)
    # The PSF is round: to turn the galaxies is to turn both sides of C A^T.
    for axes in ((0,), (1,)):
        mean = (mean + jnp.flip(mean, axes)) / 2
        cov_xy = (cov_xy + jnp.flip(cov_xy, (axes[0], axes[0] + 2))) / 2
    mean = (mean + mean.T).reshape(-1) / 2
    cov_xy = ((cov_xy + cov_xy.transpose(1, 0, 3, 2)) / 2).reshape(3969, 441)
    return Gaussian(mean, A @ mean, cov_xy, A @ cov_xy)


def stationary(images):
    """The `Gaussian` with mean zero that knows only the power spectrum of galaxies."""
    shares = images / images.sum(axis=(1, 2), keepdims=True)
    double = (126, 126)  # room for every offset between two pixels
    power = np.mean(np.abs(fft.rfft2(np.asarray(shares), double)) ** 2, axis=0) / 3969
    rows = np.asarray(A).reshape(-1, 63, 63)
    cov_yx = fft.irfft2(fft.rfft2(rows, double) * power, double)[:, :63, :63]
    cov_xy = jnp.asarray(cov_yx.reshape(441, 3969).T, jnp.float32)
    return Gaussian(jnp.zeros(3969), jnp.zeros(441), cov_xy, A @ cov_xy)


@jax.jit
def restore_gaussian(y, gaussian, strength):
    """Posterior means (n, 63, 63) for y (n, 21, 21); a strength above 1 trusts the prior more."""
    flux = y.sum(axis=(1, 2))[:, None]
    data = y.reshape(len(y), -1) / flux
    variance = jnp.broadcast_to(strength * (noise / flux) ** 2, data.shape)
    shares = jax.lax.map(lambda pair: wiener(*pair, gaussian), (data, variance))
    return (flux * shares).reshape(-1, 63, 63)


linear = {
    "Wiener, spectrum": stationary(train_x),
    "Wiener, covariance": jax.jit(gaussian_of)(train_x),
}
restored = {}
for name, gaussian in linear.items():
    several = [restore_gaussian(tuning_y[:16], gaussian, np.float32(s)) for s in (0.5, 1, 2, 4)]
    quality = [np.median(photometry.psnr(x, tuning_x[:16])) for x in several]
    best_strength = np.float32((0.5, 1, 2, 4)[int(np.argmax(quality))])
    print(f"{name}: best strength {best_strength:g}", end=", ")
    restored[name] = restore_gaussian(test_y, gaussian, best_strength)
    print(f"median PSNR {np.median(photometry.psnr(restored[name], test_x)):.1f} dB")

# %% [markdown]
# The covariance of galaxies is worth far more than their spectrum: it knows where galaxies are bright, and how an elongated one continues.
#
# ## 5 · Edges and sparsity
#
# Two classical priors that are not Gaussian. **Total variation** (Rudin, Osher & Fatemi 1992) adds up the differences between neighbouring pixels: flat patches with sharp edges are probable. **Starlets** (Starck, Murtagh & Bertero 2015) take an image apart
# into details of 1, 2, 4 and 8 pixels, and say that few of them are not zero. Each makes the posterior a sum of the likelihood and a term with a corner at zero, and the
# same ascent is used: after each step a *proximal* map shrinks what the prior finds improbable. (For starlets, which are redundant, the shrinking is a heuristic.) Both include positivity.
#
# How strong shall the prior be? We choose the strength that is best for 16 galaxies set apart for tuning: more than one can do in a real observation, and so a fair chance. So is the number of steps, 80 and 60. With more of them the images get worse: part of these two priors is to stop early.


# %%
# Edges are sharp before the resolution of the course blurs them: x = G s G^T, with the prior on s.
gap = np.subtract.outer(np.arange(63), np.arange(63)) * galaxies.PIXEL / galaxies.RESOLUTION
G = np.exp(-4 * np.log(2) * gap**2)
G = jnp.asarray(G / G[31].sum(), jnp.float32)
A_sharp = (G @ A.reshape(441, 63, 63) @ G).reshape(441, 3969)
observe_sharp = jax.tree_util.Partial(telescope.apply, A_sharp)


def total_variation(x, strength, dual):
    """Shrinks differences between neighbours, by two projections of the dual (2, n, 63, 63)."""

    def primal(dual):
        down = jnp.diff(dual[0].at[:, -1].set(0.0), axis=1, prepend=0.0)
        across = jnp.diff(dual[1].at[:, :, -1].set(0.0), axis=2, prepend=0.0)
        return jnp.maximum(x + strength * (down + across), 0.0)

    for _ in range(2):
        now = primal(dual)
        down = jnp.diff(now, axis=1, append=now[:, -1:])
        across = jnp.diff(now, axis=2, append=now[:, :, -1:])
        dual = dual + jnp.stack([down, across]) / (8 * strength)
        length = jnp.sqrt(jnp.sum(dual**2, axis=0, keepdims=True))
        dual = dual / jnp.maximum(length, 1.0)
    return primal(dual), dual


# Smoothing by a B3 spline with gaps of 1, 2, 4 and 8 pixels, as matrices for rows and columns.
SMOOTH = np.zeros((4, 63, 63), np.float32)
for level, matrix in enumerate(SMOOTH):
    for k, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
        np.add.at(
            matrix, (np.arange(63), np.clip(np.arange(63) + k * 2**level, 0, 62)), weight / 16
        )


def starlets(x, strength, state):
    """Shrinks the details of every size by the same amount."""
    kept = 0.0
    for matrix in SMOOTH:
        smoother = matrix @ x @ matrix.T
        detail, x = x - smoother, smoother
        kept = kept + jnp.sign(detail) * jnp.maximum(jnp.abs(detail) - strength, 0.0)
    return jnp.maximum(kept + x, 0.0), state


def restore_variation(y, strength):
    dual = jnp.zeros((2, len(y), 63, 63))
    *_, s = ascend(y, total_variation, strength, dual, steps=80, observe=observe_sharp)
    return G @ s @ G


def restore_starlets(y, strength):
    *_, x = ascend(y, starlets, strength, steps=60)
    return x


# %% alt="Two panels: median PSNR of the tuning galaxies against the strength of the prior, for total variation and for starlets; each has a maximum inside of the range, marked by a line."
methods = {
    "total variation": (restore_variation, np.array([0.005, 0.03, 0.2, 1.0])),
    "starlets": (restore_starlets, np.array([0.01, 0.04, 0.15, 0.6])),
}
tuned = {}
for name, (method, strengths) in methods.items():
    found = [method(tuning_y[:16], s) for s in strengths]
    quality = np.array([np.median(photometry.psnr(x, tuning_x[:16])) for x in found])
    tuned[name] = strengths, quality
    restored[name] = method(test_y, strengths[quality.argmax()])
figures.tuning(tuned)

# %% [markdown]
# ## 6 · A prior that has seen galaxies
#
# A **generative prior** writes a galaxy as $x = g(z)$: a network $g$, the *decoder*, makes an image from a short vector $z$, the *latent*. Here $z$ has 33 numbers, 32 for the shape
# and one for the magnitude. The decoder was trained on 40,960 galaxies of the simulator as one half of a variational auto-encoder
# (Kingma & Welling 2014). Its last layer is a softmax over the pixels, times the flux: an image is positive, and has the flux that $z$ says.
#
# An auto-encoder alone does not know how probable a latent is. It pulls the latents towards a standard Gaussian, and does not get them there. So a normalizing flow, as in lesson 03, has learned the density $p(z)$ that the
# latents of real training galaxies have. Training took half an hour on two cores; the script is `scripts/train_galaxy_prior.py`, and the weights ship with the course.
#
# Before one trusts a prior, one looks at it. Ten of these twenty galaxies were drawn from it.

# %% alt="Four rows of five galaxies in random order, half of them drawn from the learned prior and half from the simulator; discs, spheroids, spirals and edge-on galaxies, which cannot be told apart at a glance."
decode = jax.jit(galaxy_prior.GalaxyPrior.decode)
drawn_z = jax.jit(galaxy_prior.GalaxyPrior.sample, static_argnums=2)(prior, jax.random.key(7), 4096)
drawn = decode(prior, drawn_z)
order = np.random.default_rng(8).permutation(20)
mixed = jnp.concatenate([drawn[:10], train_x[:10]])[order]
figures.stamps({f"{i + 1} to {i + 5}": mixed[i : i + 5] for i in range(0, 20, 5)})

# %% [markdown] think=true
# **Think.** Which ones are drawn from the prior? Write your guesses down, then run `[i + 1 for i, k in enumerate(order) if k < 10]` in a new cell. How many of 20 must you get right before you
# can say that you see a difference?
#
# Answer: Mark ten. With guesses alone you get 10 of the 20 right on average, with a standard deviation of 2.3. Sixteen or more happen by luck in 1 % of the cases.

# %% [markdown]
# Eyes are forgiving. Numbers: the distributions of size, ellipticity and concentration of 4,096 galaxies from the prior, beside as many from the simulator that it was not trained on; the largest distance between two cumulative
# distributions is the Kolmogorov–Smirnov statistic. And at the depth of a Hubble image, is a decoded galaxy as good as the true one? If so, $\chi^2$ per pixel is 1. (With so many galaxies both tests see differences that are small: the prior is good, not perfect.)

# %% tags=["verdict"]
of_prior, of_simulator = photometry.measure(drawn), photometry.measure(train_x)
for name in ("half_light_radius", "ellipticity", "concentration"):
    values = (getattr(numbers, name) for numbers in (of_prior, of_simulator))
    distance = stats.ks_2samp(*values, nan_policy="omit").statistic
    verdict(f"prior against held-out galaxies, KS of {name}", distance, high=0.08)

encode = jax.jit(galaxy_prior.GalaxyPrior.encode)
encoded = decode(prior, encode(prior, train_x)[0])
hubble_variance = galaxy_prior.hubble_variance(train_x)
eps = np.random.default_rng(9).standard_normal(train_x.shape, np.float32)
hubble_y = train_x + jnp.sqrt(hubble_variance) * eps
chi2, error = diagnostics.mean_with_error(
    ((hubble_y - encoded) ** 2 / hubble_variance).mean(axis=(1, 2))
)
verdict(
    "held-out galaxies, reconstruction χ² per pixel at Hubble's depth", chi2, high=1.1, error=error
)

# %% [markdown]
# Has it learned galaxies, or learned 40,960 galaxies by heart? Look for twins in a tenth of them, in all eight turns and mirrors: had it learned all by heart, one sample in ten would have one there. Distances are between images on survey pixels, in units of flux. Below, five samples and five new galaxies with their nearest.

# %% alt="Four rows of five galaxies: samples of the prior, the training galaxy nearest to each, new galaxies of the simulator, and the training galaxy nearest to each. Samples have neighbours as near as new galaxies have: of the same size and shape, some of them turned or mirrored, with other arms and clumps."
training_set = galaxy_prior.training_set()
trained_on = galaxies.render(jax.tree.map(lambda a: a[:4352], training_set))


def coarse(images):
    """Sums over 3 x 3 pixels in units of flux; (n, 441)."""
    sums = np.asarray(images).reshape(-1, 21, 3, 21, 3).sum(axis=(2, 4))
    return (sums / sums.sum(axis=(1, 2), keepdims=True)).reshape(-1, 441)


def nearest(images):
    """Index of the nearest training galaxy (n,), and its distance relative to the image's norm."""
    known, square = coarse(trained_on), np.inf
    for swap in (False, True):
        for rows in (slice(None), slice(None, None, -1)):
            for columns in (slice(None), slice(None, None, -1)):
                turned = np.asarray(images)[:, rows, columns]
                asked = coarse(turned.swapaxes(1, 2) if swap else turned)
                gap = np.sum(known**2, axis=1) - 2 * asked @ known.T
                square = np.minimum(square, gap + np.sum(asked**2, axis=1, keepdims=True))
    norm = np.sum(coarse(images) ** 2, axis=1)
    return square.argmin(axis=1), np.sqrt(np.maximum(square.min(axis=1), 0) / norm)


by_heart = decode(prior, encode(prior, trained_on[:4096])[0])[:1000]
groups = {"samples of the prior": drawn[:1000], "new galaxies": train_x[:1000]}
groups["training galaxies, decoded"] = by_heart
twins = {name: nearest(images) for name, images in groups.items()}
print("distance to the nearest of a tenth of the training galaxies: nearest 2 %, median")
for name, (_, distance) in twins.items():
    print(f"  {name:27s} {np.quantile(distance, 0.02):.3f} {np.median(distance):.3f}")
figures.stamps(
    {
        "sample": drawn[10:15],
        "nearest": trained_on[twins["samples of the prior"][0][10:15]],
        "new": train_x[10:15],
        "its nearest": trained_on[twins["new galaxies"][0][10:15]],
    },
    width=1.45,
)

# %% [markdown]
# ### The most probable galaxy
#
# Bayes' theorem for the latent: $p(z \mid y) \propto p(y \mid z)\, p(z)$. The likelihood is that of exercise 06.2 with the mean $P(\Pi * g(z))$. Its maximum is the **maximum a posteriori** (MAP) restoration.

# %% [markdown] exercise="06.4" minutes=8 difficulty=2
# ### The posterior of a latent
# Return $-\log p(y \mid z) - \log p(z)$ of each latent, in nats, up to the constant $\log p(y)$.
#
# Hint: From the latent to the data: `prior.decode`, then `observe`, then `log_likelihood` from exercise 06.2.
#
# Hint: Bayes' theorem *adds* the two logarithms; the minus sign is for both. `prior.log_prob(z)` is (n,), like the log-likelihood.


# %% exercise="06.4"
def negative_log_posterior(z, y, variance, observe, prior):
    """Minus log posterior (n,) of latents z (n, d), in nats, up to a constant.

    y and variance (n, k, k) are the observations; observe(x) gives the mean observation (n, k, k)
    of images (n, s, s); prior.decode(z) gives these images and prior.log_prob(z) a log density (n,).
    """
    # BEGIN SOLUTION
    mean = observe(prior.decode(z))
    return -log_likelihood(y, mean, variance) - prior.log_prob(z)
    # END SOLUTION


# %%
negative_log_posterior = check("06.4", negative_log_posterior)
# %% [markdown] exercise="06.5" minutes=6 difficulty=2
# ### Which way is down?
# Return the gradient of the negative log posterior with respect to the latents, each row that of its own galaxy. The weights of the decoder stay as they are: the prior has been
# learned, now we only ask it a question.
#
# Hint: `jax.grad` wants one number. Each galaxy's term depends on its own row of z only, so the gradient of the *sum* over galaxies has in each row what we want.
#
# Hint: Write a function of z alone that closes over the rest, and differentiate that.


# %% exercise="06.5"
def gradient(z, y, variance, observe, prior):
    """Gradient (n, d) of `negative_log_posterior` with respect to each latent in z (n, d)."""

    # BEGIN SOLUTION
    def total(z):
        return negative_log_posterior(z, y, variance, observe, prior).sum()

    return jax.grad(total)(z)
    # END SOLUTION


# %%
gradient = check("06.5", gradient)
# %% [markdown]
# Some directions in $z$ change the image a lot, others hardly at all, so that steepest descent would zigzag. The curvature along each direction is nearly that of a sum of squares, and known from the decoder's derivatives. **Gauss–Newton**
# divides your gradient by it, and takes a step only if it leads down (`dlcourse_utils/newton.py`). `prior.to_base(z)` gives the Gaussian numbers that the flow makes of z.


# %%
def residuals(z, y, variance, observe, prior):
    """One latent's numbers whose squares add up to twice the negative log posterior, nearly."""
    misfit = (observe(prior.decode(z[None]))[0] - y) / jnp.sqrt(variance)
    return jnp.concatenate([misfit.ravel(), prior.to_base(z[None])[0][0]])


def restore(y, variance, start, observe=observe, steps=64, every=8):
    """Descend to modes of the posterior from latents ``start`` (n, 33)."""
    functions = negative_log_posterior, gradient, residuals
    data, shared = (y, variance), (observe, prior)
    return newton.minimise(*functions, start, data, shared, steps=steps, every=every)


def starts_for(seed, y, count):
    """Latents (n * count, 33): for each observation one average shape, the rest at random."""
    start = np.repeat(galaxy_prior.rough_start(y), count, axis=0)
    shape = np.random.default_rng(seed).normal(size=(len(start), galaxy_prior.SHAPE))
    start[:, :-1] = shape * (np.arange(len(start)) % count > 0)[:, None]
    return start


def most_probable(seed, y, variance, observe=observe, count=4):
    """The best of several descents for each observation (n, 21, 21); z (n, 33)."""
    several = [np.repeat(a, count, axis=0) for a in (y, variance)]
    found = restore(*several, starts_for(seed, y, count), observe)
    best = found.value.reshape(len(y), count).argmin(axis=1)
    return found.z.reshape(len(y), count, -1)[np.arange(len(y)), best]


# %% [markdown]
# Is the end of a descent *the* maximum? A neural decoder could make a landscape with many valleys. Nobody can prove that there is only one, but one can try: eight starts for each of five galaxies, one from an average shape and seven at random.

# %% alt="Left: eight descents for one galaxy, in nats above the best; they come down at different speeds, some rest on a shelf for tens of steps, and all end at zero. Right: the ends of two of them, which are the same picture, and the truth, which has structure that they lack."
tried = np.repeat(shown, 8)
start = starts_for(10, test_y[shown], 8)
found = restore(test_y[tried], test_variance[tried], start, steps=240)
lowest = found.value.reshape(5, 8).min(axis=1, keepdims=True)
above = found.value.reshape(5, 8) - lowest
halfway = found.path[47].reshape(5, 8) - lowest
galaxy = int(halfway.max(axis=1).argmax())
first, slowest = 8 * galaxy, 8 * galaxy + int(halfway[galaxy].argmax())
pair = decode(prior, found.z[[first, slowest]])
figures.modes(
    found.path[:, 8 * galaxy : 8 * galaxy + 8].T - lowest[galaxy],
    np.concatenate([pair, test_x[shown[galaxy]][None]]),
    ["first start", "slowest start", "truth"],
)

# %% tags=["verdict"]
print("Worst of eight descents above the best end, in nats:")
for i, now, end in zip(shown, halfway.max(axis=1), above.max(axis=1), strict=True):
    print(f"  galaxy {i:3d}: {now:5.1f} after 48 steps, {end:5.2f} at the end")
verdict(
    "five galaxies, eight starts: highest end above the lowest", above.max(), high=0.1, unit="nats"
)

best = found.z.reshape(5, 8, -1)[np.arange(5), above.argmin(axis=1)]
others = [
    galaxy_prior.most_probable(prior, test_y[g], test_variance[g], A, z)[0]
    for g, z in zip(shown, best, strict=True)
]
data = test_y[shown], test_variance[shown], observe, prior
minus_log_p = jax.jit(negative_log_posterior)  # `check` has run it compiled
left = minus_log_p(best, *data) - minus_log_p(np.stack(others), *data)
verdict("lowest ends above where SciPy's L-BFGS goes on to", left.max(), high=0.1, unit="nats")

# %% [markdown]
# Eight starts, one answer. It takes patience: whoever stops after 48 steps finds ends that differ by tens of nats, and would report modes that are none. Check that a descent has ended before you give its end a meaning.
#
# And look at the picture: the end is *smoother* than the truth. The telescope has seen no arms, so the prior decides, and an average disc is more probable than a disc with any particular arms, in any particular place. The most probable galaxy is not a typical one. Samples of the posterior would have arms, each its own.
#
# Now the 200 galaxies. If the start does not matter, take one that is near: what the encoder says of the Wiener restoration. Does the result fit? A restoration can be held against the data: blur it with the telescope, and compare. (Its $\chi^2$ comes out a little below 1 per pixel, because a fit follows some of the noise.)

# %% [markdown] exercise="06.6" minutes=8 difficulty=1
# ### How surprising is a residual?
# Return two numbers for each image: $\chi^2$ per used pixel, and how many standard deviations $\chi^2$ is above what pure noise gives. For $\nu$ used pixels, $\chi^2$ has the mean $\nu$ and the variance $2 \nu$.
#
# Hint: $\chi^2 = \sum_j (y_j - \mu_j)^2 / \sigma_j^2$ over pixels with a finite variance; $\nu$ is how many these are.
#
# Hint: Dividing by an infinite variance gives zero, which is right for the sum. But $\nu$ must not count these pixels.


# %% exercise="06.6"
def surprise(y, mean, variance):
    """chi^2 per used pixel and its excess in standard deviations, both (n,).

    y, mean and variance are (n, k, k); the variance is infinite where a pixel is masked.
    """
    # BEGIN SOLUTION
    chi2 = jnp.sum((y - mean) ** 2 / variance, axis=(-2, -1))
    used = jnp.sum(jnp.isfinite(variance), axis=(-2, -1))
    return chi2 / used, (chi2 - used) / jnp.sqrt(2 * used)
    # END SOLUTION


# %%
surprise = jax.jit(check("06.6", surprise))

# %% tags=["verdict"]
sharp = jnp.maximum(restored["Wiener, covariance"], 0.0)  # light is never negative
descents = restore(test_y, test_variance, encode(prior, sharp)[0])
test_z = descents.z
print(
    f"{descents.settled.mean():.0%} of the descents have settled: less than 0.01 nats in 16 steps"
)
restored["deep prior"] = decode(prior, test_z)
per_pixel, excess = surprise(test_y, observe(restored["deep prior"]), test_variance)
verdict("χ² per used pixel of 200 restorations", per_pixel.mean(), low=0.95, high=1.0)
# %% [markdown]
# ## 7 · A network trained on pairs
#
# Why not train a network to turn $y$ into $x$ directly? Simulate pairs, and minimise the error. This is a small **U-Net** (Ronneberger, Fischer & Brox 2015): it goes down from 21 pixels to 7 and to one, up again to 63, and each way up also sees what was there on the way down.


# %%
def enlarge(h):
    """(b, n, n, 9 c) to (b, 3 n, 3 n, c): every pixel becomes 3 x 3 of them."""
    b, n, _, c = h.shape
    return h.reshape(b, n, n, 3, 3, c // 9).swapaxes(2, 3).reshape(b, 3 * n, 3 * n, c // 9)


def shrink(h):
    """(b, 3 n, 3 n, c) to (b, n, n, 9 c), the inverse."""
    b, n, _, c = h.shape
    return h.reshape(b, n // 3, 3, n // 3, 3, c).swapaxes(2, 3).reshape(b, n // 3, n // 3, 9 * c)


class UNet(nn.Module):
    """x (b, 63, 63) from y (b, 21, 21)."""

    width: int = 12

    @nn.compact
    def __call__(self, y):
        w = self.width
        flux = y.sum((1, 2))[:, None, None]
        light = 30.0 * y / flux
        faint = jnp.broadcast_to(jnp.log(flux / 2500.0), y.shape)
        h = jnp.stack([light, jnp.arcsinh(y / noise) / 3.0, faint], -1)
        fine = nn.gelu(nn.Conv(w, (3, 3))(h))
        coarse = nn.gelu(nn.Dense(4 * w)(shrink(fine)))
        whole = nn.gelu(nn.Dense(8 * w)(coarse.reshape(len(y), -1)))
        whole = nn.gelu(nn.Dense(8 * w)(whole))
        whole = nn.gelu(nn.Dense(7 * 7 * 2 * w)(whole)).reshape(-1, 7, 7, 2 * w)
        coarse = nn.gelu(nn.Conv(4 * w, (3, 3))(jnp.concatenate([coarse, whole], -1)))
        up = enlarge(nn.gelu(nn.Dense(9 * w)(coarse)))
        fine = nn.gelu(nn.Conv(2 * w, (3, 3))(jnp.concatenate([fine, up], -1)))
        detail = enlarge(nn.Conv(9, (1, 1))(fine))[..., 0]
        blurred = jax.image.resize(light, detail.shape, "cubic")
        return (blurred + detail) * flux / 270.0


def minus_psnr(params, x, y):
    """Minus the mean PSNR of a batch in dB, up to a constant: bright galaxies do not rule it."""
    error = jnp.mean((UNet().apply(params, y) - x) ** 2, axis=(1, 2))
    return 10 * jnp.mean(jnp.log10(error / x.max(axis=(1, 2)) ** 2))


# Each training galaxy in four turns, and what the telescope sees of it.
half = jnp.concatenate([train_x, train_x[:, ::-1]])
pairs_x = jnp.concatenate([half, half.swapaxes(1, 2)])
rng = np.random.default_rng(21)
eps = rng.standard_normal((len(pairs_x), 21, 21), np.float32)


def draw(leaf):
    """LeCun's start of a kernel, zeros for a bias; JAX would take 2 s to compile this."""
    fan_in = leaf.size // leaf.shape[-1]
    scale = 1 / np.sqrt(fan_in) if len(leaf.shape) > 1 else 0.0
    return np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)


unet_fit = fit(
    minus_psnr,
    jax.tree.map(draw, jax.eval_shape(UNet().init, jax.random.key(0), jnp.zeros((1, 21, 21)))),
    (pairs_x, observe(pairs_x) + noise * eps),
    key=jax.random.key(19),
    optimizer=optax.adam(optax.warmup_cosine_decay_schedule(0.0, 8e-3, 20, 200)),
    steps=200,
    batch_size=32,
    label="U-Net",
)
unet = jax.jit(partial(UNet().apply, unet_fit.params))
restored["U-Net"] = unet(test_y)
print(f"U-Net: median PSNR {np.median(photometry.psnr(restored['U-Net'], test_x)):.1f} dB")

# %% [markdown]
# On the telescope it was trained for, it does well. Now the same galaxies on a night with a seeing of 1.0 arcsec, and on a short exposure, with three times the noise. Both methods get the same data. The posterior is told about the night, because the telescope and the noise are in
# the likelihood; in the network they are in the weights, where nobody can change them.

# %% alt="Rows: the observation of five galaxies with a seeing of 1.0 arcsec, what the U-Net makes of it, what the learned prior makes of it, and the truth. The U-Net's galaxies are too large and too faint in the middle; those of the prior have the size of the truth."
poor_kernel = telescope.difference_kernel(telescope.moffat(fwhm=1.0))
poor = jax.tree_util.Partial(telescope.apply, telescope.operator(poor_kernel))
some = np.concatenate([shown, np.setdiff1d(np.arange(45), shown)[:35]])
nights = {
    "seeing 1.0 arcsec": (poor, noise),
    "three times the noise": (observe, 3 * noise),
}
by_night = {}
for i, (name, (night, sigma)) in enumerate(nights.items()):
    eps = np.random.default_rng(22 + i).standard_normal((40, 21, 21), np.float32)
    y = night(test_x[some]) + sigma * eps
    variance = np.full(y.shape, sigma**2, np.float32)
    z = most_probable(25, y, variance, night, count=1)
    images = {"U-Net": unet(y), "deep prior": decode(prior, z)}
    by_night[name] = y, images
    for method, x in images.items():
        per_pixel, _ = surprise(y, night(x), variance)
        print(
            f"{name:22s} {method:10s} median PSNR {np.median(photometry.psnr(x, test_x[some])):.1f} dB, "
            f"χ² per pixel {np.median(per_pixel):.2f}"
        )
y, images = by_night["seeing 1.0 arcsec"]
figures.stamps(
    {"seen": y[:5], **{name: x[:5] for name, x in images.items()}, "truth": test_x[shown]}
)

# %% [markdown]
# The network has answered another question, and its output does not say so: its galaxies are too large on the night with poor seeing. $\chi^2$ finds the wrong PSF, because it is computed with the right forward model. It does not find the wrong noise: there the network is worse than the prior with a $\chi^2$ as good.
#
# ## 8 · When not to believe it
#
# A restoration under a learned prior looks like a galaxy, even when the sky does not. There are three places to look before believing it.
#
# - **The residuals.** What the prior cannot write stays in the data: $\chi^2$ of exercise 06.6 is too large.
# - **A matched filter.** $\chi^2$ spreads a misfit over all pixels. A small one is seen better by asking, at each pixel, how many standard deviations of a point source are left over.
# - **The prior.** If a strange image can be written at all, then with a latent that no galaxy has: $\log p(z)$ is far lower than that of ordinary restorations.


# %%
def point_source(residual, variance):
    """Significance (n, k, k) of a point source at each pixel of residuals (n, k, k), in sigma."""
    middle = len(star) // 2
    part = slice(middle - 30, middle + 31, telescope.FACTOR)
    spot = telescope.FACTOR**2 * star[part, part][None, ::-1, ::-1]  # on survey pixels
    weight = np.where(np.isfinite(variance), 1 / variance, 0.0)
    match = signal.fftconvolve(residual * weight, spot, mode="same", axes=(1, 2))
    norm = signal.fftconvolve(weight, spot**2, mode="same", axes=(1, 2))
    return match / np.sqrt(norm)


# %% [markdown]
# Four cases: a galaxy as the prior knows them; the same with a bright clump, 15 % of its flux, 1.3 arcsec from its centre, perhaps a supernova; two galaxies about to merge; and a bright ring.

# %% alt="Four rows, five columns: observation, restoration, truth, residual and significance of a point source. The plain galaxy has no structure in its residual. With the clump the restoration is a cross of arms, and the filter has a bright spot at the clump. The merger has hardly any pattern in its residual, but its restoration is grainy. The ring leaves a pattern."
place = galaxies.PIXEL * (np.arange(63) - 31)
column, row = place[None, :], place[:, None]
width = galaxies.RESOLUTION / np.sqrt(8 * np.log(2))
structure = arms + test.clump_fraction.sum(axis=1) + test.bar_fraction
usual = np.abs(test.magnitude - 21.6) + np.abs(test.radius - 0.4) / 0.1
plain = np.asarray(test_x[np.argmin(10 * structure + usual)])
spot = np.exp(-0.5 * ((column - 1.1) ** 2 + (row + 0.7) ** 2) / width**2)
clump = plain + 0.15 * plain.sum() * spot / spot.sum()
merger = np.roll(plain, (4, 6), (0, 1)) + np.roll(plain.T, (-6, -6), (0, 1))
ring = np.exp(-0.5 * ((np.hypot(column, 1.5 * row) - 1.0) / 0.12) ** 2)
ring = galaxies.to_flux(20.5) * ring / ring.sum()
odd_x = np.stack([plain, clump, merger, ring]).astype(np.float32)
odd_variance = np.full((4, 21, 21), noise**2, np.float32)
odd_y = telescope.observe_noisy(jax.random.key(11), odd_x, kernel, odd_variance)
odd_z = most_probable(12, odd_y, odd_variance, count=10)
odd_restored = decode(prior, odd_z)
odd_seen = observe(odd_restored)
odd_chi2, odd_excess = surprise(odd_y, odd_seen, odd_variance)
residual = np.asarray(odd_y - odd_seen)
significance = point_source(residual, np.asarray(odd_variance))
names = ("as trained", "with a clump", "a merger", "a ring")
panels = zip(odd_y, odd_restored, odd_x, residual / noise, significance, strict=True)
notes = [f"χ²/pixel {c:.2f}, {e:+.1f}σ" for c, e in zip(odd_chi2, odd_excess, strict=True)]
figures.doubt(dict(zip(names, panels, strict=True)), dict(zip(names, notes, strict=True)))

# %% tags=["verdict"]
log_prob = jax.jit(galaxy_prior.GalaxyPrior.log_prob)
odd_log_p, log_p = np.split(log_prob(prior, np.concatenate([odd_z, test_z])), [4])
typical = np.quantile(log_p, [0.01, 0.5])
usual_points = point_source(np.asarray(test_y - observe(restored["deep prior"])), test_variance)
usual_points = np.quantile(usual_points.max(axis=(1, 2)), 0.99)
print(
    f"200 restorations: log p(z) median {typical[1]:.0f}, 1 % below {typical[0]:.0f}; "
    f"strongest point in the residual, 1 % above {usual_points:.1f} sigma"
)
for i, name in enumerate(names):
    strongest = significance[i].max()
    print(
        f"{name:13s} χ² {odd_excess[i]:+5.1f} sigma, strongest point {strongest:4.1f} sigma, "
        f"log p(z) {odd_log_p[i]:7.1f}"
    )
verdict("galaxy as trained: excess of χ²", odd_excess[0], low=-3, high=3, unit="sigma")
verdict(
    "strange galaxies: log p(z) below the lowest 1 % of restorations, smallest gap",
    (typical[0] - odd_log_p[1:]).min(),
    low=10,
    unit="nats",
)

# %% [markdown]
# The merger is the lesson here. Its $\chi^2$ is hardly above what noise alone gives, and the image is wrong. With 32 numbers a decoder can be bent into many shapes; what it writes there looks grainy, because nobody has ever trained it there. Only the prior says how far from all galaxies this is.

# %% [markdown] think=true
# **Think.** One alarm rings when the data contradict the restoration, the other when the restoration contradicts the prior. Is there an error at which both stay silent?
#
# Answer: Yes: anything that the telescope blurs away. If the prior had only seen spirals that wind to the left, it would draw an unresolved one winding to the left, with a perfect $\chi^2$ and a high $p(z)$. Residuals test what
# the data can see, and $p(z)$ tests what the training set has. For the rest you must trust the training set, or give a *range* of answers in place of one.

# %% [markdown]
# ## 9 · Real galaxies
#
# **Hubble, degraded.** Twelve galaxies of the COSMOS field brighter than magnitude 23.5 were seen by Hubble. We bring each to the resolution of this lesson, and take that for the truth (it has noise of its own, which sets a ceiling to the PSNR, and small stamps: outside of them nothing is known, and nothing is scored). Then we observe it with the telescope on the
# ground. Nothing here was trained on a real galaxy.

# %% alt="Twelve Hubble galaxies in two blocks, with a row each: as seen from the ground, the covariance Wiener filter, the learned prior, and the Hubble image, with the PSNR of the two methods written on each. The learned prior gains on most; on irregular galaxies it loses."
try:
    hst = real_galaxies.load_hst(limit=23.5)
    print(
        f"{len(hst.images)} Hubble galaxies, magnitudes {hst.magnitude.min():.1f} to {hst.magnitude.max():.1f}"
    )
except CourseError as trouble:
    hst = None
    print(trouble)

if hst is not None:
    hst_y = telescope.observe_noisy(jax.random.key(13), hst.images, kernel, noise**2)
    hst_variance = np.full(hst_y.shape, noise**2, np.float32)
    hst_z = most_probable(14, hst_y, hst_variance, count=3)
    hst_restored = decode(prior, hst_z)
    hst_linear = restore_gaussian(hst_y, gaussian, best_strength)
    hst_psnr = {}
    for name, images in {"Wiener": hst_linear, "prior": hst_restored}.items():
        square = np.where(hst.valid, np.asarray(images) - hst.images, 0.0) ** 2
        mean = square.sum(axis=(1, 2)) / hst.valid.sum(axis=(1, 2))
        hst_psnr[name] = 10 * np.log10(hst.images.max(axis=(1, 2)) ** 2 / mean)
    ceiling = 20 * np.log10(hst.images.max(axis=(1, 2)) / hst.noise)
    hst_chi2, hst_excess = surprise(hst_y, observe(hst_restored), hst_variance)
    figures.stamps(
        {"seen": hst_y, "Wiener": hst_linear, "prior": hst_restored, "Hubble": hst.images},
        {
            "Wiener": [f"{value:.1f} dB" for value in hst_psnr["Wiener"]],
            "prior": [f"{value:.1f} dB" for value in hst_psnr["prior"]],
            "seen": [f"{value:.1f} mag" for value in hst.magnitude],
        },
        width=1.45,
        columns=6,
    )

    gain = np.asarray(hst_psnr["prior"] - hst_psnr["Wiener"])
    print(
        f"Real galaxies, gain of the learned prior over the Wiener filter: median {np.median(gain):+.1f} dB"
    )
    for i in np.argsort(gain):
        word = "loses" if gain[i] < 0 else "gains"
        print(
            f"  {hst.ident[i]}, {hst.magnitude[i]:.1f} mag: {word} {abs(gain[i]):4.1f} dB, "
            f"χ² per pixel {hst_chi2[i]:.2f} ({hst_excess[i]:+.1f} sigma), ceiling {ceiling[i]:.0f} dB"
        )

# %% [markdown]
# Where it loses, $\chi^2$ is as good as where it gains: both images fit the data, and residuals cannot tell which of two that fit is nearer to the truth. The simulator draws smooth discs with arms and clumps, and many of the real galaxies above are patchier. Whoever wants to use such a prior on the sky trains
# it on the sky.
#
# **Subaru.** At last an image whose truth nobody knows: a galaxy of about magnitude 20.6 from Hyper Suprime-Cam, in the i band, with its own PSF, its own variance map, and neighbours that are masked.

# %% alt="Four panels: the Subaru image with masked pixels in grey, the restored galaxy, the restoration as Subaru would see it, and the residual in units of the noise, with patches of one sign, the strongest at the edge of the mask."
try:
    cut = real_galaxies.cut_out(real_galaxies.load_hsc())
    hsc_kernel = telescope.difference_kernel(cut.psf, telescope.SURVEY_PIXEL)
    hsc = jax.tree_util.Partial(telescope.apply, telescope.operator(hsc_kernel))
    hsc_y, hsc_variance = (jnp.asarray(a, jnp.float32)[None] for a in (cut.image, cut.variance))
    hsc_z = most_probable(15, hsc_y, hsc_variance, hsc, count=40)
    hsc_restored = decode(prior, hsc_z)
    hsc_seen = hsc(hsc_restored)
    hsc_chi2, _ = surprise(hsc_y, hsc_seen, hsc_variance)
    outside = ~np.isfinite(cut.variance)
    print(
        f"Subaru: χ² per pixel {hsc_chi2[0]:.1f}, magnitude {31.4 - 2.5 * np.log10(hsc_restored.sum()):.1f}, "
        f"log p(z) {prior.log_prob(hsc_z)[0]:.0f}"
    )
    figures.real(
        {
            "Subaru": np.where(outside, np.nan, cut.image),
            "restored": hsc_restored[0],
            "as Subaru sees it": hsc_seen[0],
        },
        np.where(outside, np.nan, (cut.image - hsc_seen[0]) / np.sqrt(cut.variance)),
        f"χ²/pixel {hsc_chi2[0]:.1f}",
    )
except CourseError as trouble:
    print(trouble)

# %% [markdown]
# The galaxy is bright, a few hundred times the noise at its peak, and $\chi^2$ says that no galaxy of this prior explains it: light of the masked neighbours at the rim, errors of the measured PSF and a prior of simple profiles all have their share. A survey would treat the number as a warning about the model, and
# would not quote error bars from it.
#
# ## 10 · The same 200 galaxies
#
# Every method, every galaxy, the same data. Size is the half-light radius; bias is the median of estimate over truth, minus one.

# %% tags=["verdict"]
psnr = {name: photometry.psnr(images, test_x) for name, images in restored.items()}
truth = photometry.measure(test_x)
print(f"{'method':20s} {'PSNR':>8s} {'χ²/pixel':>9s} {'size bias':>10s} {'flux bias':>10s}")
for name, images in restored.items():
    found = photometry.measure(images)
    per_pixel, _ = surprise(test_y, observe(images), test_variance)
    size, flux = (
        np.nanmedian(getattr(found, field) / getattr(truth, field)) - 1
        for field in ("half_light_radius", "flux")
    )
    print(
        f"{name:20s} {np.median(psnr[name]):5.1f} dB {np.median(per_pixel):9.2f} {size:+10.1%} {flux:+10.1%}"
    )

classical = max(
    (name for name in psnr if name not in ("U-Net", "deep prior")),
    key=lambda name: np.median(psnr[name]),
)
gain = np.asarray(psnr["deep prior"] - psnr[classical])
draws = np.random.default_rng(16).integers(0, len(gain), (2000, len(gain)))
error = np.median(gain[draws], axis=1).std()
verdict(
    f"deep prior over {classical}, median gain in PSNR",
    np.median(gain),
    low=1.0,
    unit="dB",
    error=error,
)

# %% alt="Left: distributions of the PSNR of every method; the deep prior has the highest median. Right: gain of the deep prior over the best classical method against magnitude, above zero for most galaxies; those on which it loses are marked with triangles."
figures.gains(psnr, test.magnitude, classical, "deep prior")

# %% [markdown]
# The learned prior wins over the classical methods by a wide margin in the median, and on some seven of ten galaxies. Where it loses to the Wiener filter, these are mostly faint ones: the filter gives a posterior *mean*, which has the least squared error, ours is a mode. The U-Net, which was trained for this error, this PSF and this noise, comes close, and its sizes are better; it pays on other nights.
#
# ## 11 · Slide the strength of a prior
#
# The Wiener filter of one galaxy, with a prior that is trusted more and more, to the right. Where does $\chi^2$ per pixel pass 1, and is that where the PSNR is best?

# %% tags=["widget"] alt="Three images of one galaxy: as seen, restored with the present strength of the prior, and the truth; above them the PSNR and chi squared per pixel."
strengths = np.geomspace(1e-3, 1e3, 61, dtype=np.float32)
one_y, one_x = (np.repeat(a[shown[2:3]], 61, axis=0) for a in (test_y, test_x))
tried = restore_gaussian(one_y, gaussian, strengths[:, None])
quality = photometry.psnr(tried, one_x)
fit_of, _ = surprise(one_y, observe(tried), np.full(one_y.shape, noise**2, np.float32))
notes = [f"PSNR {q:.1f} dB, χ² per pixel {c:.2f}" for q, c in zip(quality, fit_of, strict=True)]
widgets.explore_strength(strengths, tried, notes, one_y[0] / 9, one_x[0], start=1.0)

# %% [markdown]
# ## 12 · Summary
#
# - A restoration is the answer to two questions: what do the data say, and what did you believe before? Without the second there is no answer, only amplified noise.
# - The Wiener filter is the exact posterior mean of a Gaussian prior. Total variation and wavelets are priors too, of edges and of sparse details. Galaxies are neither flat patches nor sparse.
# - A learned prior is stronger than all of these, and cheap to use: 33 numbers in place of 3,969. It stays valid when the telescope changes, because the telescope is in the likelihood. A network trained on pairs has the telescope inside.
# - MAP is one point of a posterior, and smoother than typical ones. See that a descent has ended, and that several starts end together, before you believe in it.
# - A learned prior writes what it knows, and mostly looks convincing. Residuals tell when the data disagree, $p(z)$ when the prior does; nothing tells when neither can.
#
# **Limits.** The prior has learned a simulator, not the sky. Light from outside of the stamp is left out of the model. And one best image has no error bars: that takes the whole posterior of $z$.
#
# **Go further.** Start the 200 descents from `galaxy_prior.rough_start(test_y)`: how many more steps do they need? Search for the maximum in the base $u$ of the flow (`prior.from_base`), where the prior is a standard Gaussian: is it the same image? It need not be,
# because the maximum of a density depends on the coordinates.
#
# ## References
#
# - Aihara et al. 2018, *The Hyper Suprime-Cam SSP survey: overview and survey design*, PASJ 70, S4, [doi:10.1093/pasj/psx066](https://doi.org/10.1093/pasj/psx066)
# - Conselice 2003, *The relationship between stellar light distributions of galaxies and their formation histories*, ApJS 147, 1, [doi:10.1086/375001](https://doi.org/10.1086/375001)
# - Dinh, Sohl-Dickstein & Bengio 2017, *Density estimation using Real NVP*, ICLR, [doi:10.48550/arXiv.1605.08803](https://doi.org/10.48550/arXiv.1605.08803)
# - Kingma & Welling 2014, *Auto-encoding variational Bayes*, ICLR, [doi:10.48550/arXiv.1312.6114](https://doi.org/10.48550/arXiv.1312.6114)
# - Lanusse, Mandelbaum, Ravanbakhsh, Li, Freeman & Póczos 2021, *Deep generative models for galaxy image simulations*, MNRAS 504, 5543, [doi:10.1093/mnras/stab1214](https://doi.org/10.1093/mnras/stab1214)
# - Leauthaud et al. 2007, *Weak gravitational lensing with COSMOS: galaxy selection and shape measurements*, ApJS 172, 219, [doi:10.1086/516598](https://doi.org/10.1086/516598)
# - Magain, Courbin & Sohy 1998, *Deconvolution with correct sampling*, ApJ 494, 472, [doi:10.1086/305187](https://doi.org/10.1086/305187)
# - Mandelbaum, Hirata, Leauthaud, Massey & Rhodes 2012, *Precision simulation of ground-based lensing data using observations from space*, MNRAS 420, 1518, [doi:10.1111/j.1365-2966.2011.20138.x](https://doi.org/10.1111/j.1365-2966.2011.20138.x)
# - Melchior et al. 2018, *SCARLET: source separation in multi-band images by constrained matrix factorization*, Astronomy and Computing 24, 129, [doi:10.1016/j.ascom.2018.07.001](https://doi.org/10.1016/j.ascom.2018.07.001)
# - Ronneberger, Fischer & Brox 2015, *U-Net: convolutional networks for biomedical image segmentation*, MICCAI, [doi:10.48550/arXiv.1505.04597](https://doi.org/10.48550/arXiv.1505.04597)
# - Rowe et al. 2015, *GalSim: the modular galaxy image simulation toolkit*, Astronomy and Computing 10, 121, [doi:10.1016/j.ascom.2015.02.002](https://doi.org/10.1016/j.ascom.2015.02.002)
# - Rudin, Osher & Fatemi 1992, *Nonlinear total variation based noise removal algorithms*, Physica D 60, 259, [doi:10.1016/0167-2789(92)90242-F](https://doi.org/10.1016/0167-2789%2892%2990242-F)
# - Starck, Murtagh & Bertero 2015, *Starlet transform in astronomical data processing*, Handbook of Mathematical Methods in Imaging, [doi:10.1007/978-1-4939-0790-8_34](https://doi.org/10.1007/978-1-4939-0790-8_34)
# - Wiener 1949, *Extrapolation, interpolation, and smoothing of stationary time series*, MIT Press

# %%
progress()
