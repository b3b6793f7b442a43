"""Other Pythons, copies of the checkout and fresh environments, for the tests of installation."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_MADE = (".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".ipynb_checkpoints")


def find_python(version: str) -> str:
    """Path of a Python, for example 3.13, on PATH or kept by pyenv; skips the test without one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [
        sys.executable,
        shutil.which(f"python{version}"),
        *sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True),
    ]
    tell = "import sys; print('%d.%d' % sys.version_info[:2], sys._base_executable)"
    for place in filter(None, places):
        # A place may be a pyenv shim, which is there and fails.
        done = subprocess.run([place, "-c", tell], capture_output=True, text=True)
        found, _, executable = done.stdout.strip().partition(" ")
        if found == version:
            return executable
    pytest.skip(f"there is no Python {version} on this machine")


def stored(path: Path) -> bytes:
    """The file as git has it, because in the folder a student may work; without git, the file."""
    name = path.relative_to(ROOT).as_posix()
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True)
    return path.read_bytes() if done.returncode else done.stdout


def committed(folder: str) -> list[Path]:
    """The files of a folder that git has; without git, all but the copies of a student's work."""
    command = ["git", "ls-tree", "-r", "-z", "--name-only", "HEAD", f"{folder}/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode == 0 and done.stdout:
        return [ROOT / name for name in done.stdout.decode().split("\0") if name]
    found = (path for path in sorted((ROOT / folder).rglob("*")) if path.is_file())
    return [path for path in found if ".mine-" not in path.name and path.parent.name[:1] != "."]


def copy_checkout(target: Path) -> Path:
    """What a clone of the checkout holds as it stands, uncommitted changes included."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*_MADE))
    return target


def unprivileged() -> list[str]:
    """Words before a command that take root's rights from it; none for who has none."""
    if os.name != "posix" or os.geteuid() or not shutil.which("setpriv"):
        return []
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


def run(*command: object, **options) -> str:
    """Output of a command that must succeed; both streams go into the failure's message."""
    options.setdefault("env", clean_environment())
    text = [str(part) for part in command]
    done = subprocess.run(text, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(text)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def least(seconds: Callable[[], float], enough: float) -> float:
    """The least of three times, or the first that is enough: other tests run beside this one."""
    best = math.inf
    for _ in range(3):
        best = min(best, seconds())
        if best <= enough:
            break
    return best


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without what belongs to this test run's Python."""
    ours = ("COV_", "DLCOURSE_", "JAX_", "MAKE", "MFLAGS", "MPL", "PYTEST", "PYTHON", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | extra


def uv(*arguments: object, **options) -> str:
    """Run uv, which the environment has."""
    return run(sys.executable, "-m", "uv", "--quiet", *arguments, **options)


def make_environment(folder: Path, python: str) -> Path:
    """A fresh virtual environment; the path of its Python."""
    uv("venv", "--python", python, folder)
    return folder / "bin" / "python"


def build_wheel(folder: Path) -> Path:
    """The wheel of the checkout as it stands."""
    uv("build", "--wheel", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel
