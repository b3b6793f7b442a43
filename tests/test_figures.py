"""The widget: what it draws, how fast, and what a page without a kernel gets."""

import io
import time

import jax
import jax.numpy as jnp
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.quiver import Quiver

from dlcourse_utils import plot, telescope, widgets
from dlcourse_utils.datasets import clusters, two_moons
from dlcourse_utils.plot import (
    deconvolution,
    filmstrip,
    realnvp,
    score_matching,
    stamps,
    variational,
)
from dlcourse_utils.train import History

GRID = jnp.linspace(12.4, 16.0, 301)


def log_normal(shift):
    def log_p(x):
        return -0.5 * ((GRID[None, :] - x[:, 1:2] - shift) / 0.2) ** 2 - jnp.log(0.2 * 2.5066)

    return log_p


@pytest.fixture
def explorer():
    return widgets.PosteriorExplorer(log_normal(0.0), log_normal(0.1), GRID, "mass [dex]")


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))


def test_the_picture_follows_the_features(explorer):
    one = explorer.draw(np.array([1.0, 14.0, 1.5, 0.1]))
    two = explorer.draw(np.array([1.0, 14.5, 1.5, 0.1]))
    same = explorer.draw(np.array([2.0, 14.0, 1.5, 0.1]))
    assert pixels(one).shape == pixels(two).shape
    assert np.any(pixels(one) != pixels(two))
    np.testing.assert_array_equal(pixels(one), pixels(same))


def test_the_curves_are_the_densities(explorer):
    explorer.draw(np.array([1.0, 14.0, 1.5, 0.1]))
    exact, network = (line.get_ydata() for line in explorer.figure.axes[0].lines)
    assert GRID[np.argmax(network)] == pytest.approx(14.0, abs=0.01)
    assert GRID[np.argmax(exact)] == pytest.approx(14.1, abs=0.01)


def exact_posterior(x):
    likelihood = clusters.log_likelihood(x[:, None], GRID[None])
    return likelihood + clusters.log_training_prior(GRID)[None]


def test_a_redraw_takes_at_most_50_ms():
    """With the real likelihood, twice; median of the processor's time, not of the wall's."""
    explorer = widgets.PosteriorExplorer(exact_posterior, exact_posterior, GRID, "mass [dex]")
    times = []
    for log_sigma in np.linspace(2.5, 3.1, 15):
        start = time.process_time()
        explorer.draw(np.array([1.5, log_sigma, 1.5, 0.1]))
        times.append(time.process_time() - start)
    assert np.median(times) <= 0.050


@pytest.fixture
def path_explorer():
    """Three layers that halve the distance to the middle."""
    axes = jnp.linspace(-3, 4, 281), jnp.linspace(-2.5, 3, 221)
    halved = jnp.array([1.0, 0.5, 0.25])
    return widgets.PathExplorer(
        lambda z: halved[:, None, None] * z[None], axes, jnp.ones((281, 221))
    )


def test_the_path_follows_the_point(path_explorer):
    one, two = (pixels(path_explorer.draw(np.array([x, 1.0]))) for x in (0.5, -1.5))
    assert one.shape == two.shape and np.any(one != two)
    steps, start, end = path_explorer.moving
    np.testing.assert_allclose(steps.get_xdata(), [-1.5, -0.75, -0.375])
    assert start.get_xdata() == [-1.5] and end.get_ydata() == [0.25]


def test_a_redraw_of_the_path_takes_at_most_50_ms(path_explorer):
    path_explorer.draw(np.zeros(2))
    times = []
    for x in np.linspace(-1, 1, 9):
        begun = time.process_time()
        path_explorer.draw(np.array([x, 0.0]))
        times.append(time.process_time() - begun)
    assert np.median(times) <= 0.050


