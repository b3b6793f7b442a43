"""A learned prior over galaxy images: a decoder of latent variables, and their learned density.

A galaxy is a latent vector z of `DIM` numbers. The last one is its magnitude in the stamp,
(m - 22.75) / 0.75; the others are the shape. The decoder turns the shape into a share of the flux
for each pixel, by a softmax: an image is positive, and its sum is the flux. The shape latents are
those of a variational auto-encoder (Kingma & Welling 2014, arXiv:1312.6114), trained on galaxies
of `datasets.galaxies`. It pulls them towards a standard Gaussian and does not get them there, so a
flow of affine couplings (Dinh et al. 2017, arXiv:1605.08803) has learned the density of z that the
galaxies really have: z = flow(u) with u standard Gaussian.

All layers are dense. On a CPU the gradient of a convolutional decoder takes ten times as long.
``scripts/train_galaxy_prior.py`` makes the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from dlcourse_utils import registry, telescope, weights
from dlcourse_utils.datasets import galaxies
from dlcourse_utils.datasets.galaxies import SIZE, ZERO_POINT, Galaxies
from dlcourse_utils.errors import CourseError
from dlcourse_utils.weights import Params

SHAPE = 32  # latents of the shape
DIM = SHAPE + 1  # and one of the magnitude
VERSION = 1  # of the file

# Noise of Hubble's COSMOS images at the course's pixels and resolution: of the sky, nJy, and of the
# galaxy's own light, nJy^2 per nJy (an electron in a second is 152.8 nJy; exposure 2028 s).
HUBBLE_SKY, HUBBLE_SHOT = 1.0, 152.8 / 2028.0

_MAGNITUDE = (22.75, 0.75)  # zero and unit of its latent
_PIXELS = SIZE * SIZE
_SEED = 6  # of the galaxies it is trained on
_COUPLINGS = 10


class GalaxyPriorError(CourseError):
    """Latents or images that the prior cannot use."""


class Encoder(nn.Module):
    """Shares of flux (n, pixels) to mean and standard deviation of the shape latents."""

    width: int = 384

    @nn.compact
    def __call__(self, shares):
        h = jnp.arcsinh(10.0 * _PIXELS * shares) - 2.0  # about one, from the core to the outskirts
        for _ in range(2):
            h = nn.silu(nn.Dense(self.width)(h))
        mean, raw = jnp.split(nn.Dense(2 * SHAPE)(h), 2, axis=-1)
        return mean, jnp.exp(raw - 2.0)


class Decoder(nn.Module):
    """Shape latents (n, SHAPE) to the logarithm of shares of flux (n, pixels)."""

    width: int = 256

    @nn.compact
    def __call__(self, z):
        h = nn.silu(nn.Dense(self.width)(z))
        h = h + nn.silu(nn.Dense(self.width)(h))
        return jax.nn.log_softmax(nn.Dense(_PIXELS, kernel_init=nn.initializers.normal(0.02))(h))


class Coupling(nn.Module):
    """Shift and logarithm of scale, each (n, DIM // 2), from the latents that a coupling keeps."""

    width: int = 128

    @nn.compact
    def __call__(self, kept):
        h = nn.silu(nn.Dense(self.width)(kept))
        h = nn.silu(nn.Dense(self.width)(h))
        start = nn.initializers.normal(0.01)
        shift, raw = jnp.split(nn.Dense(2 * (DIM // 2), kernel_init=start)(h), 2, axis=-1)
        return shift, 2.0 * jnp.tanh(0.5 * raw)  # no scale beyond e^2 in one layer


# Which latents a coupling keeps and which it moves: a shuffle before each, always the same.
_ORDERS = np.stack([np.random.default_rng(i).permutation(DIM) for i in range(_COUPLINGS)])
_KEPT = DIM - DIM // 2


def flow(couplings: Params, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z (n, DIM) of u (n, DIM), and the logarithm of |det dz/du| (n,).

    ``couplings`` are those of a prior, ``prior.params["flow"]``, or of a flow that started as a
    copy of it; their weights are stacked on the first axis.
    """

    # A loop is compiled once, in place of ten copies of its body.
    def layer(carry, coupling):
        u, log_det = carry
        weights, order = coupling
        u = u[:, order]
        shift, log_scale = Coupling().apply(weights, u[:, :_KEPT])
        moved = u[:, _KEPT:] * jnp.exp(log_scale) + shift
        z = jnp.concatenate([u[:, :_KEPT], moved], axis=-1)
        return (z, log_det + log_scale.sum(axis=-1)), None

    return jax.lax.scan(layer, (u, jnp.zeros(len(u))), (couplings, _ORDERS))[0]


def inverse_flow(couplings: Params, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `flow`: u (n, DIM) of z, and the logarithm of |det du/dz| (n,)."""

    def layer(carry, coupling):
        z, log_det = carry
        weights, back = coupling
        shift, log_scale = Coupling().apply(weights, z[:, :_KEPT])
        moved = (z[:, _KEPT:] - shift) * jnp.exp(-log_scale)
        z = jnp.concatenate([z[:, :_KEPT], moved], axis=-1)[:, back]
        return (z, log_det - log_scale.sum(axis=-1)), None

    layers = couplings, np.argsort(_ORDERS, axis=1)
    return jax.lax.scan(layer, (z, jnp.zeros(len(z))), layers, reverse=True)[0]


class GalaxyPrior(NamedTuple):
    """The prior with its weights, a tree of arrays: give it to a jitted function as an argument.

    Every function takes a batch, z or u (n, DIM) or images (n, SIZE, SIZE) in nJy, and raises
    `GalaxyPriorError` for another shape.
    """

    params: Params

    def decode(self, z: jax.Array) -> jax.Array:
        """Images (n, SIZE, SIZE), nJy in each pixel, of latents z (n, DIM)."""
        _check(z, (DIM,), "z")
        log_shares = Decoder().apply(self.params["decoder"], z[:, :SHAPE])
        zero, unit = _MAGNITUDE
        log_flux = 0.4 * np.log(10.0) * (ZERO_POINT - zero - unit * z[:, SHAPE:])
        return jnp.exp(log_shares + log_flux).reshape(-1, SIZE, SIZE)

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Log density (n,) of latents z (n, DIM), in nats."""
        u, log_det = self.to_base(z)
        return -0.5 * jnp.sum(u**2, axis=-1) - 0.5 * DIM * np.log(2.0 * np.pi) + log_det

    def to_base(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """u (n, DIM), Gaussian under the prior, of latents z, and log |det du/dz| (n,)."""
        _check(z, (DIM,), "z")
        return inverse_flow(self.params["flow"], z)

    def from_base(self, u: jax.Array) -> jax.Array:
        """Latents z (n, DIM) of u (n, DIM)."""
        _check(u, (DIM,), "u")
        return flow(self.params["flow"], u)[0]

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """n latents z (n, DIM) drawn from the prior."""
        return self.from_base(jax.random.normal(key, (n, DIM)))

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation, both (n, DIM), of the latents of sharp images without noise.

        The encoder has been trained for galaxies at Hubble's depth, of magnitude 21.5: the standard
        deviation is that of the shape known so well. That of the magnitude is zero.
        """
        _check(images, (SIZE, SIZE), "images")
        flux = images.sum(axis=(1, 2))[:, None]
        mean, std = Encoder().apply(self.params["encoder"], images.reshape(-1, _PIXELS) / flux)
        zero, unit = _MAGNITUDE
        magnitude = (ZERO_POINT - 2.5 * jnp.log10(flux) - zero) / unit
        return (
            jnp.concatenate([mean, magnitude], axis=-1),
            jnp.concatenate([std, jnp.zeros_like(flux)], axis=-1),
        )


def _check(batch: jax.Array, shape: tuple[int, ...], name: str) -> None:
    if batch.ndim != 1 + len(shape) or batch.shape[1:] != shape:
        sizes = ", ".join(str(size) for size in shape)
        raise GalaxyPriorError(
            f"{name} must have shape (n, {sizes}), got {batch.shape}: give a batch, {name}[None] "
            "for a single one."
        )


def training_set() -> Galaxies:
    """The 40,960 galaxies whose images the shipped weights have been trained on."""
    return galaxies.population(jax.random.key(_SEED), 40_960)


def hubble_variance(images: jax.Array) -> jax.Array:
    """Variance in nJy^2 of each pixel of images in nJy at the depth of Hubble's COSMOS survey."""
    return HUBBLE_SKY**2 + HUBBLE_SHOT * images


@jax.jit
def _minus_log_posterior(z, prior, y, variance, operator):
    def of(z):
        mean = telescope.apply(operator, prior.decode(z[None])[0])
        return 0.5 * jnp.sum((y - mean) ** 2 / variance) - prior.log_prob(z[None])[0]

    return jax.value_and_grad(of)(z)


def rough_start(y: jax.Array, variance: jax.Array | None = None) -> np.ndarray:
    """Latents z (n, DIM) from which to look for the galaxies in y (n, 21, 21): an average shape
    with the flux of the image.

    A pixel whose ``variance`` (n, 21, 21) or (21, 21) is infinite, or whose y is not finite, is
    masked: in the flux it counts with the mean of the others at its distance from the centre.
    """
    y, zero, unit = np.asarray(y), *_MAGNITUDE
    used = np.isfinite(y) if variance is None else np.isfinite(y) & np.isfinite(variance)
    if not used.all():
        y = np.stack([_fill(*image) for image in zip(y, used, strict=True)])
    flux = np.maximum(y.sum(axis=(1, 2)), 1.0)
    start = np.zeros((len(flux), DIM), np.float32)
    start[:, SHAPE] = (ZERO_POINT - 2.5 * np.log10(flux) - zero) / unit
    return start


def _fill(y: np.ndarray, used: np.ndarray) -> np.ndarray:
    """An image (s, s) with the mean profile of its ``used`` pixels where the others are."""
    axis = np.arange(len(y)) - len(y) // 2
    ring = np.rint(np.hypot(*np.meshgrid(axis, axis))).astype(int)
    count = np.bincount(ring[used], minlength=ring.max() + 1)
    known = count > 0
    if not known.any():
        return np.zeros_like(y)
    total = np.bincount(ring[used], y[used], minlength=len(count))
    profile = np.interp(np.arange(len(count)), np.flatnonzero(known), total[known] / count[known])
    return np.where(used, y, profile[ring].astype(y.dtype))


def most_probable(
    prior: GalaxyPrior,
    y: jax.Array,
    variance: jax.Array,
    operator: jax.Array,
    start: jax.Array,
    iterations: int = 500,
) -> tuple[np.ndarray, float]:
    """A mode of the posterior of one galaxy: its latent z (DIM,), and -log posterior there.

    y and ``variance`` (21, 21), ``operator`` as in `telescope.operator`, ``start`` (DIM,). By
    SciPy's L-BFGS-B, in at most so many ``iterations``. There can be other modes, from other
    starts. The value lacks the constants of the likelihood. Raises `telescope.TelescopeError` for
    an observation that cannot be fitted.
    """
    telescope.check_observation(y, variance)

    def objective(z):
        value, slope = _minus_log_posterior(z.astype(np.float32), prior, y, variance, operator)
        return float(value), np.asarray(slope, dtype=float)

    found = optimize.minimize(
        objective,
        np.asarray(start, float),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations},
    )
    return found.x.astype(np.float32), float(found.fun)


def init(key: jax.Array) -> Params:
    """Untrained weights."""
    encoder, decoder, couplings = jax.random.split(key, 3)
    return {
        "encoder": Encoder().init(encoder, jnp.zeros((1, _PIXELS))),
        "decoder": Decoder().init(decoder, jnp.zeros((1, SHAPE))),
        "flow": jax.vmap(lambda key: Coupling().init(key, jnp.zeros((1, _KEPT))))(
            jax.random.split(couplings, _COUPLINGS)
        ),
    }


def save(path: Path, params: Params, provenance: str) -> None:
    """Write weights as .npz in half precision, with the version and where they come from."""
    weights.save(path, params, VERSION, provenance, np.float16)


def load(path: Path | None = None) -> GalaxyPrior:
    """The prior with the shipped weights, unless a ``path`` is given.

    Raises `weights.WeightsError` if the file cannot be used, `registry.RegistryError` if the
    shipped file is damaged.
    """
    path = registry.path("galaxy_prior.npz") if path is None else path
    params = weights.load(
        path, lambda: init(jax.random.key(0)), VERSION, "scripts/train_galaxy_prior.py"
    )
    return GalaxyPrior(params)
