"""Write files so that none is ever half-written, and keep a person's work."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path


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
