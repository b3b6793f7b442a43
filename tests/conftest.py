"""Strict modes for all tests, and a guard against tests that leave global state behind.

They act in the process of the tests only: the kernels of notebooks run as a student's do.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import jax
import matplotlib as mpl
import pytest

from dlcourse_utils import files, galaxy_prior, paths, registry, telescope

_HOME = tempfile.mkdtemp(prefix="dlcourse-")
# The processes of the tests and the kernels that they start share what they compile.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _HOME + "/jax"
# One of them may read what another is about to write; it compiles it itself then, and says so.
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry:UserWarning"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["DLCOURSE_HOME"] = _HOME  # kernels inherit it: a person's progress is left alone
os.environ["MPLBACKEND"] = "Agg"
mpl.use("Agg")

ROOT = Path(__file__).resolve().parent.parent


# Files of tests that come before the notebooks, and these before the rest.
LONGEST = {"test_browser": -2, "test_checks": -2, "test_notebooks": -1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick loop leaves out notebooks, which run whole lessons, and Colab. The longest files
    come first, or one process would end with them alone."""
    for item in items:
        if item.path.suffix == ".ipynb" or item.get_closest_marker("colab"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.get(item.path.stem, item.path.suffix != ".ipynb"))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds that tests have measured, and keep them as build/colab.json."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    kept = [value for r in reports for name, value in r.user_properties if name == "seconds"]
    if kept:
        terminalreporter.section("seconds")
        for name, seconds in kept:
            terminalreporter.line(f"{seconds:7.1f} s  {name}")
        text = json.dumps(dict(kept), indent=1, ensure_ascii=False) + "\n"
        files.write(ROOT / "build" / "colab.json", text.encode())


def pytest_report_header() -> str:
    found = os.environ.get("DLCOURSE_DATA") or "not set, tests on real data are skipped"
    return f"DLCOURSE_DATA: {found}"


@pytest.fixture(autouse=True)
def strict_ranks(request: pytest.FixtureRequest) -> Iterator[None]:
    """(n,) with (n, 1) is an error, except under the marker tfp_ranks."""
    mode = "allow" if request.node.get_closest_marker("tfp_ranks") else "raise"
    with jax.numpy_rank_promotion(mode):
        yield


@pytest.fixture(autouse=True)
def leaves_globals_alone() -> Iterator[None]:
    """Fail a test that leaves jax.config or rcParams changed, and put them back."""
    # Each look at jax.config.values makes the dictionary anew.
    config, style = dict(jax.config.values), dict(mpl.rcParams)
    yield
    now = dict(jax.config.values)
    changed = [name for name, value in config.items() if now[name] != value]
    changed += [name for name, value in style.items() if mpl.rcParams[name] != value]
    for name in changed:
        if name in config:
            jax.config.update(name, config[name])
        else:
            mpl.rcParams[name] = style[name]
    if changed:
        pytest.fail(f"the test leaves these settings changed: {', '.join(changed)}")


@pytest.fixture
def root() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Import a file of scripts/, which is no package, by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def prior() -> galaxy_prior.GalaxyPrior:
    """The shipped prior of galaxies."""
    return galaxy_prior.load()


@pytest.fixture(scope="session")
def operator() -> jax.Array:
    """The matrix of a telescope with the PSF that is the default of the survey."""
    return telescope.operator(telescope.difference_kernel(telescope.moffat()))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without network on which no file has been fetched."""

    def no_network(url, sink):
        raise registry._Refused("no connection")

    monkeypatch.delenv("DLCOURSE_DATA", raising=False)
    monkeypatch.setattr(paths, "user_dir", lambda: tmp_path)
    monkeypatch.setattr(registry, "_transfer", no_network)
