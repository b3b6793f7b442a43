"""The course in a real browser: each student notebook in JupyterLab, run, answered and moved.

Each is run once, for all the tests of that lesson. Screenshots and what was measured are kept in
build/screenshots, or where DLCOURSE_SCREENSHOTS says.
"""

import re
import statistics
from contextlib import closing
from itertools import cycle
from typing import NamedTuple

import nbformat
import pytest
from playwright.sync_api import expect

from dlcourse_utils import __version__, execute, lessons
from dlcourse_utils.build import is_edited, read_course
from dlcourse_utils.checks import engine
from dlcourse_utils.render import dump
from tests import browsers
from tests.environments import copy_checkout, least
from tests.labs import Notebook
from tests.labs import lab as started

pytestmark = pytest.mark.slow

COURSE = read_course()
MOST_SECONDS = 0.05  # of a redraw, in the kernel


class Slip(NamedTuple):
    """A wrong answer to type: what to replace in the solution, and the suspect who wrote it."""

    exercise: str
    suspect: str
    right: str
    wrong: str


SLIPS = {
    slip.exercise[:2]: slip
    for slip in (
        Slip("01.2", "broadcast", "prediction[:, 0] - target", "prediction - target"),
        Slip("03.1", "log_det_sign", "+ log_det", "- log_det"),
        Slip("06.6", "root_of_nu", "jnp.sqrt(2 * used)", "jnp.sqrt(used)"),
        Slip("07.5", "log_q_added", "log_joint - log_q", "log_joint + log_q"),
        Slip("09.4", "no_two", "jnp.sqrt(2 * step)", "jnp.sqrt(step)"),
    )
}


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A JupyterLab on a copy of the checkout with untouched notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    checkout = copy_checkout(folder / "checkout")
    for lesson in COURSE.lessons:
        path = checkout / "course" / f"{lesson.stem}.ipynb"
        path.write_bytes(dump(COURSE.student(lesson)))
    with started(checkout, folder) as lab:
        yield lab


class Ran(NamedTuple):
    """A lesson whose student notebook has been run untouched, and what came of it."""

    lesson: lessons.Lesson
    notebook: Notebook
    content: dict


@pytest.fixture(scope="module", params=COURSE.lessons, ids=lambda lesson: lesson.stem)
def ran(request, lab, browser):
    lesson = request.param
    with (
        browsers.visit(browser) as visit,
        closing(Notebook(visit, lab.page(f"{lesson.stem}.ipynb"))) as notebook,
    ):
        seconds = notebook.run_all(4 * lesson.seconds)
        browsers.note(f"{lesson.stem}, Run All", seconds, "s")
        yield Ran(lesson, notebook, notebook.content())


@pytest.fixture(autouse=True)
def picture_of_a_failure(request):
    """Of the notebook, which stays open for the next test. Other pages see to it themselves."""
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before and "ran" in request.node.funcargs:
        browsers.keep_failed(request.node.funcargs["ran"].notebook.page)


