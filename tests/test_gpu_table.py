"""The benchmark of the lessons: what it measures of a process, and the table it makes of it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEADY = """
import os, jax
print("✓ pass · one: 1 (band: at most 2)")
print("✗ fail · two: 3 (band: at most 2)")
assert os.environ["MPLBACKEND"] == "Agg" and jax.config.jax_platforms == "cpu"
assert not jax.config.jax_compilation_cache_dir
ballast = bytearray(600_000_000)
ballast[::4096] = ballast[::4096]
"""


@pytest.fixture(scope="module")
def gpu_table(pytestconfig):
    path = pytestconfig.rootpath / "benchmarks" / "gpu_table.py"
    spec = importlib.util.spec_from_file_location("gpu_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_lesson_is_timed_and_its_bands_are_counted(gpu_table, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    lesson = tmp_path / "01_steady.py"
    lesson.write_text(STEADY, encoding="utf-8")
    # In a small process: a child's peak memory begins with that of its parent.
    code = "import json, pathlib, sys; import gpu_table as t; "
    code += "print(json.dumps(t.measure(pathlib.Path(sys.argv[1]), 'cpu', t.chosen_cores(2))))"
    done = subprocess.run(
        [sys.executable, "-c", code, lesson],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(gpu_table.__file__).parent)},
    )
    found = json.loads(done.stdout)
    assert found["bands"] == "1 of 2"
    assert 0.6 < found["memory"] < 2.0
    assert 0.0 < found["seconds"] < 600.0


def test_a_lesson_that_fails_is_named(gpu_table, tmp_path, capsys):
    lesson = tmp_path / "01_broken.py"
    lesson.write_text("raise RuntimeError('no such galaxy')", encoding="utf-8")
    assert gpu_table.measure(lesson, "cpu", None) == {}
    trouble = capsys.readouterr().err
    assert "01_broken fails on the cpu" in trouble and "no such galaxy" in trouble


def test_what_was_not_measured_is_said(gpu_table):
    column = {"01_a": {"seconds": 9.5, "memory": 1.25, "bands": "3 of 3"}, "03_b": {}}
    column = {lesson: found | {"conditions": "2 cores"} for lesson, found in column.items()}
    lines = gpu_table.table({"cpu": column}, ["01_a", "03_b", "06_c"]).splitlines()
    unknown = "not measured"
    assert lines[2] == f"| 01_a | 9.5 | {unknown} | 1.25 | {unknown} | 3 of 3 | {unknown} |"
    assert lines[3] == f"| 03_b | failed | {unknown} | failed | {unknown} | failed | {unknown} |"
    assert lines[4] == f"| 06_c{6 * f' | {unknown}'} |"
    assert "CPU: 2 cores." in lines and f"GPU: {unknown}." in lines


def one_run(gpu_table, monkeypatch, tmp_path, machine, *arguments):
    """The program on a machine without GPU, and with lessons that take no time."""
    monkeypatch.setattr(
        gpu_table, "conditions_of", lambda backend, _: machine if backend == "cpu" else None
    )
    monkeypatch.setattr(gpu_table, "measure", lambda *_: {"seconds": 1.0})
    results = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["gpu_table.py", *arguments, "--results", str(results)])
    return gpu_table.main()


def test_each_lesson_keeps_the_conditions_of_its_run(gpu_table, monkeypatch, tmp_path, capsys):
    assert one_run(gpu_table, monkeypatch, tmp_path, "A", "cpu") == 0
    assert "\nCPU: A.\n" in capsys.readouterr().out
    assert one_run(gpu_table, monkeypatch, tmp_path, "B", "cpu", "--lessons", "03", "09") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("CPU, 01 ") and line.endswith(": A.") for line in lines)
    assert "CPU, 03 09: B." in lines


def test_a_backend_that_does_not_start_is_a_failure(gpu_table, monkeypatch, tmp_path, capsys):
    """The other is measured all the same."""
    assert one_run(gpu_table, monkeypatch, tmp_path, "A", "gpu", "cpu") == 1
    assert capsys.readouterr().out.endswith("\nCPU: A.\n\nGPU: not measured.\n")


def test_why_a_backend_does_not_start_is_said(gpu_table, monkeypatch, capsys):
    monkeypatch.setitem(gpu_table.PLATFORMS, "gpu", "no_such_platform")
    assert gpu_table.conditions_of("gpu", None) is None
    trouble = capsys.readouterr().err
    assert trouble.startswith("Nothing is measured on the gpu: RuntimeError: Unable to initialize")


def test_the_cores_are_those_of_the_lessons(gpu_table, monkeypatch):
    answer = '["CPU", "Python 3.13"]'
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4, 20)), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", None, raising=False)
    for most, count in ((2, 2), (None, 16), (100, 16)):
        cores = gpu_table.chosen_cores(most)
        assert gpu_table.conditions_of("gpu", cores).startswith(f"CPU, {count} core(s) of ")
    monkeypatch.delattr(os, "sched_setaffinity")
    cores = gpu_table.chosen_cores(2)
    assert ", not restricted; Python 3.13; " in gpu_table.conditions_of("cpu", cores)
    assert gpu_table.conditions_of("cpu", cores).startswith("64 core(s) of ")


def test_the_table_of_the_readme_has_all_lessons(gpu_table, root):
    text = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## The lessons on a GPU") :]
    for path in (root / "solutions").glob("[0-9][0-9]_*.py"):
        assert f"\n| {path.stem} | " in section


def test_an_unknown_backend_is_refused(root):
    done = subprocess.run(
        [sys.executable, root / "benchmarks" / "gpu_table.py", "tpu"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "there is no backend 'tpu'" in done.stderr