def test_binned_mean():
    x = np.repeat([0.5, 1.5, 2.5], [100, 100, 5])
    y = x + np.tile([-1.0, 1.0], 103)[:205]
    centres, means, errors = plot.binned_mean(x, y, np.array([0.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(centres, [0.5, 1.5])  # the third bin has too few
    np.testing.assert_allclose(means, [0.5, 1.5])
    np.testing.assert_allclose(errors, 1.0 / np.sqrt(99))


def test_a_figure_gets_numpy_arrays_and_its_answers_in_order():
    """Sorted names would put every curve under another's label."""

    @plot.on_host
    def draw(x, answers, *, more):
        return x, answers, more

    x, answers, more = draw(GRID, {"b": GRID, "a": {"d": GRID, "c": 1}}, more=(GRID, "text"))
    assert all(isinstance(value, np.ndarray) for value in (x, answers["b"], more[0]))
    assert list(answers) == ["b", "a"] and list(answers["a"]) == ["d", "c"]


# --- lesson 09 -------------------------------------------------------------------------------

LEVELS = np.geomspace(2.0, 0.02, 7).astype(np.float32)


def moons_score(x, sigma):
    return two_moons.score(x, jnp.hypot(sigma, two_moons.NOISE))


@pytest.fixture
def diffusion_explorer():
    points = LEVELS[:, None, None] * np.linspace(-1, 1, 40, dtype=np.float32).reshape(1, 20, 2)
    return widgets.DiffusionExplorer(LEVELS, points, moons_score)


def test_the_noise_level_picks_shade_arrows_and_points(diffusion_explorer):
    one, two = (pixels(diffusion_explorer.draw(np.log10([s]))) for s in (2.0, 0.1))
    assert one.shape == two.shape and np.any(one != two)
    # 0.11 is nearest to 0.0928 of the levels, in the logarithm.
    near = diffusion_explorer.draw(np.log10([0.11]))
    shade, arrows, dots = diffusion_explorer.moving
    sigma = LEVELS[4]
    assert sigma == pytest.approx(0.0928, abs=1e-4)
    np.testing.assert_allclose(dots.get_xdata(), sigma * np.linspace(-1, 1, 40)[::2], rtol=1e-5)
    # Arrows are scores in units of the noise, the darkest shade the highest density.
    noise = np.hypot(sigma, two_moons.NOISE)
    expected = noise * two_moons.score(jnp.asarray(arrows.get_offsets(), jnp.float32), float(noise))
    drawn, length = np.stack([arrows.U, arrows.V], axis=1), np.linalg.norm(expected, axis=1)
    short = length < widgets.LONGEST
    assert 0 < short.sum() < len(short)
    np.testing.assert_allclose(drawn[short], expected[short], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(drawn[~short], axis=1), widgets.LONGEST, rtol=1e-5)
    np.testing.assert_allclose(
        drawn[~short] * length[~short, None],
        expected[~short] * widgets.LONGEST,
        rtol=1e-3,
        atol=0.1,
    )
    assert shade.get_array().max() == pytest.approx(1.0)
    np.testing.assert_array_equal(pixels(near), pixels(diffusion_explorer.draw(np.log10([0.09]))))


def test_the_shade_is_the_density_where_it_is_drawn(diffusion_explorer):
    diffusion_explorer.draw(np.log10([0.1]))
    shade = diffusion_explorer.moving[0]
    values, (left, right, bottom, top) = shade.get_array(), shade.get_extent()
    rows, columns = values.shape
    assert shade.origin == "lower"  # else row 0, the lowest, is drawn on top
    first, second = np.linspace(left, right, columns), np.linspace(bottom, top, rows)
    x = np.array([[first[40], second[30]], [first[50], second[30]]], dtype=np.float32)
    density = np.exp(two_moons.log_prob(x, float(np.hypot(LEVELS[4], two_moons.NOISE))))
    # The ends may be the edges of the pixels or their centres: half a pixel at most.
    assert values[30, 40] / values[30, 50] == pytest.approx(density[0] / density[1], rel=0.5)


def test_a_redraw_of_the_noise_takes_at_most_50_ms(diffusion_explorer):
    diffusion_explorer.draw(np.zeros(1))
    times = []
    for log_sigma in np.linspace(-1.7, 0.3, 9):
        begun = time.process_time()
        diffusion_explorer.draw(np.array([log_sigma]))
        times.append(time.process_time() - begun)
    assert np.median(times) <= 0.050


@pytest.fixture
def axes():
    """The axes of the figure that a test has drawn; drawing it is part of the test."""

    def current():
        figure = plt.gcf()
        figure.canvas.draw()
        return figure.axes

    yield current
    plt.close("all")


def arrows_of(ax):
    """Where the arrows of an axes begin and where they point; two arrays (n, 2) for each set."""
    found = [c for c in ax.collections if isinstance(c, Quiver)]
    return [(np.asarray(c.get_offsets()), np.stack([c.U, c.V], axis=1)) for c in found]


def test_arrows_are_the_score(axes):
    score_matching.claim(moons_score, (0.1, 1.5))
    left, right = axes()
    for ax, sigma in ((left, 0.1), (right, 1.5)):
        ((points, arrows),) = arrows_of(ax)
        expected = np.asarray(moons_score(points.astype(np.float32), sigma))
        ratio = np.linalg.norm(arrows, axis=1) / np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(arrows, ratio.mean() * expected, rtol=1e-3, atol=1e-5)
        # Long ones are 0.45 long, near the distance of the points.
        assert np.quantile(np.linalg.norm(arrows, axis=1), 0.9) == pytest.approx(0.45, rel=1e-3)
        assert f"= {sigma:g}" in ax.get_title()


def test_cells_of_tweedies_formula_lie_on_the_diagonal(axes):
    keys = jax.random.split(jax.random.key(0))
    clean = two_moons.simulate(keys[0], 100_000)
    noisy = clean + 0.3 * jax.random.normal(keys[1], clean.shape)
    score_matching.tweedie(clean, noisy, two_moons.posterior_mean(noisy, 0.3))
    left, right = axes()
    ((points, arrows),) = arrows_of(left)
    np.testing.assert_allclose(points, noisy[: len(points)], atol=1e-6)
    ends = two_moons.posterior_mean(noisy[: len(points)], 0.3)
    np.testing.assert_allclose(points + arrows, ends, atol=1e-5)
    for line in right.lines[:2]:
        formula, seen = line.get_data()
        assert len(formula) > 100 and np.ptp(formula) > 0.8
        # Over 100 points a cell, of a spread of up to 0.5 each: 4 errors.
        np.testing.assert_allclose(seen, formula, atol=4 * 0.5 / 10)
        assert abs(np.mean(seen - formula)) < 0.01


def test_both_scores_and_their_difference(axes):
    def shifted(x, sigma):
        return moons_score(x, sigma) + jnp.array([[0.5, 0.0]])

    errors = np.geomspace(0.1, 0.001, 7)
    score_matching.learned(moons_score, shifted, LEVELS, errors)
    arrows, error_map, curve, _ = axes()
    (points, exact), (_, learned) = arrows_of(arrows)
    difference = learned - exact
    assert np.all(difference[:, 0] > 0.0) and np.ptp(difference[:, 0]) < 1e-4
    # Everywhere the error is 0.5, times sigma = 0.2.
    np.testing.assert_allclose(error_map.collections[0].get_array(), -1.0, atol=1e-3)
    np.testing.assert_array_equal(curve.lines[0].get_xydata(), np.stack([LEVELS, errors], axis=1))
    assert len(points) == len(exact)


def test_curves_have_the_labels_of_their_rows(axes):
    rows = np.arange(1, 22).reshape(3, 7)
    score_matching.weights(LEVELS, rows)
    (ax,) = axes()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [("not" in name, "2" in name, "4" in name) for name in labels] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    for line, row in zip(ax.lines, rows, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), row)
    score_matching.pulls(LEVELS, dict(zip(["unchanged", "convolved", "DPS"], rows, strict=True)))
    (ax,) = axes()
    found = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
    assert found == {"unchanged": 1, "convolved": 8, "DPS": 15}


def test_samples_show_the_share_of_each_moon(axes):
    x = two_moons.simulate(jax.random.key(0), 1_000)
    to_arcs = two_moons.distance(x)
    outer = np.asarray(to_arcs[:, 0] < to_arcs[:, 1])
    score_matching.samples({"all": x, "outer": x[outer]})
    every, one = axes()
    shares = [[text.get_text() for text in ax.texts] for ax in (every, one)]
    assert shares[0] == [f"{outer.mean():.1%}", f"{1 - outer.mean():.1%}"]
    assert shares[1] == ["100.0%", "0.0%"]
    assert [len(line.get_xdata()) for line in every.lines] == [outer.sum(), (~outer).sum()]
    assert (every.get_title(), one.get_title()) == ("all", "outer")


def test_paths_go_from_start_to_end(axes):
    paths = np.random.default_rng(0).normal(size=(4, 30, 2))
    score_matching.flow(paths, np.arange(5.0), np.arange(5.0) + 0.1)
    left, right = axes()
    np.testing.assert_array_equal(left.lines[0].get_xydata(), paths[:, 0])
    ends = {line.get_label(): line.get_xydata() for line in left.lines[-2:]}
    np.testing.assert_array_equal(ends["start, $\\sigma$ = 2"], paths[0])
    np.testing.assert_array_equal(ends["end, $\\sigma$ = 0.02"], paths[-1])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), np.arange(5.0) + 0.1)


