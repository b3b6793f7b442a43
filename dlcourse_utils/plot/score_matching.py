"""The figures of lesson 09, denoising score matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import matplotlib.pyplot as plt
import numpy as np

from dlcourse_utils.datasets import two_moons
from dlcourse_utils.plot import DATA, FAINT, IN_LINE, MODEL, OTHER, TRUTH, on_host

Score = Callable[[jax.Array, jax.Array], jax.Array]
_MOONS = {"xlim": (-1.7, 2.7), "ylim": (-1.3, 1.8), "aspect": "equal"}
_STYLES = ((OTHER, "-.", "s"), (MODEL, "-", "o"), (IN_LINE, "--", "^"))


# One grid for shades and arrows: each score is compiled for one number of points.
_FIRST, _SECOND = np.linspace(-1.7, 2.7, 111), np.linspace(-1.3, 1.8, 79)
_PLANE = np.stack(np.meshgrid(_FIRST, _SECOND, indexing="ij"), axis=-1).astype(np.float32)
_FEW = np.s_[3::7, 4::7]


def _density(ax: plt.Axes, sigma: float) -> np.ndarray:
    """The blurred moons as grey shades; their density (111, 79) on the grid."""
    noise = float(np.hypot(sigma, two_moons.NOISE))
    density = np.exp(np.asarray(two_moons.log_prob(_PLANE.reshape(-1, 2), noise)))
    density = density.reshape(_PLANE.shape[:2])
    shades = {"cmap": "Greys", "vmax": 1.6 * density.max(), "rasterized": True}
    ax.pcolormesh(_FIRST, _SECOND, density.T, **shades)
    ax.grid(False)
    ax.set(**_MOONS, xlabel="$x_1$", ylabel="$x_2$")
    return density


def _on_plane(score: Score, sigma: float) -> np.ndarray:
    """The score (111, 79, 2) on the grid."""
    return np.asarray(score(_PLANE.reshape(-1, 2), np.float32(sigma))).reshape(_PLANE.shape)


def _arrows(ax: plt.Axes, scores: np.ndarray, longest: float, **style: object) -> None:
    """A few arrows of scores (111, 79, 2); the ``longest`` is 0.45 long."""
    points, arrows = (field[_FEW].reshape(-1, 2) for field in (_PLANE, scores * 0.45 / longest))
    ax.quiver(*points.T, *arrows.T, angles="xy", scale_units="xy", scale=1.0, **style)


def _longest(scores: np.ndarray) -> float:
    """The length of a long arrow."""
    return float(np.quantile(np.linalg.norm(scores[_FEW], axis=-1), 0.9))


def claim(score: Score, sigmas: Sequence[float]) -> None:
    """The exact score on the density, for several noise levels."""
    _, axes = plt.subplots(1, len(sigmas), figsize=(11, 3.2), sharey=True)
    for ax, sigma in zip(axes, sigmas, strict=True):
        _density(ax, sigma)
        arrows = _on_plane(score, sigma)
        _arrows(ax, arrows, _longest(arrows), color=TRUTH, width=0.004)
        ax.set_title(f"noise $\\sigma$ = {sigma:g}", fontsize=11)
        ax.label_outer()


@on_host
def tweedie(clean: np.ndarray, noisy: np.ndarray, denoised: np.ndarray) -> None:
    """Arrows from noisy points to their posterior means, and a test of the formula in cells."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), width_ratios=(1.5, 1))
    _density(left, 0.0)
    few = slice(0, 150)
    move = denoised[few] - noisy[few]
    left.quiver(
        *noisy[few].T, *move.T, angles="xy", scale_units="xy", scale=1, color=MODEL, width=0.003
    )
    left.plot(*noisy[few].T, ".", color=DATA, ms=4, label="noisy point")
    left.legend(loc="upper right", fontsize=9)
    left.set_title("Arrows end at the posterior mean", fontsize=11)
    edges = np.linspace(-1.5, 2.5, 41), np.linspace(-1.2, 1.7, 30)
    count = np.histogram2d(*noisy.T, bins=edges)[0]
    for i, (colour, marker) in enumerate(((MODEL, "o"), (OTHER, "^"))):
        sums = [np.histogram2d(*noisy.T, bins=edges, weights=a[:, i])[0] for a in (clean, denoised)]
        seen, formula = (total[count > 100] / count[count > 100] for total in sums)
        right.plot(formula, seen, marker, color=colour, ms=3, ls="none", label=f"$x_{i + 1}$")
    right.axline((0, 0), slope=1, color=DATA, lw=1)
    right.set(
        xlabel="mean of Tweedie's formula in a cell", ylabel="mean of clean points in the cell"
    )
    right.set_aspect("equal")
    right.legend(loc="upper left", fontsize=9)


