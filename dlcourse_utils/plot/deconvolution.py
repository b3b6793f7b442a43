"""The figures of lesson 06, deconvolving galaxies with a deep prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np

from dlcourse_utils.datasets.galaxies import SIZE
from dlcourse_utils.plot import DATA, FAINT, MODEL, TRUTH, on_host
from dlcourse_utils.plot.stamps import (
    LINES,
    SIGMAS,
    colour_bar,
    grid,
    scale,
    show,
    stretch,
    write,
)


@on_host
def stamps(
    rows: Mapping[str, np.ndarray],
    notes: Mapping[str, Sequence[str]] | None = None,
    *,
    width: float = 1.75,
    columns: int | None = None,
) -> None:
    """Rows of images with one stretch; ``rows`` maps a label to images (k, n, n) in nJy.

    ``notes`` maps a label to a text for each of its images. More images than ``columns`` go on in
    further rows below, in the same order of labels.
    """
    most = max(len(images) for images in rows.values())
    columns = columns or most
    figure, axes = grid(len(rows) * -(-most // columns), columns, width)
    # The survey's own images are noisy: the sharpest truth sets the range.
    sharp = [images for images in rows.values() if images.shape[-1] == SIZE]
    norm = stretch(max(images.max() for images in sharp))
    lines = product(range(0, most, columns), rows.items())
    for row, (first, (label, images)) in zip(axes, lines, strict=True):
        for i, ax in enumerate(row, first):
            if i >= len(images):
                ax.set_axis_off()
                continue
            picture = show(ax, images[i], norm=norm)
            if notes and label in notes:
                write(ax, notes[label][i])
        row[0].set_ylabel(label, fontsize=10)
    scale(axes[0, 0])
    colour_bar(figure, picture, axes, "nJy per fine pixel (arcsinh)")


@on_host
def forward(stages: Mapping[str, np.ndarray]) -> None:
    """From the galaxy to the data: one panel for each stage, the name above it; NaN is grey."""
    figure, axes = grid(1, len(stages), 2.2)
    norm = stretch(max(image.max() for image in stages.values() if len(image) == SIZE))
    for ax, (name, image) in zip(axes[0], stages.items(), strict=True):
        ax.set_facecolor(FAINT)
        picture = show(ax, image, norm=norm)
        ax.set_title(name, fontsize=10)
    scale(axes[0, 0])
    colour_bar(figure, picture, axes, "nJy per fine pixel (arcsinh)")


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
    for (name, values), (colour, line, _) in zip(curves.items(), LINES, strict=False):
        ax.plot(steps, values, color=colour, ls=line, label=name)
        ax.plot(steps[values.argmax()], values.max(), "*", color=colour, ms=10)
    ax.set(xscale="log", xlabel="gradient steps", ylabel="median PSNR (dB)")
    ax.set_title("More steps, more noise", fontsize=11)
    ax.legend(fontsize=9)
    norm = stretch(images[0].max())
    for i, (image, step) in enumerate(zip(images, shown, strict=True)):
        picture = show(axes[f"{i}"], image, norm=norm)
        axes[f"{i}"].set_title(f"step {step}", fontsize=10)
    colour_bar(figure, picture, [axes[f"{i}"] for i in range(len(images))], "nJy (arcsinh)")


@on_host
def tuning(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Median PSNR of the tuning galaxies against the strength of the prior, for each method."""
    _, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 2.8), sharey=True)
    for ax, (name, (strengths, values)), (colour, _, marker) in zip(
        axes, curves.items(), cycle(LINES), strict=False
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
    for curve, (colour, line, _) in zip(above, cycle(LINES), strict=False):
        left.plot(np.arange(1, len(curve) + 1), curve, color=colour, ls=line, lw=1.2)
    left.set(
        yscale="symlog",
        xlabel="step",
        ylabel="above the best (nats)",
        ylim=(-0.1, None),
    )
    left.set_title(f"{len(above)} starts", fontsize=11)
    norm = stretch(images.max())
    for ax, image, label in zip(right, images, labels, strict=True):
        picture = show(ax, image, norm=norm)
        ax.set_title(label, fontsize=10)
    colour_bar(figure, picture, right, "nJy (arcsinh)")


@on_host
def doubt(cases: Mapping[str, Sequence[np.ndarray]], notes: Mapping[str, str]) -> None:
    """What was seen, what was restored, what was there, residuals and a filter of them; by case.

    Each case has (observation, restoration, truth, residual, significance); the last two (21, 21)
    in standard deviations, NaN where masked.
    """
    titles = ("observation", "restoration", "truth", "residual / σ", "point source, σ")
    figure, axes = grid(len(cases), len(titles), 2.0)
    for row, (name, panels) in zip(axes, cases.items(), strict=True):
        norm = stretch(panels[2].max())
        for ax, panel, title in zip(row, panels, titles, strict=True):
            sigmas = "σ" in title
            picture = show(ax, panel, **(SIGMAS if sigmas else {"norm": norm}))
        row[0].set_ylabel(name, fontsize=10)
        write(row[3], notes[name])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    colour_bar(figure, picture, axes, "standard deviations")


@on_host
def real(panels: Mapping[str, np.ndarray], residual: np.ndarray, note: str) -> None:
    """The real image, what was restored, the restoration as the telescope sees it, the residual."""
    figure, axes = grid(1, len(panels) + 1, 2.2)
    norm = stretch(np.nanmax([np.nanmax(p) for p in panels.values() if len(p) == SIZE]))
    for ax, (name, panel) in zip(axes[0], panels.items(), strict=False):
        ax.set_facecolor(FAINT)
        picture = show(ax, panel, norm=norm)
        ax.set_title(name, fontsize=10)
    last = axes[0, -1]
    last.set_facecolor(FAINT)
    show(last, residual, **SIGMAS)
    last.set_title("residual / σ, ±5", fontsize=10)
    write(last, note)
    scale(axes[0, 0])
    colour_bar(figure, picture, axes, "nJy per fine pixel (arcsinh)")


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