def test_posteriors_are_named_with_their_divergences(axes):
    names = [f"reverse SDE, {n}" for n in ("unchanged", "convolved", "DPS", "exact")]
    names.append("annealed HMC, convolved")
    first, second = np.linspace(-1.8, 2.8, 47), np.linspace(-1.2, 1.8, 31)
    exact = np.exp(-0.5 * (first[:, None] ** 2 + second[None] ** 2))
    points = {name: np.full((9, 2), 0.1 * k) for k, name in enumerate(names)}
    score_matching.posteriors(
        first, second, exact, points, {name: 0.1 * k for k, name in enumerate(names)}
    )
    *panels, marginal = axes()
    for k, (ax, name) in enumerate(zip(panels, names, strict=True)):
        assert ax.get_title() == f"{name}\nKL {0.1 * k:.3f} nats"
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.full(9, 0.1 * k))
    x, density = marginal.lines[-1].get_data()
    assert np.trapezoid(density, x) == pytest.approx(1.0)
    np.testing.assert_allclose(density / density.max(), np.exp(-0.5 * x**2), rtol=1e-6)


def test_maps_hide_what_was_not_observed(axes):
    rng, survey = np.random.default_rng(0), np.ones((8, 8))
    survey[2:4, 2:5] = 0
    names = ["truth", "observed", "Wiener filter, exact", "mean of samples", "one sample"]
    maps = {name: rng.normal(size=(8, 8)) for name in names}
    spreads = {name: rng.uniform(size=(8, 8)) for name in ("spread, exact", "spread of samples")}
    score_matching.fields(maps, spreads, survey)
    shown = {ax.get_title(): ax.images[0] for ax in axes() if ax.get_title()}
    assert list(shown) == [*maps, *spreads]
    hidden = np.ma.getmaskarray(np.ma.masked_invalid(shown["observed"].get_array()))
    np.testing.assert_array_equal(hidden, survey == 0)
    # Maps share one scale, spreads another: they are to be compared.
    assert len({shown[name].get_clim() for name in maps}) == 1
    assert len({shown[name].get_clim() for name in spreads}) == 1
    np.testing.assert_array_equal(shown["one sample"].get_array(), maps["one sample"])


# --- lesson 06 -------------------------------------------------------------------------------


