"""Makes the course's virtual environment, .venv, from requirements.lock.

Runs as a plain script before anything is installed: standard library only, and plain enough that
an old Python can read it and be refused with one sentence. `lock` renews the lock instead.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

SUPPORTED = ((3, 11), (3, 13))
ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements.lock"
_NOT_OURS = ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")


def refusal(version: tuple, executable: str) -> "str | None":
    """The sentence for a Python that the course does not run on, None for one that it does."""
    if SUPPORTED[0] <= tuple(version[:2]) <= SUPPORTED[1]:
        return None
    return (
        "The course needs Python 3.11, 3.12 or 3.13 and {} is Python {}.{}: install one of them "
        "and name it, for example `make lab PYTHON=python3.12`."
    ).format(executable, *version[:2])


def environment_yml(lock: str) -> str:
    """The conda environment with the very packages of the lock; pip installs them, as elsewhere."""
    pins = [line.removesuffix("\\").strip() for line in lock.splitlines() if re.match(r"\w", line)]
    lines = [
        "# Generated from requirements.lock by `make lock`: do not edit.",
        "name: dlcourse",
        "channels: [conda-forge]",
        "dependencies:",
        '  - "python>=3.11,<3.14"',
        "  - pip",
        "  - pip:",
        *(f'      - "{pin}"' for pin in pins),
        '      - "-e ."',
    ]
    return "\n".join(lines) + "\n"


def lock(arguments: list) -> None:
    """Resolve pyproject.toml into requirements.lock, and write environment.yml from it."""
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_OURS}
    command = ["uv", "pip", "compile", "--no-config", "--universal", "--python-version=3.11"]
    command += ["--extra=lab", "--extra=book", "--extra=test", "--extra=dev", "--generate-hashes"]
    command += [
        "--quiet",
        "--no-header",
        "--no-annotate",
        "pyproject.toml",
        f"--output-file={LOCK}",
    ]
    _run([sys.executable, "-m", *command, *arguments], env=environment)
    text = environment_yml((ROOT / LOCK).read_text(encoding="utf-8"))
    (ROOT / "environment.yml").write_text(text, encoding="utf-8")


def make() -> None:
    """Bring .venv in line with the lock; does nothing, quickly, when it already is.

    The stamp is the last thing written, so what was interrupted is done again. It holds the place
    and the Python too, because a virtual environment survives neither being moved nor another
    Python; a new lock alone is only synchronised, and where that fails the environment stays.
    """
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "dlcourse-stamp"
    place = "Python {}.{} in {}".format(*sys.version_info[:2], ROOT)
    pinned = (ROOT / LOCK).read_bytes()
    wanted = _wanted(pinned)
    there = stamp.is_file() and python.exists()
    found = stamp.read_text(encoding="utf-8").splitlines() if there else ["", ""]
    if found == [place, wanted]:
        return
    version = place.partition(" in ")[0]
    print(f"Setting up .venv with {version} (once; some 320 MB to fetch) ...", flush=True)
    if there:
        stamp.unlink()
    if found[0] != place:
        _run([sys.executable, "-m", "venv", "--clear", folder])
        uv = re.search(rb"^uv==\S+", pinned, re.MULTILINE).group().decode()
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", uv])
    try:
        _synchronise(python)
    except subprocess.CalledProcessError:
        stamp.write_text(f"{place}\n\n", encoding="utf-8")  # a failed step has removed nothing
        raise
    stamp.write_text(f"{place}\n{wanted}\n", encoding="utf-8")


def _wanted(pinned: bytes) -> str:
    """Hash of what the environment is made from; the rest of pyproject.toml changes nothing."""
    import tomllib  # an old Python is refused before

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    matters = [project["dependencies"], project["scripts"], settings["build-system"]]
    return hashlib.sha256(pinned + json.dumps(matters, sort_keys=True).encode()).hexdigest()


def _synchronise(python: Path) -> None:
    """Install what is locked, and the checkout itself, for which the lock has all that it takes."""
    try:
        _run([python, "-m", "uv", "pip", "sync", "--python", python, LOCK])
    except subprocess.CalledProcessError:
        # A school with its own package index usually says so in pip's settings, which uv ignores.
        print("uv could not install the packages; trying once more with pip ...", flush=True)
        _run([python, "-m", "pip", "install", "--requirement", LOCK])
    itself = ["--no-build-isolation", "--no-deps", "--editable", "."]
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *itself])


def _run(command, **options):
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **options)


def main() -> None:
    """Make the environment, or with `lock [uv's options]` the lock."""
    refused = refusal(sys.version_info, sys.executable)
    if refused:
        sys.exit(refused)
    try:
        lock(sys.argv[2:]) if sys.argv[1:2] == ["lock"] else make()
    except subprocess.CalledProcessError as error:
        step = " ".join(error.cmd[1:4])
        sys.exit(
            f"Set-up stopped at `{step}`: read the message above, look at the network connection "
            "and run the same command again (on Debian and Ubuntu Python needs the package "
            "python3-venv)."
        )
    except KeyboardInterrupt:
        print("Set-up was stopped: run the same command again to finish it.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
