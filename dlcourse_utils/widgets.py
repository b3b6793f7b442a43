"""Interactive figures: sliders move artists in place; a still picture where no kernel runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

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

from dlcourse_utils.exact import normalise
from dlcourse_utils.plot import MODEL, OTHER, TRUTH

LogPosterior = Callable[[jax.Array], jax.Array]
STILL = "Still picture: open the notebook and run this cell to move the sliders."


class Explorer:
    """One figure that is redrawn in place: what moves is drawn on a kept picture of the rest.

    A subclass makes its artists with ``animated=True``, lists them in ``self.moving`` and moves
    them in `move`.
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

    def label(self, text: str) -> None:
        """Write a line above the axes."""
        self.ax.set_title(text, fontsize=10)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)

    def draw(self, values: np.ndarray) -> bytes:
        """Move the artists to these values of the sliders and return the picture as PNG."""
        self.move(values)
        self._canvas.restore_region(self._background)
        for artist in self.moving:
            self.ax.draw_artist(artist)
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


def explore_posterior(
    network: LogPosterior,
    exact: LogPosterior,
    grid: jax.Array,
    *,
    start: Sequence[float],
    xlabel: str,
    ranges: Mapping[str, tuple[float, float]],
) -> None:
    """Show sliders for the features of one cluster, and both posteriors moving with them.

    ``network`` and ``exact`` give log posteriors (1, g) of features (1, d) on ``grid`` (g,), up to
    a constant; ``ranges`` names the d features with their ends. A page without a kernel shows a
    still picture.
    """
    _show(PosteriorExplorer(network, exact, grid, xlabel), start, ranges)


def explore_path(
    path: Callable[[jax.Array], jax.Array],
    axes: tuple[jax.Array, jax.Array],
    density: jax.Array,
    *,
    start: Sequence[float],
) -> None:
    """Show two sliders for a point of the Gaussian, and its path through the layers of a flow.

    ``path`` maps a point (1, 2) to its places (k, 1, 2) after each layer; ``density`` (g, h) on the
    two ``axes`` is what lies behind. A page without a kernel shows a still picture.
    """
    ends = (-2.5, 2.5)
    _show(PathExplorer(path, axes, density), start, {"z1": ends, "z2": ends})


def _show(
    explorer: Explorer, start: Sequence[float], ranges: Mapping[str, tuple[float, float]]
) -> None:
    sliders = [
        ipywidgets.FloatSlider(
            value=float(np.clip(value, low, high)),
            min=low,
            max=high,
            step=(high - low) / 200,
            description=name,
            readout_format=".3f",
            style={"description_width": "7em"},
            layout=ipywidgets.Layout(width="34em"),
        )
        for (name, (low, high)), value in zip(ranges.items(), start, strict=True)
    ]

    def values() -> np.ndarray:
        return np.array([slider.value for slider in sliders])

    explorer.label(STILL)
    still = explorer.draw(values())
    explorer.label("")
    picture = ipywidgets.Image(
        value=explorer.draw(values()), format="png", layout={"max_width": "700px"}
    )

    def redraw(_change) -> None:
        picture.value = explorer.draw(values())

    for slider in sliders:
        slider.observe(redraw, names="value")
    box = ipywidgets.VBox([*sliders, picture])
    if get_ipython() is None:
        print(STILL)
        return
    # Both forms in one output: a page with a kernel takes the widget, any other the picture.
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    widget = {"application/vnd.jupyter.widget-view+json": view}
    display({**widget, "image/png": still, "text/plain": STILL}, raw=True)