@pytest.fixture
def strength_explorer():
    """Ten strengths, each with its own brightness."""
    strengths = np.geomspace(1e-3, 1e3, 7)
    restored = np.arange(1.0, 8.0)[:, None, None] * np.ones((1, 63, 63))
    notes = [f"note {k}" for k in range(7)]
    return widgets.StrengthExplorer(strengths, restored, notes, np.ones((21, 21)), restored[-1])


def test_the_strength_picks_picture_and_note(strength_explorer):
    one, two = (pixels(strength_explorer.draw(np.array([s]))) for s in (-3.0, 2.0))
    assert one.shape == two.shape and np.any(one != two)
    strength_explorer.draw(np.array([0.8]))  # nearest in the logarithm: 10
    picture, note = strength_explorer.moving
    np.testing.assert_allclose(picture.get_array(), np.arcsinh(5.0))
    assert note.get_text() == "note 4"
    names = [text.get_text() for text in strength_explorer.ax.texts[:3]]
    assert names == ["seen", "restored", "truth"]
    # All three share one scale, and stand side by side.
    assert len({image.get_clim() for image in strength_explorer.ax.images}) == 1
    left = [image.get_extent()[0] for image in strength_explorer.ax.images]
    right = [image.get_extent()[1] for image in strength_explorer.ax.images]
    assert left[0] < right[0] < left[1] < right[1] < left[2]


def test_a_redraw_of_the_strength_takes_at_most_50_ms(strength_explorer):
    strength_explorer.draw(np.zeros(1))
    times = []
    for log_strength in np.linspace(-3.0, 3.0, 9):
        begun = time.process_time()
        strength_explorer.draw(np.array([log_strength]))
        times.append(time.process_time() - begun)
    assert np.median(times) <= 0.050


def stamps_of(n, size, seed=0):
    """n round spots in noise, nJy; each of another brightness."""
    place = np.linspace(-1.0, 1.0, size)
    spot = np.exp(-8.0 * (place[:, None] ** 2 + place[None] ** 2))
    noise = np.random.default_rng(seed).normal(size=(n, size, size))
    return 50.0 * np.arange(1, n + 1)[:, None, None] * spot + noise


def assert_titles_do_not_meet():
    """No title or label of an axes lies on that of another."""
    figure = plt.gcf()
    renderer = figure.canvas.get_renderer()
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    for k, (name, box) in enumerate(boxes):
        for other, there in boxes[k + 1 :]:
            assert not box.overlaps(there), (name, other)


def shown_in(ax):
    (image,) = ax.images
    return np.ma.filled(image.get_array(), np.nan)


def test_rows_of_stamps_share_one_stretch_per_fine_pixel(axes):
    seen, truth = stamps_of(3, 21), stamps_of(4, 63, 1)
    rows = {"seen": jnp.asarray(seen), "truth": jnp.asarray(truth)}
    deconvolution.stamps(rows, {"truth": [f"{k} dB" for k in range(4)]})
    *panels, bar = axes()
    assert len(panels) == 8 and "nJy per fine pixel" in bar.get_ylabel()
    np.testing.assert_allclose(shown_in(panels[1]), seen[1] / 9, rtol=1e-5)
    np.testing.assert_allclose(shown_in(panels[6]), truth[2], rtol=1e-5)
    assert not panels[3].axison and not panels[3].images
    assert [panels[k].get_ylabel() for k in (0, 4)] == ["seen", "truth"]
    assert [[t.get_text() for t in ax.texts] for ax in panels[4:]] == [
        ["0 dB"],
        ["1 dB"],
        ["2 dB"],
        ["3 dB"],
    ]
    drawn = [ax.images[0] for ax in panels if ax.images]
    assert len({id(image.norm) for image in drawn}) == 1
    assert drawn[0].norm.vmax == pytest.approx(truth.max(), rel=1e-5)
    assert all(image.origin == "lower" for image in drawn)  # north is up
    assert_titles_do_not_meet()


def test_stamps_go_on_below(axes):
    seen, truth = stamps_of(5, 21), stamps_of(5, 63, 1)
    deconvolution.stamps({"seen": seen, "truth": truth}, {"truth": [*"abcde"]}, columns=3)
    *panels, _ = axes()
    assert [panels[k].get_ylabel() for k in (0, 3, 6, 9)] == ["seen", "truth"] * 2
    np.testing.assert_allclose(shown_in(panels[7]), seen[4] / 9, rtol=1e-5)
    assert [[t.get_text() for t in ax.texts] for ax in panels[9:]] == [["d"], ["e"], []]
    assert not panels[8].axison and not panels[11].axison


def test_stretch_is_linear_where_it_is_faint_and_logarithmic_where_bright():
    norm = stamps.stretch(1000.0)
    assert norm(-1.0) == pytest.approx(0.0) and norm(1000.0) == pytest.approx(1.0)
    assert norm(0.1) - norm(0.0) == pytest.approx(norm(0.0) - norm(-0.1), rel=1e-6)
    assert norm(1000.0) - norm(100.0) == pytest.approx(norm(100.0) - norm(10.0), rel=0.01)


def test_every_stage_of_the_telescope_has_its_name(axes):
    stages = {"x": stamps_of(1, 63)[0], "P(Π ∗ x)": 9 * stamps_of(1, 21)[0], "y": np.ones((21, 21))}
    deconvolution.forward(stages)
    *panels, bar = axes()
    assert [ax.get_title() for ax in panels] == list(stages) and bar.get_ylabel()
    np.testing.assert_allclose(shown_in(panels[2]), 1 / 9)
    assert_titles_do_not_meet()


