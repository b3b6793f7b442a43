"""Modules import alone, only downwards, and nothing heavy where it does not belong."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dlcourse_utils"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# The floor of each room; a module imports from its own floor and those below.
LAYERS = (
    {"bootstrap", "env", "errors", "files", "paths", "registry"},
    {"checkpoints", "datasets", "diagnostics", "diffusion", "exact", "field_denoiser", "flows"}
    | {"galaxy_posteriors", "galaxy_prior", "several_devices"}
    | {"lessons", "newton", "percent", "photometry", "plot", "regions", "telescope", "train"}
    | {"two_sample", "variational", "verdicts", "vi_coverage", "weights"},
    {"checks", "widgets"},
    {"blocks", "book", "book_pages", "build", "cli", "doctor", "execute", "leaks", "pages"}
    | {"render", "run"},
)
# Modules that must be light: the command line and what the build of a student notebook needs.
LIGHT = ("bootstrap", "cli", "doctor", "env", "errors", "lessons", "paths", "registry")
HEAVY = {"IPython", "flax", "jax", "matplotlib", "nbformat", "numpy", "pooch", "requests", "scipy"}
# Numerical modules that a headless machine uses without drawing.
HEADLESS = ("diagnostics", "diffusion", "exact", "flows", "train", "two_sample")
DRAWING = {"ipywidgets", "matplotlib"}


def room(module: str) -> str:
    """Second part of a module's name: dlcourse_utils.checks.engine is in checks."""
    return module.split(".")[1]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room(module) in rooms)


def imported(module: str) -> set[str]:
    """Modules of the package that a module's source names, in functions too."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            dots = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(dots, package)
            names |= {f"{origin}.{alias.name}" for alias in node.names} | {origin}
    return {n for n in MODULES if n in names and n != "dlcourse_utils"}


def run(code: str) -> str:
    """What the code prints in a fresh interpreter, in which warnings are errors."""
    strict = (
        "import importlib, sys, warnings; warnings.simplefilter('error')\n"
        "warnings.filterwarnings('ignore', 'jax.core.pytype_aval_mappings')\n"  # TFP's own
    )
    done = subprocess.run([sys.executable, "-c", strict + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("names", "forbidden"), [(LIGHT, HEAVY), (HEADLESS, DRAWING)])
def test_light_modules_load_little(names: tuple[str, ...], forbidden: set[str]) -> None:
    """In one interpreter: what loads too much is the first name that is printed."""
    code = (
        f"for name in {names!r}:\n"
        "    importlib.import_module(f'dlcourse_utils.{name}')\n"
        f"    if found := sorted({forbidden!r} & set(sys.modules)): print(name, *found)\n"
    )
    assert run(code) == ""


def test_every_module_can_be_the_first_that_is_imported() -> None:
    """Libraries stay from one to the next, which saves minutes; of the package nothing does."""
    code = (
        f"for module in {MODULES!r}:\n"
        "    for name in [n for n in sys.modules if n.partition('.')[0] == 'dlcourse_utils']:\n"
        "        del sys.modules[name]\n"
        "    try: importlib.import_module(module)\n"
        "    except Exception as error: print(module, repr(error))\n"
    )
    assert run(code) == ""


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_imports_only_downwards(module: str) -> None:
    upwards = {other for other in imported(module) if floor(other) > floor(module)}
    assert not upwards, f"{module} is on floor {floor(module)} and imports {upwards}"


def test_every_room_is_on_a_floor() -> None:
    rooms = {room(module) for module in MODULES if "." in module}
    assert rooms == set().union(*LAYERS)


def test_importing_the_package_sets_nothing() -> None:
    code = (
        "import os, jax, matplotlib as mpl\n"
        "before = dict(jax.config.values), dict(mpl.rcParams), dict(os.environ)\n"
        "import dlcourse_utils.env, dlcourse_utils.train, dlcourse_utils.checks\n"
        "assert before == (dict(jax.config.values), dict(mpl.rcParams), dict(os.environ))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
