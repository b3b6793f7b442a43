"""The figures of lesson 06, deconvolving galaxies with a deep prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure

from dlcourse_utils.datasets.galaxies import PIXEL, SIZE
from dlcourse_utils.plot import CLASSICAL, DATA, FAINT, IN_LINE, MODEL, OTHER, TRUTH, on_host
from dlcourse_utils.telescope import FACTOR

_EXTENT = 2 * [-0.5 * SIZE * PIXEL, 0.5 * SIZE * PIXEL]
_SIGMAS = {"cmap": "RdBu_r", "vmin": -5.0, "vmax": 5.0}
_LINES = ((MODEL, "-", "o"), (OTHER, "-.", "s"), (CLASSICAL, "--", "^"), (IN_LINE, ":", "D"))


def _stretch(brightest: float, softening: float = 1.0) -> FuncNorm:
    """A stretch in arcsinh, linear below ``softening`` nJy and logarithmic above, from -1 of it."""
    return FuncNorm(
        (lambda x: np.arcsinh(x / softening), lambda x: softening * np.sinh(x)),
        vmin=-softening,
        vmax=brightest,
    )


def _show(ax: plt.Axes, image: np.ndarray, **style: object):
    """One stamp in arcsec, north up; survey images in nJy per fine pixel, so that all compare."""
    if "cmap" not in style:
        style["cmap"] = "magma"
        image = image if len(image) == SIZE else image / FACTOR**2
    ax.grid(False)
    ax.set(xticks=[], yticks=[])
    return ax.imshow(image, origin="lower", extent=_EXTENT, interpolation="nearest", **style)


def _grid(rows: int, columns: int, width: float = 1.75) -> tuple[Figure, np.ndarray]:
    size = (width * columns + 0.9, width * rows + 0.35)
    return plt.subplots(rows, columns, figsize=size, squeeze=False)


def _colour_bar(figure: Figure, picture, axes: np.ndarray, label: str) -> None:
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label(label, fontsize=9)
    ticks = [0, 1, 3, 10, 30, 100, 300, 1000]
    if isinstance(picture.norm, FuncNorm):
        bar.set_ticks([tick for tick in ticks if tick <= picture.norm.vmax])


def _write(ax: plt.Axes, text: str) -> None:
    ax.text(
        0.03,
        0.03,
        text,
        transform=ax.transAxes,
        color="white",
        fontsize=8.5,
        bbox={"facecolor": "black", "alpha": 0.5, "lw": 0, "pad": 1.5},
    )


def _scale(ax: plt.Axes) -> None:
    """A bar of one arcsec."""
    ax.plot([-1.55, -0.55], [1.45, 1.45], color="white", lw=2)
    ax.text(-1.05, 1.2, '1"', color="white", ha="center", va="center", fontsize=8)


@on_host
def stamps(
    rows: Mapping[str, np.ndarray],
    notes: Mapping[str, Sequence[str]] | None = None,
    *,
    width: float = 1.75,
) -> None:
    """Rows of images with one stretch; ``rows`` maps a label to images (k, n, n) in nJy.

    ``notes`` maps a label to a text for each of its images.
    """
    columns = max(len(images) for images in rows.values())
    figure, axes = _grid(len(rows), columns, width)
    # The survey's own images are noisy: the sharpest truth sets the range.
    sharp = [images for images in rows.values() if images.shape[-1] == SIZE]
    norm = _stretch(max(images.max() for images in sharp))
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for i, ax in enumerate(row):
            if i >= len(images):
                ax.set_axis_off()
                continue
            picture = _show(ax, images[i], norm=norm)
            if notes and label in notes:
                _write(ax, notes[label][i])
        row[0].set_ylabel(label, fontsize=10)
    _scale(axes[0, 0])
    _colour_bar(figure, picture, axes, "nJy per fine pixel (arcsinh)")


@on_host
def forward(stages: Mapping[str, np.ndarray]) -> None:
    """From the galaxy to the data: one panel for each stage, the name above it; NaN is grey."""
    figure, axes = _grid(1, len(stages), 2.2)
    norm = _stretch(max(image.max() for image in stages.values() if len(image) == SIZE))
    for ax, (name, image) in zip(axes[0], stages.items(), strict=True):
        ax.set_facecolor(FAINT)
        picture = _show(ax, image, norm=norm)
        ax.set_title(name, fontsize=10)
    _scale(axes[0, 0])
    _colour_bar(figure, picture, axes, "nJy per fine pixel (arcsinh)")


@on_host
def descent(
    steps: np.ndarray, curves: Mapping[str, np.ndarray], images: np.ndarray, shown: Sequence[int]
) -> None:
    """PSNR against step for each method (k,), and images (m, 63, 63) of the first at ``shown``."""
    figure, axes = plt.subplot_mosaic(
        [["curves", *(f"{i}" for i in range(len(images)))]],
        figsize=(4.0 + 1.9 * len(images), 2.9),
        width_ratios=[1.8] + [1.0] * len(images),
    )
    ax = axes["curves"]
    for (name, values), (colour, line, _) in zip(curves.items(), _LINES, strict=False):
        ax.plot(steps, values, color=colour, ls=line, label=name)
        ax.plot(steps[values.argmax()], values.max(), "*", color=colour, ms=10)
    ax.set(xscale="log", xlabel="gradient steps", ylabel="median PSNR (dB)")
    ax.set_title("More steps, more noise", fontsize=11)
    ax.legend(fontsize=9)
    norm = _stretch(images[0].max())
    for i, (image, step) in enumerate(zip(images, shown, strict=True)):
        picture = _show(axes[f"{i}"], image, norm=norm)
        axes[f"{i}"].set_title(f"step {step}", fontsize=10)
    _colour_bar(figure, picture, [axes[f"{i}"] for i in range(len(images))], "nJy (arcsinh)")


@on_host
def tuning(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Median PSNR of the tuning galaxies against the strength of the prior, for each method."""
    _, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 2.8), sharey=True)
    for ax, (name, (strengths, values)), (colour, _, marker) in zip(
        axes, curves.items(), cycle(_LINES), strict=False
    ):
        ax.plot(strengths, values, color=colour, marker=marker)
        best = values.argmax()
        ax.axvline(strengths[best], color=FAINT, ls="--")
        ax.set(xscale="log", xlabel="strength of the prior", title=name)
        ax.title.set_fontsize(11)
    axes[0].set_ylabel("median PSNR (dB)")