def test_descents_mark_their_best_step(axes):
    steps = np.array([1, 3, 10, 30])
    curves = {"plain": np.array([20.0, 25.0, 22.0, 10.0]), "positive": np.arange(20.0, 24.0)}
    images = stamps_of(2, 63)
    deconvolution.descent(steps, curves, images, steps[[1, 3]])
    left, *panels, bar = axes()
    stars = [line.get_xydata()[0] for line in left.lines if line.get_marker() == "*"]
    np.testing.assert_array_equal(stars, [[3, 25.0], [30, 23.0]])
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == list(curves) and left.get_xlabel() and "dB" in left.get_ylabel()
    assert [ax.get_title() for ax in panels] == ["step 3", "step 30"] and bar.get_ylabel()
    np.testing.assert_array_equal(shown_in(panels[1]), images[1])
    assert_titles_do_not_meet()


def test_tuning_marks_the_best_strength(axes):
    curves = {
        "total variation": (np.array([0.1, 1.0, 10.0]), np.array([1.0, 3.0, 2.0])),
        "starlets": (np.array([0.01, 0.1, 1.0]), np.array([5.0, 4.0, 2.0])),
    }
    deconvolution.tuning(curves)
    panels = axes()
    for ax, (name, (strengths, values)), best in zip(
        panels, curves.items(), (1.0, 0.01), strict=True
    ):
        curve, line = ax.lines
        np.testing.assert_array_equal(curve.get_xydata(), np.stack([strengths, values], axis=1))
        assert (ax.get_title(), line.get_xdata()[0]) == (name, best) and ax.get_xlabel()
    assert "dB" in panels[0].get_ylabel()
    assert_titles_do_not_meet()


def test_modes_show_every_descent_and_what_it_ends_at(axes):
    above = np.geomspace(1000.0, 0.01, 24).reshape(1, 24) * np.ones((6, 1)) + np.eye(6, 24)
    images = stamps_of(3, 63)
    labels = ["best end", "another, 12.3 nats above", "truth"]
    deconvolution.modes(above, images, labels)
    left, *panels, bar = axes()
    for line, curve in zip(left.lines, above, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curve)
        assert line.get_xdata()[0] == 1
    # As many looks as descents can be told apart are used before one comes again.
    looks = [(line.get_color(), line.get_linestyle()) for line in left.lines]
    assert len(set(looks)) == 4 and looks[4] == looks[0]
    assert [ax.get_title() for ax in panels] == labels and bar.get_ylabel()
    assert left.get_xlabel() and "nats" in left.get_ylabel()
    assert_titles_do_not_meet()


def test_doubt_shows_residuals_in_sigmas_and_masked_pixels_as_nothing(axes):
    residual = np.random.default_rng(0).normal(size=(2, 21, 21))
    residual[1, :3, :3] = np.nan
    truth = stamps_of(2, 63)
    cases = {
        name: (9 * stamps_of(2, 21)[k], truth[k] + 1.0, truth[k], residual[k], 2 * residual[k])
        for k, name in enumerate(("as trained", "a ring"))
    }
    deconvolution.doubt(cases, {"as trained": "χ² 1.0", "a ring": "χ² 3.0"})
    *panels, bar = axes()
    assert len(panels) == 10 and bar.get_ylabel() == "standard deviations"
    assert [ax.get_title() for ax in panels[:5]] == [
        "observation",
        "restoration",
        "truth",
        "residual / σ",
        "point source, σ",
    ]
    for row, name in ((0, "as trained"), (1, "a ring")):
        observed, restored, true, left, found = panels[5 * row : 5 * row + 5]
        assert observed.get_ylabel() == name
        np.testing.assert_array_equal(shown_in(left), residual[row])
        np.testing.assert_array_equal(shown_in(found), 2 * residual[row])
        assert left.images[0].get_clim() == found.images[0].get_clim() == (-5.0, 5.0)
        norms = {id(ax.images[0].norm) for ax in (observed, restored, true)}
        assert len(norms) == 1
    assert panels[8].texts[0].get_text() == "χ² 3.0"
    assert_titles_do_not_meet()


def test_the_real_galaxy_hides_what_is_masked(axes):
    seen = 9 * stamps_of(1, 21)[0]
    seen[:4, :4] = np.nan
    panels = {
        "Subaru": seen,
        "restored": stamps_of(1, 63)[0],
        "as Subaru sees it": 9 * np.ones((21, 21)),
    }
    residual = np.where(np.isnan(seen), np.nan, 1.0)
    deconvolution.real(panels, residual, "χ²/pixel 1.3")
    *shown, bar = axes()
    assert [ax.get_title() for ax in shown] == [*panels, "residual / σ, ±5"] and bar.get_ylabel()
    for ax in (shown[0], shown[3]):
        np.testing.assert_array_equal(np.isnan(shown_in(ax)), np.isnan(seen))
    np.testing.assert_allclose(shown_in(shown[2]), 1.0)
    assert [t.get_text() for t in shown[3].texts] == ["χ²/pixel 1.3"]
    assert_titles_do_not_meet()


