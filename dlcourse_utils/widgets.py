"""Interactive figures: sliders that move curves in place, and a still picture where no kernel runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import ipywidgets
import jax
import jax.numpy as jnp
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlcourse_utils.plot import MODEL, TRUTH

LogPosterior = Callable[[jax.Array], jax.Array]
STILL = "Still picture: run this cell in a notebook to move the sliders."


class PosteriorExplorer:
    """One figure with the network's and the exact posterior of one cluster, redrawn in place."""

    def __init__(self, network: LogPosterior, exact: LogPosterior, grid: jax.Array):
        self._network, self._exact = jax.jit(network), jax.jit(exact)
        # A figure of its own, outside pyplot: nothing is shown twice, nothing is left open.
        self.figure = Figure(figsize=(7, 3.6), dpi=80, layout="constrained")
        self._canvas = FigureCanvasAgg(self.figure)
        ax = self.figure.add_subplot()
        nothing = np.zeros(len(grid))
        (self._exact_line,) = ax.plot(grid, nothing, color=TRUTH, lw=5, alpha=0.4, label="exact")
        (self._network_line,) = ax.plot(grid, nothing, color=MODEL, ls="-", label="network")
        ax.set(xlabel=r"mass $\log_{10}(M_{200}/M_\odot)$ [dex]", ylabel="density [1/dex]")
        ax.set(xlim=(12.8, 15.8), ylim=(0, 6))
        ax.legend(loc="upper left")
        self._ax = ax

    def draw(self, features: np.ndarray, title: str = "") -> bytes:
        """Move both curves to these features (4,) and return the picture as PNG."""
        x = jnp.asarray(features, dtype=jnp.float32)[None, :]
        for line, log_p in ((self._exact_line, self._exact), (self._network_line, self._network)):
            line.set_ydata(np.exp(np.asarray(log_p(x)[0])))
        self._ax.set_title(title, fontsize=10)
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        # The layout is solved once; afterwards only the curves move.
        self.figure.set_layout_engine("none")
        return buffer.getvalue()


def explore_posterior(
    network: LogPosterior,
    exact: LogPosterior,
    grid: jax.Array,
    *,
    start: jax.Array,
    ranges: Mapping[str, tuple[float, float]],
) -> None:
    """Show sliders for the features of one cluster, and both posteriors moving with them.

    ``network`` and ``exact`` give log posteriors (1, g) of features (1, d) on ``grid`` (g,);
    ``ranges`` names the d features with their ends. A page without a kernel shows a still picture.
    """
    explorer = PosteriorExplorer(network, exact, grid)
    sliders = [
        ipywidgets.FloatSlider(
            value=float(np.clip(value, low, high)), min=low, max=high, step=(high - low) / 200,
            description=name, readout_format=".3f", style={"description_width": "7em"},
            layout=ipywidgets.Layout(width="34em"),
        )
        for (name, (low, high)), value in zip(ranges.items(), np.asarray(start), strict=True)
    ]

    def features() -> np.ndarray:
        return np.array([slider.value for slider in sliders])

    still = explorer.draw(features(), STILL)
    picture = ipywidgets.Image(value=explorer.draw(features()), format="png")

    def redraw(_change) -> None:
        picture.value = explorer.draw(features())

    for slider in sliders:
        slider.observe(redraw, names="value")
    box = ipywidgets.VBox([*sliders, picture])
    if get_ipython() is None:
        print(STILL)
        return
    # Both forms in one output: a page with a kernel takes the widget, any other the picture.
    bundle = box._repr_mimebundle_()
    display({**bundle, "image/png": still, "text/plain": STILL}, raw=True)
