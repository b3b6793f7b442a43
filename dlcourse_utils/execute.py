"""Execute a solved notebook in a fresh kernel, and make its outputs fit to be kept.

The kernel gets a scratch home, so that nobody's progress is filled.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dlcourse_utils import paths
from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import Lesson
from dlcourse_utils.percent import SourceError, label
from dlcourse_utils.render import source_cells

CELL_TIMEOUT = 600  # seconds; only a cell that hangs takes longer
PACKAGES = ("flax", "ipykernel", "jax", "matplotlib", "numpy", "optax", "scipy", "tfp-nightly")
_VIEW = "application/vnd.jupyter.widget-view+json"
_ADDRESS = re.compile(r"(?<= at )0x[0-9a-fA-F]+")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WARNING = re.compile(r"^.*\b\w*Warning: .*$", re.MULTILINE)


class CellError(CourseError):
    """A cell of a solved lesson raises; the message names its line in the source."""


@dataclass(frozen=True)
class Execution:
    """An executed notebook; seconds from before the kernel's start, and of each of its cells."""

    notebook: dict[str, Any]
    seconds: float
    cell_seconds: list[float]


def execute(notebook: dict[str, Any], lesson: Lesson, *, cold: bool = False) -> Execution:
    """Run the cells of a rendered notebook in order, in a kernel of this Python.

    `cold` hides the caches of compiled code. Raises CellError where a cell raises or hangs, and
    CourseError where the kernel does not start or dies.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisPython(AsyncKernelManager):
        """A kernel of the running interpreter, whatever kernels the user has installed."""

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            command.append("--log-level=CRITICAL")  # what a cell says comes as output
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    node = nbformat.from_dict(json.loads(json.dumps(notebook)))
    seconds: list[float] = []
    client = NotebookClient(
        node,
        kernel_manager_class=ThisPython,
        timeout=CELL_TIMEOUT,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
    )
    with tempfile.TemporaryDirectory(prefix="dlcourse-", ignore_cleanup_errors=True) as home:
        folder = str(lesson.path.parent.resolve())
        begun = time.perf_counter()
        try:
            # cell by cell: execute() takes Ctrl-C for itself and ends in an assertion
            with client.setup_kernel(cwd=folder, env=_environment(home, cold)):
                for index, cell in enumerate(node.cells):
                    start = time.perf_counter()
                    client.execute_cell(cell, index, client.code_cells_executed + 1)
                    seconds.append(time.perf_counter() - start)
        except CellExecutionError as error:
            raise _cell_error(node.cells, lesson, error) from None
        except CellTimeoutError:
            where = _position(lesson, len(seconds))
            sentence = f"{where}: the cell takes over {CELL_TIMEOUT} s: make it shorter."
            raise CellError(sentence) from None
        except (DeadKernelError, RuntimeError) as error:
            where = _position(lesson, len(seconds))
            raise CourseError(
                f"{where}: the kernel did not start, or died or was stopped in this cell "
                f"({str(error).splitlines()[0]}): look at `dlcourse doctor`, and run again."
            ) from None
        total = time.perf_counter() - begun
    executed = json.loads(json.dumps(node))
    executed["metadata"] = json.loads(json.dumps(notebook["metadata"]))
    for cell in executed["cells"]:
        if cell["cell_type"] == "code":
            cell["metadata"].pop("execution", None)
            cell["outputs"] = fit_to_keep(cell["outputs"])
    executed["metadata"]["dlcourse"]["environment"] = environment()
    return Execution(executed, total, seconds)


def environment() -> dict[str, str]:
    """The versions that outputs were made with."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def inspect_outputs(notebook: dict[str, Any], lesson: Lesson) -> None:
    """Refuse outputs that a reader should not meet.

    Raises SourceError for text on stderr, an error, a warning, and a figure without alt text.
    """
    for cell, origin in zip(notebook["cells"], source_cells(lesson), strict=True):
        for output in cell.get("outputs", []):
            kind, text = output["output_type"], _text(output)
            warning = _WARNING.search(text)
            if kind == "error":
                what = f"the cell raises {output['ename']}: {output['evalue']}"
                raise SourceError(lesson.path, origin.line, what, "none")
            if output.get("name") == "stderr":
                first = text.strip().split("\n")[0]
                raise SourceError(lesson.path, origin.line, f"text on stderr ({first})", "none")
            if warning:
                what = f"a warning ({warning[0].strip()})"
                raise SourceError(lesson.path, origin.line, what, "none")
            if any(mime.startswith("image/") for mime in output.get("data", {})) and not origin.alt:
                expected = 'alt="what the figure shows" on its cell'
                raise SourceError(lesson.path, origin.line, "a figure without alt text", expected)


