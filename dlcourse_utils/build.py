"""Make the notebooks and what is generated in the pages from the sources, or check them.

Per lesson: solutions/NN_name.ipynb, executed, and course/NN_name.ipynb, the student's. A course
notebook that a student has worked in is left alone.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcourse_utils import files, pages, paths
from dlcourse_utils.errors import CourseError
from dlcourse_utils.execute import execute as run_cells
from dlcourse_utils.execute import inspect_outputs
from dlcourse_utils.leaks import all_text, refuse_leaks
from dlcourse_utils.lessons import STEM, Lesson, find, load, sources
from dlcourse_utils.percent import label
from dlcourse_utils.render import (
    content_sha256,
    dump,
    notebook,
    outputs_sha256,
    parse_notebook,
    source_cells,
)

_DIFF_LINES = 8
_BY_HAND = re.compile(r"references\.bib|(?!part_|instructors_)\w+\.md")


@dataclass(frozen=True)
class Course:
    """The checkout that is built: its root, public address, tag, and all its lessons."""

    root: Path
    repository: str
    tag: str
    lessons: list[Lesson]

    def student(self, lesson: Lesson) -> dict[str, Any]:
        return notebook(lesson, "student", self.repository, self.tag)

    def solution(self, lesson: Lesson) -> dict[str, Any]:
        return notebook(lesson, "solution", self.repository, self.tag)


def build(
    numbers: Iterable[str] | None = None,
    *,
    check: bool = False,
    force: bool = False,
    execute: bool = True,
) -> int:
    """Make what is out of date, for all lessons or those named; return the exit status.

    `check` writes nothing and tells what is out of date. `force` renews also a course notebook
    with a student's work, keeping a copy. `execute=False` leaves solved notebooks whose code has
    changed as they are. Raises SourceError where a source breaks a rule.
    """
    course = read_course()
    wanted = {find(number).stem for number in numbers or []}
    chosen = [lesson for lesson in course.lessons if not wanted or lesson.stem in wanted]
    students = {f"course/{x.stem}.ipynb": all_text(course.student(x)) for x in course.lessons}
    refuse_leaks(course.lessons, students | _written_pages(course.root))
    problems = []
    for lesson in chosen:
        if check:
            problems += _stale_notebooks(course, lesson)
        else:
            _write_solution(course, lesson, execute)
            problems += _write_student(course, lesson, force)
    # Now, as a figure of a solution is on the front page.
    made = dict(pages.made(course.root, course.lessons, (course.repository, course.tag)))
    if check:
        problems += _stale_pages(course.root, made)
    else:
        texts = {label(path): data.decode() for path, data in made.items() if path.suffix == ".md"}
        refuse_leaks(course.lessons, texts)
        for path, data in made.items():
            _write(course.root, path, data)
    stale = bool(check and problems)
    problems += _strangers(course, {path.name for path in made})
    for line in problems:
        print(line)
    if stale:
        print(
            "Next: `dlcourse build` makes these files again from solutions/*.py; "
            "`dlcourse reset NN` does for a course notebook that was worked in, and keeps the work."
        )
    return 1 if problems else 0


def reset(number: str) -> str:
    """Put the fresh student notebook of a lesson in course/, keep the work there, say so."""
    course = read_course()
    stem = find(number).stem
    lesson = next(lesson for lesson in course.lessons if lesson.stem == stem)
    path = _student_path(course, lesson)
    copy = files.keep_copy(path) if path.exists() and is_edited(path.read_bytes()) else None
    files.write(path, dump(course.student(lesson)))
    kept = f"; your work is kept in course/{copy.name}" if copy else ""
    open_tab = "In an open tab choose File > Reload Notebook from Disk, and restart the kernel."
    return f"course/{path.name} is as new{kept}.\n{open_tab}"


def read_course() -> Course:
    """The checkout that this library runs from.

    Raises CourseError outside a checkout or without an address, SourceError for a bad source.
    """
    root = paths.repository_root()
    if root is None:
        raise CourseError(
            "The notebooks are made in a checkout of the course, and this is an installed copy: "
            "clone the repository and run `make notebooks` there."
        )
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")
    if not repository:
        raise CourseError("pyproject.toml has no Repository in [project.urls]: set the address.")
    return Course(root, repository, f"v{project['version']}", [load(path) for path in sources()])


def is_edited(data: bytes) -> bool:
    """Whether a course notebook holds somebody's work: its cells are not those that were built.

    Outputs alone do not count; a file that cannot be read does.
    """
    found = parse_notebook(data)
    if found is None:
        return True
    built = found["metadata"].get("dlcourse", {}).get("content_sha256")
    return built != content_sha256(found["cells"])


def _write_student(course: Course, lesson: Lesson, force: bool) -> list[str]:
    path = _student_path(course, lesson)
    fresh = dump(course.student(lesson))
    if path.exists() and path.read_bytes() != fresh and is_edited(path.read_bytes()):
        if not force:
            return [
                f"course/{path.name} holds your work and was left as it is: "
                f"`dlcourse build {lesson.number} --force` renews it and keeps a copy beside it."
            ]
        print(f"Your work is kept in course/{files.keep_copy(path).name}.")
    _write(course.root, path, fresh)
    return []


def _student_path(course: Course, lesson: Lesson) -> Path:
    return course.root / "course" / f"{lesson.stem}.ipynb"


def _solution_path(course: Course, lesson: Lesson) -> Path:
    return course.root / "solutions" / f"{lesson.stem}.ipynb"


def _write_solution(course: Course, lesson: Lesson, execute: bool) -> None:
    path = _solution_path(course, lesson)
    fresh = course.solution(lesson)
    old = _read(path)
    executed = _with_outputs(fresh, old) if old is not None else fresh
    if old is None or _not_as_run(old, executed):
        if not execute:
            print(f"solutions/{path.name} needs a run: `dlcourse build {lesson.number}`.")
            return
        print(f"running {label(lesson.path)} ...", flush=True)
        executed = run_cells(course.solution(lesson), lesson).notebook
        made = outputs_sha256(executed["cells"])
        executed["metadata"]["dlcourse"]["outputs_sha256"] = made
    inspect_outputs(executed, lesson)
    _write(course.root, path, dump(executed))


def _write(root: Path, path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        files.write(path, data)
        print(f"wrote {path.relative_to(root).as_posix()}")


def _written_pages(root: Path) -> dict[str, str]:
    """The pages of the site as they are."""
    names = [f"course/{path.name}" for path in sorted((root / "course").glob("*.md"))]
    return {name: files.text(root, name) for name in names}


def _stale_notebooks(course: Course, lesson: Lesson) -> Iterator[str]:
    """A line or more for each notebook of a lesson that is not what the source makes."""
    path = _student_path(course, lesson)
    yield from _differences(path, course.student(lesson), lesson)
    path = _solution_path(course, lesson)
    fresh, old = course.solution(lesson), _read(path)
    if old is not None:
        fresh = _with_outputs(fresh, old)
        trouble = _not_as_run(old, fresh)
        if trouble:
            yield f"{label(path)}: {trouble}"
        else:
            inspect_outputs(fresh, lesson)
    yield from _differences(path, fresh, lesson)


def _stale_pages(root: Path, made: dict[Path, bytes]) -> Iterator[str]:
    """A line or more for each page that is not what the sources make."""
    for path, data in made.items():
        old_data = path.read_bytes() if path.exists() else b""
        if old_data != data:
            yield f"{path.relative_to(root).as_posix()}: out of date"
            if path.suffix != ".png":
                yield from _diff(old_data.decode(errors="replace"), data.decode())


def _differences(path: Path, fresh: dict[str, Any], lesson: Lesson) -> Iterator[str]:
    name = label(path)
    if not path.exists():
        yield f"{name}: not there"
        return
    old = _read(path)
    if old is None:
        yield f"{name}: not a notebook"
        return
    origins = source_cells(lesson)
    for number, (mine, cell) in enumerate(zip(old["cells"], fresh["cells"], strict=False), 1):
        where = f"{name}: cell {number} ({label(lesson.path)}:{origins[number - 1].line})"
        if mine["source"] != cell["source"]:
            yield f"{where} is not what the source makes"
            yield from _diff(mine["source"], cell["source"])
            return  # after an inserted cell all others differ
        if mine.get("outputs") != cell.get("outputs"):
            yield f"{where} has outputs"
    if len(old["cells"]) != len(fresh["cells"]):
        yield f"{name}: {len(old['cells'])} cells, the source makes {len(fresh['cells'])}"
    elif dump(fresh) != path.read_bytes():
        yield f"{name}: metadata or layout are not what the source makes"


def _diff(old: str, new: str) -> list[str]:
    lines = list(difflib.unified_diff(old.split("\n"), new.split("\n"), lineterm="", n=0))[2:]
    more = [f"    ... {len(lines) - _DIFF_LINES} more lines"] if len(lines) > _DIFF_LINES else []
    return [f"    {line}" for line in lines[:_DIFF_LINES]] + more


def _strangers(course: Course, made: set[str]) -> Iterator[str]:
    """A line for each file that no source makes and that is not somebody's own.

    `made`: the names of the pages and pictures that are made. Somebody's own are the
    copies that `reset` keeps, and what git does not have. A notebook with a lesson's name whose
    source is gone is looked at all the same: it was made here.
    """
    stems = {lesson.stem for lesson in course.lessons}
    made = made | {f"{stem}.ipynb" for stem in stems}
    tracked = _tracked(course.root)
    for path in sorted((course.root / "course").rglob("*")):
        name = path.relative_to(course.root / "course").as_posix()
        made_here = name in made or _BY_HAND.fullmatch(name)
        if not path.is_file() or made_here or ".mine-" in name or "/." in f"/{name}":
            continue
        if STEM.fullmatch(path.stem) and path.suffix == ".ipynb":
            yield _orphan(path)
        elif tracked is None or f"course/{name}" in tracked:
            yield (
                f"course/{name}: no source makes it: move it out of course/, whose files are "
                "generated from solutions/*.py."
            )
    for path in sorted((course.root / "solutions").glob("*.ipynb")):
        if STEM.fullmatch(path.stem) and path.stem not in stems:
            yield f"{label(path)}: a notebook without source: remove it, or restore its source."


def _orphan(path: Path) -> str:
    if is_edited(path.read_bytes()):
        what = "a notebook without source that holds your work: move it elsewhere"
    else:
        what = "a notebook without source: remove it"
    return f"{label(path)}: {what}, or restore its source."


def _tracked(root: Path) -> set[str] | None:
    """Names of the files of course/ that git has or is about to have; None without git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", "course"]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else set(done.stdout.decode().split("\0"))


