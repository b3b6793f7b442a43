"""The figures of lesson 03, RealNVP."""

from __future__ import annotations

from collections.abc import Callable

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy import stats

from dlcourse_utils.datasets import two_moons
from dlcourse_utils.plot import DATA, FAINT, MODEL, OTHER, TRUTH, filmstrip, on_host
from dlcourse_utils.train import History

Axes = tuple[np.ndarray, np.ndarray]
_MOONS = {"xlim": (-1.5, 2.5), "ylim": (-1.0, 1.5), "aspect": "equal"}
_LOWEST = -12.0  # of a log density that is shown, in nats


def _edges(axes: Axes) -> list[float]:
    """The sides of an image whose pixels are centred on the axes' values."""
    sides = []
    for axis in axes:
        half = 0.5 * (axis[1] - axis[0])
        sides += [float(axis[0] - half), float(axis[-1] + half)]
    return sides


def _table(axes: Axes, values: np.ndarray) -> np.ndarray:
    """Values (g h,) on the plane of axes (g,) and (h,), the first slowest, as an image (h, g)."""
    return np.reshape(values, (len(axes[0]), len(axes[1]))).T


def claim(points: jax.Array) -> None:
    """The Gaussian to start from, and the exact density to end at."""
    axes = np.linspace(-1.5, 2.5, 241), np.linspace(-1.0, 1.5, 151)
    plane = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    density = np.exp(two_moons.log_prob(plane))
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1, 1.6))
    z = np.random.default_rng(0).standard_normal((3000, 2))
    left.plot(*z.T, ".", color=DATA, ms=2, alpha=0.5, rasterized=True)
    left.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
    left.set_title("From a Gaussian ...")
    image = right.imshow(density.T, extent=_edges(axes), cmap="viridis")
    right.plot(*np.asarray(points[:400]).T, ".", color="white", ms=2, alpha=0.6)
    right.grid(False)
    right.set(xlabel="$x_1$", ylabel="$x_2$")
    right.set_title("... to two moons: exact density and points")
    plt.colorbar(image, ax=right, label="density")


def change_of_variables(bend: Callable, log_det: Callable) -> None:
    """A density under a map in one dimension, and a grid under a map of the plane."""
    _, (one, before, after) = plt.subplots(1, 3, figsize=(11, 3.7))
    z = np.linspace(-3.5, 2.0, 400)
    one.plot(z, stats.norm.pdf(z), color=DATA, ls="--", label="$z$, Gaussian")
    x = np.exp(z)
    one.plot(x, stats.lognorm.pdf(x, 1.0), color=MODEL, label="$x = e^z$: divided by $e^z$")
    for low, high in ((-1.2, -0.9), (0.9, 1.2)):
        bins = np.linspace(low, high, 20)
        one.fill_between(bins, stats.norm.pdf(bins), color=OTHER, alpha=0.6, lw=0)
        image = np.exp(bins)
        one.fill_between(image, stats.lognorm.pdf(image, 1.0), color=OTHER, alpha=0.6, lw=0)
    one.set(xlim=(-3, 5), ylim=(0, 0.95), xlabel="$z$ or $x$", ylabel="density")
    one.legend(loc="upper right", fontsize=9)
    one.set_title("Equal areas stay equal", fontsize=11)
    lines = np.linspace(-2.0, 2.0, 17)
    corners = np.stack(np.meshgrid(lines, lines, indexing="ij"), axis=-1)
    bent = np.asarray(jax.vmap(jax.vmap(bend))(corners))
    middle = 0.5 * (corners[1:, 1:] + corners[:-1, :-1])
    factor = np.exp(jax.vmap(jax.vmap(log_det))(middle)).ravel()
    cloud = np.random.default_rng(0).standard_normal((400, 2))
    for ax, grid, points in (
        (before, corners, cloud),
        (after, bent, np.asarray(jax.vmap(bend)(cloud))),
    ):
        cells = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)
        shown = PolyCollection(cells.reshape(-1, 4, 2), edgecolors="white", lw=0.5, cmap="cividis")
        shown.set_array(factor if ax is after else np.ones_like(factor))
        shown.set_clim(factor.min(), factor.max())
        ax.add_collection(shown)
        ax.plot(*points.T, ".", color=TRUTH, ms=3)
        ax.grid(False)
    before.set(xlim=(-3, 3), ylim=(-3, 5.5), xlabel="$z_1$", ylabel="$z_2$")
    after.set(xlim=(-3, 3), ylim=(-3, 5.5), xlabel="$x_1$", ylabel="$x_2$")
    before.set_title("A grid and a Gaussian ...", fontsize=11)
    after.set_title("... bent", fontsize=11)
    plt.colorbar(shown, ax=after, label="area factor $|\\det|$")


