"""Training of guides by stochastic gradients of the ELBO, compiled once for many posteriors.

A guide is a density with parameters that stands in for a posterior. Its ELBO is estimated from
noise, new at every step, and climbed by the gradient of the estimate.
Kingma & Welling 2014, arXiv:1312.6114; Rezende & Mohamed 2015, arXiv:1505.05770.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlcourse_utils.errors import CourseError

Params = Any
_EVERY = 25  # steps between two looks at the bound, which wait for the device


class GuideFit(NamedTuple):
    """``params`` after the last step; ``bound`` (steps,), the estimate of the ELBO at each step, in
    nats; ``kept``, the parameters before the steps that were asked for."""

    params: Params
    bound: np.ndarray
    kept: tuple[Params, ...]


class VariationalError(CourseError):
    """A guide cannot be trained; ``last_good`` is a `GuideFit` to go on with, or None."""

    def __init__(self, message: str, last_good: GuideFit | None = None):
        super().__init__(message)
        self.last_good = last_good


@partial(jax.jit, static_argnums=(0, 1))
def _step(elbo, optimizer, params, state, key, index, data):
    value, slope = jax.value_and_grad(elbo)(params, jax.random.fold_in(key, index), *data)
    updates, state = optimizer.update(jax.tree.map(jnp.negative, slope), state, params)
    return optax.apply_updates(params, updates), state, value


@jax.jit
def _finite(params):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def train(
    elbo: Callable[..., jax.Array],
    params: Params,
    data: tuple[Any, ...] = (),
    *,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    steps: int,
    keep: tuple[int, ...] = (),
) -> GuideFit:
    """Climb ``elbo(params, key, *data)``, a scalar in nats, by ``steps`` steps of ``optimizer``.

    Each step has a key of its own, folded from ``key``. ``data`` is a tuple of pytrees. One step is
    compiled for as long as ``elbo`` and ``optimizer`` are the same objects and shapes stay: train
    many posteriors with one function that gets the observation as data. It is traced once: after
    changing what it calls, define it anew. ``keep`` names steps before which the parameters are
    kept, in rising order.

    Raises `VariationalError` if the ELBO is no scalar, or if it or a parameter stops being finite:
    the message names the step, and ``last_good`` holds the parameters of the last look, at most 25
    steps before.
    """
    if not isinstance(steps, (int, np.integer)) or steps < 1:
        raise VariationalError(f"steps must be a whole number of at least 1; got {steps!r}.")
    if any(not 0 <= step < steps for step in keep):
        raise VariationalError(f"keep must name steps from 0 to {steps - 1}; got {keep}.")
    value = jax.eval_shape(elbo, params, key, *data)
    if getattr(value, "shape", None) != ():
        found = f"has shape {value.shape}" if hasattr(value, "shape") else f"is {value}"
        raise VariationalError(
            f"The ELBO must be one number, it {found}: take the mean over samples."
        )
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(optimizer.init)(params)
    bound, kept = [], []
    for index in range(steps):
        if index % _EVERY == 0:
            good = GuideFit(params, np.array(bound), tuple(kept))
        if index in keep:
            kept.append(params)
        params, state, value = _step(elbo, optimizer, params, state, key, np.int32(index), data)
        bound.append(value)
        if (index + 1) % _EVERY == 0 or index + 1 == steps:
            seen = len(good.bound)
            bound[seen:] = np.array(jax.device_get(bound[seen:]))
            broken = [i for i, value in enumerate(bound) if not np.isfinite(value)]
            if broken or not _finite(params):
                step = broken[0] if broken else index
                what = f"The ELBO is {bound[step]:.3g}" if broken else "A parameter is not finite"
                raise VariationalError(
                    f"{what} at step {step + 1}: the guide has left the finite numbers. Take a "
                    "smaller learning rate, clip the gradients, or start nearer to the posterior."
                    + (" The error's `last_good` has the last good parameters." * bool(seen)),
                    good if seen else None,
                )
    return GuideFit(params, np.array(bound), tuple(kept))
