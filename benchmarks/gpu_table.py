"""Seconds and memory of each solved lesson, on two cores and on a GPU.

    python benchmarks/gpu_table.py cpu gpu

measures on what is named, and prints the table in Markdown. Results are kept in a file, so that the
two columns may come from two machines; without a name the table is printed from it. Needs no
network. Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from dlcourse_utils import files

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}  # as JAX calls them
NOT_MEASURED = "not measured"

# In a process of its own: JAX would take hold of the GPU that the lessons need.
_CONDITIONS = """
import jax, json, platform, sys
from importlib.metadata import version
versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "tfp-nightly"))
try:
    device = jax.devices()[0].device_kind
except AssertionError:  # all that JAX says where there is no such device
    sys.exit("JAX finds no such device")
print(json.dumps([device, f"Python {platform.python_version()}, {versions}"]))
"""

Results = dict[str, Any]


def main() -> int:
    """Measure what is named and print the table; 1 if a device or a lesson fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", metavar="cpu|gpu", help="what to measure on")
    parser.add_argument("--lessons", nargs="+", metavar="NN", help="only these, for example 01 03")
    parser.add_argument("--cores", type=int, default=2, help="for the column of the CPU")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "gpu_table.json")
    options = parser.parse_args()
    if options.cores < 1:
        parser.error("a lesson needs at least one core.")
    if unknown := set(options.backends) - set(PLATFORMS):
        parser.error(f"there is no backend {unknown.pop()!r}: name cpu, gpu or both.")
    lessons = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))
    chosen = [p for p in lessons if not options.lessons or p.name[:2] in options.lessons]
    if not chosen:
        parser.error("there is no such lesson: give its two digits.")
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    failed = False
    for backend in options.backends:
        cores = chosen_cores(options.cores if backend == "cpu" else None)
        conditions = conditions_of(backend, cores)
        if conditions is None:
            failed = True
            continue
        for path in chosen:
            measured = measure(path, backend, cores)
            failed |= "seconds" not in measured
            column = results.setdefault(backend, {})
            # With each lesson, because the next may be measured on another machine.
            column[path.stem] = measured | {"conditions": conditions}
            files.write(options.results, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results, [path.stem for path in lessons]))
    return int(failed)


def measure(path: Path, backend: str, cores: set[int] | None) -> Results:
    """Run a lesson as a plain script, without compiled code of earlier runs.

    Seconds and peak memory of the host in GB, both of the whole process; how many of the lesson's
    figures are in their bands. Empty if the script fails; its last words are on stderr then.
    """
    with tempfile.TemporaryDirectory() as home:
        out, trouble = Path(home, "out.txt"), Path(home, "trouble.txt")
        begin = time.perf_counter()
        with out.open("wb") as stdout, trouble.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, path],
                cwd=home,
                env=_environment(backend) | {"DLCOURSE_HOME": home},
                stdout=stdout,
                stderr=stderr,
                preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
            )
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            tail = trouble.read_text(errors="replace")[-2000:]
            print(f"{path.stem} fails on the {backend}:\n{tail}", file=sys.stderr)
            return {}
        lines = out.read_text(encoding="utf-8").splitlines()
    passed = sum(line.startswith("✓ pass") for line in lines)
    missed = sum(line.startswith("✗ fail") for line in lines)
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return {
        "seconds": round(seconds, 1),
        "memory": round(usage.ru_maxrss / unit, 2),
        "bands": f"{passed} of {passed + missed}",
    }


def chosen_cores(most: int | None) -> set[int] | None:
    """The cores for the lessons, so many at most; None where the system does not keep to them."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return set(sorted(os.sched_getaffinity(0))[:most])


def conditions_of(backend: str, cores: set[int] | None) -> str | None:
    """The device, the versions and the date in one line.

    None where JAX does not start on such a device; what it says of it is on stderr then.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CONDITIONS],
        # Of a filtered traceback the last line is about the filter.
        env=_environment(backend) | {"JAX_TRACEBACK_FILTERING": "off"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        print(f"Nothing is measured on the {backend}: {said[-1]}", file=sys.stderr)
        return None
    device, versions = json.loads(done.stdout.splitlines()[-1])
    beside = f"{device}, " if backend == "gpu" else ""
    machine = os.uname().machine.replace("_", "-")
    count = f"{len(cores or range(os.cpu_count()))} core(s) of {machine}"
    kept = "" if cores else ", not restricted"
    return f"{beside}{count}{kept}; {versions}; {date.today().isoformat()}"


def table(results: Results, lessons: list[str]) -> str:
    """The results in Markdown, one row for each lesson."""
    columns = [("seconds", "s"), ("memory", "memory of the host, GB"), ("bands", "in their bands")]
    names = {"cpu": "CPU", "gpu": "GPU"}
    head = ["lesson", *(f"{text}, {name}" for _, text in columns for name in names.values())]
    rows = [head, ["---"] * len(head)]
    for lesson in lessons:
        row = [lesson]
        for field, _ in columns:
            for backend in names:
                found = results.get(backend, {}).get(lesson)
                row.append(NOT_MEASURED if found is None else str(found.get(field, "failed")))
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for backend, name in names.items():
        column = results.get(backend, {})
        under: dict[str, list[str]] = {}
        for lesson in filter(column.__contains__, lessons):
            under.setdefault(column[lesson]["conditions"], []).append(lesson[:2])
        for conditions, numbers in under.items() or [(NOT_MEASURED, [])]:
            which = f", {' '.join(numbers)}" if len(under) > 1 else ""
            lines += ["", f"{name}{which}: {conditions}."]
    return "\n".join(lines)


def _environment(backend: str) -> dict[str, str]:
    """Of a process that uses the library of this checkout and one kind of device."""
    kept = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    return kept | {
        "JAX_PLATFORMS": PLATFORMS[backend],
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