@on_host
def jacobians(matrices: dict[str, jax.Array]) -> None:
    """Matrices side by side, with a common colour scale."""
    figure, axes = plt.subplots(1, len(matrices), figsize=(10, 3.5))
    most = max(np.abs(matrix).max() for matrix in matrices.values())
    for ax, (name, matrix) in zip(axes, matrices.items(), strict=True):
        image = ax.imshow(matrix, cmap="PuOr", vmin=-most, vmax=most, origin="upper")
        for i, j in np.argwhere(np.abs(matrix) > 0.05):
            dark = abs(matrix[i, j]) > 0.6 * most
            ax.text(
                j,
                i,
                f"{matrix[i, j]:.1f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
            )
        log_det = np.linalg.slogdet(matrix)[1]
        ax.set(xticks=range(6), xticklabels=range(1, 7), yticks=range(6), yticklabels=range(1, 7))
        ax.grid(False)
        ax.set_title(f"{name}\nlog-det {log_det:.3f}", fontsize=11)
        ax.set(xlabel="input", ylabel="output" if ax is axes[0] else "")
    figure.colorbar(image, ax=axes, label="$\\partial y_i / \\partial x_j$", shrink=0.8)


@on_host
def kept_coordinate(samples: jax.Array, points: jax.Array, centre: float, spread: float) -> None:
    """Samples of a stack without swaps, and the coordinate that it never changes."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    left.plot(*samples[:3000].T, ".", color=MODEL, ms=2, alpha=0.5, rasterized=True)
    left.set(xlabel="$x_1$", ylabel="$x_2$", **_MOONS)
    left.set_title("Samples without swaps", fontsize=11)
    bins = np.linspace(-2.2, 3.2, 82)
    common = {"density": True, "histtype": "step", "lw": 1.8}
    right.hist(points[:, 0], bins, color=TRUTH, ls="--", label="two moons", **common)
    right.hist(samples[:, 0], bins, color=MODEL, ls="-", label="without swaps", **common)
    x = np.linspace(-2.2, 3.2, 200)
    right.plot(x, stats.norm.pdf(x, centre, spread), color="black", ls=":", lw=3, label="Gaussian")
    right.set(xlabel="$x_1$", ylabel="density")
    right.legend(loc="upper right", fontsize=9)
    right.set_title("The coordinate that is kept stays Gaussian", fontsize=11)


def training(histories: dict[str, History], floor: float) -> None:
    """Held-out losses above that of the exact density on the same points."""
    _, ax = plt.subplots(figsize=(7, 3.8))
    styles = ((MODEL, "-", "o"), (OTHER, "--", "s"))
    for (name, history), (colour, line, mark) in zip(histories.items(), styles, strict=False):
        above = history.held_out - floor
        if np.all(above <= 0.0):  # by a wrong answer only, and nothing on a logarithmic axis
            name += ": below the truth's, so it is no density"
            ax.set_ylim(1e-3, 1.0)
        ax.plot(history.step, above, color=colour, ls=line, marker=mark, ms=4, label=name)
    ax.axhline(0.01, color=DATA, lw=0.8, ls=":")
    ax.text(ax.get_xlim()[1], 0.0105, "0.01 nats", color=DATA, ha="right", va="bottom", fontsize=9)
    ax.set(yscale="log", xlabel="training step", ylabel="held-out loss above the truth's [nats]")
    ax.legend()
    ax.set_title("How far from the exact density")


def animate(stages: jax.Array, frames: int = 4) -> None:
    """Show points moving through the stages (k, n, 2), as an animation that needs no kernel."""
    points = np.asarray(jax.device_get(stages))
    angle = np.arctan2(points[0][:, 1] - 0.25, points[0][:, 0] - 0.5)
    figure = Figure(figsize=(5, 3.4), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.set(xlim=(-2.2, 3.2), ylim=(-1.5, 2.0), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    # Both the palest and the darkest colour of a cyclic map can be seen on it.
    ax.set_facecolor("0.6")
    ax.grid(False)
    colours = {"c": angle, "cmap": "twilight", "vmin": -np.pi, "vmax": np.pi}
    dots = ax.scatter(*points[0].T, s=3, animated=True, **colours)
    layers = 2 * (len(points) - 1)
    pictures, holds = [], []
    for k in range(len(points)):
        ax.set_title(f"after {2 * k} of {layers} layers", fontsize=10)
        canvas.draw()
        background = canvas.copy_from_bbox(figure.bbox)
        for t in np.linspace(0.0, 1.0, frames)[1:] if k else (1.0,):
            ease = t * t * (3.0 - 2.0 * t)
            dots.set_offsets((1.0 - ease) * points[k - 1] + ease * points[k])
            canvas.restore_region(background)
            ax.draw_artist(dots)
            value = f"{round(2 * max(k - 1 + t, 0), 1):g} of {layers}"
            alt = f"Points of a Gaussian on their way onto two moons, after layer {value}."
            pictures.append(filmstrip.Frame(filmstrip.picture(canvas), value, alt))
            holds.append(110)
        holds[-1] = 900
    filmstrip.play(pictures, holds, label="layer", colours=32)


@on_host
def log_densities(axes: Axes, tables: dict[str, jax.Array]) -> None:
    """Log densities at the plane's points, (g h,) on axes (g,) and (h,), cut off below."""
    figure, panels = plt.subplots(1, len(tables), figsize=(10, 3.3), sharey=True)
    for ax, (name, table) in zip(panels, tables.items(), strict=True):
        shown = np.maximum(_table(axes, table), _LOWEST)
        image = ax.imshow(shown, extent=_edges(axes), vmin=_LOWEST, vmax=1.5)
        ax.set(xlabel="$x_1$", **_MOONS)
        ax.grid(False)
        ax.set_title(name, fontsize=11)
    panels[0].set(ylabel="$x_2$")
    figure.colorbar(image, ax=panels, label="log density [nats]", extend="min")


