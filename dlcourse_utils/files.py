"""Read what people write, write files so that none is ever half-written, keep a person's work."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from dlcourse_utils.errors import CourseError


def text(root: Path, name: str) -> str:
    """The text of a file that people write, by its name below `root`.

    Raises CourseError for one that is not UTF-8.
    """
    try:
        return (root / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CourseError(
            f"{name} is not UTF-8 text: save it with this encoding, or restore it."
        ) from None


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: whoever reads sees the old file or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, because a rename across file systems is not one step
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def keep_copy(path: Path) -> Path:
    """Copy `path` beside itself as name.mine-1.ext, or the next free number; return the copy."""
    data = path.read_bytes()
    for number in count(1):
        copy = path.with_name(f"{path.stem}.mine-{number}{path.suffix}")
        try:
            file = copy.open("xb")  # "x" fails where the name is taken, so none is lost
        except FileExistsError:
            continue
        try:
            with file:
                file.write(data)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        break
    return copy
