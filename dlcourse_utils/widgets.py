"""Interactive figures: sliders move curves in place; a still picture where no kernel runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import jax
import jax.numpy as jnp
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dlcourse_utils.exact import normalise
from dlcourse_utils.plot import MODEL, TRUTH

LogPosterior = Callable[[jax.Array], jax.Array]
STILL = "Still picture: open the notebook and run this cell to move the sliders."


class PosteriorExplorer:
    """One figure with the network's and the exact posterior of one cluster, redrawn in place."""

    def __init__(self, network: LogPosterior, exact: LogPosterior, grid: jax.Array, xlabel: str):
        def normalised(log_p: LogPosterior) -> LogPosterior:
            return jax.jit(lambda x: normalise(log_p(x), grid))

        self._network, self._exact = normalised(network), normalised(exact)
        # A figure of its own, outside pyplot: nothing is shown twice, nothing is left open.
        self.figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
        self._canvas = FigureCanvasAgg(self.figure)
        ax = self.figure.add_subplot()
        nothing = np.zeros(len(grid))
        # Animated: the canvas leaves them out, so that all else is drawn once and kept.
        (self._exact_line,) = ax.plot(
            grid, nothing, color=TRUTH, ls="-", lw=5, alpha=0.4, label="exact", animated=True
        )
        (self._network_line,) = ax.plot(
            grid, nothing, color=MODEL, ls="-", label="network", animated=True
        )
        ax.set(xlabel=xlabel, ylabel="density", xlim=(grid[0], grid[-1]), ylim=(0, 6))
        ax.legend(loc="upper left")
        self.label("")

    def label(self, text: str) -> None:
        """Write a line above the axes."""
        self.figure.axes[0].set_title(text, fontsize=10)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)

    def draw(self, features: np.ndarray) -> bytes:
        """Move both curves to these features (d,) and return the picture as PNG."""
        x = jnp.asarray(features, dtype=jnp.float32)[None, :]
        self._canvas.restore_region(self._background)
        for line, log_p in ((self._exact_line, self._exact), (self._network_line, self._network)):
            line.set_ydata(np.exp(np.asarray(log_p(x)[0])))
            self.figure.axes[0].draw_artist(line)
        buffer = io.BytesIO()
        picture = Image.fromarray(np.asarray(self._canvas.buffer_rgba()))
        picture.save(buffer, format="png", compress_level=1)
        return buffer.getvalue()


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
    a constant;
    ``ranges`` names the d features with their ends. A page without a kernel shows a still picture.
    """
    explorer = PosteriorExplorer(network, exact, grid, xlabel)
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

    def features() -> np.ndarray:
        return np.array([slider.value for slider in sliders])

    explorer.label(STILL)
    still = explorer.draw(features())
    explorer.label("")
    picture = ipywidgets.Image(
        value=explorer.draw(features()), format="png", layout={"max_width": "700px"}
    )

    def redraw(_change) -> None:
        picture.value = explorer.draw(features())

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
