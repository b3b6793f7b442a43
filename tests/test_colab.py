"""The course on what Colab has: its package versions, the set-up cell, untouched notebooks.

constraints.txt is Colab's own list, stable TFP included. The environment is built from it, then
the set-up cell runs as on Colab, only that it gets this checkout's wheel in place of the tag.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.version import Version

from dlcourse_utils import env
from tests.environments import (
    ROOT,
    build_wheel,
    clean_environment,
    committed,
    find_python,
    make_environment,
    run,
    stored,
    uv,
)

pytestmark = pytest.mark.slow

PINS = ROOT / "tests" / "colab" / "constraints.txt"
NOTEBOOKS = [path for path in committed("course") if path.suffix == ".ipynb"]
CELL = """
import sys, types
sys.modules["google.colab"] = types.SimpleNamespace(output=None)
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance().run_cell({cell!r}).raise_error()
"""
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
client = nbclient.NotebookClient(notebook, timeout=120, allow_errors=True)
client.execute()
nbformat.write(notebook, sys.argv[2])
"""


class Colab(NamedTuple):
    """The environment after its set-up cell, and its packages before and after it."""

    python: Path
    before: dict[str, str]
    after: dict[str, str]
    said: str
    said_again: str


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Colab:
    folder = tmp_path_factory.mktemp("colab")
    python = make_environment(folder / "runtime", _python())
    uv("pip", "install", "--python", python, "--no-deps", "--requirement", PINS)
    before = _packages(python)
    cell = env.colab_setup_lines("https://example.org/course", "v0")
    cell = cell.replace("dlcourse @ git+https://example.org/course@v0", str(build_wheel(folder)))
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    settings = clean_environment(PATH=path, DLCOURSE_HOME=str(folder / "home"))
    code = CELL.format(cell=cell)
    said, said_again = (run(python, "-c", code, env=settings, cwd=folder) for _ in range(2))
    return Colab(python, before, _packages(python), said, said_again)


def _python() -> str:
    """Colab's Python, or where this machine has none, the one that runs the tests."""
    try:
        return find_python("3.13")
    except pytest.skip.Exception:
        return find_python("{}.{}".format(*sys.version_info[:2]))


def _packages(python: Path) -> dict[str, str]:
    listing = uv("pip", "list", "--python", python, "--format", "json")
    return {package["name"]: package["version"] for package in json.loads(listing)}


def test_set_up_changes_nothing_but_what_it_must(colab: Colab) -> None:
    added = {name: colab.after[name] for name in colab.after.keys() - colab.before.keys()}
    assert set(added) == {"dlcourse", "tfp-nightly"}
    assert Version(added["tfp-nightly"]) >= Version("0.26.0.dev20261027")
    assert colab.before.keys() - colab.after.keys() == {"tensorflow-probability"}
    kept = colab.before.keys() & colab.after.keys()
    assert {n: colab.before[n] for n in kept} == {n: colab.after[n] for n in kept}
    assert (colab.after["jax"], colab.after["numpy"]) == ("0.7.2", "2.1.3")


def test_set_up_ends_with_one_line(colab: Colab) -> None:
    ready = r"dlcourse \S+ · Python \S+ · jax 0\.7\.2 on cpu · ready\n"
    assert re.search(rf"{ready}\Z", colab.said)
    assert re.fullmatch(ready, colab.said_again)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_untouched_notebook_runs(path: Path, colab: Colab, tmp_path: Path) -> None:
    executed = tmp_path / path.name
    settings = clean_environment(DLCOURSE_HOME=str(tmp_path / "home"))
    untouched = tmp_path / "untouched.ipynb"
    untouched.write_bytes(stored(path))
    run(colab.python, "-c", EXECUTE, untouched, executed, env=settings, cwd=tmp_path)
    checks = 0
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        outputs = cell.get("outputs", [])
        source = "".join(cell["source"])
        for output in outputs:
            assert output["output_type"] != "error", f"{source}\n{output['evalue']}"
            assert output.get("name") != "stderr", f"{source}\n{''.join(output['text'])}"
        if cell["cell_type"] == "code" and re.search(r"\bcheck\(\"\d\d\.\d+\"", source):
            checks += 1
            shown = " ".join("".join(o.get("data", {}).get("text/plain", "")) for o in outputs)
            assert "not started" in shown, f"{source}\n{shown}"
    assert checks
