"""Fifty galaxies as GalSim sees them through five PSFs: what our forward model is held against.

GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002) draws them from the same parameters, with
code that shares nothing with ours. It is not needed here: ``scripts/make_galsim_reference.py`` has
put its images into ``data/galsim_reference.npz``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlcourse_utils import registry, telescope
from dlcourse_utils.datasets import galaxies

SMOOTH = ("magnitude", "radius", "sersic", "axis_ratio", "angle", "x", "y")


class Reference(NamedTuple):
    """What the file holds, ready for use.

    ``galaxies``: 50 of them, without arms, bars and clumps; ``kernels`` (5, 125, 125): Π of each
    PSF, four Moffat laws and one measured on stars by Hyper Suprime-Cam; ``images`` (50, 21, 21):
    GalSim's, in nJy, ten in a row behind the same PSF.
    """

    galaxies: galaxies.Galaxies
    kernels: jax.Array
    images: np.ndarray


def smooth(parameters: Mapping[str, np.ndarray]) -> galaxies.Galaxies:
    """Galaxies without arms, bars and clumps from the arrays (n,) that `SMOOTH` names."""
    given = {name: jnp.asarray(parameters[name], jnp.float32) for name in SMOOTH}
    zero = jnp.zeros_like(given["x"])
    clumps = jnp.zeros((len(zero), 4))
    # Of a structure that is not there the shape must still be one.
    return galaxies.Galaxies(
        **given,
        arm_amplitude=zero,
        arm_number=zero + 2.0,
        arm_pitch=zero + 0.3,
        arm_phase=zero,
        bar_fraction=zero,
        bar_length=zero + 0.3,
        bar_angle=zero,
        clump_fraction=clumps,
        clump_x=clumps,
        clump_y=clumps,
        clump_fwhm=clumps + 0.1,
    )


def load() -> Reference:
    """Read the shipped file; `registry.RegistryError` if it is damaged."""
    with np.load(registry.path("galsim_reference.npz"), allow_pickle=False) as file:
        stored = dict(file)
    kernels = [telescope.difference_kernel(telescope.moffat(*law)) for law in stored["moffat"]]
    kernels.append(telescope.difference_kernel(stored["hsc_psf"], telescope.SURVEY_PIXEL))
    return Reference(smooth(stored), jnp.stack(kernels), stored["images"])


def render_wide(sample: galaxies.Galaxies) -> jax.Array:
    """Images three stamps wide and high, with the light around the stamp; (n, 189, 189).

    A telescope also blurs light into the stamp from outside of it.
    """
    side = galaxies.SIZE * galaxies.PIXEL

    def seen_from(column, row):
        moved = sample._replace(x=sample.x - column * side, y=sample.y - row * side)
        return np.asarray(galaxies.render(moved))

    return jnp.asarray(np.block([[seen_from(i, j) for i in (-1, 0, 1)] for j in (-1, 0, 1)]))


def errors(
    observe: Callable[[jax.Array, jax.Array], jax.Array] = telescope.observe,
    reference: Reference | None = None,
) -> np.ndarray:
    """Largest difference to GalSim in each of the 50 images over the peak of GalSim's; (50,).

    From the parameters to the image: `galaxies.render`, then ``observe(x, kernel)``, which is
    handed x (10, 189, 189) and must give (10, 63, 63).
    """
    reference = load() if reference is None else reference
    images = reference.images
    wide = render_wide(reference.galaxies)
    y = jax.jit(jax.vmap(observe))(wide.reshape(5, -1, *wide.shape[1:]), reference.kernels)
    inside = slice(telescope.SURVEY_SIZE, 2 * telescope.SURVEY_SIZE)
    y = np.asarray(y)[..., inside, inside].reshape(images.shape)
    return np.abs(y - images).max(axis=(1, 2)) / images.max(axis=(1, 2))
