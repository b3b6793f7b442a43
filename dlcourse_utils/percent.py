"""Read a lesson source, a jupytext percent script: its header and its cells, each with its line.

This module knows the text format only; what a lesson must contain is in `lessons`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcourse_utils.errors import CourseError

TAGS = ("context", "verdict", "widget")
_CELL = re.compile(r"# %%(?: +\[(?P<kind>\w+)\])?(?P<options>(?: .*)?)$")
_OPTION = re.compile(r"\s*(?P<name>\w+)=")
REGION_WORDS = re.compile(r"#+\s*(begin|end)[\s_-]*solutions?\b", re.IGNORECASE)
_OPTION_TYPES: dict[str, tuple[type, str]] = {
    "exercise": (str, 'an exercise id such as "01.2"'),
    "minutes": (int, "a whole number of minutes"),
    "difficulty": (int, "1, 2 or 3"),
    "think": (bool, "true or false"),
    "alt": (str, "a sentence in double quotes"),
    "tags": (list, f"a list of {', '.join(TAGS)}"),
}
_MARKDOWN_OPTIONS = ("exercise", "minutes", "difficulty", "think")
_CODE_OPTIONS = ("exercise", "alt", "tags")
# What only MyST understands: Colab and classic viewers would show it as raw text.
_MYST = (
    (re.compile(r"\s*:{3,}"), "a MyST directive (:::)"),
    (re.compile(r"\s*(`{3,}|~{3,})\{"), "a MyST directive (```{...})"),
    (re.compile(r".*\{[A-Za-z][\w:-]*\}`"), "a MyST role ({...}`...`)"),
    (re.compile(r"\([\w:-]+\)=\s*$"), "a MyST label"),
)


class SourceError(CourseError):
    """A lesson source breaks a rule; the message names file and line, and what was expected."""

    def __init__(self, path: Path, line: int, what: str, expected: str) -> None:
        super().__init__(f"{label(path)}:{line}: {what}, expected {expected}")


@dataclass(frozen=True)
class Cell:
    """One cell as written in the source; `line` is that of its `# %%`, the text starts below."""

    kind: str  # "markdown" or "code"
    source: str
    line: int
    first: int  # line of the first line of `source`
    exercise: str | None = None
    minutes: int | None = None
    difficulty: int | None = None
    think: bool = False
    alt: str | None = None
    tags: tuple[str, ...] = ()


def label(path: Path) -> str:
    """Name a source in messages: its folder and file, the same on every machine."""
    return f"{path.parent.name}/{path.name}"


def split(text: str, path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """Split the text of a source into its YAML header and its cells.

    Raises SourceError for a header that is not YAML and for unknown cell types, options and tags.
    """
    lines = text.split("\n")
    header, start = _header(lines, path)
    heads = [i for i in range(start, len(lines)) if re.match(r"#\s*%%", lines[i])]
    for i in range(start, heads[0] if heads else len(lines)):
        if lines[i].strip():
            raise SourceError(path, i + 1, "text before the first cell", "a '# %%' line first")
    cells = []
    for head, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        cells.append(_cell(lines, head, end, path))
    return header, cells


def _header(lines: list[str], path: Path) -> tuple[dict[str, Any], int]:
    import yaml

    if not lines or lines[0].rstrip() != "# ---":
        raise SourceError(path, 1, "no header", "'# ---' and the lesson's title, minutes, ...")
    end = next((i for i in range(1, len(lines)) if lines[i].rstrip() == "# ---"), None)
    if end is None:
        raise SourceError(path, 1, "a header that is not closed", "a second '# ---'")
    body = []
    for i in range(1, end):
        if not lines[i].startswith("#"):
            raise SourceError(path, i + 1, "a header line without '#'", "'# key: value'")
        body.append(lines[i].removeprefix("#").removeprefix(" "))
    try:
        header = yaml.safe_load("\n".join(body))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark else 1
        problem = getattr(error, "problem", None) or "unreadable"
        what = f"a header that is not YAML ({problem})"
        raise SourceError(path, min(line, end), what, "'key: value' lines") from None
    if not isinstance(header, dict):
        raise SourceError(path, 2, "a header without keys", "'key: value' lines")
    return header, end + 1


def _cell(lines: list[str], head: int, end: int, path: Path) -> Cell:
    match = _CELL.match(lines[head])
    if match is None:
        what = f"{lines[head]!r} does not start a cell"
        raise SourceError(path, head + 1, what, "'# %%' or '# %% [markdown]' and options")
    kind = match["kind"] or "code"
    if kind not in ("code", "markdown"):
        raise SourceError(path, head + 1, f"a cell of type [{kind}]", "[markdown] or nothing")
    options = _options(match["options"], kind, head + 1, path)
    first = head + 1
    while first < end and not lines[first].strip("# " if kind == "markdown" else " "):
        first += 1
    body = lines[first:end]
    if kind == "markdown":
        body = _markdown(body, first + 1, path)
    source = "\n".join(line.rstrip() for line in body).rstrip("\n")
    if not source:
        raise SourceError(path, head + 1, "an empty cell", "text or code in it")
    return Cell(kind, source, head + 1, first + 1, **options)


def _options(text: str, kind: str, line: int, path: Path) -> dict[str, Any]:
    options: dict[str, Any] = {}
    rest = text.strip()
    allowed = _MARKDOWN_OPTIONS if kind == "markdown" else _CODE_OPTIONS
    while rest:
        match = _OPTION.match(rest)
        if match is None:
            what = f"{rest!r} after '# %%' is no option"
            raise SourceError(path, line, what, f"name=value with {', '.join(allowed)}")
        name = match["name"]
        if name not in allowed:
            what = f"an unknown option {name!r} of a {kind} cell"
            raise SourceError(path, line, what, f"one of {', '.join(allowed)}")
        if name in options:
            raise SourceError(path, line, f"the option {name!r} twice", "it once")
        wanted, expected = _OPTION_TYPES[name]
        try:
            value, end = json.JSONDecoder().raw_decode(rest, match.end())
        except ValueError:
            what = f"a value of {name!r} that cannot be read"
            raise SourceError(path, line, what, expected) from None
        # bool is an int in Python: minutes=true would pass an isinstance test
        if type(value) is not wanted or (not value and wanted is not bool):
            raise SourceError(path, line, f"{name}={json.dumps(value)}", expected)
        options[name] = value
        rest = rest[end:].lstrip()
    if options.get("difficulty", 1) not in (1, 2, 3) or options.get("minutes", 1) < 1:
        raise SourceError(path, line, "minutes or difficulty out of range", "1 to 3, 1 or more")
    for tag in options.get("tags", []):
        if tag not in TAGS:
            raise SourceError(path, line, f"an unknown tag {tag!r}", f"one of {', '.join(TAGS)}")
    if "tags" in options:
        options["tags"] = tuple(options["tags"])
    return options


def _markdown(body: list[str], first: int, path: Path) -> list[str]:
    out: list[str] = []
    fenced = False
    blank = ("#", "")
    for number, line in enumerate(body, first):
        if line.strip() and not re.match(r"#( |$)", line):
            what = "a line of a markdown cell that does not start with '# '"
            raise SourceError(path, number, what, "'# ' and the text, or a new '# %%'")
        text = line.removeprefix("#").removeprefix(" ").rstrip()
        for pattern, name in _MYST:
            if pattern.match(text):
                expected = "CommonMark, $math$ and <details> only"
                raise SourceError(path, number, name, expected)
        near = [
            body[i].rstrip() for i in (number - first - 1, number - first + 1) if 0 <= i < len(body)
        ]
        if re.match(r"\s*\$\$.+\$\$$", text) and not all(line in blank for line in near):
            # the site would print it as text
            raise SourceError(path, number, "$$...$$ inside a paragraph", "blank lines around it")
        if re.match(r"\s*(```|~~~)", text):
            fenced = not fenced
        if REGION_WORDS.search(line) and not fenced:
            what = "a region marker in a markdown cell"
            raise SourceError(path, number, what, "it in the code cell of an exercise")
        out.append(text)
    return out