def test_gains_count_the_galaxies_that_gain(axes):
    rng = np.random.default_rng(0)
    magnitude = np.linspace(20.0, 23.5, 40)
    psnr = {name: rng.normal(30.0, 2.0, 40) for name in ("Wiener", "starlets", "deep prior")}
    psnr["deep prior"] = psnr["starlets"] + np.where(np.arange(40) < 10, -1.0, 2.0)
    deconvolution.gains(psnr, magnitude, "starlets", "deep prior")
    left, right = axes()
    assert [label.get_text() for label in left.get_yticklabels()] == list(psnr)
    assert "75%" in right.get_title() and "starlets" in right.get_ylabel()
    _, gained, lost = right.lines
    np.testing.assert_array_equal(gained.get_xdata(), magnitude[10:])
    np.testing.assert_array_equal(lost.get_xdata(), magnitude[:10])
    np.testing.assert_allclose(lost.get_ydata(), -1.0)
    assert gained.get_marker() != lost.get_marker()
    assert left.get_xlabel() and right.get_xlabel()
    assert_titles_do_not_meet()


# --- lesson 07 -------------------------------------------------------------------------------


@pytest.fixture
def sample_explorer():
    """Five samples, each brighter by 9 nJy a survey pixel; one pixel is masked."""
    seen = np.full((21, 21), 27.0)
    seen[0, 0] = np.nan
    samples = np.arange(1.0, 6.0)[:, None, None] * np.ones((1, 63, 63))
    predicted = 9 * np.arange(1.0, 6.0)[:, None, None] * np.ones((1, 21, 21))
    return widgets.SampleExplorer(seen, samples, predicted, np.asarray(4.5))


def test_the_slider_picks_a_sample_its_prediction_and_its_residual(sample_explorer):
    one, two = (pixels(sample_explorer.draw(np.array([k]))) for k in (3, 5))
    assert one.shape == two.shape and np.any(one != two)
    sample, predicted, residual, note = sample_explorer.moving
    np.testing.assert_allclose(sample.get_array(), np.arcsinh(5.0))
    # In nJy per fine pixel, as the sample.
    np.testing.assert_allclose(predicted.get_array(), np.arcsinh(5.0))
    np.testing.assert_allclose(residual.get_array()[1:], (27.0 - 45.0) / 4.5)
    assert np.ma.getmaskarray(np.ma.masked_invalid(residual.get_array()))[0, 0]
    assert note.get_text() == "sample 5 of 5: χ² per pixel 16.00"
    names = [text.get_text() for text in sample_explorer.ax.texts[:4]]
    assert names == ["seen", "sample", "as seen", "residual / σ, ±5"]
    images = sample_explorer.ax.images
    assert len({image.get_clim() for image in images[:3]}) == 1
    assert images[3].get_clim() == (-5.0, 5.0)
    left, right = ([image.get_extent()[k] for image in images] for k in (0, 1))
    assert all(b < a for b, a in zip(right[:-1], left[1:], strict=True))


def test_a_redraw_of_a_sample_takes_at_most_50_ms(sample_explorer):
    sample_explorer.draw(np.ones(1))
    times = []
    for k in (1, 2, 3, 4, 5, 4, 3, 2, 1):
        begun = time.process_time()
        sample_explorer.draw(np.array([k]))
        times.append(time.process_time() - begun)
    assert np.median(times) <= 0.050


def test_samples_without_a_kernel_are_a_still_picture(capsys):
    shape = np.ones((3, 21, 21))
    widgets.explore_samples(shape[0], np.ones((3, 63, 63)), shape, 1.0)
    assert capsys.readouterr().out.strip() == widgets.STILL


def table_of(mean, covariance, first, second):
    points = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2) - mean
    return -0.5 * np.einsum("ni,ij,nj->n", points, np.linalg.inv(covariance), points)


def test_ellipses_have_the_axes_of_their_covariance(axes):
    exact = np.array([1.0, -2.0]), np.array([[2.0, 1.2], [1.2, 1.5]])
    guides = {"full-rank": exact, "mean-field": (exact[0], np.diag([0.5, 0.4]))}
    curves = {"full-rank": np.arange(5.0), "mean-field": np.arange(5.0) - 1.0}
    variational.gaussians(exact, guides, curves, 4.0, ("zero point", "slope"))
    left, right = axes()
    ellipses = [patch for patch in left.patches if patch.get_width() > 0]
    assert len(ellipses) == 6
    for patch, sigmas, covariance in zip(
        ellipses,
        [1, 2] * 3,
        np.repeat([exact[1], exact[1], np.diag([0.5, 0.4])], 2, 0),
        strict=True,
    ):
        # On an ellipse of s standard deviations x^T C^-1 x is s^2.
        outline = left.transData.inverted().transform(patch.get_verts())
        inside = outline - exact[0]
        square = np.einsum("ni,ij,nj->n", inside, np.linalg.inv(covariance), inside)
        np.testing.assert_allclose(square, sigmas**2, rtol=2e-2)
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["exact", "full-rank", "mean-field"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("zero point", "slope")
    *found, evidence = right.lines
    for line, curve in zip(found, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curve)
    assert evidence.get_ydata()[0] == 4.0 and "nats" in right.get_ylabel()
    assert_titles_do_not_meet()


def test_contours_hold_half_and_nine_tenths(axes):
    first, second = np.linspace(-5, 5, 101), np.linspace(-6, 6, 121)
    log_p = table_of(np.zeros(2), np.eye(2), first, second)
    guides = {"wide": table_of(np.zeros(2), 2 * np.eye(2), first, second), "right": log_p}
    variational.densities((first, second), log_p, guides, {"wide": "KL 0.3", "right": "KL 0.0"})
    wide, right = axes()
    assert wide.get_title() == "wide\nKL 0.3" and right.get_title() == "right\nKL 0.0"
    for ax, variance in ((wide, 2.0), (right, 1.0)):
        (contours,) = [c for c in ax.collections if hasattr(c, "levels")]
        radii = [np.linalg.norm(path.vertices, axis=1) for path in contours.get_paths()]
        # Of a round Gaussian: a share of 1 - exp(-r^2 / 2) within r; the grid is 0.1 fine.
        for found, share in zip(radii, (0.9, 0.5), strict=True):
            np.testing.assert_allclose(found, np.sqrt(-2 * variance * np.log(1 - share)), atol=0.06)
    (legend,) = plt.gcf().legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "50 % of the guide",
        "90 % of the guide",
    ]
    assert_titles_do_not_meet()


