"""Film strips: what their HTML holds, what stored notebooks have of them, and a real browser."""

import base64
import io
import itertools
import json
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from dlcourse_utils import widgets
from dlcourse_utils.datasets import two_moons
from dlcourse_utils.plot import filmstrip, realnvp
from tests import browsers

SOLVED = sorted((Path(__file__).resolve().parent.parent / "solutions").glob("*.py"))
LARGEST = 300_000  # bytes of HTML, so that notebooks stay small
NASTY = '</script><b class="x">a & b'


class Parts(HTMLParser):
    """The tags of a page with their attributes, and the text of the last tag of each kind."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1], []).append(data)

    def attributes(self, tag):
        (found,) = (attributes for name, attributes in self.tags if name == tag)
        return found

    def strip(self):
        """What the script of the page is given."""
        return json.loads(self.texts["script"][0])


def a_frame(shade, value="", alt=""):
    picture = Image.new("RGB", (60, 40), (shade, shade, shade))
    return filmstrip.Frame(picture, value or f"{shade} W", alt or f"grey {shade}")


def pictures(strip):
    return [Image.open(io.BytesIO(base64.b64decode(frame["png"]))) for frame in strip["frames"]]


def assert_sound(html, count, size):
    """A strip of so many different pictures of one size, each with its own words."""
    parts = Parts(html)
    strip, image = parts.strip(), parts.attributes("img")
    frames = strip["frames"]
    assert len(frames) == count and len(html) < LARGEST
    shown = pictures(strip)
    assert {picture.size for picture in shown} == {size}
    assert (int(image["width"]), int(image["height"])) == size
    for one, two in itertools.pairwise(shown):
        assert np.any(np.asarray(one.convert("RGB")) != np.asarray(two.convert("RGB")))
    assert all(len(frame["alt"].split()) >= 4 and frame["value"] for frame in frames)
    assert len({frame["value"] for frame in frames}) == count
    assert strip["label"] and parts.texts["figcaption"]
    begin = frames[strip["first"]]
    assert image["alt"] == begin["alt"] and image["src"].endswith(begin["png"])
    assert "http:" not in html and "https:" not in html
    assert not any("id" in attributes for _, attributes in parts.tags)
    return strip


def test_texts_are_escaped_and_kept():
    frames = [a_frame(0), a_frame(255, NASTY, NASTY)]
    html = filmstrip.page(frames, label=NASTY, first=1, still=NASTY, note=NASTY)
    parts = Parts(html)
    assert [tag for tag, _ in parts.tags] == ["figure", "img", "figcaption", "script", "script"]
    strip = parts.strip()
    assert strip["label"] == strip["note"] == strip["frames"][1]["value"] == NASTY
    assert parts.attributes("img")["alt"] == "".join(parts.texts["figcaption"]) == NASTY


GRID = jnp.linspace(12.4, 16.0, 301)
LEVELS = np.geomspace(0.02, 2.0, 13)


def moons_score(x, sigma):
    return two_moons.score(x, jnp.hypot(sigma, two_moons.NOISE))


CALLS = {
    "posterior": lambda: widgets.explore_posterior(
        lambda x: -0.5 * ((GRID[None] - x[:, :1]) / 0.2) ** 2,
        lambda x: -0.5 * ((GRID[None] - x[:, :1]) / 0.3) ** 2,
        GRID,
        start=(14.4, 0.1),
        xlabel="mass [dex]",
        ranges={"log_mass": (14.0, 15.0), "z": (0.0, 0.2)},
        strip=widgets.Strip("log_mass", np.linspace(14.0, 15.0, 11), lambda m: f"{m:.1f} dex"),
    ),
    "path": lambda: widgets.explore_path(
        lambda z: jnp.array([1.0, 0.5])[:, None, None] * z[None],
        (GRID, GRID),
        jnp.ones((301, 301)),
        start=(0.5, 1.0),
    ),
    "diffusion": lambda: widgets.explore_diffusion(
        LEVELS, LEVELS[:, None, None] * np.ones((13, 3, 2)), moons_score, start=0.3
    ),
    "strength": lambda: widgets.explore_strength(
        np.geomspace(1e-3, 1e3, 61),
        np.arange(61.0)[:, None, None] * np.ones((61, 9, 9)),
        [f"PSNR {k} dB" for k in range(61)],
        np.ones((3, 3)),
        np.full((9, 9), 60.0),
        start=1.0,
    ),
    "samples": lambda: widgets.explore_samples(
        np.ones((3, 3)),
        np.arange(20.0)[:, None, None] * np.ones((20, 9, 9)),
        np.arange(20.0)[:, None, None] * np.ones((20, 3, 3)),
        1.0,
    ),
}
EXPECTED = {
    "posterior": (11, 4, "14.4 dex", "z = 0.1", "exact one peaks at 14.40"),
    "path": (11, 6, "0.5 standard deviations", "z2 = 1", "from (0.5, 1.0) to (0.2, 0.5)"),
    "diffusion": (11, 6, "-0.53, sigma 0.29", "11 positions", "noise level 0.29"),
    "strength": (13, 6, "0.0, strength 1", "13 positions", "PSNR 30 dB"),
    "samples": (12, 0, "1 of 20", "12 positions", "sample 1 of 20: χ² per pixel 1.00"),
}


@pytest.fixture
def shown(monkeypatch):
    """What a kernel would be sent."""
    sent = []
    monkeypatch.setattr(widgets, "get_ipython", lambda: "a kernel")
    for module in (widgets, filmstrip):
        monkeypatch.setattr(module, "display", lambda forms, raw: sent.append(forms))
    return sent


@pytest.mark.parametrize("name", CALLS)
def test_the_stored_widget_has_a_strip_from_its_start(name, shown, monkeypatch):
    monkeypatch.setenv(widgets.STORED, "1")
    CALLS[name]()
    (forms,) = shown
    assert set(forms) == {
        "application/vnd.jupyter.widget-view+json",
        "image/png",
        "text/html",
        "text/plain",
    }
    count, first, value, note, alt = EXPECTED[name]
    strip = assert_sound(forms["text/html"], count, (700, 360))
    assert strip["first"] == first and strip["frames"][first]["value"] == value
    assert note in strip["note"] and alt in strip["frames"][first]["alt"]
    assert strip["holds"] is None


def test_the_live_widget_comes_without_html(shown, monkeypatch):
    """Colab shows HTML in place of a widget where it has the choice."""
    monkeypatch.delenv(widgets.STORED, raising=False)
    CALLS["strength"]()
    assert set(shown[0]) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


def test_two_peaks_are_both_described():
    def two(x):
        return jnp.logaddexp(-((GRID - 14.0) ** 2) / 0.01, -((GRID - 15.04) ** 2) / 0.01)[None]

    def one(x):
        return -((GRID[None] - 12.4) ** 2) / 0.01  # at the edge of the grid

    explorer = widgets.PosteriorExplorer(one, two, GRID, "mass")
    explorer.draw(np.zeros(1))
    assert "exact one peaks at 14.00 and 15.04, the network's at 12.40" in explorer.describe()


def test_an_animation_is_a_strip_that_plays_and_begins_with_its_end(shown):
    points = jnp.array(np.random.default_rng(0).normal(size=(3, 2000, 2)), jnp.float32)
    realnvp.animate(points, frames=3)
    (forms,) = shown
    strip = assert_sound(forms["text/html"], 5, (400, 272))
    assert [frame["value"] for frame in strip["frames"]] == [
        "0 of 4",
        "1 of 4",
        "2 of 4",
        "3 of 4",
        "4 of 4",
    ]
    assert strip["first"] == 4 and len(strip["holds"]) == 5
    assert strip["holds"][2] > strip["holds"][1] >= 50


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_holds_are_numbers_of_any_kind_one_for_each_frame(kind):
    frames, looks = [a_frame(0), a_frame(255)], {"label": "time", "first": 0, "still": "Still."}
    strip = Parts(filmstrip.page(frames, holds=kind([50, 900]), **looks)).strip()
    assert strip["holds"] == [50, 900]
    for wrong in ([], [50], [50, 60, 70]):
        with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
            filmstrip.page(frames, holds=kind(wrong), **looks)


def strips_of(path):
    cells = nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    return [page for page in pages if 'class="dlcourse-filmstrip"' in page]


@pytest.mark.parametrize("source", SOLVED, ids=lambda path: path.stem)
def test_every_stored_lesson_moves_without_a_kernel(source):
    strips = [Parts(html).strip() for html in strips_of(source)]
    assert [strip["holds"] for strip in strips].count(None) >= 1
    for html, strip in zip(strips_of(source), strips, strict=True):
        assert_sound(html, len(strip["frames"]), pictures(strip)[0].size)
        assert len(strip["frames"]) >= 9


@pytest.fixture
def opened(tmp_path):
    """Opens two strips on one page of a phone, from a file without network."""

    def strip(label, count, **more):
        frames = [a_frame(250 * k // count, f"{k} W", f"grey of step {k}") for k in range(count)]
        return filmstrip.page(frames, label=label, first=1, still="Still.", note="Moves.", **more)

    heating, path = strip("heat", 4), tmp_path / "page.html"

    @contextmanager
    def visit(holds=(30, 30, 30), **options):
        playing = strip("time", 3, holds=holds)
        path.write_text(f"<!doctype html><title>x</title>{heating}{playing}", encoding="utf-8")
        phone = {"width": 360, "height": 640, "offline": True}
        with browsers.launched() as browser, browsers.visit(browser, **phone, **options) as visit:
            visit.page.goto(path.as_uri())
            yield visit.page
            assert (visit.errors, visit.foreign) == ([], [])

    return visit


def grey(figure):
    """The shade that is on the screen."""
    with Image.open(io.BytesIO(figure.locator("img").screenshot())) as picture:
        return picture.convert("L").getpixel((30, 20))


def test_arrow_keys_move_one_strip_of_two(opened):
    with opened() as page:
        first, second = page.locator("figure").all()
        assert (grey(first), grey(second)) == (62, 83)
        slider = page.get_by_role("slider", name="heat", exact=True)
        slider.focus()
        assert slider.evaluate("s => [s.min, s.max, s.step, s.value]") == ["0", "3", "1", "1"]
        for key, step in (("ArrowRight", 2), ("End", 3), ("ArrowLeft", 2), ("Home", 0)):
            page.keyboard.press(key)
            assert slider.get_attribute("aria-valuetext") == f"{step} W"
            assert first.locator("output").inner_text() == f"{step} W"
            assert first.locator("img").get_attribute("alt") == f"grey of step {step}"
            assert grey(first) == 250 * step // 4
            assert grey(second) == 83
        assert first.locator("figcaption").inner_text() == "Moves."
        assert page.get_by_role("button").count() == 1  # only the second can play
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        # What JupyterLab looks for before it takes an arrow key for its own.
        suppressed = page.locator("[data-lm-suppress-shortcuts]")
        assert page.locator("input, button").count() == suppressed.count()


def test_the_button_plays_to_the_end_and_stops(opened):
    with opened() as page:
        second = page.locator("figure").nth(1)
        page.keyboard.press("Tab")  # the slider of the first
        page.keyboard.press("Tab")
        button = page.get_by_role("button", name="Play")
        expect(button).to_be_focused()
        page.keyboard.press("Enter")
        expect(second.locator("output")).to_have_text("2 W")
        assert grey(second) == 166
        expect(button).to_be_visible()


def test_the_button_stops_and_begins_anew_after_the_end(opened):
    """The pause in the middle is longer than any test: nothing is seen in passing."""
    with opened(holds=[30, 60_000, 30]) as page:
        second = page.locator("figure").nth(1)
        second.get_by_role("slider").press("End")
        play, pause = (page.get_by_role("button", name=name) for name in ("Play", "Pause"))
        play.press("Enter")  # from the beginning
        expect(pause).to_be_visible()
        expect(second.locator("output")).to_have_text("1 W")
        pause.press("Enter")
        expect(play).to_be_visible()
        assert grey(second) == 83


def test_without_scripts_there_is_a_picture_and_no_dead_control(opened):
    with opened(java_script_enabled=False) as page:
        assert page.locator("input, button, output").count() == 0
        assert page.locator("img").count() == 2
        assert page.locator("figcaption").all_inner_texts() == ["Still.", "Still."]
        assert grey(page.locator("figure").first) == 62
        assert page.get_by_alt_text("grey of step 1").count() == 2