def conditionals(
    axes: Axes,
    *,
    exact: Callable[[float], jax.Array],
    flow: Callable[[float], jax.Array],
    observations: tuple[float, ...],
    noise: float,
) -> None:
    """Exact posterior and the flow's contours for some observations of the first coordinate.

    ``exact`` and ``flow`` return log posteriors (g h,) on the plane of the axes (g,) and (h,).
    """
    axes = jax.device_get(axes)
    _, panels = plt.subplots(1, len(observations), figsize=(11, 3.2), sharey=True)
    for ax, y in zip(panels, observations, strict=True):
        truth, learned = _table(axes, np.exp(exact(y))), _table(axes, np.exp(flow(y)))
        ax.imshow(truth, extent=_edges(axes), cmap="Oranges", vmax=0.9 * truth.max())
        levels = truth.max() * np.array([0.05, 0.3])
        ax.contour(*axes, learned, levels=levels, colors=MODEL, linewidths=1.2)
        ax.axvspan(y - noise, y + noise, color=FAINT, alpha=0.35, lw=0)
        ax.grid(False)
        ax.set(xlabel="$x_1$", **_MOONS)
        ax.set_title(f"$y = {y:.1f}$", fontsize=11)
    panels[0].set(ylabel="$x_2$")
    panels[0].figure.suptitle(
        "Orange: exact. Lines: the flow, at 5 % and 30 % of the exact peak.", fontsize=11
    )


@on_host
def denoising(
    measured: jax.Array,
    answers: dict[str, jax.Array],
    axes: Axes,
    log_prior: jax.Array,
    noise: float,
) -> None:
    """Arrows from measurements (n, 2) to modes, and the exact posterior of the last measurement.

    ``answers`` names points (n, 2); ``log_prior`` is (g h,) on the plane of axes (g,) and (h,).
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    log_prior = _table(axes, log_prior)
    left.imshow(np.exp(log_prior), extent=_edges(axes), cmap="Greys", vmax=2.0)
    few = slice(0, 150)
    step = (answers["MAP of the flow"] - measured)[few]
    left.quiver(
        *measured[few].T, *step.T, color=MODEL, angles="xy", scale_units="xy", scale=1, width=0.004
    )
    left.set(xlabel="$x_1$", ylabel="$x_2$", **_MOONS)
    left.grid(False)
    left.set_title("From each measurement to its MAP", fontsize=11)
    between = measured[-1]
    plane = np.stack(np.meshgrid(*axes), axis=-1)
    log_p = log_prior - 0.5 * np.sum((plane - between) ** 2, axis=-1) / noise**2
    p = np.exp(log_p - log_p.max())
    right.imshow(p, extent=_edges(axes), cmap="Oranges", interpolation="bicubic")
    right.plot(*between, "x", color="black", ms=9, mew=2, ls="none", label="measured")
    styles = (
        {"marker": "^", "color": "white", "mec": "black", "ms": 9},
        {"marker": "o", "color": MODEL, "mfc": "none", "mew": 2, "ms": 15},
        {"marker": "s", "color": DATA, "ms": 8},
    )
    for (label, point), style in zip(answers.items(), styles, strict=True):
        right.plot(*point[-1], ls="none", label=label, **style)
    x, y = between
    right.set(xlim=(x - 0.6, x + 0.6), ylim=(y - 0.5, y + 0.5), aspect="equal", xlabel="$x_1$")
    right.grid(False)
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10)
    right.set_title("Exact posterior between the moons", fontsize=11)
