"""Look for lines of solutions in what students get."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dlcourse_utils.lessons import Lesson
from dlcourse_utils.percent import SourceError

# A shorter line, or the return of a name, says nothing: it is found everywhere by chance.
_TRIVIAL = re.compile(r".{0,11}|return [\w.]+|[^A-Za-z]*")
_LONG = 25  # characters from which a line counts as found inside another line too


def refuse_leaks(lessons: Iterable[Lesson], shown: dict[str, str]) -> None:
    """Raise SourceError for the first line of a solution that a text in `shown` has.

    `shown`: name and text of each file of course/. Lines that are also code outside the solution
    regions of some lesson are no secret.
    """
    lessons = list(lessons)
    known = {line.strip() for lesson in lessons for line in _outside(lesson)}
    code = "\n".join(line for lesson in lessons for line in _outside(lesson, code_only=True))
    for lesson in lessons:
        for exercise in lesson.exercises.values():
            for number, text in exercise.solution_lines:
                line = text.strip()
                if _TRIVIAL.fullmatch(line) or line in known or line in code:
                    continue
                for name, body in shown.items():
                    if _has(body, line):
                        what = f"the solution line {line!r} can be read in {name}"
                        raise SourceError(lesson.path, number, what, "it in no file of course/")


def all_text(notebook: Any) -> str:
    """Every text in a notebook, metadata and attachments included, for `refuse_leaks`."""
    return "\n".join(_texts(notebook))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _has(body: str, line: str) -> bool:
    if line not in body:
        return False
    return len(line) >= _LONG or any(other.strip() == line for other in body.split("\n"))


def _outside(lesson: Lesson, code_only: bool = False) -> Iterator[str]:
    for cell in lesson.cells:
        if cell.kind == "code" and cell.exercise:
            yield from lesson.exercises[cell.exercise].stub.split("\n")
        elif cell.kind == "code" or not code_only:
            yield from cell.source.split("\n")
