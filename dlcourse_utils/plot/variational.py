"""The figures of lesson 07, variational inference with flows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from scipy import ndimage

from dlcourse_utils.plot import DATA, FAINT, MODEL, TRUTH, filmstrip, on_host
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

_NJY = "nJy per fine pixel (arcsinh)"
_SHARES = (0.5, 0.9)  # of the probability, inside of contours


# --- guides of posteriors that are known -------------------------------------------------------


@on_host
def gaussians(
    exact: tuple[np.ndarray, np.ndarray],
    guides: Mapping[str, tuple[np.ndarray, np.ndarray]],
    curves: Mapping[str, np.ndarray],
    log_evidence: float,
    names: tuple[str, str],
) -> None:
    """Ellipses of 1 and 2 standard deviations, and the ELBO (k,) at each step of each guide.

    ``exact`` and each guide are mean (2,) and covariance (2, 2) of the unknowns with ``names``.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.7), width_ratios=(1.0, 1.15))
    _ellipses(left, *exact, edgecolor=TRUTH, lw=4.5, alpha=0.45, label="exact")
    for (name, (mean, covariance)), (colour, line, _) in zip(
        guides.items(), cycle(LINES), strict=False
    ):
        _ellipses(left, mean, covariance, edgecolor=colour, ls=line, lw=1.8, label=name)
    mean, spread = exact[0], np.sqrt(np.diag(exact[1]))
    left.set(xlabel=names[0], ylabel=names[1])
    left.set(xlim=mean[0] + np.array([-2.8, 2.8]) * spread[0])
    left.set(ylim=mean[1] + np.array([-2.8, 2.8]) * spread[1])
    left.legend(fontsize=9, loc="upper right")
    left.set_title("1 and 2 standard deviations", fontsize=11)
    for (name, values), (colour, line, _) in zip(curves.items(), cycle(LINES), strict=False):
        steps = np.arange(1, len(values) + 1)
        right.plot(steps, values, color=colour, ls=line, lw=1.3, label=name)
    behind = {"color": TRUTH, "lw": 4.5, "alpha": 0.45, "zorder": 1}
    right.axhline(log_evidence, label="log evidence", **behind)
    right.set(xlabel="step", ylabel="ELBO (nats)")
    right.set_ylim(log_evidence - 8.0, log_evidence + 1.5)
    right.legend(fontsize=9, loc="lower right")
    right.set_title("The bound and the evidence", fontsize=11)


def _ellipses(ax: Axes, mean: np.ndarray, covariance: np.ndarray, *, label: str, **style) -> None:
    values, vectors = np.linalg.eigh(covariance)
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    for sigmas in (1, 2):
        minor, major = 2 * sigmas * np.sqrt(values)
        ax.add_patch(Ellipse(mean, major, minor, angle=angle, fill=False, label=label, **style))
        label = None


@on_host
def densities(
    axes: tuple[np.ndarray, np.ndarray],
    log_p: np.ndarray,
    guides: Mapping[str, np.ndarray],
    notes: Mapping[str, str],
) -> None:
    """The density to be found, once for each guide, with the guide's contours and a note.

    ``log_p`` and each guide are log densities (g h,), up to a constant, on the plane of ``axes``
    (g,) and (h,), the first slowest. Contours hold 50 % and 90 % of the guide.
    """
    first, second = axes
    shape = len(first), len(second)
    target = _normalised(log_p.reshape(shape))
    tables = {name: _normalised(log_q.reshape(shape)) for name, log_q in guides.items()}
    seen = np.maximum.reduce([p / p.max() for p in (target, *tables.values())]) > 0.01
    window = [
        (axis[inside][0] - 0.3, axis[inside][-1] + 0.3)
        for axis, inside in ((first, seen.any(axis=1)), (second, seen.any(axis=0)))
    ]
    figure, panels = plt.subplots(
        1, len(guides), figsize=(2.75 * len(guides), 3.3), sharey=True, squeeze=False
    )
    for ax, (name, table) in zip(panels[0], tables.items(), strict=True):
        ax.pcolormesh(first, second, target.T, cmap="Oranges", vmax=1.1 * target.max())
        levels = _levels(table)
        ax.contour(first, second, table.T, levels, colors=MODEL, linestyles=["--", "-"])
        ax.grid(False)
        ax.set(xlim=window[0], ylim=window[1], xlabel="$x_1$")
        ax.set_title(f"{name}\n{notes[name]}", fontsize=10)
    panels[0, 0].set_ylabel("$x_2$")
    lines = [Line2D([], [], color=MODEL, ls=line) for line in ("-", "--")]
    figure.legend(
        lines,
        [f"{100 * share:.0f} % of the guide" for share in _SHARES],
        loc="outside lower center",
        ncols=2,
        fontsize=9,
    )


