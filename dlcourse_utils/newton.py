"""Damped Gauss-Newton descents of many small problems at once.

Where minus a log posterior is nearly half a sum of squares, the Jacobian of what is squared gives
its curvature. A step that divides the gradient by the curvature goes far along flat directions and
carefully across steep ones.
Levenberg 1944, Quarterly of Applied Mathematics 2, 164, doi:10.1090/qam/10666; Marquardt 1963,
SIAM Journal 11, 431, doi:10.1137/0111030.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils.errors import CourseError

_WINDOW, _SETTLED = 16, 0.01  # steps, and how little they bring at the end of a descent
_DAMPING = 0.1  # at the start, in units of the curvature along each coordinate
_FLATTEST = 1e-6  # no coordinate counts as flatter than this, in units of the steepest


class NewtonError(CourseError):
    """A descent cannot start."""


class Descents(NamedTuple):
    """Where n descents end: ``z`` (n, d), the objective there ``value`` (n,), and the objective
    after each step ``path`` (steps, n), which never rises; ``settled`` (n,): True where the last 16
    steps have brought less than 0.01. Numpy arrays."""

    z: np.ndarray
    value: np.ndarray
    path: np.ndarray
    settled: np.ndarray


@partial(jax.jit, static_argnums=0)
def _curvature(residuals, z, data, shared):
    def one(row):
        z, data = row
        jacobian = jax.jacfwd(lambda z: residuals(z, *data, *shared))(z)
        return jacobian.T @ jacobian

    return jax.lax.map(one, (z, data))


@partial(jax.jit, static_argnums=(0, 1))
def _step(objective, gradient, state, curvature, data, shared):
    z, value, slope, damping = state
    diagonal = jnp.diagonal(curvature, axis1=1, axis2=2)
    # A coordinate that changes no residual must not make the matrix singular.
    diagonal = jnp.maximum(diagonal, _FLATTEST * diagonal.max(axis=1, keepdims=True))
    damped = curvature + jnp.eye(z.shape[1])[None] * (damping[:, None] * diagonal)[:, None, :]
    factor = jnp.linalg.cholesky(damped)
    move = jax.scipy.linalg.cho_solve((factor, True), slope[:, :, None])[:, :, 0]
    there = z - move
    value_there = objective(there, *data, *shared)
    slope_there = gradient(there, *data, *shared)
    # False for NaN: then the step is not taken.
    down = (value_there < value) & jnp.isfinite(slope_there).all(axis=1)
    return (
        jnp.where(down[:, None], there, z),
        jnp.where(down, value_there, value),
        jnp.where(down[:, None], slope_there, slope),
        jnp.clip(jnp.where(down, damping / 3.0, damping * 4.0), 1e-6, 1e6),
    )


def curvature(
    residuals: Callable[..., jax.Array],
    z: jax.Array,
    data: tuple[jax.Array, ...],
    shared: tuple[Any, ...] = (),
    *,
    batch: int = 40,
) -> np.ndarray:
    """J^T J (n, d, d) of the Jacobian J of ``residuals`` at each row of z (n, d).

    Arguments are those of `minimise`, with which it shares its compilation.
    """
    found = []
    for first in range(0, len(z), batch):
        rows = np.minimum(np.arange(first, first + batch), len(z) - 1)
        part = tuple(jnp.asarray(np.asarray(array)[rows]) for array in data)
        here = jnp.asarray(np.asarray(z, np.float32)[rows])
        found.append(np.asarray(_curvature(residuals, here, part, shared)))
    return np.concatenate(found)[: len(z)]


def minimise(
    objective: Callable[..., jax.Array],
    gradient: Callable[..., jax.Array],
    residuals: Callable[..., jax.Array],
    z: jax.Array,
    data: tuple[jax.Array, ...],
    shared: tuple[Any, ...] = (),
    *,
    steps: int = 45,
    every: int = 5,
    batch: int = 40,
) -> Descents:
    """Descend from each row of z (n, d), each with its own row of the arrays in ``data``.

    ``objective(z, *data, *shared)`` gives (n,) and ``gradient``, of the same arguments, (n, d).
    ``residuals`` gets one row, z (d,) and its data, and gives a vector of which half the square is
    the objective up to terms that vary slowly. Its curvature is renewed ``every`` few steps. A
    batch ends early when all its rows have settled. ``shared`` is a tuple of pytrees. The three
    functions are compiled once for as long as they are the same objects, for ``batch`` rows at a
    time.

    Raises `NewtonError` if shapes do not fit, or if objective or gradient are not finite at a
    start.
    """
    if not (isinstance(steps, int) and isinstance(every, int) and min(steps, every, batch) >= 1):
        raise NewtonError(f"steps, every and batch must be 1 or more: {steps}, {every}, {batch}.")
    z = np.asarray(z, np.float32)
    data = tuple(np.asarray(array) for array in data)
    if z.ndim != 2 or not len(z) or any(a.shape[:1] != z.shape[:1] for a in data):
        shapes = ", ".join(str(array.shape) for array in data)
        raise NewtonError(
            f"z must have shape (n, d), and each array of the data n rows: got {z.shape} and "
            f"{shapes}."
        )
    found = []
    for first in range(0, len(z), batch):
        rows = np.minimum(np.arange(first, first + batch), len(z) - 1)  # the last row fills up
        here, part = jnp.asarray(z[rows]), tuple(jnp.asarray(array[rows]) for array in data)
        # The first step stays where it is, and finds value and gradient there.
        # NumPy's, for arrays of JAX's own `full` would have the step compiled twice.
        far, damping = np.float32([[np.inf], [_DAMPING]]).repeat(batch, axis=1)
        nowhere = (here, far, jnp.zeros_like(here), damping)
        curvature = jnp.zeros((batch, *2 * here.shape[1:])) + jnp.eye(here.shape[1])[None]
        state = _step(objective, gradient, nowhere, curvature, part, shared)
        finite = np.isfinite(state[1])
        if not finite.all():
            raise NewtonError(
                f"Objective or gradient are not finite at start {rows[finite.argmin()]}: look at "
                "its data and its variance; an infinite variance can make 0 * inf."
            )
        path = []
        for step in range(steps):
            if step % every == 0:
                now = _curvature(residuals, state[0], part, shared)
            state = _step(objective, gradient, state, now, part, shared)
            path.append(np.asarray(state[1]))
            if step >= _WINDOW and (path[-1 - _WINDOW] - path[-1] < _SETTLED).all():
                break
        path += [path[-1]] * (steps - len(path))
        count = min(batch, len(z) - first)
        found.append((np.asarray(state[0])[:count], np.stack(path)[:, :count]))
    ends, paths = zip(*found, strict=True)
    path = np.concatenate(paths, axis=1)
    settled = path[max(len(path) - 1 - _WINDOW, 0)] - path[-1] < _SETTLED
    return Descents(np.concatenate(ends), path[-1], path, settled & (len(path) > _WINDOW))
