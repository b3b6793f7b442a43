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
    code += "print(json.dumps(t.measure(pathlib.Path(sys.argv[1]), 'cpu', 2)))"
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
    assert gpu_table.measure(lesson, "cpu") == {}
    trouble = capsys.readouterr().err
    assert "01_broken fails on the cpu" in trouble and "no such galaxy" in trouble


def test_what_was_not_measured_is_said(gpu_table):
    column = {"conditions": "2 cores", "lessons": {}}
    column["lessons"] = {"01_a": {"seconds": 9.5, "memory": 1.25, "bands": "3 of 3"}, "03_b": {}}
    lines = gpu_table.table({"cpu": column}, ["01_a", "03_b", "06_c"]).splitlines()
    unknown = "not measured"
    assert lines[2] == f"| 01_a | 9.5 | {unknown} | 1.25 | {unknown} | 3 of 3 | {unknown} |"
    assert lines[3] == f"| 03_b | failed | {unknown} | failed | {unknown} | failed | {unknown} |"
    assert lines[4] == f"| 06_c{6 * f' | {unknown}'} |"
    assert "CPU: 2 cores." in lines and f"GPU: {unknown}." in lines


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