def _normalised(log_p: np.ndarray) -> np.ndarray:
    p = np.exp(log_p - log_p.max())
    return p / p.sum()


def _spread(most: float) -> dict[str, object]:
    """Colours of standard deviations up to ``most`` nJy: in arcsinh, as cores are sharp."""
    norm = stretch(most, 0.3)
    norm.vmin = 0.0
    return {"cmap": "viridis", "norm": norm}


def _levels(table: np.ndarray) -> list[float]:
    """The heights above which lie the shares of the probability, the larger share first."""
    heights = np.sort(table.ravel())[::-1]
    inside = np.cumsum(heights) / heights.sum()
    levels = [float(heights[np.searchsorted(inside, share)]) for share in sorted(_SHARES)[::-1]]
    # A contour needs two heights: all of it can be in one cell.
    return [levels[0], max(levels[1], np.nextafter(levels[0], np.inf))]


@on_host
def bound(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The ELBO against the step, each curve steps (k,) and values (k,) in nats.

    The legend has the mean of the last tenth of the values.
    """
    _, ax = plt.subplots(figsize=(7, 3.4))
    for (name, (steps, values)), (colour, line, _) in zip(
        curves.items(), cycle(LINES), strict=False
    ):
        end = values[-max(len(values) // 10, 1) :].mean()
        ax.plot(steps, values, color=colour, ls=line, lw=1.5, label=f"{name}: {end:.2f} nats")
    every = np.concatenate([values for _, values in curves.values()])
    # The first steps can be thousands of nats below: what comes after them sets the range.
    low, high = np.quantile(every, 0.2), every.max()
    margin = 0.1 * (high - low) + 1e-3
    ax.set(xlabel="step", ylabel="ELBO (nats)", ylim=(low - margin, high + margin))
    ax.legend(fontsize=9, loc="lower right")


# --- the posterior of a galaxy -----------------------------------------------------------------


@on_host
def posterior(
    seen: np.ndarray, truth: np.ndarray, mean: np.ndarray, std: np.ndarray, samples: np.ndarray
) -> None:
    """One galaxy: what was seen (21, 21), truth, posterior mean and standard deviation (63, 63).

    Below them ``samples`` (k, 63, 63) of the posterior, at most five; all in nJy.
    """
    samples = samples[:5]
    columns = max(4, len(samples))
    figure, axes = grid(2, columns, 2.0)
    norm = stretch(max(truth.max(), mean.max()))
    for ax in axes.ravel()[[*range(4, columns), *range(columns + len(samples), 2 * columns)]]:
        ax.set_axis_off()
    images = {"seen": seen, "truth": truth, "posterior mean": mean}
    for ax, (name, image) in zip(axes[0], images.items(), strict=False):
        picture = show(ax, image, norm=norm)
        ax.set_title(name, fontsize=10)
    spread = show(axes[0, 3], std, **_spread(std.max()))
    axes[0, 3].set_title("standard deviation", fontsize=10)
    for i, (ax, sample) in enumerate(zip(axes[1], samples, strict=False)):
        show(ax, sample, norm=norm)
        ax.set_title(f"sample {i + 1}", fontsize=10)
    scale(axes[0, 0])
    colour_bar(figure, spread, axes[0], "σ, nJy (arcsinh)")
    colour_bar(figure, picture, axes[1], _NJY)


def forming(means: np.ndarray, stds: np.ndarray, steps: np.ndarray) -> None:
    """Show the posterior forming, as an animation that needs no kernel.

    Posterior mean and standard deviation ``means`` and ``stds`` (k, 63, 63), nJy, at ``steps``.
    """
    means, stds, steps = (np.asarray(part) for part in (means, stds, steps))
    figure = Figure(figsize=(5.6, 2.9), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    norm = stretch(means[-1].max())
    image = show(left, means[-1], norm=norm)
    spread = show(right, stds[-1], **_spread(stds.max()))
    left.set_title("posterior mean", fontsize=10)
    right.set_title("standard deviation", fontsize=10)
    colour_bar(figure, image, left, "nJy (arcsinh)")
    colour_bar(figure, spread, right, "nJy (arcsinh)")
    pictures = []
    for mean, std, step in zip(means, stds, steps, strict=True):
        image.set_data(mean)
        spread.set_data(std)
        figure.suptitle(f"step {step}", fontsize=10)
        canvas.draw()
        alt = (
            f"Mean and standard deviation of the posterior of a galaxy at step {step}; "
            f"the standard deviation is at most {std.max():.2g} nJy."
        )
        pictures.append(filmstrip.Frame(filmstrip.picture(canvas), f"{step}", alt))
    filmstrip.play(pictures, [400] * len(pictures), label="training step")


@on_host
def inpainting(
    seen: np.ndarray, mean: np.ndarray, std_without: np.ndarray, std_with: np.ndarray
) -> None:
    """A galaxy of which a part was not observed: ``seen`` (21, 21), NaN where it is masked.

    Beside it the posterior mean, the standard deviation without and with the mask, (63, 63), and
    the ratio of the two, grey where they are below 2 % of the largest.
    """
    figure, axes = grid(1, 5, 2.1)
    one, two, three, four, five = axes[0]
    norm = stretch(mean.max())
    one.set_facecolor(FAINT)
    show(one, seen, norm=norm)
    picture = show(two, mean, norm=norm)
    spread = _spread(max(std_without.max(), std_with.max()))
    show(three, std_without, **spread)
    widths = show(four, std_with, **spread)
    # Where both are next to nothing their ratio says nothing.
    ratio = np.where(std_without > 0.02 * std_without.max(), std_with / std_without, np.nan)
    five.set_facecolor(FAINT)
    most = max(2.0, float(np.nanquantile(ratio, 0.99)))
    ratios = show(five, ratio, cmap="cividis", vmin=0.8, vmax=most)
    titles = ("seen", "posterior mean", "σ without mask", "σ with mask", "with / without")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    # Where the mask is, on the fine grid too.
    hidden = np.kron(np.isnan(seen), np.ones((3, 3)))
    for ax in (two, four, five):
        extent = picture.get_extent()
        ax.contour(hidden, [0.5], colors="white", linewidths=1.0, extent=extent, origin="lower")
    scale(one)
    for shown, beside, label in (
        (picture, [one, two], "nJy (arcsinh)"),
        (widths, [three, four], "nJy (arcsinh)"),
        (ratios, [five], "ratio"),
    ):
        colour_bar(figure, shown, beside, label)


# --- can it be trusted -------------------------------------------------------------------------


@on_host
def corner(
    reference: np.ndarray, guide: np.ndarray, truth: np.ndarray, names: tuple[str, ...]
) -> None:
    """Samples of a reference (n, d) and of the guide (m, d), in pairs and one by one.

    ``truth`` (d,) is marked; contours hold 50 % and 90 % of the samples.
    """
    d = len(names)
    figure, axes = plt.subplots(d, d, figsize=(1.75 * d, 1.6 * d), squeeze=False)
    both = np.concatenate([reference, guide])
    low, high = np.quantile(both, [0.002, 0.998], axis=0)
    margin = 0.08 * (high - low)
    edges = [np.linspace(*ends, 31) for ends in zip(low - margin, high + margin, strict=True)]
    looks = (("reference", reference, TRUTH, "-", 3.5, 0.5), ("guide", guide, MODEL, "-", 1.3, 1.0))
    for i in range(d):
        for j in range(d):
            ax = axes[i, j]
            if j > i:
                ax.set_axis_off()
                continue
            ax.grid(False)
            ax.set_xlim(edges[j][0], edges[j][-1])
            ax.tick_params(labelsize=7.5, labelrotation=0)
            ax.locator_params(nbins=3)
            ax.axvline(truth[j], color=DATA, ls=":", lw=1.2)
            for _, samples, colour, line, width, alpha in looks:
                style = {"colors": colour, "linewidths": width, "alpha": alpha}
                if i == j:
                    heights, _ = np.histogram(samples[:, i], edges[i], density=True)
                    ax.stairs(heights, edges[i], color=colour, lw=width, alpha=alpha, ls=line)
                    continue
                table, *_ = np.histogram2d(samples[:, j], samples[:, i], (edges[j], edges[i]))
                table = ndimage.gaussian_filter(table, 1.0)
                middles = [0.5 * (edges[k][1:] + edges[k][:-1]) for k in (j, i)]
                ax.contour(*middles, table.T, _levels(table), linestyles=["--", "-"], **style)
            if i == j:
                ax.set_yticks([])
            else:
                ax.set_ylim(edges[i][0], edges[i][-1])
                ax.plot(truth[j], truth[i], "+", color="black", ms=8, mew=1.5)
            if i < d - 1:
                ax.set_xticklabels([])
            else:
                ax.set_xlabel(names[j], fontsize=9)
            if 0 == j < i:
                ax.set_ylabel(names[i], fontsize=9)
            elif j:
                ax.set_yticklabels([])
    figure.align_ylabels(axes[:, 0])
    handles = [Line2D([], [], color=c, lw=w, alpha=a) for _, _, c, _, w, a in looks]
    handles.append(Line2D([], [], color="black", marker="+", ls=":"))
    labels = [name for name, *_ in looks] + ["truth"]
    axes[0, -1].legend(handles, labels, loc="upper right", fontsize=10)


@on_host
def against_reference(
    guide: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]
) -> None:
    """Mean and standard deviation of each number, (d,) each, of the guide against a reference's.

    Bands: 0.2 of the reference's standard deviations for the mean, 15 % for the deviation.
    """
    shift = (guide[0] - reference[0]) / reference[1]
    ratio = guide[1] / reference[1]
    _, axes = plt.subplots(1, 2, figsize=(10.5, 3.1))
    cases = (
        (axes[0], shift, 0.0, 0.2, "shift of the mean / σ"),
        (axes[1], ratio, 1.0, 0.15, "σ of guide / σ of reference"),
    )
    for ax, values, centre, band, label in cases:
        ax.axhspan(centre - band, centre + band, color=FAINT, alpha=0.5, lw=0)
        ax.axhline(centre, color=DATA, lw=0.8)
        inside = np.abs(values - centre) <= band
        number = np.arange(1, len(values) + 1)
        ax.plot(number[inside], values[inside], "o", ms=5, color=MODEL)
        ax.plot(number[~inside], values[~inside], "v", ms=6, color=TRUTH)
        ax.set(xlabel="latent", ylabel=label)
        reach = max(2.0 * band, 1.15 * np.abs(values - centre).max())
        ax.set_ylim(centre - reach, centre + reach)
        ax.set_title(f"{inside.sum()} of {len(values)} within the band", fontsize=11)


@on_host
def residuals(
    residual: np.ndarray, wavenumber: np.ndarray, power: np.ndarray, band: np.ndarray
) -> None:
    """Residual (k, k) in σ of the posterior mean, NaN where masked, and spectra of residuals.

    ``power`` (n, m) is that of the residuals of n samples at ``wavenumber`` (m,), cycles per
    arcsec, 1 for white noise of the stated variance; ``band`` (2, m) has the ends between which
    white noise lies.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 3.3), width_ratios=(1.0, 1.9), layout="constrained"
    )
    left.set_facecolor(FAINT)
    picture = show(left, residual, **SIGMAS)
    left.set_title("residual of the posterior mean", fontsize=11)
    colour_bar(figure, picture, left, "σ")
    write(left, f"χ² per pixel {np.nanmean(residual**2):.2f}")
    right.fill_between(wavenumber, *band, color=FAINT, alpha=0.5, lw=0, label="white noise, 95 %")
    right.axhline(1.0, color=DATA, lw=0.8)
    low, middle, high = np.quantile(power, [0.025, 0.5, 0.975], axis=0)
    bars = np.stack([middle - low, high - middle])
    style = {"fmt": "o", "color": MODEL, "ms": 5, "lw": 1.5}
    right.errorbar(wavenumber, middle, bars, label="residuals of samples, 95 %", **style)
    right.set(xlabel="wavenumber (cycles per arcsec)", ylabel="power / that of the noise")
    right.set_ylim(bottom=0.0)
    right.legend(fontsize=9)