@on_host
def modes(above: np.ndarray, images: np.ndarray, labels: Sequence[str]) -> None:
    """Descents (starts, steps) in nats above the lowest end, and images of ends with labels."""
    figure, (left, *right) = plt.subplots(
        1,
        1 + len(images),
        figsize=(4.6 + 2.1 * len(images), 2.9),
        width_ratios=[2.0] + [1.0] * len(images),
    )
    for curve, (colour, line, _) in zip(above, cycle(_LINES), strict=False):
        left.plot(np.arange(1, len(curve) + 1), curve, color=colour, ls=line, lw=1.2)
    left.set(
        yscale="symlog",
        xlabel="step",
        ylabel="above the best (nats)",
        ylim=(-0.1, None),
    )
    left.set_title(f"{len(above)} starts", fontsize=11)
    norm = _stretch(images.max())
    for ax, image, label in zip(right, images, labels, strict=True):
        picture = _show(ax, image, norm=norm)
        ax.set_title(label, fontsize=10)
    _colour_bar(figure, picture, right, "nJy (arcsinh)")


@on_host
def doubt(cases: Mapping[str, Sequence[np.ndarray]], notes: Mapping[str, str]) -> None:
    """What was seen, what was restored, what was there, residuals and a filter of them; by case.

    Each case has (observation, restoration, truth, residual, significance); the last two (21, 21)
    in standard deviations, NaN where masked.
    """
    titles = ("observation", "restoration", "truth", "residual / σ", "point source, σ")
    figure, axes = _grid(len(cases), len(titles), 2.0)
    for row, (name, panels) in zip(axes, cases.items(), strict=True):
        norm = _stretch(panels[2].max())
        for ax, panel, title in zip(row, panels, titles, strict=True):
            sigmas = "σ" in title
            picture = _show(ax, panel, **(_SIGMAS if sigmas else {"norm": norm}))
        row[0].set_ylabel(name, fontsize=10)
        _write(row[3], notes[name])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    _colour_bar(figure, picture, axes, "standard deviations")


@on_host
def real(panels: Mapping[str, np.ndarray], residual: np.ndarray, note: str) -> None:
    """The real image, what was restored, the restoration as the telescope sees it, the residual."""
    figure, axes = _grid(1, len(panels) + 1, 2.2)
    norm = _stretch(np.nanmax([np.nanmax(p) for p in panels.values() if len(p) == SIZE]))
    for ax, (name, panel) in zip(axes[0], panels.items(), strict=False):
        ax.set_facecolor(FAINT)
        picture = _show(ax, panel, norm=norm)
        ax.set_title(name, fontsize=10)
    last = axes[0, -1]
    last.set_facecolor(FAINT)
    _show(last, residual, **_SIGMAS)
    last.set_title("residual / σ, ±5", fontsize=10)
    _write(last, note)
    _scale(axes[0, 0])
    _colour_bar(figure, picture, axes, "nJy per fine pixel (arcsinh)")


@on_host
def gains(psnr: Mapping[str, np.ndarray], magnitude: np.ndarray, best: str, ours: str) -> None:
    """PSNR of every method on the same galaxies, and our gain over the best classical one."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.4), width_ratios=(1.25, 1.0))
    names = list(psnr)
    parts = left.violinplot([psnr[n] for n in names], orientation="horizontal", showmedians=True)
    for body, name in zip(parts["bodies"], names, strict=True):
        body.set_facecolor(MODEL if name == ours else FAINT)
        body.set_alpha(0.9)
    for line in ("cmedians", "cmins", "cmaxes", "cbars"):
        parts[line].set_color(DATA)
    left.set_yticks(np.arange(1, len(names) + 1), names)
    left.invert_yaxis()
    left.set(xlabel="PSNR (dB)")
    left.set_title("The same 200 galaxies, every method", fontsize=11)
    gain = psnr[ours] - psnr[best]
    lost = gain < 0
    right.axhline(0.0, color=FAINT)
    right.plot(magnitude[~lost], gain[~lost], "o", ms=3.5, color=MODEL)
    right.plot(magnitude[lost], gain[lost], "v", ms=4.5, color=TRUTH)
    right.set(xlabel="magnitude", ylabel=f"gain over {best} (dB)")
    right.set_title(f"{(~lost).mean():.0%} of galaxies gain", fontsize=11)
