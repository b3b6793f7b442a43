"""`dlcourse run`: the table, the JSON file and the exit status, with and without a kernel."""

import json
import math
from pathlib import Path

import pytest

from dlcourse_utils import execute, paths, render
from dlcourse_utils import run as running
from dlcourse_utils.errors import CourseError

TEXT = (Path(__file__).parent / "golden" / "01_tiny.py").read_text(encoding="utf-8")
PROJECT = """[project]
name = "dlcourse"
version = "1.2.3"

[project.urls]
Repository = "https://github.com/example/course"
"""
GOOD = {"name": "gap", "value": 0.004, "low": None, "high": 0.01, "unit": "nats", "ok": True}
BAD = {"name": "cover", "value": 0.5, "low": 0.66, "high": 0.7, "unit": "", "ok": False}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The root of a course of one tiny lesson, with a set-up cell that costs nothing."""
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "01_tiny.py").write_text(TEXT, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    monkeypatch.setattr(paths, "repository_root", lambda: tmp_path)
    monkeypatch.setattr(render, "colab_setup_lines", lambda repository, tag: "pass")
    return tmp_path


@pytest.fixture
def finding(monkeypatch):
    """Replaces the kernel: `finding(seconds, record, ...)` sets what the run finds."""

    def set_up(seconds, *records):
        def pretend(notebook, lesson, cold):
            assert cold
            code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
            for record in records:
                output = {"output_type": "display_data", "data": {"text/plain": "x"}}
                code[-1]["outputs"].append(
                    {**output, "metadata": {"dlcourse": {"verdict": record}}}
                )
            times = [float(n) for n in range(len(notebook["cells"]))]
            return execute.Execution(notebook, seconds, times)

        monkeypatch.setattr(running, "execute", pretend)

    return set_up


def test_all_verdicts_in_their_bands(checkout, finding, capsys):
    finding(12.34, GOOD, {**GOOD, "name": "rank", "low": 0.0, "high": None})
    assert running.run("01") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["verdict", "value", "band", "unit"]
    assert lines[2].split() == ["gap", "0.004", "<=", "0.01", "nats", "pass"]
    assert lines[3].split() == ["rank", "0.004", ">=", "0", "nats", "pass"]
    assert lines[4].split() == ["wall", "time", "12.3", "<=", "60", "s", "pass"]
    slow = [line for line in lines if "solutions/01_tiny.py:" in line]
    assert len(slow) == 5 and slow[0].split()[0] == "9.00" and slow[0].endswith("dot = (")
    result = json.loads((checkout / "build" / "results" / "01.json").read_text("utf-8"))
    assert (result["lesson"], result["seconds"]) == ("01", 12.34)
    assert [v["name"] for v in result["verdicts"]] == ["gap", "rank", "wall time"]
    assert all(set(v) == {"name", "value", "low", "high", "unit", "ok"} for v in result["verdicts"])


@pytest.mark.parametrize(
    ("seconds", "records", "words"),
    [
        (10.0, [GOOD, BAD], "0.66 to 0.7"),
        (10.0, [], "must call verdict"),
        (60.1, [GOOD], "wall time"),
        (10.0, [{**GOOD, "value": math.nan, "ok": False}], "not finite"),
        (10.0, [{**GOOD, "value": None, "ok": False}], "not finite"),
    ],
    ids=["out of band", "none", "slow", "not a number", "not finite"],
)
def test_what_fails(seconds, records, words, checkout, finding, capsys):
    finding(seconds, *records)
    assert running.run("01") == 1
    out = capsys.readouterr().out
    assert words in out
    assert ("FAIL" in out) == bool(records)
    result = json.loads((checkout / "build" / "results" / "01.json").read_text("utf-8"))
    assert len(result["verdicts"]) == len(records) + 1


def test_a_lesson_that_is_not_there(checkout):
    with pytest.raises(CourseError, match="no lesson '09'"):
        running.run("09")


def test_a_run_in_a_kernel(checkout, capsys):
    assert running.run("01") == 0
    out = capsys.readouterr().out
    assert "mean" in out and "2.9 to 3.1" in out and "wall time" in out
    assert not (checkout / "solutions" / "01_tiny.ipynb").exists()  # a run keeps no notebook

    source = checkout / "solutions" / "01_tiny.py"
    text = TEXT.replace("dot = (", "print(1)\nmean('ab')\ndot = (")
    source.write_text(text, encoding="utf-8")
    line = text.split("\n").index("mean('ab')") + 1
    assert running.run("01") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"solutions/01_tiny.py:{line}: the cell raises TypeError: ")
    assert len(captured.err.splitlines()) == 1
    assert not (checkout / "build" / "results" / "01.json").exists()


def test_a_cell_that_kills_its_kernel(checkout):
    source = checkout / "solutions" / "01_tiny.py"
    source.write_text(TEXT.replace("dot = (", "import os\nos._exit(1)\ndot = ("), encoding="utf-8")
    with pytest.raises(CourseError, match=r"01_tiny.py:\d+: the kernel .* died"):
        running.run("01")
