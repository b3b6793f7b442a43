"""Render a lesson source as a notebook: pure text in, text out.

No clock, path, git, network or tool version enters, so the same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any, Literal
from urllib.parse import urlsplit

from dlcourse_utils.env import colab_setup_lines
from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import ANSWER, HINT, Lesson, paragraphs
from dlcourse_utils.percent import Cell

Variant = Literal["student", "solution"]
_SPLIT = ("application/javascript", "image/svg+xml")
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def notebook(lesson: Lesson, variant: Variant, repository: str, tag: str) -> dict[str, Any]:
    """The notebook of a lesson as data (nbformat 4.5), without outputs."""
    ids = _ids(lesson.stem)
    cells = []
    for cell in lesson.cells:
        source, metadata = _rendered(cell, lesson, variant)
        if cell is lesson.cells[0]:
            heading, _, rest = source.partition("\n")
            first = (
                f"{heading}\n\n{_facts(lesson, variant, repository, tag)}\n\n{rest.strip()}".strip()
            )
            cells += [
                _cell("markdown", first, ids("title"), {}),
                _cell("markdown", _objectives(lesson), ids("objectives"), {}),
                _cell(
                    "code", colab_setup_lines(repository, tag), ids("setup"), {"tags": ["setup"]}
                ),
            ]
            continue
        key = f"{cell.kind} {f'exercise {cell.exercise}' if cell.exercise else cell.source}"
        cells.append(_cell(cell.kind, source, ids(key), metadata))
    return {
        "cells": cells,
        "metadata": {
            "dlcourse": {
                "content_sha256": content_sha256(cells),
                "stem": lesson.stem,
            },
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def source_cells(lesson: Lesson) -> list[Cell]:
    """For each cell of the notebook the source's; the two that the build adds get the first."""
    return [lesson.cells[0]] * 2 + list(lesson.cells)


