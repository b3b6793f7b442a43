"""What a student calls: `check` an exercise, get a `hint` or the `solution`, see the `progress`."""

from __future__ import annotations

import html
from typing import Any

from dlcourse_utils import lessons

from . import engine, record, report

__all__ = ["check", "hint", "progress", "solution"]


def check(id: str, answer: Any) -> Any:
    """Say whether ``answer`` solves exercise ``id``, and return the object to go on with.

    That is ``answer`` itself, right or wrong, so that its effect is seen. An exercise not yet
    started is replaced by the reference, and so is an answer that the next cells cannot use (it
    raises, it cannot be traced, its results are of the wrong kind or shape, or not finite, or a
    later training is known to diverge with it): the notebook runs on.
    Raises CourseError for an exercise that does not exist.
    """
    spec = engine.find(id)
    found = engine.judge(spec, answer)
    report.show(f"Exercise {spec.id}", found)
    if found.diagnosis != engine.REFERENCE:  # the last run of the cell was recorded already
        record.append(spec.id, found.outcome, found.diagnosis)
    if found.outcome == engine.NOT_STARTED or not found.usable:
        return engine.namespace(spec.id.split(".")[0])[spec.name]
    return answer


def hint(id: str, number: int = 1) -> None:
    """Show a hint of exercise ``id``: the first, or the one of that ``number``."""
    task = lessons.exercise(lessons.load(str(id)), id)
    number = min(max(int(number), 1), len(task.hints))
    more = "" if number == len(task.hints) else f'\n\nThe next one: hint("{task.id}", {number + 1})'
    text = f"Hint {number} of {len(task.hints)}: {task.hints[number - 1]}{more}"
    report.show_both(text, f"<p>{report.inline(text)}</p>".replace("\n\n", "<br>"))


def solution(id: str) -> None:
    """Show the solved code of exercise ``id``."""
    code = lessons.solution_text(id)
    report.show_both(code, f"<pre>{html.escape(code)}</pre>")


def progress(lesson: str | int | None = None) -> None:
    """Show where each exercise stands, from the local record of this machine.

    ``lesson`` is the number of one, such as "01"; all are shown when none is given.
    Raises CourseError for a lesson that does not exist.
    """
    rows = record.table(lesson)
    done = sum(state == "right" for _, _, state, _ in rows)
    marks = {"right": "✓", "not started": "○"}
    lines = [
        f"{marks.get(state, '✗')} {id}  {title} · {state}"
        + (f" · {tries} check{'s' * (tries > 1)}" if tries else "")
        for id, title, state, tries in rows
    ]
    text = "\n".join([f"{done} of {len(rows)} exercises right", *lines])
    report.show_both(text, f"<pre>{html.escape(text)}</pre>")
