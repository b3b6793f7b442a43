"""Interactive figures: sliders move artists in place.

Stored notebooks hold a film strip of the most telling slider, for pages without a kernel, and a
still picture for those that run no script either.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import ipywidgets
import jax
import jax.numpy as jnp
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from traitlets import Unicode

from dlcourse_utils.datasets import two_moons
from dlcourse_utils.exact import normalise
from dlcourse_utils.plot import MODEL, OTHER, TRUTH, filmstrip

LogPosterior = Callable[[jax.Array], jax.Array]
LONGEST = 5.0  # arrow of a score times the noise
STILL = "Still picture: open the notebook and run this cell to move the sliders."
# What an environment has in which outputs are made to be stored. Elsewhere no film strip is made:
# it costs time, and Colab prefers HTML to a widget.
STORED = "DLCOURSE_STORED"


class Strip(NamedTuple):
    """What moves on a page without a kernel: a slider's name, its values, and each in words."""

    name: str
    values: Sequence[float]
    words: Callable[[float], str]


class Explorer:
    """One figure that is redrawn in place: what moves is drawn on a kept picture of the rest.

    A subclass makes its artists with ``animated=True``, lists them in ``self.moving``, moves them
    in `move` and says in `describe` what is then seen.
    """

    def __init__(self):
        # A figure of its own, outside pyplot: nothing is shown twice, nothing is left open.
        self.figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
        self._canvas = FigureCanvasAgg(self.figure)
        self.ax = self.figure.add_subplot()
        self.moving: list[Artist] = []

    def move(self, values: np.ndarray) -> None:
        """Set the artists to these values of the sliders."""
        raise NotImplementedError

    def describe(self) -> str:
        """What the picture now shows, for those who do not see it."""
        raise NotImplementedError

    def label(self, text: str) -> None:
        """Write a line above the axes."""
        self.ax.set_title(text, fontsize=10)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)

    def frame(self, values: np.ndarray, words: str) -> filmstrip.Frame:
        """The picture at these values of the sliders as part of a film strip."""
        self._redraw(values)
        return filmstrip.Frame(filmstrip.picture(self._canvas), words, self.describe())

    def _redraw(self, values: np.ndarray) -> None:
        self.move(values)
        self._canvas.restore_region(self._background)
        for artist in self.moving:
            self.ax.draw_artist(artist)

    def draw(self, values: np.ndarray) -> bytes:
        """Move the artists to these values of the sliders and return the picture as PNG."""
        self._redraw(values)
        buffer = io.BytesIO()
        picture = Image.fromarray(np.asarray(self._canvas.buffer_rgba()))
        picture.save(buffer, format="png", compress_level=1)
        return buffer.getvalue()


class PosteriorExplorer(Explorer):
    """The network's and the exact posterior of one cluster."""

    def __init__(self, network: LogPosterior, exact: LogPosterior, grid: jax.Array, xlabel: str):
        super().__init__()

        def normalised(log_p: LogPosterior) -> LogPosterior:
            return jax.jit(lambda x: normalise(log_p(x), grid))

        self._densities = normalised(exact), normalised(network)
        nothing = np.zeros(len(grid))
        thick = {"color": TRUTH, "ls": "-", "lw": 5, "alpha": 0.4, "label": "exact"}
        thin = {"color": MODEL, "ls": "-", "label": "network"}
        for style in (thick, thin):
            self.moving += self.ax.plot(grid, nothing, animated=True, **style)
        self.ax.set(xlabel=xlabel, ylabel="density", xlim=(grid[0], grid[-1]), ylim=(0, 6))
        self.ax.legend(loc="upper left")
        self.label("")

    def move(self, values: np.ndarray) -> None:
        x = jnp.asarray(values, dtype=jnp.float32)[None, :]
        for line, log_p in zip(self.moving, self._densities, strict=True):
            line.set_ydata(np.exp(np.asarray(log_p(x)[0])))

    def describe(self) -> str:
        peaks = []
        for line in self.moving:
            m, p = line.get_data()
            before, after = np.r_[0.0, p[:-1]], np.r_[p[1:], 0.0]
            tops = m[(p > before) & (p >= after) & (p > 0.05 * p.max())]
            peaks.append(" and ".join(f"{top:.2f}" for top in tops))
        return "Posterior of one cluster: the exact one peaks at {}, the network's at {}.".format(
            *peaks
        )


