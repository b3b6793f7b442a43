"""The widget: what it draws, how fast, and what a page without a kernel gets."""

import base64
import io
import time

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dlcourse_utils import plot, widgets
from dlcourse_utils.datasets import clusters
from dlcourse_utils.plot import realnvp

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
