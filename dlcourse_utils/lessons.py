"""Lessons as data: find and read the sources, hold them to the rules, run them as references.

The sources (solutions/NN_name.py, packaged with the library) are the only copy of the solutions.
"""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dlcourse_utils import paths
from dlcourse_utils.errors import CourseError
from dlcourse_utils.percent import Cell, SourceError, split
from dlcourse_utils.regions import bound, checked_ids, cut, parsed, signatures

STEM = re.compile(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*")
HINT, ANSWER = "Hint: ", "Answer: "
_HEADER: dict[str, type] = {
    "title": str,
    "part": str,
    "summary": str,
    "minutes": int,
    "objectives": list,
    "prerequisites": list,
    "needs": str,
}
# What Run All may take on 2 cores with cold caches; a header may say otherwise.
MOST_SECONDS = 60


@dataclass(frozen=True)
class Exercise:
    """One exercise: its text, its solved code (markers dropped) and its stub.

    `names` are what the stub defines at top level, in order.
    """

    id: str
    title: str
    minutes: int
    difficulty: int
    hints: tuple[str, ...]
    solution: str
    stub: str
    names: tuple[str, ...]
    solution_lines: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Lesson:
    """One lesson as its source says it: the header, the cells in order, the exercises by id."""

    path: Path
    stem: str
    number: str
    title: str
    part: str
    summary: str
    minutes: int
    objectives: tuple[str, ...]
    prerequisites: tuple[str, ...]
    needs: str
    seconds: int
    cells: tuple[Cell, ...]
    exercises: Mapping[str, Exercise]


def sources() -> list[Path]:
    """Paths of all lesson sources, in order of number.

    A file whose name starts with no digit is none. Raises SourceError for a misnamed lesson,
    CourseError where two have the same number.
    """
    found = sorted(paths.solutions_dir().glob("[0-9]*.py"))
    for path in found:
        _check_name(path)
    for one, two in itertools.pairwise(found):
        if one.stem[:2] == two.stem[:2]:
            raise CourseError(f"Two lessons have number {one.stem[:2]}: {one.name}, {two.name}.")
    return found


def find(name: str | int | Path) -> Path:
    """Find the source of a lesson by number ("01", 1), stem, exercise id ("01.2") or path.

    Raises CourseError, listing the lessons that exist, where there is none.
    """
    if isinstance(name, Path) or str(name).endswith(".py"):
        path = Path(name)
        if path.is_file():
            return path
        raise CourseError(f"There is no file {path}.")
    known = sources()
    text = str(name).strip()
    number = text.split(".")[0].zfill(2)
    for path in known:
        if text == path.stem or number == path.stem[:2]:
            return path
    listed = ", ".join(p.stem for p in known) or "none yet"
    kind = "exercise" if re.fullmatch(r"\d+\.\d+", text) else "lesson"
    raise CourseError(f"There is no {kind} {text!r}; the lessons are: {listed}.")


def load(name: str | int | Path) -> Lesson:
    """Read a lesson by number, stem, exercise id or path of its source.

    Raises SourceError (file:line: what, expected) where the source breaks a rule.
    """
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError(path, 1, "a source that is not UTF-8 text", "UTF-8") from None
    return parse(text, path)


# Checks ask for their lesson again and again, and reading one takes some 50 ms.
@functools.lru_cache(maxsize=32)
def parse(text: str, path: Path) -> Lesson:
    """Read a lesson from the text of its source; `path` names it and is not opened."""
    _check_name(path)
    header, cells = split(text, path)
    fields = _check_header(header, text, path)
    if not cells:
        raise SourceError(path, 1, "a lesson without cells", "'# %% [markdown]'")
    heading = f"# {fields['title']}"
    if cells[0].kind != "markdown" or cells[0].source.split("\n")[0] != heading:
        raise SourceError(path, cells[0].line, "a first cell without the title", f"{heading!r}")
    for cell in cells:
        _check_cell(cell, path)
    exercises = MappingProxyType(_exercises(cells, path))  # read-only, as all callers share it
    number = path.stem[:2]
    return Lesson(path, path.stem, number, **fields, cells=tuple(cells), exercises=exercises)


def paragraphs(source: str) -> list[str]:
    """The paragraphs of a markdown cell, split at its blank lines."""
    return re.split(r"\n{2,}", source)


def hints(source: str) -> tuple[str, ...]:
    """The hints of a statement: its paragraphs that open with "Hint: ", without these words."""
    return tuple(p.removeprefix(HINT) for p in paragraphs(source) if p.startswith(HINT))


def reference(lesson: Lesson, upto: str | None = None) -> dict[str, Any]:
    """Run the context cells and the solved exercises in order; return their namespace.

    `upto`: the last exercise to run, all by default. Each call starts afresh. Code keeps the
    source's file name and lines, so that tracebacks and inspect.getsource show it.
    Raises SourceError where a cell raises.
    """
    if upto is not None:
        upto = exercise(lesson, upto).id
    # A real module: dataclasses and flax look up sys.modules[cls.__module__].
    module = types.ModuleType(f"dlcourse_lesson_{lesson.stem}")
    module.__file__ = str(lesson.path)
    sys.modules[module.__name__] = module
    for cell in lesson.cells:
        if cell.kind != "code" or not ("context" in cell.tags or cell.exercise):
            continue
        code = "\n" * (cell.first - 1) + cell.source
        _execute(code, str(lesson.path), module.__dict__, lesson, cell)
        if upto is not None and cell.exercise == upto:
            break
    return module.__dict__


def stub_namespace(
    lesson: Lesson, id: str, namespace: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run the stub of an exercise in a copy of the reference namespace; return the copy.

    `namespace`: a reference namespace at hand, which saves running the lesson again.
    """
    task = exercise(lesson, id)
    scope = dict(reference(lesson, upto=id) if namespace is None else namespace)
    name = f"<stub {id}>"
    linecache.cache[name] = (len(task.stub), None, task.stub.splitlines(True), name)
    cell = next(c for c in lesson.cells if c.kind == "code" and c.exercise == task.id)
    _execute(task.stub, name, scope, lesson, cell)
    return scope


def exercise(lesson: Lesson, id: str) -> Exercise:
    """The exercise of that id, "01.2" or "1.2". Raises CourseError, listing those that exist."""
    for name in (id, f"0{id}"):
        if name in lesson.exercises:
            return lesson.exercises[name]
    known = ", ".join(lesson.exercises) or "none"
    raise CourseError(f"Lesson {lesson.number} has no exercise {id!r}; it has: {known}.")


def solution_text(id: str) -> str:
    """The solved code of an exercise, by its id alone."""
    return exercise(load(id), id).solution


def _execute(code: str, name: str, scope: dict[str, Any], lesson: Lesson, cell: Cell) -> None:
    try:
        exec(compile(code, name, "exec", dont_inherit=True), scope)
    except Exception as error:
        what = f"the cell raises {type(error).__name__}: {error}"
        expected = "code that runs after the context cells and exercises before it"
        raise SourceError(lesson.path, cell.line, what, expected) from error


def _check_name(path: Path) -> None:
    if not STEM.fullmatch(path.stem):
        what = f"a lesson named {path.stem!r}"
        raise SourceError(path, 1, what, "two digits and lower-case words: 01_cluster_masses")


def _check_header(header: dict[str, Any], text: str, path: Path) -> dict[str, Any]:
    def line_of(key: str) -> int:
        lines = enumerate(text.split("\n"), 1)
        return next((n for n, line in lines if line.startswith(f"# {key}:")), 1)

    for key in header:
        if key not in _HEADER and key not in ("jupyter", "seconds"):
            what = f"an unknown header key {key!r}"
            raise SourceError(path, line_of(key), what, f"one of {', '.join(_HEADER)}")
    fields: dict[str, Any] = {}
    for key, wanted in {**_HEADER, "seconds": int}.items():
        if key == "seconds" and key not in header:
            fields[key] = MOST_SECONDS
            continue
        if key not in header:
            raise SourceError(path, 1, f"a header without {key!r}", ", ".join(_HEADER))
        value = header[key]
        if type(value) is not wanted or (value in ("", 0, []) and key != "prerequisites"):
            expected = {int: "a whole number", list: "a list", str: "a line of text"}[wanted]
            raise SourceError(path, line_of(key), f"{key!r} is {value!r}", expected)
        if wanted is list:
            if not all(isinstance(item, str) for item in value):
                expected = "a list of lines of text (quote those with a colon)"
                raise SourceError(path, line_of(key), f"{key!r} is {value!r}", expected)
            value = tuple(value)
        fields[key] = value
    return fields


def _check_cell(cell: Cell, path: Path) -> None:
    def fail(what: str, expected: str) -> None:
        raise SourceError(path, cell.line, what, expected)

    if cell.kind == "markdown":
        if inside := re.search(rf"(?<!\n)\n({HINT}|{ANSWER})", cell.source):
            fail(f"{inside[1].strip()!r} inside a paragraph", "a blank line above it")
        if cell.exercise is None and (cell.minutes or cell.difficulty):
            fail("minutes or difficulty without exercise", 'exercise="NN.n" beside them')
        if cell.exercise is None and hints(cell.source):
            fail("a hint outside an exercise", 'exercise="NN.n" on its cell')
        answers = [i for i, p in enumerate(paragraphs(cell.source)) if p.startswith(ANSWER)]
        if cell.think and (len(answers) != 1 or answers[0] == 0):
            fail("think=true without its answer", "a question and one paragraph 'Answer: ...'")
        if answers and not cell.think:
            fail("an answer outside a question", "think=true on its cell")
        return
    _, _, regions = cut(cell, path)
    parsed(cell, path)
    if regions and cell.exercise is None:
        fail("a solution region outside an exercise", 'exercise="NN.n" on its cell')
    if cell.exercise and "context" in cell.tags:
        fail("an exercise tagged context", "the tag dropped: exercises are run anyway")


def _exercises(cells: list[Cell], path: Path) -> dict[str, Exercise]:
    statements: dict[str, Cell] = {}
    codes: dict[str, Cell] = {}
    checked: set[str] = set()
    for cell in cells:
        id = cell.exercise
        if cell.kind == "code":
            calls = list(checked_ids(cell, path))
            if calls and (id or "context" in cell.tags):
                what = "a check in a cell that the references run"
                raise SourceError(path, cell.line, what, "it in a cell of its own")
            for line, name in calls:
                if name not in codes:
                    what = f"a check of {name!r} before its code"
                    raise SourceError(path, line, what, f'a code cell exercise="{name}" above')
                checked.add(name)
        if id is None:
            continue
        if not re.fullmatch(rf"{path.stem[:2]}\.[1-9]\d?", id):
            expected = f"{path.stem[:2]}.1, {path.stem[:2]}.2, ..."
            raise SourceError(path, cell.line, f"the exercise id {id!r}", expected)
        seen = statements if cell.kind == "markdown" else codes
        if id in seen:
            what = f"the id {id!r} again (first on line {seen[id].line})"
            raise SourceError(path, cell.line, what, "an id of its own")
        if cell.kind == "code" and id not in statements:
            what = f"the code of {id!r} without its statement"
            raise SourceError(path, cell.line, what, f'a markdown cell exercise="{id}" above')
        seen[id] = cell
    exercises = {}
    for id, statement in statements.items():
        if id not in codes:
            what = f"the exercise {id!r} without code"
            raise SourceError(path, statement.line, what, f'a code cell exercise="{id}" below')
        if id not in checked:
            what = f"the exercise {id!r} without check"
            raise SourceError(path, statement.line, what, f'check("{id}", ...) below its code')
        exercises[id] = _exercise(id, statement, codes[id], path)
    return exercises


def _exercise(id: str, statement: Cell, code: Cell, path: Path) -> Exercise:
    def fail(what: str, expected: str, cell: Cell = statement) -> None:
        raise SourceError(path, cell.line, f"the exercise {id!r} {what}", expected)

    if statement.minutes is None or statement.difficulty is None:
        fail("without minutes or difficulty", "minutes=10 difficulty=2")
    hidden = hints(statement.source)
    if len(hidden) < 2:
        fail(f"with {len(hidden)} hints", "at least two paragraphs 'Hint: ...'")
    heading = re.match(r"### (.+)", statement.source)
    if heading is None:
        fail("without heading", "'### The title' first")
    solution, stub, regions = cut(code, path)
    if not regions:
        fail("without solution region", "'# BEGIN SOLUTION' ... '# END SOLUTION'", code)
    try:
        tree = ast.parse(stub)
    except SyntaxError as error:
        fail(f"leaves a stub that does not parse ({error.msg})", "Python without the region", code)
    solved = parsed(code, path)
    missing = [name for name in bound(solved) if name not in bound(tree)]
    if missing:
        fail(f"defines {missing[0]!r} in its region only", "the stub to define it too", code)
    kept = signatures(tree)
    for name, signature in signatures(solved).items():
        for what, mine, theirs in zip(
            ("signature", "docstring"), signature, kept.get(name, signature), strict=True
        ):
            if mine != theirs:
                fail(
                    f"changes the {what} of {name!r} in its region", "the stub to have it too", code
                )
    assert heading is not None and statement.minutes and statement.difficulty
    return Exercise(
        id=id,
        title=heading[1].strip(),
        minutes=statement.minutes,
        difficulty=statement.difficulty,
        hints=hidden,
        solution=solution,
        stub=stub,
        names=tuple(bound(tree)),
        solution_lines=tuple(regions),
    )