class PathExplorer(Explorer):
    """The path of one point through the layers of a flow, on the flow's density."""

    def __init__(
        self,
        path: Callable[[jax.Array], jax.Array],
        axes: tuple[jax.Array, jax.Array],
        density: jax.Array,
    ):
        super().__init__()
        self._path = jax.jit(path)
        self.ax.pcolormesh(*jax.device_get(axes), jax.device_get(density).T, cmap="Greys")
        self.ax.set(xlim=(-2.6, 3.6), ylim=(-1.6, 2.2), xlabel="$x_1$", ylabel="$x_2$")
        self.ax.set_aspect("equal")
        self.ax.grid(False)
        steps = {"color": OTHER, "ls": "-", "marker": "o", "ms": 4, "label": "layers"}
        start = {"color": TRUTH, "ls": "none", "marker": "s", "ms": 8, "label": "start"}
        end = {"color": MODEL, "ls": "none", "marker": "^", "ms": 9, "label": "end"}
        for style in (steps, start, end):
            self.moving += self.ax.plot([0.0], [0.0], animated=True, **style)
        self.ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        self.label("")

    def move(self, values: np.ndarray) -> None:
        points = np.asarray(self._path(jnp.asarray(values, dtype=jnp.float32)[None, :]))[:, 0]
        for line, part in zip(self.moving, (points, points[:1], points[-1:]), strict=True):
            line.set_data(*part.T)

    def describe(self) -> str:
        _, start, end = (line.get_xydata()[0] for line in self.moving)
        places = "({:.1f}, {:.1f}) to ({:.1f}, {:.1f})".format(*start, *end)
        return f"Path of one point through the layers, from {places}, on the density of the flow."


class DiffusionExplorer(Explorer):
    """The blurred two moons, arrows of a score, and points on their way, at one noise level."""

    def __init__(
        self, levels: np.ndarray, points: np.ndarray, score: Callable[[jax.Array, float], jax.Array]
    ):
        super().__init__()
        self._levels, self._points = np.asarray(levels), np.asarray(points)
        first, second = np.linspace(-3.5, 4.5, 97), np.linspace(-2.5, 3.0, 67)
        plane, coarse = (
            np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)
            for axes in ((first, second), (first[4::8], second[1::8]))
        )
        # All is computed here, once: a slider then only picks a level.
        noises = np.hypot(self._levels, two_moons.NOISE)
        shades = [np.exp(np.asarray(two_moons.log_prob(plane, float(n)))) for n in noises]
        self._shades = [(p / p.max()).reshape(len(first), -1).T for p in shades]
        arrows = [
            np.asarray(score(jnp.asarray(coarse), level)) * noise
            for level, noise in zip(self._levels, noises, strict=True)
        ]
        # An arrow reaches to the next at most: longer ones would cover the moons.
        lengths = [np.linalg.norm(arrow, axis=1, keepdims=True) for arrow in arrows]
        self._arrows = [
            arrow * LONGEST / np.maximum(length, LONGEST)
            for arrow, length in zip(arrows, lengths, strict=True)
        ]
        extent = (first[0], first[-1], second[0], second[-1])
        shade = self.ax.imshow(
            self._shades[0],
            extent=extent,
            origin="lower",
            cmap="Greys",
            vmin=0.0,
            vmax=1.6,
            animated=True,
        )
        arrows = self.ax.quiver(
            *coarse.T,
            *self._arrows[0].T,
            color=TRUTH,
            scale=60.0,
            width=0.002,
            animated=True,
        )
        (dots,) = self.ax.plot([], [], ".", color=MODEL, ms=4, animated=True)
        self.moving += [shade, arrows, dots]
        self.ax.set(xlim=extent[:2], ylim=extent[2:], xlabel="$x_1$", ylabel="$x_2$")
        self.ax.grid(False)
        self.label("")

    def move(self, values: np.ndarray) -> None:
        nearest = int(np.argmin(np.abs(np.log10(self._levels) - values[0])))
        shade, arrows, dots = self.moving
        shade.set_data(self._shades[nearest])
        arrows.set_UVC(*self._arrows[nearest].T)
        dots.set_data(*self._points[nearest].T)
        self._level = self._levels[nearest]

    def describe(self) -> str:
        return (
            f"Points on their way to the two moons at noise level {self._level:.2g}, on the density"
            " of the moons blurred by it, with arrows of the score."
        )


