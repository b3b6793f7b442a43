"""Ranks of the truth among posterior samples of many galaxies, from the guides of lesson 07.

``scripts/make_vi_coverage.py`` has trained the guides and made ``data/vi_coverage.npz``.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlcourse_utils import registry
from dlcourse_utils.errors import CourseError

GROUPS = ("prior", "simulator", "hubble")
SAMPLES = 255  # among which a truth has its rank
SEED = 207  # of the galaxies: `galaxy_posteriors.draw` with this key gives those of the prior


class CoverageError(CourseError):
    """The file of ranks cannot be used."""


class Group(NamedTuple):
    """n galaxies, each with a guide of its own. Numpy arrays.

    ``latents`` (n, 33) and ``pixels`` (n, 441): how many of 255 samples lie below the truth, for
    each latent z and for one pixel in nine of the image; ``latents`` is None where no latent is
    true. ``valid`` (n, 441): where the true image is known. ``chi2`` (n,): mean over samples of
    chi^2 per survey pixel; ``pareto_k`` (n,): of the importance weights; ``seconds`` (n,): of the
    training; ``flux`` (n,): of the true image, nJy.
    """

    latents: np.ndarray | None
    pixels: np.ndarray
    valid: np.ndarray
    chi2: np.ndarray
    pareto_k: np.ndarray
    seconds: np.ndarray
    flux: np.ndarray


def inside(ranks: np.ndarray, level: float) -> np.ndarray:
    """Whether a rank lies in the central interval that holds ``level`` of the ranks 0 to 255."""
    return np.abs(ranks - SAMPLES / 2) < level * (SAMPLES + 1) / 2


def share_inside(group: Group, level: float) -> np.ndarray:
    """Share (n,) of each galaxy's known pixels that lie in their central intervals."""
    hits = inside(group.pixels, level) & group.valid
    return hits.sum(axis=1) / group.valid.sum(axis=1)


def load(path: Path | None = None) -> dict[str, Group]:
    """The three groups by their names in `GROUPS`.

    Raises `CoverageError` if the file cannot be used, `registry.RegistryError` if the shipped one
    is damaged.
    """
    path = registry.path("vi_coverage.npz") if path is None else path
    try:
        with np.load(path) as file:
            stored = {name: file[name] for name in file.files}
        return {name: _group(stored, name) for name in GROUPS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CoverageError(
            f"{path} is no file of ranks ({error}): take a fresh copy of the course, or make it "
            "again with scripts/make_vi_coverage.py."
        ) from error


def _group(stored: dict[str, np.ndarray], name: str) -> Group:
    pixels = stored[f"{name}_pixels"].reshape(len(stored[f"{name}_pixels"]), -1)
    valid = stored.get(f"{name}_valid")
    valid = np.ones(pixels.shape, bool) if valid is None else valid.reshape(pixels.shape)
    rest = ("chi2", "pareto_k", "seconds", "flux")
    return Group(
        stored.get(f"{name}_latents"), pixels, valid, *(stored[f"{name}_{field}"] for field in rest)
    )
