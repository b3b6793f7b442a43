"""Look for lines of solutions in what students get."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dlcourse_utils.lessons import Lesson
from dlcourse_utils.percent import SourceError

# A shorter line, or the return of a name, says nothing: it is found everywhere by chance.
_TRIVIAL = re.compile(r".{0,11}|return [\w.]+|[^A-Za-z]*")
_QUOTED = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"\s+#\s.*")
_LONG = 25  # characters from which a line counts as found inside another line too


def refuse_leaks(lessons: Iterable[Lesson], shown: dict[str, str]) -> None:
    """Raise SourceError for the first line of a solution that a text in `shown` has.

    `shown`: name and text of each file of course/. Lines that are also code outside the solution
    regions of some lesson are no secret; what its text or a comment says does not make them so.
    """
    lessons = list(lessons)
    known = {_bare(line) for lesson in lessons for line in _code_outside(lesson)}
    bodies = {name: {line.strip() for line in body.split("\n")} for name, body in shown.items()}
    for lesson in lessons:
        for exercise in lesson.exercises.values():
            for number, text in exercise.solution_lines:
                line = _bare(text)
                if _TRIVIAL.fullmatch(line) or line in known:
                    continue
                for name, body in bodies.items():
                    # All that a line says it has inside: a quick look spares a long one.
                    if line in shown[name] and any(_says(other, line, known) for other in body):
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


def _says(shown: str, line: str, known: set[str]) -> bool:
    """Whether a shown line is a line of a solution, quotes it, or has it inside.

    Code outside the regions, which `known` has, may have it inside, its comments may not.
    """
    bare = _bare(shown)
    if bare == line or line in _QUOTED.findall(shown):
        return True
    return len(line) >= _LONG and line in shown and not (bare in known and line in bare)


def _bare(line: str) -> str:
    """A line of code without its comment, and a comment without its mark."""
    return _COMMENT.sub("", line.strip().lstrip("# "))


def _code_outside(lesson: Lesson) -> Iterator[str]:
    """The code that students get, line by line, without lines that are comments only."""
    for cell in lesson.cells:
        if cell.kind == "code":
            text = lesson.exercises[cell.exercise].stub if cell.exercise else cell.source
            yield from (line for line in text.split("\n") if not line.strip().startswith("#"))
