"""Posteriors tabulated on a grid: the reference answers the lessons are scored against.

A tabulated posterior is ``log_p``, shape (n, g): for each of n objects the log density at g
equally spaced points ``grid`` (g,). Integrals are trapezoidal, which for a smooth density that
vanishes at both ends converges faster than any power of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

LogDensity = Callable[[jax.Array, jax.Array], jax.Array]
_BLOCK = 2000


def _step(grid: jax.Array) -> jax.Array:
    return (grid[-1] - grid[0]) / (grid.shape[0] - 1)


@jax.jit
def normalise(log_p: jax.Array, grid: jax.Array) -> jax.Array:
    """Subtract the log of the integral over the grid; log_p is (n, g), its result too."""
    peak = jnp.max(log_p, axis=-1, keepdims=True)
    integral = jnp.trapezoid(jnp.exp(log_p - peak), dx=_step(grid), axis=-1)
    return log_p - peak - jnp.log(integral)[:, None]


def tabulate(log_density: LogDensity, features: jax.Array, grid: jax.Array) -> jax.Array:
    """``log_density`` of every row of ``features`` (n, d) at every value of ``grid`` (g,); (n, g).

    ``log_density(features, value)`` takes (k, 1, d) and (1, g) and returns (k, g), in nats.
    """
    # In blocks, so that the integrals inside a likelihood do not fill the memory.
    n = features.shape[0]
    size = min(_BLOCK, n)
    blocks = -(-n // size)
    padded = jnp.pad(features, ((0, blocks * size - n), (0, 0)), mode="edge")
    table = _tabulate_blocks(log_density, padded.reshape(blocks, size, -1), grid)
    return table.reshape(blocks * size, -1)[:n]


@partial(jax.jit, static_argnums=0)
def _tabulate_blocks(log_density, blocks, grid):
    return jax.lax.map(lambda block: log_density(block[:, None, :], grid[None, :]), blocks)


@jax.jit
def log_prob_at(log_p: jax.Array, grid: jax.Array, value: jax.Array) -> jax.Array:
    """Log density of each row at its own ``value`` (n,), inside the grid; (n,), in nats.

    Cubic interpolation through four neighbours: for a Gaussian five grid steps wide the error is
    below 1e-4 nats. Needs finite values there.
    """
    position = (value - grid[0]) / _step(grid)
    first = jnp.clip(jnp.floor(position).astype(jnp.int32) - 1, 0, grid.shape[0] - 4)
    t = position - first  # in units of the step, 1 to 2 away from the ends
    rows = jnp.take_along_axis(log_p, first[:, None] + jnp.arange(4)[None, :], axis=1)
    weights = jnp.stack(
        [
            -(t - 1) * (t - 2) * (t - 3) / 6,
            t * (t - 2) * (t - 3) / 2,
            -t * (t - 1) * (t - 3) / 2,
            t * (t - 1) * (t - 2) / 6,
        ],
        axis=1,
    )
    return jnp.sum(rows * weights, axis=1)


def valley(log_p: jax.Array) -> np.ndarray:
    """Depth of the deepest valley between two peaks of each row, in nats; 0 with one peak; (n,)."""
    table = np.asarray(log_p)
    left = np.maximum.accumulate(table, axis=1)
    right = np.maximum.accumulate(table[:, ::-1], axis=1)[:, ::-1]
    return np.max(np.minimum(left, right) - table, axis=1)


@jax.jit
def cdf(log_p: jax.Array, grid: jax.Array) -> jax.Array:
    """Cumulative probability at every grid point, 0 at the first and 1 at the last; (n, g)."""
    density = jnp.exp(log_p - jnp.max(log_p, axis=-1, keepdims=True))
    pieces = 0.5 * (density[:, 1:] + density[:, :-1])
    total = jnp.pad(jnp.cumsum(pieces, axis=-1), ((0, 0), (1, 0)))
    return total / total[:, -1:]


@jax.jit
def cdf_at(log_p: jax.Array, grid: jax.Array, value: jax.Array) -> jax.Array:
    """Probability below ``value`` (n,) under each row: the PIT values, (n,)."""
    return jax.vmap(lambda v, row: jnp.interp(v, grid, row))(value, cdf(log_p, grid))


@jax.jit
def mean_and_std(log_p: jax.Array, grid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each row, both (n,), in the units of the grid."""
    p = jnp.exp(normalise(log_p, grid))
    mean = jnp.trapezoid(p * grid[None, :], dx=_step(grid), axis=-1)
    deviation = grid[None, :] - mean[:, None]
    variance = jnp.trapezoid(p * deviation**2, dx=_step(grid), axis=-1)
    return mean, jnp.sqrt(variance)


@jax.jit
def quantile(log_p: jax.Array, grid: jax.Array, level: float) -> jax.Array:
    """The value below which lies a probability ``level`` of each row; (n,)."""
    return jax.vmap(lambda row: jnp.interp(level, row, grid))(cdf(log_p, grid))
