"""A network that takes Gaussian noise from log-normal fields, and its shipped weights.

The fields are those of `datasets.random_fields`, 32 x 32. For a Gaussian field the best denoiser is
the Wiener filter W, which multiplies each mode with P / (P + sigma^2). Where a log-normal field is
dense it also varies more, by the factor 1 + delta: there noise of sigma asks for the filter of
less noise, elsewhere for that of more. So the network writes the denoised field as W x plus a
correction, which blends Wiener filters of other noise levels pixel by pixel. No filter is blended
with a weight outside of 0 to 1, so a peak higher than all seen in training is not blown up.

``scripts/train_field_denoiser.py`` makes the weights, by denoising score matching.
"""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils import registry, weights
from dlcourse_utils.datasets import random_fields
from dlcourse_utils.errors import CourseError
from dlcourse_utils.weights import Params

SIZE = 32  # pixels of a side
SIGMAS = (0.03, 6.0)  # the noise levels that the weights are trained for
VERSION = 1  # of the file

# Noise levels of the filters that are blended, in units of sigma, and where W itself stands.
_LEVELS = np.array([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
_OWN = 3
# Before training a filter of less noise than sigma counts little, one of more counts fully.
_START = np.array([-3.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 3.0])
_RINGS = 8


class FieldDenoiserError(CourseError):
    """An input cannot be used."""


def _prior(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Power of the log-normal field (n, n), and smooth bumps that cover |k| (rings, n, n/2 + 1)."""
    with jax.ensure_compile_time_eval():
        power = np.asarray(random_fields.log_normal_power(random_fields.power(n)))
    k = 2.0 * np.pi * np.fft.fftfreq(n)
    log_k = np.log(np.maximum(np.hypot(k[:, None], k[None, : n // 2 + 1]), 0.05))
    centres = np.linspace(np.log(0.05), np.log(4.0), _RINGS)
    width = centres[1] - centres[0]
    bumps = np.exp(-0.5 * ((log_k[None] - centres[:, None, None]) / width) ** 2)
    return power, (bumps / bumps.sum(axis=0)).astype(np.float32)


def _check_sigma(sigma: float | jax.Array, n: int) -> None:
    if jnp.size(sigma) not in (1, n):
        raise FieldDenoiserError(
            f"sigma must be one number or one for each of {n} fields, got {jnp.size(sigma)}."
        )
    if isinstance(sigma, jax.core.Tracer):  # in jit its values are not known
        return
    values = np.asarray(sigma, dtype=float)
    bad = values[~((values > 0.0) & (values < np.inf))]
    if bad.size:
        raise FieldDenoiserError(
            f"sigma must be positive and finite, got {bad[0]}: the weights are made for "
            f"{SIGMAS[0]} to {SIGMAS[1]}."
        )


class FieldDenoiser(nn.Module):
    """D(x, sigma), the mean of the field behind x = field + sigma * noise.

    ``apply(params, x, sigma)`` takes x (b, n, n) and one sigma or (b,) of them, and gives
    (b, n, n). The score is (D(x, sigma) - x) / sigma^2. Filters act in Fourier space, all else on
    each pixel alone: on a CPU convolutions of the same reach would take far longer. Many fields are
    denoised fastest in blocks of 16 (``jax.lax.map``), whose channels stay in the cache.

    Raises `FieldDenoiserError` for an x of another shape, for another number of sigmas and, outside
    jit, for a sigma that is not positive and finite.
    """

    width: int = 24
    filtered: int = 8

    @nn.compact
    def __call__(self, x: jax.Array, sigma: float | jax.Array) -> jax.Array:
        if x.ndim != 3 or x.shape[1] != x.shape[2]:
            raise FieldDenoiserError(f"x must have shape (b, n, n), got {x.shape}: give a batch.")
        _check_sigma(sigma, len(x))
        n = x.shape[-1]
        power, bumps = _prior(n)
        half = power[None, None, :, : n // 2 + 1]
        sigma = jnp.asarray(sigma, jnp.float32).reshape(-1)  # (b,), or (1,) for all of them

        def transform(fields, transfer):
            return jnp.fft.irfft2(jnp.fft.rfft2(fields) * transfer, s=(n, n))

        # Channels come first: (channels, b, n, n).
        noise = jnp.asarray(_LEVELS, jnp.float32)[:, None, None, None] * sigma[None, :, None, None]
        smoothed = transform(x[None], half / (half + noise**2))
        ladder = jnp.concatenate([x[None], smoothed])
        bands = ladder[:-1] - ladder[1:]

        # Typical error of W x, (b, 1, 1): the scale of what there is to correct.
        variance = sigma[:, None, None] ** 2
        scale = jnp.sqrt(jnp.mean(power[None] * variance / (power[None] + variance), (1, 2)))
        scale = scale[:, None, None]
        contrast = (1.0 + ladder) / scale[None]
        h = jnp.sign(contrast) * jnp.log1p(jnp.abs(contrast)) - jnp.log1p(1.0 / scale)[None]

        log_sigma = jnp.log(sigma)[:, None]
        level = jnp.concatenate(
            [log_sigma, log_sigma**2 / 4.0, 1.0 / (1.0 + sigma[:, None] ** 2)], 1
        )
        level = nn.silu(nn.Dense(32, name="level_0")(level))
        level = nn.silu(nn.Dense(32, name="level_1")(level))

        def mix(name, h, outputs, size=1.0):
            start = nn.initializers.variance_scaling(size, "fan_out", "normal")
            weights = self.param(name, start, (outputs, len(h)))
            return (weights @ h.reshape(len(h), -1)).reshape(outputs, *h.shape[1:])

        def dense(name, h):
            """A layer for each pixel, with scale and shift by the noise level."""
            factors = nn.Dense(2 * self.width, name=f"{name}_level")(level).T[:, :, None, None]
            return nn.silu(
                mix(name, h, self.width) * (1.0 + factors[: self.width]) + factors[self.width :]
            )

        h = dense("first", h)
        size = (self.filtered, _RINGS)
        rings = self.param("rings", nn.initializers.normal(1.0), size)
        start = nn.initializers.normal(0.05)
        change = nn.Dense(self.filtered * _RINGS, kernel_init=start, name="rings_level")(level)
        rings = rings[None] + change.reshape(-1, *size)
        around = transform(
            mix("narrow", h, self.filtered), jnp.einsum("bcr,rxy->cbxy", rings, bumps)
        )
        h = dense("second", jnp.concatenate([h, around]))

        *gates, shift = mix("last", h, len(_LEVELS) + 1, 1e-4)
        offset = self.param("gates", lambda _: jnp.asarray(_START, jnp.float32))
        weights = nn.sigmoid(jnp.stack(gates) + offset[:, None, None, None])
        of_wiener = jnp.asarray(np.arange(len(_LEVELS)) > _OWN, jnp.float32)[:, None, None, None]
        correction = jnp.sum((weights - of_wiener) * bands, axis=0) + scale * shift
        return smoothed[_OWN] + correction


def _init() -> Params:
    x = jnp.zeros((1, SIZE, SIZE), jnp.float32)
    return FieldDenoiser().init(jax.random.key(0), x, 1.0)


def save(path: Path, params: Params, provenance: str) -> None:
    """Write weights as .npz in single precision, with the version and where they come from."""
    weights.save(path, params, VERSION, provenance)


def load(path: Path | None = None) -> Params:
    """The weights of `FieldDenoiser`, the shipped ones unless a ``path`` is given.

    Raises `weights.WeightsError` if the file cannot be used, `registry.RegistryError` if the
    shipped file is damaged.
    """
    path = registry.path("field_denoiser.npz") if path is None else path
    return weights.load(path, _init, VERSION, "scripts/train_field_denoiser.py")
