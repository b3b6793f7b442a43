"""Execute a solved lesson headless, and say what it found against what it must find."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from dlcourse_utils import files
from dlcourse_utils.build import read_course
from dlcourse_utils.execute import CellError, Execution, execute, verdicts
from dlcourse_utils.lessons import Lesson, find
from dlcourse_utils.percent import label
from dlcourse_utils.render import source_cells

_SLOWEST = 5


def run(number: str) -> int:
    """Run the solved lesson, print its verdicts and slowest cells, write build/results/NN.json.

    Returns 0 when all verdicts are in their bands, 1 when one is not or there is none, 2 when a
    cell raises.
    """
    course = read_course()
    stem = find(number).stem
    lesson = next(lesson for lesson in course.lessons if lesson.stem == stem)
    results = course.root / "build" / "results" / f"{lesson.number}.json"
    results.unlink(missing_ok=True)  # an interrupted run leaves no result that looks like its own
    try:
        execution = execute(course.solution(lesson), lesson, cold=True)
    except CellError as error:
        print(error, file=sys.stderr)
        return 2
    found = verdicts(execution.notebook)
    wall = {"name": "wall time", "value": round(execution.seconds, 1), "low": None}
    wall |= {"high": lesson.seconds, "unit": "s", "ok": execution.seconds <= lesson.seconds}
    _save(results, lesson, execution, [*found, wall])
    print(table([*found, wall]))
    print("\nslowest cells")
    print("\n".join(_slowest(lesson, execution)))
    if not found:
        print(f"{label(lesson.path)} shows no verdict: it must call verdict(...) at least once.")
    return 0 if found and all(record["ok"] for record in [*found, wall]) else 1


def table(records: list[dict[str, Any]]) -> str:
    """Verdicts as a table in plain text: name, value, band, unit, pass."""
    rows = [("verdict", "value", "band", "unit", "")]
    for record in records:
        word = "pass" if record["ok"] else "FAIL"
        value = _value(record["value"])
        rows.append((record["name"], value, _band(record), record["unit"], word))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-" * len(lines[0].rstrip()))
    return "\n".join(line.rstrip() for line in lines)


def _value(value: float | None) -> str:
    """A measured value; a notebook keeps None for NaN and infinity, which JSON does not have."""
    return "not finite" if _plain(value) is None else _number(value)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _band(record: dict[str, Any]) -> str:
    low, high = record["low"], record["high"]
    if low is None and high is None:
        return "-"
    if low is None:
        return f"<= {_number(high)}"
    return f">= {_number(low)}" if high is None else f"{_number(low)} to {_number(high)}"


def _slowest(lesson: Lesson, execution: Execution) -> list[str]:
    cells = zip(
        execution.cell_seconds, execution.notebook["cells"], source_cells(lesson), strict=True
    )
    ordered = sorted((c for c in cells if c[1]["cell_type"] == "code"), key=lambda c: -c[0])
    lines = []
    for seconds, cell, origin in ordered[:_SLOWEST]:
        first = cell["source"].split("\n")[0][:60]
        lines.append(f"{seconds:7.2f} s  {label(lesson.path)}:{origin.line}  {first}")
    return lines


def _save(path: Path, lesson: Lesson, execution: Execution, records: list[dict[str, Any]]) -> None:
    clean = [{name: _plain(value) for name, value in record.items()} for record in records]
    seconds = round(execution.seconds, 2)
    content = {"lesson": lesson.number, "seconds": seconds, "verdicts": clean}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    files.write(path, (text + "\n").encode())


def _plain(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