class StrengthExplorer(Explorer):
    """A galaxy as seen, restored with one strength of a prior, and as it is."""

    def __init__(
        self,
        strengths: np.ndarray,
        restored: np.ndarray,
        notes: Sequence[str],
        seen: np.ndarray,
        truth: np.ndarray,
    ):
        super().__init__()
        self._strengths, self._restored, self._notes = np.asarray(strengths), restored, notes
        # In arcsinh, so that faint arms and bright centres are both seen.
        images = {"seen": seen, "restored": restored[0], "truth": truth}
        for i, (name, image) in enumerate(images.items()):
            picture = self.ax.imshow(
                np.arcsinh(image),
                extent=(1.1 * i, 1.1 * i + 1.0, 0.0, 1.0),
                origin="lower",
                cmap="magma",
                vmin=-1.0,
                vmax=np.arcsinh(np.max(truth)),
                animated=name == "restored",
            )
            self.ax.text(1.1 * i + 0.5, -0.07, name, ha="center", va="top")
            if name == "restored":
                self.moving.append(picture)
        self.moving.append(self.ax.text(1.6, 1.04, "", ha="center", animated=True))
        self.ax.set(xlim=(0.0, 3.2), ylim=(-0.2, 1.15))
        self.ax.set_axis_off()
        self.label("")

    def move(self, values: np.ndarray) -> None:
        nearest = int(np.argmin(np.abs(np.log10(self._strengths) - values[0])))
        picture, note = self.moving
        picture.set_data(np.arcsinh(self._restored[nearest]))
        note.set_text(self._notes[nearest])

    def describe(self) -> str:
        note = self.moving[-1].get_text()
        return f"A galaxy as seen, restored and as it is. The restored one: {note}."


