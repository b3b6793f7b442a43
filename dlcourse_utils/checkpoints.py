"""Keep a training in a folder, so that one that was interrupted goes on where it stopped.

A thin cover over orbax. It writes a checkpoint under another name and renames it when it is whole:
whatever interrupts a write, the last good checkpoint stays.
"""

from __future__ import annotations

import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlcourse_utils import files
from dlcourse_utils.env import first_line
from dlcourse_utils.errors import CourseError

_KEPT = 2  # where the newest is damaged, there is one before it
_CHECKSUM = "checksum.txt"


class CheckpointError(CourseError):
    """A checkpoint cannot be written, cannot be read, or is of another training."""


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    ``settings``, JSON values by name, are what a training must have to go on from them.
    """

    def __init__(self, folder: str | PathLike, settings: dict[str, Any]):
        try:
            import orbax.checkpoint as ocp  # here, because it takes seconds
        except ImportError as error:
            raise CheckpointError(
                "`checkpoint` needs orbax, which is missing: run `pip install orbax-checkpoint`, "
                "or leave `checkpoint` out."
            ) from error
        self.folder = Path(folder).expanduser().absolute()
        self.settings = settings
        self.ocp = ocp
        # A prefix, because orbax deletes old steps: a folder "2024" must not look like one.
        self.options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT,
            step_prefix="step",
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )

    def restore(self, arrays: Any) -> tuple[Any, Any] | None:
        """The arrays and the record of the newest checkpoint; None where there is none.

        ``arrays``, a tree like the one that was saved, gives shapes, dtypes and devices.
        Raises CheckpointError if the checkpoint is damaged, is of another training, or cannot be
        read here: for lack of memory or of a permission, or by another version of orbax.
        """
        with self._manager() as manager:
            step = manager.latest_step()
            if step is None:
                return None
            place = self._place(step)
            damaged = CheckpointError(
                f"The checkpoint {place} is damaged: delete it, and the training goes on from the "
                "one before it, or anew."
            )
            whole = _is_whole(place)
            if whole is False:  # orbax would print a page of tracebacks
                raise damaged
            try:
                return self._read(manager, step, arrays)
            except CheckpointError:
                raise
            except Exception as error:  # orbax, tensorstore and JSON each raise their own
                if whole:
                    raise _unreadable(place, error, "; its files are whole") from error
                raise damaged from error

    def save(self, step: int, arrays: Any, record: Any) -> None:
        """Write a tree of arrays and a record of JSON values; they are on disk when it returns."""
        args = self.ocp.args
        note = {"settings": self.settings | _layout(arrays), "record": record}
        items = args.Composite(arrays=args.StandardSave(arrays), note=args.JsonSave(note))
        with self._manager() as manager:
            try:
                manager.save(step, args=items)
                if jax.process_index() == 0:
                    place = self._place(step)
                    files.write(place / _CHECKSUM, _checksum_of_files(place))
            except (OSError, ValueError) as error:  # tensorstore says ValueError of a full disk
                raise self._unwritable(error) from error

    def _read(self, manager: Any, step: int, arrays: Any) -> tuple[Any, Any]:
        args = self.ocp.args
        # The note first: of arrays with other shapes orbax does not speak in a sentence.
        note = manager.restore(step, args=args.Composite(note=args.JsonRestore())).note
        self._compare(note["settings"], self.settings | _layout(arrays))
        like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), arrays
        )
        items = args.Composite(arrays=args.StandardRestore(like))
        return manager.restore(step, args=items).arrays, note["record"]

    def _manager(self) -> Any:
        """Orbax's manager, which takes away what an interrupted write has left."""
        try:
            return self.ocp.CheckpointManager(self.folder, options=self.options)
        except OSError as error:
            raise self._unwritable(error) from error

    def _place(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        # Shapes come first: they say more than the checksum of what the arrays hold.
        for name in sorted(here | there, key=lambda name: name in self.settings):
            if there.get(name) != here.get(name):
                raise CheckpointError(
                    f"The checkpoint in {self.folder} is of another training: `{name}` is "
                    f"{there.get(name)} there and {here.get(name)} here. Name another folder, or "
                    "delete this one to start anew."
                )

    def _unwritable(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint cannot be written to {self.folder} ({first_line(error)}): name a "
            "folder that can be written, on a disk with free space."
        )


def fingerprint(arrays: tuple[jax.Array, ...]) -> str:
    """Kinds of the arrays and a checksum of what is in them."""
    return f"{', '.join(map(_kind, arrays))} with {checksum(arrays)}"


def sum_of(tree: Any) -> str:
    """In words, the sum of all numbers in the arrays of a tree, to four digits.

    Parameters drawn from one key differ in their last bits from one kind of device to another: a
    checksum would keep a training that began on a GPU from going on elsewhere.
    """
    found = sum(np.sum(np.asarray(a).astype(np.complex128)) for a in jax.tree.leaves(tree))
    return f"numbers with the sum {found.real + found.imag:.3e}"


def checksum(tree: Any) -> str:
    """In words, of what is in the arrays of a tree."""
    found = 0
    for array in jax.tree.leaves(tree):
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return f"checksum {found:08x}"


def _is_whole(place: Path) -> bool | None:
    """Are the files of a checkpoint as they were written? None where no checksum was."""
    written = place / _CHECKSUM
    try:
        return written.read_bytes() == _checksum_of_files(place) if written.exists() else None
    except OSError as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Path, error: Exception, known: str = "") -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {place} cannot be read here ({first_line(error)}){known}: keep it, mend "
        "that, and call again."
    )


def _checksum_of_files(folder: Path) -> bytes:
    """Of the names and the bytes of all files of a checkpoint."""
    found = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _CHECKSUM:
            found = zlib.crc32(path.relative_to(folder).as_posix().encode(), found)
            found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}".encode()


def _layout(arrays: Any) -> dict[str, str]:
    """The kind of each array of a tree by its place, such as ``params['w']``."""
    return {
        jax.tree_util.keystr(path).lstrip("."): _kind(array)
        for path, array in jax.tree_util.tree_leaves_with_path(arrays)
    }


def _kind(array: jax.Array) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"
