"""What the site is made of: the pages of course/ and one page for each solved lesson.

Text and data in, text and data out; `book` writes them and runs Sphinx over them. All pages lie in
one folder, so that their addresses are short: links between the folders of the repository follow.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from dlcourse_utils.build import Course
from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import Lesson
from dlcourse_utils.regions import checked_ids
from dlcourse_utils.render import colab_link, parse_notebook, source_cells

TOC = "course/_toc.yml"
# Where the site keeps the student notebooks that its pages offer.
NOTEBOOKS = "notebooks"
_FOLDERS = ("course/", "solutions/")
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?(?=\))")
_BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\((?P<link>[^)]*)\)")
# Terms get addresses of their own from Sphinx; other viewers of Markdown show nothing of these.
_GLOSSARY = {"<!-- glossary -->": ":::{glossary}", "<!-- end of glossary -->": ":::"}


def entries(toc: Any) -> Iterator[str]:
    """The files that a table of contents names, the root first.

    Raises CourseError for a table that is not laid out as jupyter-book 1 lays it out.
    """
    if not isinstance(toc, dict) or not isinstance(toc.get("root"), str):
        raise CourseError(f"{TOC} has no root page: run `make notebooks`, which writes it.")
    yield toc["root"]
    for part in _parts(toc):
        yield from _files(part)


def toctrees(toc: Mapping[str, Any]) -> dict[str, str]:
    """For each page that has pages below it, the directives that say so to Sphinx."""
    trees = {toc["root"]: "".join(_toctree(part) for part in _parts(toc))}

    def descend(part: Mapping[str, Any]) -> None:
        for entry in _chapters(part):
            if "file" in entry and entry.get("sections"):
                trees[entry["file"]] = _toctree(entry)
                descend(entry)

    for part in _parts(toc):
        descend(part)
    return trees


def docname(name: str) -> str:
    """The name of a page in the site, from its name in the table of contents."""
    for folder in _FOLDERS:
        name = name.removeprefix(folder)
    return name


def linked(text: str, name: str, pages: set[str], course: Course) -> str:
    """Markdown of the page `name` with its links as the site needs them.

    `pages`: all pages, as the table of contents names them. A link to another file of the
    repository leads to its public address; badges, which a browser would fetch, become buttons.
    """
    folder = posixpath.dirname(name)
    stems = {page.rpartition("/")[2]: page for page in pages}

    def follow(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["path"]))
        anchor = match["anchor"] or ""
        page, suffix = posixpath.splitext(path)
        if suffix == ".ipynb":  # of the two notebooks of a lesson the site has one page
            page = stems.get(posixpath.basename(page), page)
        if page in pages and suffix in (".md", ".ipynb"):
            here = posixpath.dirname(docname(name)) or "."
            return posixpath.relpath(docname(page), here) + suffix + anchor
        if path.startswith(("course/", "..")) or not (course.root / path).exists():
            return match[0]  # a picture beside the page; or a mistake, which Sphinx reports
        return f"{course.repository}/blob/{course.tag}/{path}{anchor}"

    for comment, directive in _GLOSSARY.items():
        text = text.replace(comment, directive)
    return _LINK.sub(follow, _BADGE.sub(lambda match: _button(match["link"]), text))


def lesson_page(course: Course, lesson: Lesson, stored: bytes, below: str, pages: set[str]) -> str:
    """The page of a lesson, the text of a notebook, from the bytes of its solved notebook.

    `below`: what says which pages come below it; `pages`: as in `linked`. Raises CourseError where
    that notebook cannot be read, was not run or is not what the source makes.
    """
    name = f"solutions/{lesson.stem}.ipynb"
    solved = parse_notebook(stored)
    fresh = [cell["source"] for cell in course.solution(lesson)["cells"]]
    if solved is None or [cell["source"] for cell in solved["cells"]] != fresh:
        raise CourseError(
            f"{name} is not what its source makes: run `make notebooks ARGS={lesson.number}`."
        )
    code = [cell for cell in solved["cells"] if cell["cell_type"] == "code"]
    if any(cell.get("execution_count") is None for cell in code):
        raise CourseError(f"{name} was not run: run `make notebooks ARGS={lesson.number}`.")
    _, objectives, setup, *rest = solved["cells"]
    cells = [_opening(course, lesson, objectives["source"])]
    cells += _folded(setup, "The set-up of the notebook")
    inside = None  # the exercise whose box is open
    for cell, origin in zip(rest, source_cells(lesson)[3:], strict=True):
        if cell["cell_type"] == "markdown":
            if origin.exercise:
                stub = lesson.exercises[origin.exercise].stub
                cells.append(_statement(cell["source"], stub))
                inside = origin.exercise
            else:
                cells.append(_markdown(cell["source"]))
        elif origin.exercise:
            cells += _folded(cell, f"Solution of exercise {origin.exercise}")
        elif origin.source.strip() != "progress()":  # that of whoever built the notebooks
            cells.append(cell)
            if "widget" in origin.tags:
                cells += _still(cell)
            if inside in [id for _, id in checked_ids(origin, lesson.path)]:
                cells.append(_markdown("</div>"))
                inside = None
    versions = solved["metadata"]["dlcourse"].get("environment", {})
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    cells.append(_markdown(f'<p class="made-with">The outputs were made with {listed}.</p>'))
    if below:
        cells.append(_markdown(below.strip()))
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked(cell["source"], f"solutions/{lesson.stem}", pages, course)
    page = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
            "myst": {"html_meta": {"description": lesson.summary}},
        },
        "nbformat": 4,
        "nbformat_minor": 4,  # 5 asks for the cells' ids
    }
    return json.dumps(page, ensure_ascii=False)


def _opening(course: Course, lesson: Lesson, objectives: str) -> dict[str, Any]:
    intro = lesson.cells[0].source.partition("\n")[2].strip()
    facts = [lesson.part, f"{lesson.minutes} minutes", f"{len(lesson.exercises)} exercises"]
    if lesson.needs != "none":
        facts.append(lesson.needs)
    file = f"{NOTEBOOKS}/{lesson.stem}.ipynb"
    buttons = f'<a class="course-button" href="{file}" download>Download the notebook</a>'
    colab = colab_link(lesson.stem, course.repository, course.tag)
    if colab:
        buttons = f"{_button(colab)}\n{buttons}"
    lines = [
        f"# {lesson.number} · {lesson.title}",
        f'<p class="facts">{escape(" · ".join(facts))}</p>',
        f'<div class="course-buttons">\n{buttons}\n</div>',
        "This is the solved lesson: solutions are folded until you ask for them. The notebook has "
        "gaps in their place, and checks what you write.",
        f'<div class="objectives">\n\n{objectives}\n\n</div>',
        intro,
    ]
    return _markdown("\n\n".join(lines).strip())


def _statement(source: str, stub: str) -> dict[str, Any]:
    """The statement of an exercise in a box, which its check closes, and what it starts from."""
    heading, _, rest = source.partition("\n")
    given = f"```python\n{stub.strip()}\n```"
    return _markdown(f'{heading}\n\n<div class="exercise">\n\n{rest.strip()}\n\n{given}')


def _folded(cell: dict[str, Any], summary: str) -> list[dict[str, Any]]:
    """A cell folded away, in the same way as the hints of an exercise."""
    opening = f'<details class="solution"><summary>{escape(summary)}</summary>'
    return [_markdown(opening), cell, _markdown("</details>")]


def _still(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """The words under a picture that stands for a widget, which the library keeps beside it."""
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data and "text/html" not in data:
            words = "".join(data["text/plain"])
            return [_markdown(f'<p class="still">{escape(words)}</p>')]
    return []


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _button(link: str) -> str:
    return f'<a class="course-button" href="{escape(link)}">Open in Colab</a>'


def _parts(toc: Mapping[str, Any]) -> list[Any]:
    return toc.get("parts") or [{"chapters": toc.get("chapters", [])}]


def _chapters(part: Any) -> list[dict[str, Any]]:
    chapters = part.get("chapters", part.get("sections", [])) if isinstance(part, dict) else None
    if not isinstance(chapters, list) or not all(
        isinstance(entry, dict) and ("file" in entry or "url" in entry) for entry in chapters
    ):
        raise CourseError(
            f"{TOC} has a part that is no list of files and addresses: run `make notebooks`, "
            "which writes it."
        )
    return chapters


def _files(part: Any) -> Iterator[str]:
    for entry in _chapters(part):
        if "file" in entry:
            yield entry["file"]
            if entry.get("sections"):
                yield from _files(entry)


def _toctree(part: Mapping[str, Any]) -> str:
    lines = ["", "", "```{toctree}", ":hidden:"]
    if "caption" in part:
        lines.append(f":caption: {part['caption']}")
    for entry in _chapters(part):
        target = f"/{docname(entry['file'])}" if "file" in entry else entry["url"]
        lines.append(f"{entry['title']} <{target}>" if "title" in entry else target)
    return "\n".join([*lines, "```", ""])
