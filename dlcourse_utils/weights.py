"""Weights of a shipped network in one .npz file: written with their version, read with checks."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dlcourse_utils.errors import CourseError

Params = dict[str, Any]


class WeightsError(CourseError):
    """A file of weights cannot be used."""


def save(
    path: Path, params: Params, version: int, provenance: str, dtype: type = np.float32
) -> None:
    """Write ``params`` as .npz in ``dtype``, with the version and where they come from."""
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in flatten_dict(params, sep="/").items()}
    np.savez(path, version=np.array(version), provenance=np.array(provenance), **arrays)


def load(path: Path, init: Callable[[], Params], version: int, script: str) -> Params:
    """The weights in ``path`` in single precision, if they are those that ``init()`` has.

    ``init`` is only traced, for names and shapes. ``script`` is what makes the file, for the error:
    raises `WeightsError` if the file cannot be read, is of another version or does not hold finite
    weights of the right shapes.
    """

    def unusable(why: str) -> WeightsError:
        return WeightsError(
            f"{path} cannot be used ({why}): install the course again, or make the file with "
            f"{script}."
        )

    try:
        # Opened here, because numpy leaves a file open that it cannot read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        raise unusable("it is not a complete .npz file of numbers") from None
    found = arrays.pop("version", None)
    if found is None or found.shape != () or found != version:
        raise unusable(f"its version is {found}, and this course reads {version}")
    arrays.pop("provenance", None)
    expected = flatten_dict(jax.eval_shape(init), sep="/")
    if {name: a.shape for name, a in arrays.items()} != {
        name: leaf.shape for name, leaf in expected.items()
    }:
        raise unusable("its arrays are not those of this network")
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays.values()):
        raise unusable("it holds values that are not finite numbers")
    return unflatten_dict(
        {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}, sep="/"
    )
