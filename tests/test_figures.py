"""The widget: what it draws, how fast, and what a page without a kernel gets."""

import base64
import io
import time

import jax
import jax.numpy as jnp
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.quiver import Quiver
from PIL import Image, ImageSequence

from dlcourse_utils import plot, widgets
from dlcourse_utils.datasets import clusters, two_moons
from dlcourse_utils.plot import realnvp, score_matching

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


def test_the_animation_ends_at_the_last_stage_and_shows_it_first(monkeypatch):
    shown = []
    monkeypatch.setattr(realnvp, "display", lambda page: shown.append(page.data))
    realnvp.animate(jnp.array([[[0.0, 0.0]], [[2.0, 1.0]]]), frames=3)
    (page,) = shown
    assert 'alt="points' in page
    data = base64.b64decode(page.split("base64,")[1].split('"')[0])
    with Image.open(io.BytesIO(data)) as gif:
        frames = [np.asarray(frame.convert("L"), float) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == 4  # the still one, the start, and two on the way
    np.testing.assert_array_equal(frames[0], frames[-1])
    assert np.any(frames[1] != frames[2]) and np.any(frames[2] != frames[3])


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
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], axis=1), expected, atol=1e-3)
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