def test_the_bound_is_named_with_its_last_value(axes):
    steps = np.arange(100)
    curves = {
        "flow": (steps, np.where(steps < 90, -5000.0 + steps, -2000.0)),
        "Laplace": (steps, steps),
    }
    variational.bound(curves)
    (ax,) = axes()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["flow: -2000.00 nats", "Laplace: 94.50 nats"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curves["flow"][1])
    assert ax.get_ylim()[1] > 99.0 and "nats" in ax.get_ylabel() and ax.get_xlabel()


@pytest.mark.parametrize("n", [3, 7])
def test_one_galaxy_with_at_most_five_samples(axes, n):
    seen, (truth, mean, std, *samples) = stamps_of(1, 21)[0], stamps_of(3 + n, 63)
    variational.posterior(seen, truth, mean, np.abs(std), jnp.asarray(samples))
    panels = [ax for ax in axes() if ax.images and ax.get_title()]
    names = [ax.get_title() for ax in panels]
    assert names[:4] == ["seen", "truth", "posterior mean", "standard deviation"]
    assert names[4:] == [f"sample {k + 1}" for k in range(min(n, 5))]
    np.testing.assert_allclose(shown_in(panels[0]), seen / 9)
    np.testing.assert_array_equal(shown_in(panels[3]), np.abs(std))
    np.testing.assert_allclose(shown_in(panels[5]), samples[1], rtol=1e-6)
    # All images share one stretch; the deviation has its own, from zero.
    norms = {id(ax.images[0].norm) for k, ax in enumerate(panels) if k != 3}
    assert len(norms) == 1 and panels[3].images[0].norm.vmin == 0.0
    assert_titles_do_not_meet()


def test_the_posterior_forms_in_an_animation(monkeypatch):
    shown = []
    monkeypatch.setattr(filmstrip, "play", lambda frames, holds, label: shown.extend(frames))
    means = stamps_of(12, 63)
    variational.forming(jnp.asarray(means), np.abs(means) / 10, np.arange(12) * 10)
    assert [frame.value for frame in shown] == [str(10 * k) for k in range(12)]
    most = np.abs(means[-1]).max() / 10
    assert f"at step 110; the standard deviation is at most {most:.2g} nJy" in shown[-1].alt
    first, last = (np.asarray(frame.picture) for frame in (shown[0], shown[-1]))
    assert first.shape == last.shape and np.any(first != last)


