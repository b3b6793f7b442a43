"""Pictures of galaxies: one stretch, orientation and scale for every lesson that shows them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure

from dlcourse_utils.datasets.galaxies import PIXEL, SIZE
from dlcourse_utils.plot import CLASSICAL, IN_LINE, MODEL, OTHER
from dlcourse_utils.telescope import FACTOR

EXTENT = 2 * [-0.5 * SIZE * PIXEL, 0.5 * SIZE * PIXEL]
SIGMAS = {"cmap": "RdBu_r", "vmin": -5.0, "vmax": 5.0}
LINES = ((MODEL, "-", "o"), (OTHER, "-.", "s"), (CLASSICAL, "--", "^"), (IN_LINE, ":", "D"))


def stretch(brightest: float, softening: float = 1.0) -> FuncNorm:
    """A stretch in arcsinh, linear below ``softening`` nJy and logarithmic above, from -1 of it."""
    return FuncNorm(
        (lambda x: np.arcsinh(x / softening), lambda x: softening * np.sinh(x)),
        vmin=-softening,
        vmax=brightest,
    )


def show(ax: plt.Axes, image: np.ndarray, **style: object):
    """One stamp in arcsec, north up; survey images in nJy per fine pixel, so that all compare."""
    if "cmap" not in style:
        style["cmap"] = "magma"
        image = image if len(image) == SIZE else image / FACTOR**2
    ax.grid(False)
    ax.set(xticks=[], yticks=[])
    return ax.imshow(image, origin="lower", extent=EXTENT, interpolation="nearest", **style)


def grid(rows: int, columns: int, width: float = 1.75) -> tuple[Figure, np.ndarray]:
    """A figure of so many square panels, ``width`` inches each, with room for a colour bar."""
    size = (width * columns + 0.9, width * rows + 0.35)
    return plt.subplots(rows, columns, figsize=size, squeeze=False)


def colour_bar(figure: Figure, picture, axes: np.ndarray, label: str) -> None:
    """The colours of ``picture`` beside ``axes``; in arcsinh with ticks at round numbers."""
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label(label, fontsize=9)
    ticks = [0, 1, 3, 10, 30, 100, 300, 1000]
    if isinstance(picture.norm, FuncNorm):
        bar.set_ticks([tick for tick in ticks if tick <= picture.norm.vmax])


def write(ax: plt.Axes, text: str) -> None:
    """A note in the lower left corner of a stamp."""
    ax.text(
        0.03,
        0.03,
        text,
        transform=ax.transAxes,
        color="white",
        fontsize=8.5,
        bbox={"facecolor": "black", "alpha": 0.5, "lw": 0, "pad": 1.5},
    )


def scale(ax: plt.Axes) -> None:
    """A bar of one arcsec."""
    ax.plot([-1.55, -0.55], [1.45, 1.45], color="white", lw=2)
    ax.text(-1.05, 1.2, '1"', color="white", ha="center", va="center", fontsize=8)
