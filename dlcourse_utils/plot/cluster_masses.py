"""The figures of lesson 01, cluster masses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from dlcourse_utils import exact
from dlcourse_utils.datasets.clusters import TRAIN_HIGH, TRAIN_LOW, Clusters
from dlcourse_utils.datasets.splus import SplusClusters
from dlcourse_utils.plot import (
    CLASSICAL,
    DATA,
    FAINT,
    IN_LINE,
    MODEL,
    OTHER,
    TRUTH,
    binned_mean,
    on_host,
    pit_histogram,
)
from dlcourse_utils.train import History

MASS = r"mass $m = \log_{10}(M_{200}/M_\odot)$ [dex]"
PER_DEX = "density [1/dex]"


def _m_sigma(sample: Clusters) -> tuple[float, float, float]:
    """Slope, intercept and scatter of the M-sigma line, in double precision."""
    log_sigma, log_mass = np.float64(sample.features[:, 1]), np.float64(sample.log_mass)
    slope, intercept = np.polyfit(log_sigma, log_mass, 1)
    return slope, intercept, float(np.std(log_mass - slope * log_sigma - intercept))


@on_host
def pick_two_peaked(log_p: jax.Array, grid: jax.Array, train: Clusters, sample: Clusters) -> int:
    """Index of two structures in line with a deep valley, far off the M-sigma line."""
    slope, intercept, _ = _m_sigma(train)
    at_truth = np.asarray(exact.log_prob_at(log_p, grid, sample.log_mass))
    fit = sample.superposed & (sample.log_mass > 13.8) & (sample.log_mass < 14.8)
    fit &= slope * sample.features[:, 1] + intercept - sample.log_mass > 0.4
    fit &= at_truth > log_p.max(axis=1) - 0.7
    return int(np.argmax(np.where(fit, exact.valley(log_p), 0.0)))


def _mark_truth(ax, mass: float) -> None:
    ax.axvline(mass, color="black", lw=1.2, ls=(0, (4, 2)))


def _zoom(ax, grid, *log_ps) -> None:
    """Limit the axis to where some density is above 0.5 % of its peak."""
    seen = np.zeros(len(grid), bool)
    for log_p in log_ps:
        seen |= log_p > np.max(log_p) + np.log(0.005)
    ax.set_xlim(grid[seen][0] - 0.05, grid[seen][-1] + 0.05)


@on_host
def claim(
    grid: jax.Array, exact_log_p: jax.Array, train: Clusters, test: Clusters, index: int
) -> None:
    """One cluster: the classical answer, the exact posterior, the truth."""
    slope, intercept, scatter = _m_sigma(train)
    answer = float(slope * test.features[index, 1] + intercept)
    truth = float(test.log_mass[index])
    p = np.exp(exact_log_p[index])
    _, ax = plt.subplots(figsize=(7, 3.8))
    ax.fill_between(grid, p, color=TRUTH, alpha=0.25, lw=0)
    ax.plot(grid, p, color=TRUTH)
    ax.errorbar(answer, 0.45 * p.max(), xerr=scatter, fmt="o", color=CLASSICAL, capsize=4, ms=7)
    ax.text(
        answer + scatter + 0.04,
        0.45 * p.max(),
        "classical answer:\nM–σ relation ± scatter",
        color=CLASSICAL,
        va="center",
    )
    _mark_truth(ax, truth)
    ax.text(truth - 0.02, 1.08 * p.max(), "true mass", ha="right")
    ax.text(truth - 0.2, 0.7 * p.max(), "exact posterior", color=TRUTH, ha="right")
    ax.set(xlabel=MASS, ylabel=PER_DEX, ylim=(0, 1.2 * p.max()))
    ax.set_xlim(truth - 0.8, answer + scatter + 0.75)
    ax.set_title("One number cannot say what is known of this cluster")


@on_host
def data(train: Clusters, slope: float, intercept: float, scatter: float) -> None:
    """Mass against dispersion and richness, and the residuals of the M-sigma line."""
    few = slice(0, 4000)
    kinds = (
        (~train.superposed, DATA, "o", "one structure"),
        (train.superposed, IN_LINE, "^", "two in line"),
    )
    _, axes = plt.subplots(1, 3, figsize=(11, 3.8))
    for ax, column in ((axes[0], 1), (axes[1], 0)):
        for which, colour, marker, label in kinds:
            shown = which[few]
            ax.plot(
                10 ** train.features[few, column][shown],
                train.log_mass[few][shown],
                marker,
                color=colour,
                ms=2,
                alpha=0.5,
                label=label,
                ls="none",
                rasterized=True,
            )
        ax.set(xscale="log", ylim=(12.9, 15.5))
    line = np.array([2.0, 3.4])
    axes[0].plot(10**line, slope * line + intercept, color=CLASSICAL, ls="-")
    axes[0].fill_between(
        10**line,
        slope * line + intercept - scatter,
        slope * line + intercept + scatter,
        color=CLASSICAL,
        alpha=0.15,
        lw=0,
    )
    axes[0].set(xlabel=r"velocity dispersion σ [km/s]", ylabel=MASS, xlim=(60, 3000))
    axes[0].set_title(f"M–σ relation: scatter {scatter:.2f} dex", fontsize=11)
    axes[1].set(xlabel=r"richness (members with $M_r<-20$)", xlim=(0.7, 800))
    axes[1].set_title("The richness helps", fontsize=11)
    axes[1].legend(markerscale=4, loc="lower right", handletextpad=0.2)
    residual = slope * train.features[:, 1] + intercept - train.log_mass
    edges = np.linspace(-1.2, 1.4, 80)
    for which, colour, _, label in kinds:
        axes[2].hist(
            residual[which],
            edges,
            color=colour,
            alpha=0.8,
            label=label,
            histtype="stepfilled" if colour == DATA else "step",
            lw=1.8,
        )
    axes[2].set(xlabel="line minus true mass [dex]", ylabel="training clusters")
    axes[2].set_title("Two in line look too heavy", fontsize=11)


@on_host
def flattening(log_mass: jax.Array, prediction: jax.Array, exact_mean: jax.Array) -> None:
    """Mean error against the true mass, and against the predicted mass."""
    edges = np.linspace(12.9, 15.5, 27)
    _, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    for ax, by_truth in ((axes[0], True), (axes[1], False)):
        for guess, style in (
            (exact_mean, {"color": TRUTH, "lw": 5, "alpha": 0.4, "label": "exact posterior mean"}),
            (prediction, {"color": MODEL, "marker": "o", "ms": 3, "label": "network"}),
        ):
            x, y, error = binned_mean(log_mass if by_truth else guess, guess - log_mass, edges)
            ax.errorbar(x, y, error, ls="-", elinewidth=1.0, **style)
        ax.axhline(0.0, color="black", lw=0.8, ls="-")
    axes[0].set(xlabel=f"true {MASS}", ylabel="mean of prediction − truth [dex]")
    axes[0].set_title("By true mass", fontsize=11)
    axes[1].set(xlabel="predicted mass [dex]")
    axes[1].set_title("By predicted mass", fontsize=11)
    axes[0].legend()


@on_host
def losses(
    mse_prediction: jax.Array,
    mae_prediction: jax.Array,
    exact_mean: jax.Array,
    exact_median: jax.Array,
    exact_std: jax.Array,
) -> None:
    """Distance of both point networks to the exact mean and to the exact median."""
    unit = float(exact_std.mean())
    # Mean and median differ where the posterior is skewed: only there can the two be told apart.
    skewed = np.abs(exact_mean - exact_median) > 0.15 * unit
    edges = np.linspace(-0.6, 0.6, 61)
    _, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
    for ax, target, name in ((axes[0], exact_mean, "mean"), (axes[1], exact_median, "median")):
        for guess, colour, style, label in (
            (mse_prediction, MODEL, "-", "squared error"),
            (mae_prediction, OTHER, "--", "absolute error"),
        ):
            difference = ((guess - target) / unit)[skewed]
            ax.hist(
                difference,
                edges,
                density=True,
                histtype="step",
                color=colour,
                ls=style,
                lw=1.8,
                label=f"{label}: rms {np.sqrt(np.mean(difference**2)):.2f}",
            )
        ax.set(xlabel=f"network − exact {name} [posterior σ], skewed posteriors")
        ax.legend(loc="upper left", fontsize=9)
    axes[0].set(ylabel="density", ylim=(0, axes[0].get_ylim()[1] * 1.25))
    axes[0].set_title("Squared error learns the mean ...", fontsize=11)
    axes[1].set_title("... absolute error the median", fontsize=11)


@on_host
def training(history: History, floor: float) -> None:
    """The loss falls to the entropy of the exact posterior."""
    _, ax = plt.subplots()
    ax.plot(history.step, history.train, color=DATA, ls=":", label="training batches")
    ax.plot(history.step, history.held_out, color=MODEL, ls="-", label="held-out")
    ax.axhline(
        float(floor), color=TRUTH, ls="--", label="entropy of the exact posterior: the floor"
    )
    ax.set(xlabel="training step", ylabel="mean negative log-likelihood [nats]")
    ax.set_ylim(float(floor) - 0.03, max(float(history.held_out[0]), float(floor) + 0.2) + 0.1)
    ax.legend()
    ax.set_title("The loss stops at what the data leave unknown")


@on_host
def summaries(
    grid: jax.Array, log_q: jax.Array, values: dict, log_mass: jax.Array, index: int
) -> None:
    """Mean, median, mode and the central interval of one two-peaked posterior."""
    p = np.exp(log_q[index])
    one = {name: float(column[index]) for name, column in values.items()}
    within = np.trapezoid(np.where(np.abs(grid - one["mean"]) <= one["std"], p, 0.0), grid)
    _, ax = plt.subplots(figsize=(7, 3.8))
    ax.plot(grid, p, color=MODEL)
    inside = (grid >= one["low"]) & (grid <= one["high"])
    ax.fill_between(grid, p, where=inside, color=MODEL, alpha=0.2, lw=0)
    ax.text(one["low"] + 0.03, 0.12 * p.max(), "68 %", color=MODEL)
    for k, (name, style) in enumerate((("mode", ":"), ("median", "-."), ("mean", "--"))):
        ax.axvline(one[name], color=DATA, ls=style, lw=1.4, ymax=0.98 - 0.09 * k)
        left = one[name] < one["mode"]  # away from the other lines
        side = {"ha": "right"} if left else {}
        x = one[name] + (-0.015 if left else 0.015)
        ax.text(x, (1.19 - 0.11 * k) * p.max(), name, color=DATA, **side)
    ax.plot(
        [one["mean"] - one["std"], one["mean"] + one["std"]],
        [0.03 * p.max()] * 2,
        color=DATA,
        lw=3,
        ls="-",
    )
    ax.annotate(
        f"mean ± std: {within:.0%}",
        (one["mean"] + one["std"], 0.03 * p.max()),
        xytext=(45, 45),
        textcoords="offset points",
        color=DATA,
        arrowprops={"arrowstyle": "-", "color": DATA, "lw": 0.8},
    )
    _zoom(ax, grid, log_q[index])
    ax.set(xlabel=MASS, ylabel=PER_DEX, ylim=(0, 1.27 * p.max()))
    ax.set_title("Mean, median and mode of a skewed posterior")


@on_host
def prior_change(
    grid: jax.Array,
    before: jax.Array,
    after: jax.Array,
    exact_log_p: jax.Array,
    log_mass: jax.Array,
) -> None:
    """Three clusters under the training prior and under the mass function."""
    order = np.argsort(exact.valley(before))[::-1]
    heavy = np.argsort(np.asarray(exact.mean_and_std(exact_log_p, grid)[0]))
    chosen = (order[0], heavy[len(heavy) // 2], heavy[-20])
    names = ("two peaks", "a typical cluster", "one of the heaviest")
    _, axes = plt.subplots(1, 3, figsize=(11, 3.5))
    for ax, index, name in zip(axes, chosen, names, strict=True):
        ax.plot(grid, np.exp(before[index]), color=OTHER, ls=":", label="network, training prior")
        ax.plot(
            grid,
            np.exp(exact_log_p[index]),
            color=TRUTH,
            lw=4,
            alpha=0.4,
            ls="-",
            label="exact, mass function",
        )
        ax.plot(grid, np.exp(after[index]), color=MODEL, ls="-", label="network, mass function")
        _mark_truth(ax, float(log_mass[index]))
        _zoom(ax, grid, before[index], exact_log_p[index])
        ax.set(xlabel="mass [dex]")
        ax.set_ylim(bottom=0)
        ax.set_title(name, fontsize=11)
    axes[0].set(ylabel=PER_DEX)
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


@on_host
def edges(log_mass: jax.Array, answers: dict[str, dict]) -> None:
    """Posterior mean and interval against true mass, far beyond the training masses.

    ``answers`` maps four labels to summaries: exact, trained, divided inside, divided everywhere.
    """
    mass = log_mass.reshape(-1, 500)
    _, ax = plt.subplots(figsize=(8, 4.8))
    ax.axvspan(TRAIN_LOW, TRAIN_HIGH, color=FAINT, alpha=0.35, lw=0)
    ax.text(0.5 * (TRAIN_LOW + TRAIN_HIGH), 16.6, "masses in training", ha="center", color=DATA)
    styles = ((TRUTH, "-", 5), (OTHER, ":", 2.5), (MODEL, "-", 1.8), (DATA, "-.", 1.5))
    for (label, values), (colour, line, width) in zip(answers.items(), styles, strict=True):
        mean, low, high = (
            values[k].reshape(mass.shape).mean(axis=1) for k in ("mean", "low", "high")
        )
        faint = 0.4 if width == 5 else 1.0
        ax.plot(mass[:, 0], mean, color=colour, ls=line, lw=width, alpha=faint, label=label)
        ax.fill_between(mass[:, 0], low, high, color=colour, alpha=0.12, lw=0)
    ax.plot(mass[:, 0], mass[:, 0], color="black", lw=0.8, ls="-", label="true mass")
    ax.set(xlabel=f"true {MASS}", ylabel="posterior mean and 68 % interval [dex]", ylim=(11.4, 17))
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_title("Beyond the training masses")


@on_host
def eight_clusters(
    grid: jax.Array, log_q: jax.Array, exact_log_p: jax.Array, test: Clusters, index: int
) -> None:
    """Network and exact posterior of eight clusters, the two-peaked one first."""
    masses = test.log_mass[:2000]
    chosen = [index] + [int(np.argmin(np.abs(masses - m))) for m in np.linspace(13.4, 15.2, 7)]
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.8))
    for ax, k in zip(axes.flat, chosen, strict=True):
        ax.plot(
            grid,
            np.exp(exact_log_p[k]),
            color=TRUTH,
            lw=4.5,
            alpha=0.4,
            ls="-",
            label="exact posterior",
        )
        ax.plot(grid, np.exp(log_q[k]), color=MODEL, ls="-", lw=1.4, label="network")
        _mark_truth(ax, float(test.log_mass[k]))
        _zoom(ax, grid, exact_log_p[k], log_q[k])
        ax.set_ylim(bottom=0)
        ax.set_yticks([])
        sigma, richness, n = (10 ** float(test.features[k, c]) for c in (1, 0, 2))
        ax.set_title(f"σ {sigma:.0f} km/s, {richness:.0f} gal., n {n:.0f}", fontsize=9)
    figure.supxlabel(MASS, fontsize=11)
    figure.supylabel("density", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


@on_host
def calibration(pit_mdn: jax.Array, pit_exact: jax.Array, coverage: Callable) -> None:
    """PIT histograms, and coverage minus level against level."""
    _, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    pit = {"network": (pit_mdn, MODEL, "-"), "exact": (pit_exact, TRUTH, "--")}
    pit_histogram(axes[0], pit)
    axes[0].set_ylim(0.7, 1.3)
    axes[0].legend(loc="upper right", ncols=2)
    axes[0].set_title("PIT histogram", fontsize=11)
    levels = np.linspace(0.02, 0.98, 49)
    error = np.sqrt(levels * (1 - levels) / len(pit_mdn))
    axes[1].fill_between(levels, -200 * error, 200 * error, color=FAINT, alpha=0.5, lw=0)
    for label, (values, colour, style) in pit.items():
        excess = [100 * (float(coverage(values, level)) - level) for level in levels]
        axes[1].plot(levels, excess, color=colour, ls=style, label=label)
    for level in (0.5, 0.68, 0.95):
        axes[1].axvline(level, color=DATA, lw=0.8, ls=":")
    axes[1].set(
        xlabel="level of the central interval", ylabel="coverage − level [points]", ylim=(-2.5, 2.5)
    )
    axes[1].set_title("Coverage minus level; grey: two standard errors", fontsize=11)


@on_host
def real_clusters(real: SplusClusters, inside: np.ndarray, values: dict) -> None:
    """Predicted against virial mass of the real clusters, and the pulls."""
    virial = real.log_mass[inside]
    virial_error = 0.5 * (real.log_mass_low + real.log_mass_high)[inside]
    mean, std = values["mean"], values["std"]
    difference = mean - virial
    pull = difference / np.hypot(std, virial_error)
    _, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    axes[0].errorbar(
        virial,
        mean,
        yerr=[mean - values["low"], values["high"] - mean],
        xerr=[real.log_mass_low[inside], real.log_mass_high[inside]],
        fmt="o",
        color=MODEL,
        ms=4,
        lw=0.8,
        alpha=0.8,
    )
    ends = np.array([12.9, 14.9])
    axes[0].plot(ends, ends, color="black", lw=0.8, ls="-")
    axes[0].set(
        xlabel="virial mass of the catalogue [dex]", ylabel="network: mean and 68 % interval [dex]"
    )
    axes[0].set_title(
        f"{len(virial)} clusters: offset {difference.mean():+.2f}, "
        f"scatter {difference.std():.2f} dex",
        fontsize=11,
    )
    edges = np.linspace(-4, 4, 25)
    axes[1].hist(np.clip(pull, -4, 4), edges, density=True, color=MODEL, alpha=0.4, lw=0)
    axes[1].plot(
        np.linspace(-4, 4, 200), stats.norm.pdf(np.linspace(-4, 4, 200)), color=DATA, ls="--"
    )
    axes[1].text(1.5, 0.3, "standard normal", color=DATA)
    axes[1].set(xlabel="(network − virial) / joint error", ylabel="density")
    axes[1].set_title(f"Pulls: mean {pull.mean():+.2f}, std {pull.std():.2f}", fontsize=11)


@on_host
def other_sky(pit_own: jax.Array, pit_other: jax.Array) -> None:
    """PIT histograms on the simulator's own clusters and on those of another sky."""
    _, ax = plt.subplots(figsize=(7, 3.8))
    pit_histogram(
        ax,
        {
            "the simulator's own clusters": (pit_own, MODEL, "-"),
            "twice as many in line": (pit_other, IN_LINE, "--"),
        },
    )
    ax.legend()
    ax.set_title("The same network under another sky is no longer calibrated")