class SampleExplorer(Explorer):
    """A galaxy as seen, one posterior sample, what the telescope sees of it, and what is left."""

    def __init__(
        self, seen: np.ndarray, samples: np.ndarray, predicted: np.ndarray, noise: np.ndarray
    ):
        super().__init__()
        self._samples = np.arcsinh(samples)
        self._residuals = (seen - predicted) / noise
        used = np.isfinite(self._residuals[0])
        self._chi2 = np.mean(self._residuals[:, used] ** 2, axis=1)
        # One stretch for all three images: survey pixels hold the light of several fine ones.
        area = (samples.shape[-1] // seen.shape[-1]) ** 2
        self._predicted = np.arcsinh(predicted / area)
        light = {"cmap": "magma", "vmin": -1.0, "vmax": self._samples.max()}
        panels = {
            "seen": (np.arcsinh(seen / area), light),
            "sample": (self._samples[0], light),
            "as seen": (self._predicted[0], light),
            "residual / σ, ±5": (self._residuals[0], {"cmap": "RdBu_r", "vmin": -5, "vmax": 5}),
        }
        for i, (name, (image, colours)) in enumerate(panels.items()):
            place = (1.1 * i, 1.1 * i + 1.0, 0.0, 1.0)
            moves = name != "seen"
            picture = self.ax.imshow(image, extent=place, origin="lower", animated=moves, **colours)
            self.ax.text(1.1 * i + 0.5, -0.07, name, ha="center", va="top")
            if moves:
                self.moving.append(picture)
        self.moving.append(self.ax.text(2.15, 1.04, "", ha="center", animated=True))
        self.ax.set(xlim=(0.0, 4.3), ylim=(-0.2, 1.15))
        self.ax.set_axis_off()
        self.label("")

    def move(self, values: np.ndarray) -> None:
        k = int(values[0]) - 1
        *pictures, note = self.moving
        for picture, images in zip(
            pictures, (self._samples, self._predicted, self._residuals), strict=True
        ):
            picture.set_data(images[k])
        note.set_text(f"sample {k + 1} of {len(self._samples)}: χ² per pixel {self._chi2[k]:.2f}")

    def describe(self) -> str:
        note = self.moving[-1].get_text()
        return f"A galaxy as seen, a posterior sample, this as seen, and the residual; {note}."


class Picture(ipywidgets.Image):
    """An image whose `tooltip` says what it shows, for those who do not see it.

    ipywidgets has no other text for an image, and from version 8 reads the description first.
    """

    description = Unicode("").tag(sync=True)
    tooltip = Unicode("").tag(sync=True)


def explore_posterior(
    network: LogPosterior,
    exact: LogPosterior,
    grid: jax.Array,
    *,
    start: Sequence[float],
    xlabel: str,
    ranges: Mapping[str, tuple[float, float]],
    strip: Strip,
) -> None:
    """Show sliders for the features of one cluster, and both posteriors moving with them.

    ``network`` and ``exact`` give log posteriors (1, g) of features (1, d) on ``grid`` (g,), up to
    a constant; ``ranges`` names the d features with their ends. A page without a kernel shows the
    film ``strip`` of one of them.
    """
    _show(PosteriorExplorer(network, exact, grid, xlabel), start, ranges, strip)


def explore_path(
    path: Callable[[jax.Array], jax.Array],
    axes: tuple[jax.Array, jax.Array],
    density: jax.Array,
    *,
    start: Sequence[float],
) -> None:
    """Show two sliders for a point of the Gaussian, and its path through the layers of a flow.

    ``path`` maps a point (1, 2) to its places (k, 1, 2) after each layer; ``density`` (g, h) on the
    two ``axes`` is what lies behind. A page without a kernel shows a film strip.
    """
    ends = (-2.5, 2.5)
    strip = Strip("z1", np.linspace(*ends, 11), lambda z: f"{z:.1f} standard deviations")
    _show(PathExplorer(path, axes, density), start, {"z1": ends, "z2": ends}, strip)


def explore_diffusion(
    levels: np.ndarray,
    points: jax.Array,
    score: Callable[[jax.Array, float], jax.Array],
    *,
    start: float,
) -> None:
    """Show a slider for the noise level of the two moons.

    ``points`` (k, n, 2) are where points are at each of the ``levels`` (k,), ``score(x, sigma)``
    maps points (m, 2) to their score. A page without a kernel shows a film strip.
    """
    ends = float(np.log10(np.min(levels))), float(np.log10(np.max(levels)))
    name, of_strip = "log10 sigma", np.linspace(0, len(levels) - 1, 11).round().astype(int)
    values = np.log10(np.sort(levels)[of_strip])
    strip = Strip(name, values, lambda s: f"{s:.2f}, sigma {10**s:.2g}")
    _show(DiffusionExplorer(levels, points, score), [np.log10(start)], {name: ends}, strip)


def explore_strength(
    strengths: np.ndarray,
    restored: np.ndarray,
    notes: Sequence[str],
    seen: np.ndarray,
    truth: np.ndarray,
    *,
    start: float,
) -> None:
    """Show a slider for the strength of a prior, and the galaxy that it restores.

    ``restored`` (k, n, n) and ``notes`` are images and texts for each of the ``strengths`` (k,),
    ``seen`` and ``truth`` the galaxy through the telescope and as it is, all in nJy per fine pixel.
    A page without a kernel shows a film strip.
    """
    ends = float(np.log10(np.min(strengths))), float(np.log10(np.max(strengths)))
    explorer = StrengthExplorer(strengths, *map(jax.device_get, (restored, notes, seen, truth)))
    name = "log10 strength"
    strip = Strip(name, np.linspace(*ends, 13), lambda s: f"{s:.1f}, strength {10**s:.4g}")
    _show(explorer, [np.log10(start)], {name: ends}, strip)


def explore_samples(
    seen: np.ndarray,
    samples: np.ndarray,
    predicted: np.ndarray,
    noise: float | np.ndarray,
) -> None:
    """Show a slider through posterior samples of one galaxy, beside the data and the residual.

    ``seen`` (m, m) is the observation, NaN where masked, ``samples`` (k, n, n) are images of the
    posterior and ``predicted`` (k, m, m) what the telescope would see of them without noise, all in
    nJy per pixel of their own; ``noise`` is the standard deviation of a pixel of ``seen``, one
    number or (m, m). Samples count from 1. A page without a kernel shows a film strip.
    """
    explorer = SampleExplorer(*map(np.asarray, (seen, samples, predicted, noise)))
    count = len(samples)
    strip = Strip("sample", range(1, min(count, 12) + 1), lambda k: f"{k} of {count}")
    _show(explorer, [1], {"sample": (1, count)}, strip, whole=True)


def _show(
    explorer: Explorer,
    start: Sequence[float],
    ranges: Mapping[str, tuple[float, float]],
    strip: Strip,
    *,
    whole: bool = False,
) -> None:
    """Sliders between the ends of each range, of ``whole`` numbers or 200 steps, and the figure.

    Where outputs are made to be stored, the film strip comes with them.
    """

    def a_slider(name: str, low: float, high: float, value: float) -> ipywidgets.Widget:
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        step = {"step": 1} if whole else {"step": (high - low) / 200, "readout_format": ".3f"}
        return kind(
            value=min(max(value, low), high),
            min=low,
            max=high,
            description=name,
            style={"description_width": "9em"},
            layout=ipywidgets.Layout(width="34em"),
            **step,
        )

    sliders = [
        a_slider(name, *ends, value)
        for (name, ends), value in zip(ranges.items(), start, strict=True)
    ]

    def values() -> np.ndarray:
        return np.array([slider.value for slider in sliders])

    explorer.label(STILL)
    still = explorer.draw(values())
    explorer.label("")
    picture = Picture(format="png", layout={"max_width": "700px"})

    def redraw(_change=None) -> None:
        picture.value = explorer.draw(values())
        picture.tooltip = explorer.describe()

    redraw()
    for slider in sliders:
        slider.observe(redraw, names="value")
        if slider.has_trait("tooltip"):  # from ipywidgets 8, which shows "null" where none is set
            slider.tooltip = slider.description
    box = ipywidgets.VBox([*sliders, picture])
    if get_ipython() is None:
        print(STILL)
        return
    # All forms in one output: a page shows the first that it can, a widget only with a kernel.
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    widget = {"application/vnd.jupyter.widget-view+json": view}
    forms = {**widget, "image/png": still, "text/plain": STILL}
    if STORED in os.environ:
        forms["text/html"] = _film(explorer, start, list(ranges), strip)
    display(forms, raw=True)


def _film(explorer: Explorer, start: Sequence[float], names: Sequence[str], strip: Strip) -> str:
    """HTML of the pictures along a strip, the other sliders at their start."""
    moved, values = names.index(strip.name), np.array(start, dtype=float)
    pairs = zip(names, start, strict=True)
    fixed = ", ".join(f"{name} = {value:g}" for name, value in pairs if name != strip.name)
    frames = []
    for value in strip.values:
        values[moved] = value
        frames.append(explorer.frame(values, strip.words(value)))
    note = f"Computed beforehand at {len(frames)} positions{fixed and ', all with '}{fixed}. "
    note += "To move the sliders freely, open the notebook and run this cell."
    first = int(np.argmin(np.abs(np.asarray(strip.values) - start[moved])))
    return filmstrip.page(frames, label=strip.name, first=first, still=STILL, note=note)