def test_inpainting_marks_what_was_not_seen(axes):
    seen = 9 * stamps_of(1, 21)[0]
    seen[5:8, 6:9] = np.nan
    mean = stamps_of(1, 63)[0]
    without = np.ones((63, 63))
    masked = np.where(np.kron(np.isnan(seen), np.ones((3, 3))), 3.0, 1.0)
    without[0] = masked[0] = 0.01  # so little that the ratio says nothing
    variational.inpainting(seen, mean, without, masked)
    panels = [ax for ax in axes() if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [
        "seen",
        "posterior mean",
        "σ without mask",
        "σ with mask",
        "with / without",
    ]
    np.testing.assert_array_equal(np.isnan(shown_in(panels[0])), np.isnan(seen))
    np.testing.assert_array_equal(shown_in(panels[4])[1:], masked[1:])
    assert np.isnan(shown_in(panels[4])[0]).all()
    assert panels[2].images[0].norm is panels[3].images[0].norm
    for k in (1, 3, 4):
        (outline,) = [c for c in panels[k].collections if hasattr(c, "levels")]
        low, high = (f(outline.get_paths()[0].vertices, axis=0) for f in (np.min, np.max))
        pixel = telescope.SURVEY_PIXEL
        np.testing.assert_allclose(low, [(6 - 10.5) * pixel, (5 - 10.5) * pixel], atol=0.03)
        np.testing.assert_allclose(high, [(9 - 10.5) * pixel, (8 - 10.5) * pixel], atol=0.03)
    assert_titles_do_not_meet()


def test_the_corner_has_every_pair_once(axes):
    rng = np.random.default_rng(0)
    reference, guide = rng.normal(size=(4000, 3)), rng.normal(size=(2000, 3))
    truth, names = np.array([0.1, 0.2, 0.3]), ("magnitude", "radius", "z₁")
    variational.corner(reference, guide, truth, names)
    panels = np.reshape(axes()[:9], (3, 3))
    assert [[ax.axison for ax in row] for row in panels] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert [ax.get_xlabel() for ax in panels[2]] == list(names)
    assert [panels[k, 0].get_ylabel() for k in (1, 2)] == list(names[1:])
    for i in range(3):
        for j in range(i):
            (mark,) = [line for line in panels[i, j].lines if line.get_marker() == "+"]
            assert mark.get_xydata()[0] == pytest.approx([truth[j], truth[i]])
            of_reference, of_guide = [c for c in panels[i, j].collections if hasattr(c, "levels")]
            half = np.linalg.norm(of_reference.get_paths()[1].vertices, axis=1)
            # 1.18 holds half of a Gaussian; smoothing by a bin of 0.2 widens it to 1.21, and the
            # counts of some 50 in a bin move it by a tenth.
            assert np.mean(half) == pytest.approx(1.2, abs=0.1)
            assert np.any(of_reference.get_edgecolor() != of_guide.get_edgecolor())
    legend = [text.get_text() for text in panels[0, 2].get_legend().get_texts()]
    assert legend == ["reference", "guide", "truth"]


def test_numbers_outside_of_their_band_are_counted_and_marked(axes):
    mean, std = np.zeros(4), np.full(4, 2.0)
    variational.against_reference(
        (np.array([0.0, 0.3, 0.5, -1.0]), np.array([2.0, 2.2, 2.4, 1.0])), (mean, std)
    )
    left, right = axes()
    assert (left.get_title(), right.get_title()) == (
        "2 of 4 within the band",
        "2 of 4 within the band",
    )
    _, inside, outside = left.lines
    np.testing.assert_allclose(inside.get_ydata(), [0.0, 0.15])
    np.testing.assert_allclose(outside.get_xydata(), [[3, 0.25], [4, -0.5]])
    assert inside.get_marker() != outside.get_marker()
    np.testing.assert_allclose(right.lines[2].get_ydata(), [1.2, 0.5])
    for ax in (left, right):
        assert ax.get_ylim()[0] < min(ax.lines[2].get_ydata()) and ax.get_ylabel()
    assert_titles_do_not_meet()


def test_residuals_and_their_spectra(axes):
    residual = np.full((21, 21), 2.0)
    residual[:3, :3] = np.nan
    k, power = np.arange(1.0, 6.0), np.arange(101.0)[:, None] * np.ones((1, 5)) / 50
    band = np.stack([np.full(5, 0.7), np.full(5, 1.4)])
    variational.residuals(residual, k, power, band)
    left, right, bar = axes()
    np.testing.assert_array_equal(shown_in(left), residual)
    assert [text.get_text() for text in left.texts] == ["χ² per pixel 4.00"]
    assert bar.get_ylabel() == "σ" and "cycles per arcsec" in right.get_xlabel()
    (bars,) = right.containers
    middle, _, (lines,) = bars.lines
    np.testing.assert_allclose(middle.get_xydata(), np.stack([k, np.ones(5)], axis=1))
    np.testing.assert_allclose(lines.get_segments()[0][:, 1], [0.05, 1.95])
    ends = right.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == (0.7, 1.4)
    assert_titles_do_not_meet()


def test_coverage_is_shown_against_the_level(axes):
    levels = np.array([0.2, 0.5, 0.9])
    observed = {"latents": levels - 0.02, "pixels": levels + 0.2}
    variational.coverage(levels, observed, dict.fromkeys(observed, np.full(3, 0.01)))
    left, right = axes()
    for ax, base in ((left, 0.0), (right, levels)):
        for line, shares in zip(ax.lines[1:], observed.values(), strict=True):
            np.testing.assert_allclose(line.get_xydata().T, [levels, shares - base])
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == list(observed)
    ends = right.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((-0.04, 0.0))
    assert right.get_ylim()[0] < -0.04 and right.get_ylim()[1] > 0.22
    assert_titles_do_not_meet()


def test_weights_are_sorted_and_say_what_they_are_worth(axes):
    even, one = np.full(100, 0.01), np.r_[np.full(99, 1e-6), 1 - 99e-6]
    variational.weights({"flow": (even, 0.3), "mean-field": (one, 1.4)})
    (ax,) = axes()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["flow: k = 0.30, effective 100.0 %", "mean-field: k = 1.40, effective 1.0 %"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1.0)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 100 * np.sort(one)[::-1])


def test_a_loss_below_the_truths_is_told():
    """As a wrong log-determinant gives: a logarithmic axis cannot show it."""
    step = np.arange(10.0)
    low = History(step, step, -step)
    realnvp.training({"affine flow": low, "spline flow": low}, floor=1.0)
    names = [text.get_text() for text in plt.gca().get_legend().get_texts()]
    assert names == [
        f"{kind} flow: below the truth's, so it is no density" for kind in ("affine", "spline")
    ]
    assert plt.gca().get_ylim() == (1e-3, 1.0)
