"""What carries a sampler of a diffusion model: noise levels, a chain of steps, an ODE solver.

Nothing here knows the score: the samplers themselves are written in the lesson.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import RK45

from dlcourse_utils.errors import CourseError

State = Any


class SamplerError(CourseError):
    """A chain left the finite numbers or stands still, or an ODE solver did not reach its end."""


def noise_levels(n: int, largest: float, smallest: float) -> np.ndarray:
    """Standard deviations (n,) that fall from ``largest`` to ``smallest`` by a constant factor.

    Raises ValueError unless n is at least 2 and 0 < smallest < largest.
    """
    if not 0.0 < smallest < largest < math.inf:
        raise ValueError(
            f"Noise levels fall from a largest to a smallest, both positive; got {largest} and "
            f"{smallest}."
        )
    if n < 2:
        raise ValueError(f"Noise levels need n of at least 2: both ends; got {n}.")
    return np.geomspace(largest, smallest, n, dtype=np.float32)


def run_chain(
    step: Callable[..., State], key: jax.Array, state: State, inputs: State, *, label: str
) -> tuple[State, State]:
    """``state, kept = step(key, state, *input)`` for each of ``inputs``, arrays (k, ...).

    ``kept`` is anything to keep of the step, or None. Returns the last state and what was kept,
    stacked along a first axis. Each step gets a key of its own. Raises `SamplerError`, with the
    step where it happened, when the state leaves the finite numbers.
    """
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise SamplerError(f"{label}: the chain starts from NaN or infinite values.")
    state, (kept, finite) = _scan(step, key, state, inputs)
    finite = np.asarray(finite)
    if not finite.all():
        first = int(np.argmin(finite))
        at = ", ".join(_range(array[first]) for array in jax.tree.leaves(inputs))
        raise SamplerError(
            f"{label}: the chain left the finite numbers at step {first + 1} of {len(finite)} "
            f"(its inputs there: {at}). Make its steps smaller, or take more noise levels, and "
            "check the sign of the score."
        )
    return state, kept


def require_moves(accepted: jax.Array, inputs: jax.Array, *, label: str) -> None:
    """Raise `SamplerError` where hardly any move was accepted: such a chain stands still.

    ``accepted`` (k,) is the fraction of accepted moves at each step, ``inputs`` (k,) what tells the
    steps apart, such as noise levels.
    """
    accepted = np.asarray(accepted)
    if not accepted.min() >= 0.01:
        worst = int(np.argmin(accepted))
        raise SamplerError(
            f"{label}: {accepted[worst]:.1%} of the moves were accepted at step {worst + 1} of "
            f"{len(accepted)} (its input there: {_range(inputs[worst])}): the points stay where "
            "they were. Make the step size smaller, and check the sign of the score."
        )


def _range(values: jax.Array) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


@partial(jax.jit, static_argnums=0)
def _scan(step, key, state, inputs):
    def one(state, keyed):
        key, inputs = keyed
        state, kept = step(key, state, *inputs)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]
        return state, (kept, jnp.stack(finite).all())

    keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0]))
    return jax.lax.scan(one, state, (keys, inputs))


class Path(NamedTuple):
    """States of an ODE at the noise levels that were asked for, stacked along a first axis, and the
    number of calls of its velocity."""

    states: State
    calls: int


def solve_ode(
    velocity: Callable[[jax.Array, State], State],
    state: State,
    levels: np.ndarray,
    *,
    tolerance: float = 1e-3,
    max_steps: int = 300,
) -> Path:
    """Follow d state / d sigma = velocity(sigma, state) through the noise levels (k,), k >= 2.

    ``levels`` rise or fall from where ``state`` is; the first state of the result is ``state``
    itself, and those between the ends are interpolated, at up to ten times the error.
    Runge-Kutta of order 5 (Dormand & Prince 1980) from SciPy in log sigma; its steps adapt to
    ``tolerance``, relative and absolute, as a root mean square over the whole state. Raises
    `SamplerError` where ``max_steps`` do not reach the end, and ValueError for levels <= 0.
    """
    levels = np.asarray(levels, dtype=np.float32)
    way = np.diff(levels)
    one_way = (way > 0.0).all() or (way < 0.0).all()
    if not (levels > 0.0).all() or levels.size < 2 or not one_way:
        raise ValueError(
            f"An ODE needs two or more noise levels, positive, that rise or fall; got {levels}."
        )
    if not tolerance > 0.0 or max_steps < 1:
        raise ValueError(f"Got tolerance {tolerance} and max_steps {max_steps}: use positive ones.")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise SamplerError("The ODE starts from NaN or infinite values.")
    flat, unravel = ravel_pytree(state)

    @jax.jit
    def rate(log_sigma, flat):  # in log sigma
        sigma = jnp.exp(log_sigma)
        return sigma * ravel_pytree(velocity(sigma, unravel(flat)))[0]

    # SciPy steps on the host, in double precision; the velocity runs where JAX runs.
    log_levels = np.log(levels.astype(float))
    solver = RK45(
        lambda t, y: np.asarray(rate(np.float32(t), y.astype(np.float32)), dtype=float),
        log_levels[0],
        np.asarray(flat, dtype=float),
        log_levels[-1],
        rtol=tolerance,
        atol=tolerance,
    )
    found = [np.asarray(flat)]
    for _ in range(max_steps):
        solver.step()
        if solver.status == "failed":
            break
        between = solver.dense_output()
        while len(found) < len(levels) and (log_levels[len(found)] - solver.t) * way[0] <= 0.0:
            found.append(between(log_levels[len(found)]).astype(np.float32))
        if solver.status == "finished":
            states = [unravel(jnp.asarray(flat, dtype=jnp.float32)) for flat in found]
            return Path(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), solver.nfev)
    raise SamplerError(
        f"The ODE solver did not get from sigma = {levels[0]:.3g} to {levels[-1]:.3g} within "
        f"{max_steps} steps. Look at the velocity: a wrong sign or a NaN makes the steps shrink. "
        "If it is right, raise `tolerance` or `max_steps`."
    )
