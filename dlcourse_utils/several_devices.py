"""Where the arrays of a training are, on a machine or several with more than one device.

Each device holds all parameters and all data, draws and differentiates its share of the rows of a
batch, and XLA adds the gradients up. Shapes and numbers stay those of one device, up to rounding.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dlcourse_utils.errors import CourseError


def mesh_for(batch: tuple) -> Mesh | None:
    """The devices that share out a batch: as many of all as divide its rows.

    ``batch`` may be shapes, as of `jax.eval_shape`. None where one device takes all rows; so it is
    inside ``with jax.default_device(...)``. Raises CourseError if a process would be left without
    work.
    """
    devices = jax.devices() if jax.config.jax_default_device is None else []
    rows = _rows(batch)
    count = max((n for n in range(1, len(devices) + 1) if rows % n == 0), default=1)
    if jax.process_count() > 1 and count < len(devices):
        raise CourseError(
            f"{rows} rows of a batch cannot be shared out evenly to the {len(devices)} devices of "
            f"{jax.process_count()} processes: take a multiple of {len(devices)}."
        )
    return Mesh(devices[:count], ("rows",)) if count > 1 else None


def everywhere(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of an array of which each device has a copy."""
    return None if mesh is None else NamedSharding(mesh, P())


def copy(tree: Any, mesh: Mesh | None) -> Any:
    """The arrays, with a copy on each device of the mesh."""
    return tree if mesh is None else jax.device_put(tree, everywhere(mesh))


def split(batch: Any, mesh: Mesh | None) -> Any:
    """The arrays of a batch, in a jitted function: each device computes its share of the rows.

    An array of another length, such as a key or a table, is whole on each of them; so are all where
    the rows do not come out even.
    """
    if mesh is None:
        return batch
    rows = _rows(batch)

    def one(array: jax.Array) -> jax.Array:
        shared = np.shape(array)[:1] == (rows,) and rows % mesh.size == 0
        sharding = NamedSharding(mesh, P("rows") if shared else P())
        return jax.lax.with_sharding_constraint(array, sharding)

    return jax.tree.map(one, batch)


def first_copy(tree: Any, mesh: Mesh | None) -> Any:
    """The arrays that `copy` spread, as arrays on one device again."""
    return tree if mesh is None else jax.tree.map(lambda array: array.addressable_data(0), tree)


def _rows(batch: tuple) -> int:
    """The length that most arrays of a batch have; of equally many, that which comes first.

    One or two are no rows but a key, or the ends of something, where another length is to be had.
    """
    lengths = Counter(np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.shape(leaf))
    return max(lengths, key=lambda length: (lengths[length], length > 2), default=1)