def learned(exact: Score, score: Score, levels: np.ndarray, errors: np.ndarray) -> None:
    """Arrows of both scores, a map of the error, and the error against the noise level."""
    sigma = 0.2
    _, (arrows, error_map, curve) = plt.subplots(
        1, 3, figsize=(12, 3.4), width_ratios=(1.35, 1.5, 1)
    )
    density = _density(arrows, sigma)
    of_exact, of_network = (_on_plane(function, sigma) for function in (exact, score))
    for shown, name, style in (
        (of_exact, "exact", {"color": TRUTH, "width": 0.011, "alpha": 0.6}),
        (of_network, "learned", {"color": MODEL, "width": 0.004}),
    ):
        _arrows(arrows, shown, _longest(of_exact), **style)
        arrows.plot([], [], color=style["color"], lw=500 * style["width"], label=name)
    arrows.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=9)
    arrows.set_title("Score, $\\sigma$ = 0.2", fontsize=11)
    size = sigma * np.linalg.norm(of_network - of_exact, axis=-1)
    image = error_map.pcolormesh(
        _FIRST, _SECOND, np.log10(size.T), cmap="cividis", vmin=-3, vmax=0, rasterized=True
    )
    plt.colorbar(image, ax=error_map, label="log$_{10}$ ($\\sigma$ |error|)")
    error_map.contour(_FIRST, _SECOND, density.T, [0.01 * density.max()], colors="white")
    error_map.grid(False)
    error_map.set(**_MOONS, xlabel="$x_1$", title="Error, $\\sigma$ = 0.2")
    error_map.title.set_fontsize(11)
    curve.loglog(levels, errors, "o-", color=MODEL)
    curve.axhline(0.005, color=DATA, ls="--", lw=1)
    curve.text(levels[0], 0.0056, "band", fontsize=9, color=DATA)
    curve.set(xlabel="noise level $\\sigma$", ylabel="relative error of the score")


@on_host
def weights(levels: np.ndarray, errors: np.ndarray) -> None:
    """Relative error of the score against the noise level, for three weights."""
    _, ax = plt.subplots(figsize=(6.5, 3.6))
    names = ("not divided", "divided by $\\sigma^2$", "divided by $\\sigma^4$")
    for row, name, (colour, line, marker) in zip(errors, names, _STYLES, strict=True):
        ax.loglog(levels, row, color=colour, ls=line, marker=marker, label=name)
    ax.set(xlabel="noise level $\\sigma$", ylabel="relative error of the score")
    ax.legend(title="squared error")


@on_host
def samples(points: Mapping[str, np.ndarray]) -> None:
    """Samples of each sampler, and the share of each moon."""
    _, axes = plt.subplots(1, len(points), figsize=(12, 2.9), sharey=True)
    for ax, (name, x) in zip(axes, points.items(), strict=True):
        to_arcs = np.asarray(two_moons.distance(x))
        outer = to_arcs[:, 0] < to_arcs[:, 1]
        for which, colour in ((outer, MODEL), (~outer, OTHER)):
            ax.plot(*x[which][:2000].T, ".", color=colour, ms=1.5, alpha=0.6, rasterized=True)
        ax.text(-1.5, -1.1, f"{outer.mean():.1%}", color=MODEL, fontsize=10)
        ax.text(2.5, -1.1, f"{1 - outer.mean():.1%}", color="#8A6000", fontsize=10, ha="right")
        ax.set(**_MOONS, xlabel="$x_1$", ylabel="$x_2$")
        ax.set_title(name, fontsize=11)
        ax.label_outer()


