"""Guards for the notebooks that nbval runs: what it would pass over in silence.

nbval runs every cell of solutions/*.ipynb and course/*.ipynb, but compares nothing in a notebook
that was never executed, and lets a cell fail that is tagged for it.
"""

import re
from pathlib import Path

import nbformat
import pytest

from dlcourse_utils import lessons
from tests.environments import ROOT

STEMS = [path.stem for path in lessons.sources()]
TOLERANT = {"raises-exception", "skip-execution", "nbval-raises-exception", "nbval-skip"}
TOLERANT |= {"nbval-ignore-output", "NBVAL_IGNORE_OUTPUT", "NBVAL_RAISES_EXCEPTION", "NBVAL_SKIP"}


def read(folder: str, stem: str) -> nbformat.NotebookNode:
    path: Path = ROOT / folder / f"{stem}.ipynb"
    assert path.is_file(), f"{path.name} is missing in {folder}/: run `make notebooks`"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def test_there_is_a_lesson() -> None:
    assert STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_solution_was_executed(stem: str) -> None:
    cells = code(read("solutions", stem))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("stem", STEMS)
def test_solution_has_verdicts_that_are_compared(stem: str) -> None:
    cells = code(read("solutions", stem))
    verdicts = [cell for cell in cells if re.search(r"(?m)^\s*verdict\(", cell.source)]
    assert verdicts
    assert all("nbval-check-output" in cell.metadata.get("tags", []) for cell in verdicts)


@pytest.mark.parametrize("stem", STEMS)
def test_student_notebook_has_no_outputs(stem: str) -> None:
    cells = code(read("course", stem))
    assert not [cell.source for cell in cells if cell.outputs or cell.execution_count is not None]


@pytest.mark.parametrize("folder", ["course", "solutions"])
@pytest.mark.parametrize("stem", STEMS)
def test_no_cell_may_fail(folder: str, stem: str) -> None:
    for cell in read(folder, stem).cells:
        assert not TOLERANT & set(cell.metadata.get("tags", [])), cell.source
