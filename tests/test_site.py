"""The built site in a real browser: both themes, phone width, search, formulas, what can be moved.

Screenshots are kept beside those of test_browser.py.
"""

import sys
import threading

import pytest
from playwright.sync_api import expect

from dlcourse_utils import book
from dlcourse_utils.build import read_course
from tests import browsers
from tests.environments import run

pytestmark = pytest.mark.slow

COURSE = read_course()
STEMS = [lesson.stem for lesson in COURSE.lessons]
# The kinds of pages that there are; of the lessons, one here and all below.
PAGES = ("index", "03_realnvp", "part_densities", "glossary", "references", "instructors", "search")
LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone, dark": {"color_scheme": "dark", "width": 390, "height": 844},
}


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The site of this checkout, built and served."""
    folder = tmp_path_factory.mktemp("site") / "site"
    build = "import sys, pathlib; from dlcourse_utils import book, build\n"
    build += "book.build_site(build.read_course(), pathlib.Path(sys.argv[1]))"
    run(sys.executable, "-c", build, folder)  # apart: Sphinx warns of its extensions' future
    with book._server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("look", LOOKS)
def test_pages_are_sound_and_can_be_read_by_everybody(browser, address, look):
    with browsers.visit(browser, **LOOKS[look]) as visit:
        page = visit.page
        for name in PAGES:
            page.goto(f"{address}/{name}.html")
            theme = page.locator("html").get_attribute("data-theme")
            assert theme == LOOKS[look]["color_scheme"]
            too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not page.evaluate(too_wide), f"{name} scrolls sideways"
            assert (visit.errors, visit.foreign) == ([], [])
            browsers.keep(page, f"site-{name}-{look.replace(', ', '-')}")
            assert browsers.barriers(page) == [], name
            visit.errors.clear()  # axe-core looks for style sheets where there are none


@pytest.mark.parametrize("stem", STEMS)
def test_a_lesson_shows_its_formulas_and_moves_without_a_kernel(browser, address, stem):
    with browsers.visit(browser) as visit:
        page = visit.page
        page.goto(f"{address}/{stem}.html")
        formulas = page.locator(".math")
        assert formulas.count() > 10
        expect(page.locator(".math mjx-container")).to_have_count(formulas.count())
        figures = page.locator(".cell_output img:not(.dlcourse-filmstrip img)")
        assert figures.count() > 3
        expect(page.locator(".cell_output a[href] > img")).to_have_count(figures.count())
        strips = page.locator(".dlcourse-filmstrip")
        assert strips.count() >= 1
        for strip in strips.all():
            picture, slider = strip.locator("img"), strip.get_by_role("slider")
            for key in ("Home", "End"):
                slider.press(key)
                shown = picture.get_attribute("src"), picture.get_attribute("alt")
                if key == "Home":
                    first = shown
            assert shown[0] != first[0] and len(shown[1].split()) > 3
        assert (visit.errors, visit.foreign) == ([], [])


def test_code_is_copied_with_the_keyboard(browser, address):
    (lesson,) = (lesson for lesson in COURSE.lessons if lesson.stem == "03_realnvp")
    exercise = lesson.exercises["03.1"]
    clipboard = ["clipboard-read", "clipboard-write"]
    with browsers.visit(browser, permissions=clipboard) as visit:
        page = visit.page
        page.goto(f"{address}/03_realnvp.html")
        stub, solution, *_ = page.locator(".exercise").first.locator(".copybtn").all()
        expect(solution).to_be_hidden()  # folded
        stub.press("Enter")
        expect(stub).to_have_attribute("data-tooltip", "Copied!")
        assert page.evaluate("navigator.clipboard.readText()").strip() == exercise.stub.strip()
        page.keyboard.press("Tab")
        summary = page.get_by_text("Solution of exercise 03.1")
        expect(summary).to_be_focused()
        summary.press("Enter")
        solution.press("Enter")
        expect(solution).to_have_attribute("data-tooltip", "Copied!")
        expect(solution).to_be_focused()
        assert page.evaluate("navigator.clipboard.readText()").strip() == exercise.solution.strip()
        browsers.keep(page, "site-copied")
        expect(solution).to_have_accessible_name("Copy to clipboard")  # once more
        browsers.keep(page, "site-copy")
        assert (visit.errors, visit.foreign) == ([], [])
        assert browsers.barriers(page) == []
        outputs = page.locator(".cell_output div.highlight")
        assert outputs.count() > 0
        expect(outputs.locator(".copybtn")).to_have_count(0)


def test_search_finds_a_term(browser, address):
    with browsers.visit(browser) as visit:
        visit.page.goto(f"{address}/search.html?q=Tweedie")
        found = visit.page.locator("#search-results li a")
        expect(found.first).to_be_visible()
        assert any("09_score_matching.html" in a.get_attribute("href") for a in found.all())
        assert (visit.errors, visit.foreign) == ([], [])