@on_host
def coverage(
    levels: np.ndarray, observed: Mapping[str, np.ndarray], error: Mapping[str, np.ndarray]
) -> None:
    """The share of truths inside of intervals against their level, (k,) each, for each group.

    ``error`` is the Monte Carlo standard deviation (k,) of a group's observed shares.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), width_ratios=(1.0, 1.35))
    left.plot([0, 1], [0, 1], color=DATA, lw=0.8)
    right.axhline(0.0, color=DATA, lw=0.8)
    for (name, shares), (colour, line, marker) in zip(observed.items(), cycle(LINES), strict=False):
        look = {"color": colour, "ls": line, "marker": marker, "ms": 5}
        left.plot(levels, shares, label=name, **look)
        right.plot(levels, shares - levels, **look)
        away, width = shares - levels, 2.0 * error[name]
        right.fill_between(levels, away - width, away + width, color=colour, alpha=0.15, lw=0)
    left.set(xlabel="stated level", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1))
    left.set_aspect("equal")
    left.legend(fontsize=9, loc="upper left")
    right.set(xlabel="stated level", ylabel="observed - stated", xlim=(0, 1))
    ends = [shares - levels + s * error[name] for name, shares in observed.items() for s in (-2, 2)]
    right.set_ylim(min(-0.06, 1.05 * np.min(ends)), max(0.06, 1.05 * np.max(ends)))
    right.set_title("shaded: two standard errors over galaxies", fontsize=11)


@on_host
def weights(cases: Mapping[str, tuple[np.ndarray, float]]) -> None:
    """Importance weights (n,) of each guide, the largest first, and Pareto's k in the legend."""
    _, ax = plt.subplots(figsize=(7, 3.5))
    for (name, (values, k)), (colour, line, _) in zip(cases.items(), cycle(LINES), strict=False):
        ordered = np.sort(values)[::-1] * len(values)
        fraction = len(values) / np.sum(ordered**2)
        label = f"{name}: k = {k:.2f}, effective {100 * fraction:.1f} %"
        ax.plot(np.arange(1, len(values) + 1), ordered, color=colour, ls=line, label=label)
    ax.axhline(1.0, color=DATA, lw=0.8, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="rank of the sample", ylabel="weight / mean weight")
    ax.set_ylim(bottom=1e-3)
    ax.legend(fontsize=9, loc="lower left")