def test_an_untouched_notebook_ends_clean_in_its_bands_and_in_time(ran, lab):
    """`make run` holds the seconds; here other tests share the cores, and the limit is four times
    as long."""
    notebook = ran.notebook
    code = [cell for cell in ran.content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    execute.inspect_outputs(ran.content, ran.lesson)
    records = execute.verdicts(ran.content)
    assert records
    assert [record["name"] for record in records if not record["ok"]] == []
    said = notebook.page.locator(".jp-OutputArea-output").all_inner_texts()
    assert not [text for text in said if re.search("(?i)error (displaying|creating) widget", text)]
    visit = notebook.visit
    assert (visit.errors, visit.foreign, visit.lost) == ([], [], [])
    # Run and saved, but not worked in: an update may replace it.
    notebook.save()
    assert not is_edited((lab.checkout / "course" / f"{ran.lesson.stem}.ipynb").read_bytes())


def test_every_check_says_not_started(ran):
    for id in ran.lesson.exercises:
        answer = ran.notebook.cell(f'check("{id}"').locator(".jp-OutputArea-output")
        expect(answer).to_contain_text(f"Exercise {id} · not started")


def test_each_slider_moves_the_picture(ran):
    notebook = ran.notebook
    output = notebook.cell("widgets.explore_").locator(".jp-OutputArea-output")
    picture, sliders = output.locator("img.widget-image"), output.get_by_role("slider").all()
    assert sliders
    for slider in sliders:
        now, most = (float(slider.get_attribute(f"aria-value{end}")) for end in ("now", "max"))
        for key in ("Home", "End") if now == most else ("End", "Home"):
            before = picture.get_attribute("src")
            notebook.move(slider, [key])
            expect(picture).not_to_have_attribute("src", before)
    output.scroll_into_view_if_needed()
    browsers.keep(notebook.page, f"{ran.lesson.stem}-widget")
    turns = cycle(("ArrowRight", "ArrowLeft") if key == "Home" else ("ArrowLeft", "ArrowRight"))

    def redraw() -> float:
        return statistics.median(notebook.move(slider, [next(turns)] * 15))

    seconds = least(redraw, MOST_SECONDS)
    browsers.note(f"{ran.lesson.stem}, redraw", 1000 * seconds, "ms (median)")
    assert seconds <= MOST_SECONDS


def test_a_widget_can_be_read_by_everybody(ran):
    """But for the name of a slider, which ipywidgets writes beside it and does not tie to it: the
    handle is made in its script, where Python does not reach."""
    output = ".jp-OutputArea-output:has(.widget-slider)"
    shown = ran.notebook.page.locator(output)
    for slider in shown.locator(".widget-slider").all():
        name = slider.locator("label")
        assert name.get_attribute("title") == name.inner_text() != ""
    picture = shown.locator("img")
    before = picture.get_attribute("title")
    assert len(before.split()) > 3
    slider = shown.get_by_role("slider").first
    at_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
    ran.notebook.move(slider, ["Home" if at_end else "End"])
    expect(picture).not_to_have_attribute("title", before)
    found = browsers.barriers(ran.notebook.page, output)
    nameless = [finding for finding in found if finding.startswith("aria-input-field-name ")]
    assert len(nameless) == shown.get_by_role("slider").count()
    assert sorted(found) == sorted(nameless)


def test_typed_answers_are_judged_and_kept(ran, lab):
    notebook, slip = ran.notebook, SLIPS[ran.lesson.number]
    exercise = ran.lesson.exercises[slip.exercise]
    (suspect,) = (s for s in engine.find(slip.exercise).suspects if s.name == slip.suspect)
    assert exercise.solution.count(slip.right) == 1
    wrong = exercise.solution.replace(slip.right, slip.wrong)
    code, check = notebook.cell(exercise.stub), notebook.cell(f'check("{slip.exercise}"')
    judged = check.locator(".jp-OutputArea-output")

    def answer(source: str, name: str, *says: str) -> None:
        notebook.type(code, source)
        assert source in [cell["source"] for cell in notebook.content()["cells"]]
        notebook.run(code)
        notebook.run(check)
        for text in says:
            expect(judged).to_contain_text(text)
        browsers.keep(notebook.page, f"{ran.lesson.stem}-{name}")

    head = f"Exercise {slip.exercise} · "
    answer(
        wrong,
        "wrong",
        f"{head}not yet right",
        seen(suspect.says),
        seen(suspect.why),
        seen(suspect.next),
    )
    answer(exercise.solution, "right", f"{head}right", seen(engine.find(slip.exercise).insight))

    if ran.lesson == COURSE.lessons[0]:  # the record is a file, and no other for other lessons
        notebook.restart()
        notebook.run(notebook.cell("from dlcourse_utils.checks import"))
    notebook.run(notebook.cells.last)
    line = f"✓ {slip.exercise}  {exercise.title} · right · 2 checks"
    expect(notebook.cells.last.locator("pre")).to_contain_text(line)
    assert line in lab.dlcourse("progress").splitlines()

    notebook.save()
    path = lab.checkout / "course" / f"{ran.lesson.stem}.ipynb"
    said = lab.dlcourse("reset", ran.lesson.number)
    assert f"your work is kept in course/{ran.lesson.stem}.mine-1.ipynb.\n" in said
    reload = re.search("File > (.*),", said)
    notebook.choose("File", reload[1])
    expect(code).not_to_contain_text(slip.right)
    assert path.read_bytes() == dump(COURSE.student(ran.lesson))
    mine = nbformat.read(path.with_stem(f"{path.stem}.mine-1"), as_version=4)
    assert exercise.solution in [cell.source for cell in mine.cells]


def seen(text: str) -> str:
    """A sentence of a check as it stands on the page."""
    return text.replace("`", "").replace("*", "")


MESSAGES = [
    "import jax.numpy as jnp\n"
    "from dlcourse_utils.checks import check, hint, progress, solution\n"
    "from dlcourse_utils.verdicts import verdict",
    f'{COURSE.lessons[0].exercises["01.2"].stub}\ncheck("01.2", mse);',
    "def mse(prediction, target):\n    return jnp.mean((prediction - target) ** 2)\n"
    'check("01.2", mse);',
    'def mse(prediction, target):\n    return prediction.mean_square\ncheck("01.2", mse);',
    f'{COURSE.lessons[0].exercises["01.2"].solution}\ncheck("01.2", mse);',
    'hint("01.2")\nsolution("01.2")\nprogress()',
    'verdict("gap", 0.004, high=0.01, unit="nats", error=0.0005)\nverdict("gap", 0.04, high=0.01);',
]
OUTCOMES = ("not started", "not yet right", "your code raised an error", "right")


def test_what_checks_say_can_be_read_by_everybody(lab, browser):
    """No serious finding of axe-core in the messages, with the lab's own colours and fonts."""
    cells = [nbformat.v4.new_code_cell(source) for source in MESSAGES]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    messages = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(messages, lab.checkout / "course/messages.ipynb")
    with (
        browsers.visit(browser, height=2200) as visit,
        closing(Notebook(visit, lab.page("messages.ipynb"))) as notebook,
    ):
        notebook.run_all(300)
        for k, outcome in enumerate(OUTCOMES, 1):
            shown = notebook.cells.nth(k).locator(".jp-OutputArea-output")
            expect(shown).to_contain_text(f"Exercise 01.2 · {outcome}")
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            notebook.use_theme(theme)
            browsers.keep(visit.page, f"messages-{theme.split()[-1].lower()}")
            assert browsers.barriers(visit.page, ".jp-OutputArea-output") == []


def test_the_start_page_opens_what_the_list_of_files_leaves_out(lab, browser):
    with browsers.visit(browser) as visit:
        visit.page.goto(lab.address)
        listed = visit.page.locator(".jp-DirListing-itemName")
        expect(listed.filter(has_text="START_HERE.md")).to_have_count(1)
        browsers.keep(visit.page, "lab-start")
        pages = [name for name in listed.all_inner_texts() if not name.endswith(".ipynb")]
        assert pages == ["START_HERE.md"]
        visit.page.get_by_role("link", name="glossary").click()
        expect(visit.page.get_by_role("heading", name="Glossary")).to_be_visible()
        assert (visit.errors, visit.foreign) == ([], [])


def test_a_barrier_is_seen(browser):
    with browsers.visit(browser) as visit:
        visit.page.set_content(
            "<html lang=en><title>t</title><main><h1>h</h1><p id=a>text</p>"
            "<p id=b style='color: #bbb; background: white'>pale</p><img src=data:,></main>"
        )
        pale, image = sorted(browsers.barriers(visit.page))
        assert pale.startswith('color-contrast (serious): <p id="b"')
        assert image.startswith("image-alt (critical): <img")
        assert browsers.barriers(visit.page, "#a") == []


def test_a_terminal_of_the_lab_knows_the_command(lab, browser):
    """And its tab is closed while it still writes."""
    with browsers.visit(browser) as visit:
        visit.page.goto(lab.address)
        visit.page.locator(".jp-DirListing-item").first.wait_for()
        visit.page.evaluate("() => { jupyterapp.commands.execute('terminal:create-new'); }")
        visit.page.get_by_role("tab", name="Terminal").first.click()
        visit.page.locator(".jp-Terminal .xterm-screen").first.click()
        visit.page.keyboard.type("dlcourse --version >version; touch done; timeout 20 yes\n")
        for _ in range(150):
            visit.page.wait_for_timeout(200)
            if (lab.checkout / "done").exists():
                break
        assert (lab.checkout / "version").read_text() == f"dlcourse {__version__}\n"
        visit.page.wait_for_timeout(2_000)
        browsers.keep(visit.page, "terminal")


def test_a_page_is_closed_and_pictured_where_its_test_fails(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("DLCOURSE_SCREENSHOTS", str(tmp_path))
    with pytest.raises(AssertionError, match="so it is"), browsers.visit(browser) as visit:
        raise AssertionError("so it is")
    assert visit.page.is_closed() and visit.page.context not in browser.contexts
    (picture,) = tmp_path.iterdir()
    assert picture.name == "failed-test_a_page_is_closed_and_pictured_where_its_test_fails.png"


def test_an_address_that_cannot_be_fetched_is_noted(browser):
    with browsers.visit(browser) as visit:
        with visit.page.expect_event("requestfailed"):
            visit.page.set_content("<img src='http://localhost:1/a.png'>")
        assert visit.lost == ["http://localhost:1/a.png"]


def test_the_terminal_shows_the_address_and_nothing_else(lab):
    """After all the kernels of this module; a warning there would only worry."""
    said = lab.log.read_text()
    assert said.startswith("Opening the course in JupyterLab")
    last = f"{lab.address.replace('localhost', '127.0.0.1')}\n"
    assert said.endswith(last)