@on_host
def flow(paths: np.ndarray, exact: np.ndarray, by_flow: np.ndarray) -> None:
    """Paths (levels, points, 2) of the ODE, and its log density against the exact one."""
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), width_ratios=(1.5, 1))
    left.plot(paths[:, :, 0], paths[:, :, 1], color=FAINT, ls="-", lw=0.6)
    left.plot(*paths[0].T, ".", color=OTHER, ms=4, label="start, $\\sigma$ = 2")
    left.plot(*paths[-1].T, ".", color=MODEL, ms=4, label="end, $\\sigma$ = 0.02")
    left.set(xlim=(-4, 5), ylim=(-3.5, 4), xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    left.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    right.plot(exact, by_flow, ".", color=MODEL, ms=3, alpha=0.5, rasterized=True)
    right.axline((0, 0), slope=1, color=DATA, lw=1)
    right.set(xlabel="exact log density", ylabel="log density by the ODE", aspect="equal")


@on_host
def pulls(sigmas: np.ndarray, errors: Mapping[str, Sequence[float]]) -> None:
    """Error of what each approximation adds to the prior's score, against the noise level."""
    _, ax = plt.subplots(figsize=(6.5, 3.6))
    for (name, values), style in zip(errors.items(), _STYLES, strict=True):
        colour, line, marker = style
        ax.loglog(sigmas, values, color=colour, ls=line, marker=marker, label=name)
    ax.set(xlabel="noise level $\\sigma$", ylabel="error of the pull, times $\\sigma$")
    ax.legend()


@on_host
def posteriors(
    first: np.ndarray,
    second: np.ndarray,
    exact: np.ndarray,
    points: Mapping[str, np.ndarray],
    divergences: Mapping[str, float],
) -> None:
    """Posterior samples of each method on contours of the exact posterior."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.8))
    peak = exact.max()
    for ax, (name, x) in zip(axes.flat, points.items(), strict=False):
        ax.plot(*x[:1500].T, ".", color=MODEL, ms=2, alpha=0.5, rasterized=True)
        ax.contour(first, second, exact.T, levels=[0.05 * peak, 0.5 * peak], colors=TRUTH)
        ax.set(**_MOONS, xlabel="$x_1$", ylabel="$x_2$")
        ax.set_title(f"{name}\nKL {divergences[name]:.3f} nats", fontsize=10)
    last, *unused = axes.flat[len(points) :]
    for ax in unused:
        figure.delaxes(ax)
    marginal = exact.sum(axis=0)
    bins = np.linspace(-1.2, 1.8, 31)
    for name, x in points.items():
        if name.endswith(("DPS", "HMC, convolved")):
            colour, line = (OTHER, "-.") if name.endswith("DPS") else (MODEL, "-")
            height = np.histogram(x[:, 1], bins, density=True)[0]
            last.stairs(height, bins, color=colour, ls=line, label=name)
    last.plot(second, marginal / np.trapezoid(marginal, second), color=TRUTH, label="exact")
    last.set(xlabel="$x_2$", ylabel="density")
    last.set_ylim(0.0, 1.5 * last.get_ylim()[1])
    last.legend(fontsize=8, loc="upper left")


@on_host
def fields(
    maps: Mapping[str, np.ndarray], spreads: Mapping[str, np.ndarray], survey: np.ndarray
) -> None:
    """Maps with one colour scale and spreads with another; the edge of the holes is drawn."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.2))
    most = np.abs(maps["truth"]).max()
    shown = list(axes.flat)
    for ax, (name, values) in zip(shown, maps.items(), strict=False):
        values = np.where(survey > 0, values, np.nan) if name == "observed" else values
        low = ax.imshow(values, cmap="PuOr", vmin=-most, vmax=most)
        ax.set_title(name, fontsize=11)
    for ax, (name, values) in zip(shown[len(maps) :], spreads.items(), strict=False):
        high = ax.imshow(values, cmap="viridis", vmin=0.0, vmax=max(map(np.max, spreads.values())))
        ax.set_title(name, fontsize=11)
    used = len(maps) + len(spreads)
    for ax in shown[:used]:
        ax.contour(survey, levels=[0.5], colors="black", linewidths=0.7)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    for ax in shown[used:]:
        ax.set_axis_off()
    figure.colorbar(low, ax=axes[0], label="field", shrink=0.8)
    figure.colorbar(high, ax=axes[1], label="posterior $\\sigma$", shrink=0.8)
