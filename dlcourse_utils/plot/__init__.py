"""What the figures of all lessons share: colours by meaning, and the pictures of calibration.

The same colour means the same thing through a lesson; each also has its own line style, so that a
figure reads in grey. A lesson's own figures are in the module of its subject in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from dlcourse_utils import diagnostics

# Okabe-Ito colours, told apart with all common forms of colour blindness.
MODEL, TRUTH, CLASSICAL = "#0072B2", "#D55E00", "#009E73"
IN_LINE, OTHER = "#CC79A7", "#E69F00"
DATA, FAINT = "#555555", "#BBBBBB"


def on_host(draw: Callable) -> Callable:
    """Give a figure NumPy arrays in place of JAX's.

    On JAX arrays every small operation compiles anew for each shape, at some 30 ms apiece.
    """

    @wraps(draw)
    def drawn(*args, **kwargs):
        return draw(*map(_host, args), **{name: _host(value) for name, value in kwargs.items()})

    return drawn


def _host(value: Any) -> Any:
    if isinstance(value, dict):  # device_get sorts the keys, and figures draw them in order
        return {name: _host(item) for name, item in value.items()}
    return jax.device_get(value)


def binned_mean(
    x: jax.Array, y: jax.Array, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, mean of y and its standard error in bins of x; bins of under 10 are left out."""
    x, y = np.asarray(x), np.asarray(y)
    which = np.digitize(x, edges) - 1
    rows = []
    for k in range(len(edges) - 1):
        inside = y[which == k]
        if len(inside) >= 10:
            error = inside.std(ddof=1) / np.sqrt(len(inside))
            rows.append((0.5 * (edges[k] + edges[k + 1]), inside.mean(), error))
    centres, means, errors = np.array(rows).T
    return centres, means, errors


def pit_histogram(ax: Axes, pit: dict[str, tuple[jax.Array, str, str]], bins: int = 20) -> None:
    """Histograms of PIT values with the 95 % band of a calibrated posterior.

    ``pit`` maps a label to (values, colour, line style).
    """
    n = min(len(values) for values, _, _ in pit.values())
    low, high = diagnostics.binomial_band(1.0 / bins, n)
    ax.axhspan(low * bins, high * bins, color=FAINT, alpha=0.5, lw=0, label="95 % if calibrated")
    edges = np.linspace(0.0, 1.0, bins + 1)
    for label, (values, colour, line) in pit.items():
        heights = diagnostics.pit_histogram(values, bins)
        ax.stairs(heights, edges, baseline=None, color=colour, lw=1.8, ls=line, label=label)
    ax.set(
        xlim=(0, 1),
        xlabel="posterior probability below the truth (PIT)",
        ylabel="density (1 if calibrated)",
    )
    ax.set_ylim(bottom=0)