def verdicts(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of all verdict lines in the outputs, in order."""
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get("dlcourse", {}).get("verdict")
            if record:
                found.append(record)
    return found


def _environment(home: str, cold: bool) -> dict[str, str]:
    """The kernel's variables: a scratch home and profile, but the user's data and compiled code.

    DLCOURSE_STORED makes figures add what a page without a kernel can move.
    """
    hidden = {"MPLBACKEND", "PYTHONSTARTUP"} | ({"JAX_COMPILATION_CACHE_DIR"} if cold else set())
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables.setdefault("DLCOURSE_DATA", str(paths.user_dir() / "data"))
    if not cold and "JAX_COMPILATION_CACHE_DIR" not in variables:
        variables["JAX_COMPILATION_CACHE_DIR"] = str(paths.cache_dir() / "jax")
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        variables["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    variables |= {"DLCOURSE_HOME": home, "IPYTHONDIR": str(Path(home) / "ipython")}
    return variables | {"DLCOURSE_STORED": "1"}


def fit_to_keep(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs without what changes from run to run: memory addresses, pieces of streams, widgets.

    A widget's view needs a running kernel. What it shows beside the view, such as a static
    figure, stays; one that shows nothing else (a progress bar) is dropped.
    """
    kept: list[dict[str, Any]] = []
    for output in outputs:
        output = dict(output)
        if "data" in output:
            data = {kind: _scrubbed(value) for kind, value in output["data"].items()}
            if data.pop(_VIEW, None) is not None and set(data) <= {"text/plain"}:
                continue
            output["data"] = data
        elif "text" in output:
            output["text"] = _scrubbed(output["text"])
            if kept and kept[-1].get("name") == output["name"]:
                kept[-1]["text"] += output["text"]
                continue
        kept.append(output)
    return kept


def _scrubbed(value: Any) -> Any:
    return _ADDRESS.sub("0x...", value) if isinstance(value, str) else value


def _text(output: dict[str, Any]) -> str:
    """All that an output says in words."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
    return "\n".join(part if isinstance(part, str) else "".join(part) for part in parts)


def _cell_error(cells: list[Any], lesson: Lesson, error: Any) -> CellError:
    index = next(
        i
        for i, cell in enumerate(cells)
        if any(o.output_type == "error" for o in cell.get("outputs", []))
    )
    return CellError(
        f"{_position(lesson, index, error.traceback)}: the cell raises "
        f"{error.ename}: {' '.join(_COLOUR.sub('', error.evalue).split())}"
    )


def _position(lesson: Lesson, index: int, traceback: str = "") -> str:
    """The source line of a cell, or the line in it that the traceback names."""
    origin = source_cells(lesson)[index]
    line = origin.line
    # in an exercise the dropped markers shift the lines, and the set-up cell has none
    if origin.exercise is None and origin.kind == "code":
        found = re.search(r"Cell In\[\d+\], line (\d+)", _COLOUR.sub("", traceback))
        line = origin.first + int(found[1]) - 1 if found else line
    return f"{label(lesson.path)}:{line}"
