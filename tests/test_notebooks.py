"""The notebooks as they are stored: nothing leaks, nothing failed, everything was run.

pytest runs the solutions too, through nbval. That never compares a cell without execution count, so
an unexecuted notebook would pass it: here it does not. What is in course/ has no output to compare;
it is run here, to its end, and what it says is looked at.
"""

import configparser
import copy
import json
import re
import subprocess
import sys

import nbformat
import pytest

from dlcourse_utils import execute, leaks, lessons
from dlcourse_utils.build import build, read_course
from tests import browsers
from tests.environments import ROOT, committed, stored

LESSONS = lessons.sources()
# Tags under which nbval or nbclient let a cell fail, or do not run it.
TOLERANT = {"raises-exception", "skip-execution", "nbval-raises-exception", "nbval-skip"}
TOLERANT |= {"nbval-ignore-output", "NBVAL_IGNORE_OUTPUT", "NBVAL_RAISES_EXCEPTION", "NBVAL_SKIP"}
PRIVATE = re.compile(r"/home/|/root/|/tmp/|/Users/|[A-Z]:\\\\|\b0x[0-9a-f]{6,}")


def read(folder, source):
    path = ROOT / folder / f"{source.stem}.ipynb"
    assert path.is_file(), f"{folder}/{path.name} is missing: run `make notebooks`"
    data = stored(path) if folder == "course" else path.read_bytes()
    return nbformat.reads(data.decode(), as_version=4)


def test_there_is_a_lesson():
    assert LESSONS


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook, solved):
    """What is wrong with a stored notebook, in words."""
    found = []
    code = code_cells(notebook)
    counts = [cell.execution_count for cell in code]
    if counts != (list(range(1, len(code) + 1)) if solved else [None] * len(code)):
        found.append("execution counts")
    if not solved and any(cell.outputs for cell in code):
        found.append("outputs")
    for cell in notebook.cells:
        if cell.cell_type not in ("code", "markdown"):
            found.append("a cell of another type")
        if TOLERANT & set(cell.metadata.get("tags", [])):
            found.append("a cell that may fail")
        if cell.get("attachments"):
            found.append("an attachment")
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append("an error")
            if output.get("name") == "stderr" or "Warning:" in str(output.get("text", "")):
                found.append("a warning")
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                if len(alt.split()) < 4:
                    found.append("a figure without alt text")
    if notebook.metadata.get("widgets"):
        found.append("the state of widgets")
    if private := PRIVATE.search(leaks.all_text([cell.outputs for cell in code])):
        found.append(f"something of one machine: {private[0]}")
    return found


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("folder", ["course", "solutions"])
def test_a_stored_notebook_is_sound(folder, source):
    notebook = read(folder, source)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.nbformat_minor == 5
    assert faults(notebook, folder == "solutions") == []
    assert len(notebook.cells) <= 80, "too long for one class"


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_all_verdicts_are_in_their_bands(source):
    notebook = read("solutions", source)
    records = execute.verdicts(notebook)
    assert records
    assert [record["name"] for record in records if not record["ok"]] == []
    # nbval compares what has this tag; it draws no figures, so a cell with one cannot be compared.
    for cell in code_cells(notebook):
        if execute.verdicts({"cells": [cell]}) and "mystnb" not in cell.metadata:
            assert "nbval-check-output" in cell.metadata.get("tags", []), cell.source


@pytest.mark.slow
@pytest.mark.skipif(browsers.find() is not None, reason="test_browser.py runs it, in JupyterLab")
@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_an_untouched_student_notebook_ends_clean_in_its_bands_and_in_time(source):
    """Cold caches. `make run` holds the seconds; here other tests and processes share the cores."""
    lesson = lessons.load(source)
    execution = execute.execute(read_course().student(lesson), lesson, cold=True)
    execute.inspect_outputs(execution.notebook, lesson)
    records = execute.verdicts(execution.notebook)
    assert records
    assert [record["name"] for record in records if not record["ok"]] == []
    assert execution.seconds <= 4 * lesson.seconds


def test_no_solution_line_is_in_the_folder_of_the_course():
    shown = {}
    for path in committed("course"):
        text = stored(path).decode(errors="replace")  # a picture may carry text too
        shown[path.name] = leaks.all_text(json.loads(text)) if path.suffix == ".ipynb" else text
    assert len(shown) >= len(LESSONS)
    leaks.refuse_leaks([lessons.load(source) for source in LESSONS], shown)


def test_everything_generated_is_up_to_date(capsys):
    """A course notebook that is not as git has it may be somebody's work, and is not looked at."""
    theirs = [
        f"course/{path.name}"
        for path in (ROOT / "course").glob("*.ipynb")
        if path.read_bytes() != stored(path)
    ]
    build(check=True)
    said = capsys.readouterr().out.splitlines()
    problems = [line for line in said if not line.startswith((" ", "Next: ", *theirs))]
    assert problems == [], "\n".join(said)


def test_pytest_runs_all_solutions(pytestconfig):
    assert "solutions" in pytestconfig.getini("testpaths")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "solutions"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for source in LESSONS:
        assert f"solutions/{source.stem}.ipynb::Cell 0" in done.stdout, done.stdout[-2000:]


def test_the_sanitizer_leaves_verdicts_different():
    """nbval compares outputs after it; numbers may go, words may not."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / "tests" / "nbval.cfg", encoding="utf-8")

    def sanitized(text):
        for name in rules.sections():
            text = re.sub(rules[name]["regex"], rules[name]["replace"], text)
        return text

    passed = "✓ pass · gap: 0.004 nats (band: at most 0.01)"
    assert sanitized(passed) == sanitized(passed.replace("0.004", "0.0057"))
    for other in ("✗ fail · gap", "✓ pass · rank"):
        assert sanitized(passed) != sanitized(passed.replace("✓ pass · gap", other))


# --- that the guards see ----------------------------------------------------------------------


def solved():
    code = nbformat.v4.new_code_cell("1", execution_count=1)
    code.outputs = [nbformat.v4.new_output("stream", text="a\n")]
    return nbformat.v4.new_notebook(cells=[code, nbformat.v4.new_markdown_cell("text")])


def error(cell):
    cell.outputs = [nbformat.v4.new_output("error", ename="A", evalue="b", traceback=[])]


def figure(cell):
    cell.outputs = [nbformat.v4.new_output("display_data", data={"image/png": "aGk="})]


FAULTS = {
    "execution counts": lambda cell: cell.update(execution_count=None),
    "an error": error,
    "a figure without alt text": figure,
    "a cell that may fail": lambda cell: cell.metadata.update(tags=["raises-exception"]),
    "a warning": lambda cell: cell.outputs[0].update(name="stderr"),
    "something of one machine: /home/": lambda cell: cell.outputs[0].update(text="in /home/me"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    notebook = solved()
    assert faults(notebook, solved=True) == []
    spoilt = copy.deepcopy(notebook)
    FAULTS[fault](spoilt.cells[0])
    assert fault in faults(spoilt, solved=True)


def test_outputs_of_a_student_notebook_are_seen():
    assert faults(solved(), solved=False) == ["execution counts", "outputs"]