def dump(notebook: dict[str, Any]) -> bytes:
    """The bytes of a notebook's file, laid out as Jupyter does: lines as lists, sorted keys."""
    listed = {**notebook, "cells": _listed_cells(notebook["cells"])}
    text = json.dumps(listed, indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()


def parse_notebook(data: bytes) -> dict[str, Any] | None:
    """A notebook from the bytes of its file, lines joined; None where they are not a notebook."""
    try:
        notebook = json.loads(data.decode())
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell["cell_type"], cell["metadata"]
        notebook["metadata"].get("dlcourse", {}).get("stem")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return notebook


def content_sha256(cells: list[dict[str, Any]]) -> str:
    """Hash of what cells say: type, source, attachments, and not outputs, ids and metadata."""
    parts = []
    for cell in cells:
        parts.append(f"{cell['cell_type']}\n{cell['source']}")
        if cell.get("attachments"):
            parts.append(json.dumps(cell["attachments"], sort_keys=True))
    return _sha256(*parts)


def outputs_sha256(cells: list[dict[str, Any]]) -> str:
    """Hash of the outputs, and of the code that made them.

    The set-up cell's code does not count, or a new address would ask for a run of all lessons.
    """
    parts = []
    for cell in _listed_cells(cells):
        if cell["cell_type"] == "code":
            setup = "setup" in cell["metadata"].get("tags", [])
            said = [[] if setup else cell["source"], cell["outputs"]]
            parts.append(json.dumps(said, sort_keys=True))
    return _sha256(*parts)


def badge(stem: str, repository: str, tag: str) -> str:
    """Markdown of the badge that opens the student notebook in Colab; empty without a link."""
    link = colab_link(stem, repository, tag)
    return f"[![Open in Colab]({_BADGE})]({link})" if link else ""


def colab_link(stem: str, repository: str, tag: str) -> str:
    """Address at which Colab opens the student notebook.

    Empty for an address that is not GitHub's, from which Colab opens nothing. Raises CourseError
    for what is no address of a repository.
    """
    address = urlsplit(repository)
    if address.scheme != "https" or not re.fullmatch(r"(/[\w.-]+){2,}", address.path):
        raise CourseError(
            f"{repository!r} is no address of a repository: set Repository in pyproject.toml to "
            "one such as https://github.com/OWNER/NAME."
        )
    if address.netloc != "github.com":
        return ""
    return f"https://colab.research.google.com/github{address.path}/blob/{tag}/course/{stem}.ipynb"


def _rendered(cell: Cell, lesson: Lesson, variant: Variant) -> tuple[str, dict[str, Any]]:
    if cell.kind == "code":
        metadata: dict[str, Any] = {}
        tags = list(cell.tags)
        if "verdict" in tags:
            tags.append("nbval-check-output")
        if tags:
            metadata["tags"] = tags
        if cell.alt:
            metadata["mystnb"] = {"image": {"alt": cell.alt}}
        if cell.exercise is None:
            return cell.source, metadata
        exercise = lesson.exercises[cell.exercise]
        return exercise.stub if variant == "student" else exercise.solution, metadata
    source = cell.source
    if cell.exercise:
        exercise = lesson.exercises[cell.exercise]
        dots = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
        heading = f"### Exercise {exercise.id} · {exercise.title}"
        time = f"*{exercise.minutes} minutes · difficulty {dots}*"
        _, _, rest = _fold_hints(source).partition("\n")
        source = f"{heading}\n\n{time}\n\n{rest.lstrip()}"
    elif cell.think:
        question, _, answer = source.partition(f"\n\n{ANSWER}")
        source = f"{question}\n\n{_details('Answer', answer)}"
    return source, {}


def _fold_hints(source: str) -> str:
    """The markdown with each hint folded and numbered."""
    number = count(1)
    return "\n\n".join(
        _details(f"Hint {next(number)}", p.removeprefix(HINT)) if p.startswith(HINT) else p
        for p in paragraphs(source)
    )


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _facts(lesson: Lesson, variant: Variant, repository: str, tag: str) -> str:
    facts = [lesson.part, f"{lesson.minutes} minutes"]
    if lesson.needs != "none":
        facts.append(lesson.needs)
    if variant == "solution":
        facts.append("solved")
    colab = colab_link(lesson.stem, repository, tag)
    # In words: the badge is a picture from the network, and a broken one without.
    link = f"[Open in Colab]({colab})" if colab else ""
    return f"{link}\n\n*{' · '.join(facts)}*".strip()


def _objectives(lesson: Lesson) -> str:
    lines = ["**You will be able to**", "", *(f"- {item}" for item in lesson.objectives)]
    if lesson.prerequisites:
        lines += ["", "**You need**", "", *(f"- {item}" for item in lesson.prerequisites)]
    return "\n".join(lines)


def _cell(kind: str, source: str, id: str, metadata: dict[str, Any]) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": id, "metadata": metadata, "source": source}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


def _ids(stem: str) -> Callable[[str], str]:
    """Makes the cell ids of a lesson: from its stem, the cell's key, and the key's occurrence."""
    seen: Counter[str] = Counter()

    def make(key: str) -> str:
        seen[key] += 1
        return _sha256(stem, key, str(seen[key]))[:12]

    return make


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _listed_cells(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells with each text that Jupyter stores as a list of lines as such a list."""
    listed = []
    for cell in cells:
        cell = {**cell, "source": _lines(cell["source"])}
        if cell["cell_type"] == "code":
            cell["outputs"] = [_listed_output(output) for output in cell.get("outputs", [])]
        listed.append(cell)
    return listed


def _listed_output(output: dict[str, Any]) -> dict[str, Any]:
    output = dict(output)
    if "text" in output:
        output["text"] = _lines(output["text"])
    if "data" in output:
        output["data"] = {
            kind: _lines(value) if kind.startswith("text/") or kind in _SPLIT else value
            for kind, value in output["data"].items()
        }
    return output


def _lines(value: Any) -> Any:
    return value.splitlines(keepends=True) if isinstance(value, str) else value
