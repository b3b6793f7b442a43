"""Ranks of the truth among posterior samples of many galaxies, from the guides of lesson 07.

``scripts/make_vi_coverage.py`` has trained the guides and made ``data/vi_coverage.npz``.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlcourse_utils import registry, telescope
from dlcourse_utils.errors import CourseError

GROUPS = ("prior", "simulator", "hubble")
SAMPLES = 255  # among which a truth has its rank
SEED = 207  # of the galaxies: `galaxy_posteriors.draw` with this key gives those of the prior
_RANKS = {"latents": 33, "pixels": 441}
# Of the ranked pixels, (441,): those within 0.75 arcsec of the middle of the image.
_OFFSET = telescope.SURVEY_PIXEL * (np.arange(21) - 10)
CENTRE = (np.hypot(_OFFSET[:, None], _OFFSET) < 0.75).ravel()


class CoverageError(CourseError):
    """The file of ranks cannot be used."""


class Ranks(NamedTuple):
    """How many of 255 samples lie below the truth, bytes.

    ``latents`` (n, 33): for each latent z, or None where no true latent is known; ``pixels``
    (n, 441): for one pixel in nine of the image.
    """

    latents: np.ndarray | None
    pixels: np.ndarray


class Group(NamedTuple):
    """n galaxies, each with a guide of its own. Numpy arrays.

    ``guide``: ranks among samples of the guide; ``weighted``: among samples that are drawn from
    4,000 of the guide by their importance weights. ``valid`` (n, 441): pixels that count, for
    Hubble those that are known and whose noise is less than the width of the posterior.
    ``chi2`` (n,): mean over samples of chi^2 per survey pixel; ``pareto_k`` (n,): of the weights.
    """

    guide: Ranks
    weighted: Ranks
    valid: np.ndarray
    chi2: np.ndarray
    pareto_k: np.ndarray


def inside(ranks: np.ndarray, level: float) -> np.ndarray:
    """Whether a rank lies in the central interval that holds ``level`` of the ranks 0 to 255."""
    return np.abs(ranks - SAMPLES / 2) < level * (SAMPLES + 1) / 2


def latents_inside(ranks: Ranks, level: float) -> np.ndarray:
    """Share (n,) of each galaxy's latents that lie in their central intervals."""
    return inside(ranks.latents, level).mean(axis=1)


def pixels_inside(ranks: Ranks, valid: np.ndarray, level: float) -> np.ndarray:
    """Share (n,) of each galaxy's valid pixels that lie in their central intervals."""
    return (inside(ranks.pixels, level) & valid).sum(axis=1) / valid.sum(axis=1)


def load(path: Path | None = None) -> dict[str, Group]:
    """The three groups by their names in `GROUPS`.

    Raises `CoverageError` if the file cannot be used, `registry.RegistryError` if the shipped one
    is damaged.
    """
    path = registry.path("vi_coverage.npz") if path is None else path
    try:
        # Opened here: numpy leaves a file open that is no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        if stored["seed"] != SEED:
            raise ValueError(f"its seed is {stored['seed']}, not {SEED}")
        return {name: _group(stored, name) for name in GROUPS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CoverageError(
            f"{path} is no file of ranks ({error}): take a fresh copy of the course, or make it "
            "again with scripts/make_vi_coverage.py."
        ) from error


def _group(stored: dict[str, np.ndarray], name: str) -> Group:
    n = len(stored[f"{name}_chi2"])
    ranks = {}
    for kind in ("guide", "weighted"):
        arrays = [stored.get(f"{name}_{kind}_{of}") for of in _RANKS]
        for array, (of, width) in zip(arrays, _RANKS.items(), strict=True):
            absent = of == "latents" and name != "prior"
            if (array is None) != absent or (not absent and array.shape != (n, width)):
                raise ValueError(f"{name}_{kind}_{of} must have shape {(n, width)}")
            if not absent and array.dtype != np.uint8:
                raise ValueError(f"{name}_{kind}_{of} must hold bytes, not {array.dtype}")
        ranks[kind] = Ranks(*arrays)
    valid = stored[f"{name}_valid"]
    chi2, pareto_k = stored[f"{name}_chi2"], stored[f"{name}_pareto_k"]
    if valid.shape != (n, _RANKS["pixels"]) or valid.dtype != bool or pareto_k.shape != (n,):
        raise ValueError(f"{name}_valid or {name}_pareto_k has another shape than the ranks")
    if not (np.isfinite(chi2).all() and valid.any(axis=1).all()):
        raise ValueError(f"{name} has a chi^2 that is not finite, or a galaxy without pixels")
    return Group(ranks["guide"], ranks["weighted"], valid, chi2, pareto_k)