def _read(path: Path) -> dict[str, Any] | None:
    return parse_notebook(path.read_bytes()) if path.exists() else None


def _not_as_run(old: dict[str, Any], fresh: dict[str, Any]) -> str | None:
    """Why the outputs of a stored notebook are not those of the source's code; None when they are.

    The stored hash is made at the run: code or outputs that were edited since do not fit it.
    `fresh`: what the source makes, with the old outputs.
    """
    if not _ran(old):
        return "has cells that were not run"
    hashes = outputs_sha256(old["cells"]), outputs_sha256(fresh["cells"])
    stored = old["metadata"].get("dlcourse", {}).get("outputs_sha256")
    if stored != hashes[0]:
        return "code or outputs were changed after the run"
    return None if stored == hashes[1] else "outputs are older than the code of the source"


def _ran(found: dict[str, Any]) -> bool:
    """Whether all code cells were run once, in order."""
    counts = [cell.get("execution_count") for cell in found["cells"] if cell["cell_type"] == "code"]
    return counts == list(range(1, len(counts) + 1))


def _with_outputs(fresh: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The fresh notebook with the outputs of the old, their hash and the versions behind them.

    Writes into `fresh`; without old outputs it is as it was.
    """
    outputs = iter([cell for cell in old["cells"] if cell["cell_type"] == "code"])
    for cell in fresh["cells"]:
        if cell["cell_type"] == "code":
            was = next(outputs, {})
            cell["outputs"] = was.get("outputs", [])
            cell["execution_count"] = was.get("execution_count")
    facts = old["metadata"].get("dlcourse", {})
    for name in ("environment", "outputs_sha256"):
        if name in facts:
            fresh["metadata"]["dlcourse"][name] = facts[name]
    return fresh
