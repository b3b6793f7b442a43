"""The files that set the course up agree with each other, and hold nothing of one machine."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from dlcourse_utils import __version__, bootstrap, cli, env, paths
from tests.environments import ROOT, clean_environment, committed, stored

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = [Requirement(line.rstrip("\\ ")) for line in LOCK.splitlines() if line[:1].isalnum()]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
TRACKED = [
    path
    for folder in (".ci", ".github", "course", "data", "dlcourse_utils", "solutions", "tests")
    for path in committed(folder)
    if path.suffix in {"", ".py", ".ipynb", ".md", ".toml", ".txt", ".yml"} and path.is_file()
] + [path for path in sorted(ROOT.iterdir()) if path.is_file()]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_lock_satisfies_pyproject(wanted: Requirement) -> None:
    pins = [pin for pin in PINS if pin.name == wanted.name]
    assert pins, f"{wanted.name} is not in requirements.lock: run `make lock`"
    for pin in pins:
        (exactly,) = pin.specifier
        assert exactly.operator == "=="
        assert wanted.specifier.contains(exactly.version, prereleases=True)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_one_version_of_each_package(python: str) -> None:
    system = {"python_version": python, "python_full_version": f"{python}.1"}
    names = [pin.name for pin in PINS if pin.marker is None or pin.marker.evaluate(system)]
    assert len(names) == len(set(names))
    assert {wanted.name for wanted in WANTED} <= set(names)


def test_lock_has_pins_with_hashes_and_nothing_else() -> None:
    pin = r"[a-z0-9][a-z0-9.-]*==[\w.+!]+(?: ; [^\\\n@/]+?)?"
    block = rf"{pin}(?: \\\n    --hash=sha256:[0-9a-f]{{64}})+\n"
    left = re.sub(rf"(?m)^{block}", "", LOCK)
    assert left == "", left[:200]


def test_environment_yml_is_the_lock() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert text == bootstrap.environment_yml(LOCK), "run `make lock`"
    parsed = yaml.safe_load(text)
    assert parsed["name"] == PROJECT["name"]
    *pins, course = parsed["dependencies"][-1]["pip"]
    assert [Requirement(pin) for pin in pins] == PINS
    assert course == "-e ."


@pytest.mark.parametrize(
    "name", ["requirements.lock", "environment.yml", "tests/colab/constraints.txt"]
)
def test_no_index_and_no_path_in_pins(name: str) -> None:
    found = re.findall(
        r"(?i)file:|://|--index|--extra|--find|@|\\\\|^\s*/", (ROOT / name).read_text()
    )
    assert not found


def test_no_path_of_one_machine_anywhere() -> None:
    """Tests aside, which may name such paths to look for them."""
    private = re.compile(r"(?<![\w.])/(home|Users|root|tmp)/\w")
    shipped = [path for path in TRACKED if ROOT / "tests" not in path.parents]
    assert not [str(path) for path in shipped if private.search(read(path))]


def test_the_address_is_set_in_one_place() -> None:
    """Elsewhere it is generated: in course/, in notebooks, between the marks of the README."""
    blocks = r"(?s)<!-- (\w+):begin -->.*?<!-- \1:end -->"
    short = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    for path in TRACKED:
        generated = path.suffix == ".ipynb" or path.parent == ROOT / "course"
        if not generated and path != ROOT / "pyproject.toml":
            assert short not in re.sub(blocks, "", read(path)), f"{path} has the address"


def read(path: Path) -> str:
    data = stored(path) if path.parent == ROOT / "course" else path.read_bytes()
    return data.decode(errors="replace")


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    low, high = (".".join(map(str, version)) for version in bootstrap.SUPPORTED)
    assert PROJECT["requires-python"] == f">={low},<3.{bootstrap.SUPPORTED[1][1] + 1}"
    tested = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert tested["jobs"]["test"]["strategy"]["matrix"]["python"] == [low, "3.12", high]


def test_colab_satisfies_the_lower_bounds() -> None:
    pins = (ROOT / "tests/colab/constraints.txt").read_text().splitlines()
    colab = dict(line.split("==") for line in pins if not line.startswith("#"))
    for wanted in map(Requirement, PROJECT["dependencies"]):
        if wanted.name != "tfp-nightly":
            assert wanted.specifier.contains(colab[wanted.name]), wanted


def test_public_ci_runs_the_readmes_command() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    assert {"run": "make test"} in jobs["test"]["steps"]
    checkout = jobs["test"]["steps"][0]
    assert checkout["with"]["fetch-depth"] == 0, "test_colab.py looks at the files of the tag"
    assert {"run": "make test-colab"} in jobs["colab"]["steps"]
    assert "\nmake lint test\nmake test-colab " in (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "`make test`" in read(ROOT / "README.md")


def test_public_ci_publishes_what_has_passed_the_tests() -> None:
    folder = ROOT / ".github/workflows"
    tested, site = (
        yaml.safe_load((folder / name).read_text()) for name in ("test.yml", "site.yml")
    )
    trigger = site[True]["workflow_run"]  # YAML 1.1 takes the word `on` for true
    assert set(site[True]) == {"workflow_run", "workflow_dispatch"}
    assert (trigger["workflows"], trigger["branches"]) == ([tested["name"]], ["main"])
    build = site["jobs"]["build"]
    assert "workflow_run.conclusion == 'success'" in build["if"]
    assert "workflow_run.head_sha" in build["steps"][0]["with"]["ref"]
    publish = site["jobs"]["publish"]
    assert "newest" in publish["if"] and "newest" in build["outputs"]
    # Of the job: one that is skipped, of tests that failed, must not cancel one that waits.
    assert publish["concurrency"]["cancel-in-progress"] is False and "concurrency" not in site


def test_book_config() -> None:
    config = yaml.safe_load((ROOT / "book_config.yml").read_text())
    assert config["title"]
    assert config["author"]
    assert config["execute"]["execute_notebooks"] == "off"


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10"])
def test_bootstrap_can_be_read_by_an_old_python(version: str) -> None:
    """It must get as far as its refusal; newer syntax would be a traceback instead."""
    import ast

    minor = int(version.partition(".")[2])
    ast.parse(read(ROOT / "dlcourse_utils/bootstrap.py"), feature_version=(3, minor))


def test_make_refuses_another_python(tmp_path: Path) -> None:
    """A stand-in for an old Python runs the script as if it were 3.9."""
    script, old = tmp_path / "old.py", tmp_path / "python3.9"
    script.write_text(
        "import runpy, sys\n"
        "sys.version_info = (3, 9, 1)\n"
        "sys.executable = 'python3.9'\n"
        "runpy.run_path(sys.argv[-1], run_name='__main__')\n"
    )
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == bootstrap.refusal((3, 9), "python3.9")
    assert "Traceback" not in done.stderr


def test_make_alone_lists_what_it_can_do() -> None:
    done = make()
    names = re.findall(r"^make ([\w-]+)", done.stdout, re.MULTILINE)
    expected = "help lab test test-colab run notebooks book serve lint lock clean"
    assert names == expected.split()


def test_make_run_asks_for_a_lesson() -> None:
    done = make("run", "--assume-old=setup")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "Name the lesson: make run LESSON=01"


def make(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True)


def test_help_is_immediate_and_light() -> None:
    code = (
        "import sys, time; begun = time.process_time()\n"
        "from dlcourse_utils import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "print(time.process_time() - begun)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, seconds = done.stdout.splitlines()
    assert float(seconds) < 0.3
    for command in ("lab", "run", "test", "build", "data", "doctor", "reset", "progress"):
        assert any(line.split()[:1] == [command] for line in shown)


def test_without_a_word_there_is_help(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    assert shown.startswith("usage: dlcourse [-h] [--version] command ...\n\nOpen the course")
    assert "show which exercises are done" in shown
    with pytest.raises(SystemExit):
        cli.main(["rest", "01"])
    assert "argument command: invalid choice: 'rest'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["data"], ["--help"]])
def test_a_reader_who_has_seen_enough_is_no_trouble(words: list[str]) -> None:
    """As with `| head`, whose end of the pipe is closed while the command writes."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dlcourse_utils.cli", *words]
    how = {"env": clean_environment(), "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, cwd=ROOT, stdout=write, **how)
    os.close(write)
    assert (done.stderr, done.returncode) == ("", 141)


def test_an_expected_trouble_is_one_sentence(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["data", "no_such_file.csv"]) == 2
    assert capsys.readouterr().err.startswith("There is no data file named")
    monkeypatch.setattr(paths, "repository_root", lambda: None)
    assert cli.main(["lab"]) == 2
    assert "clone the repository" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", "--unknown"])
    assert "unknown argument: --unknown" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise PermissionError(13, "Permission denied", "course/01.ipynb")

    monkeypatch.setattr("dlcourse_utils.build.reset", fail)
    assert cli.main(["reset", "01"]) == 2
    said = "Permission denied: course/01.ipynb: look at the rights of the file"
    assert capsys.readouterr().err.startswith(said)


def test_ctrl_c_is_no_traceback(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlcourse_utils.build.reset", stop)
    assert cli.main(["reset", "01"]) == 130
    monkeypatch.setattr(bootstrap, "make", stop)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    with pytest.raises(SystemExit) as stopped:
        bootstrap.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err.startswith("Set-up was stopped")


def checkout_of_pins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A folder to set up in, with a Python; collects the commands that would run."""
    for name in ("pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(bootstrap, "ROOT", folder)
    commands: list[list[str]] = []

    def pretend(command: list, **_: object) -> None:
        commands.append([str(part) for part in command[1:]])

    monkeypatch.setattr(bootstrap, "_run", pretend)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    return commands


def test_only_what_matters_sets_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = checkout_of_pins(tmp_path, monkeypatch)
    bootstrap.make()
    assert commands[0][:2] == ["-m", "venv"]
    assert "--no-build-isolation" in commands[-1]
    commands.clear()
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("github.com/dlcourse", "github.com/school"))
    bootstrap.make()
    assert commands == []
    project.write_text(project.read_text().replace('"optax>=0.2.3"', '"optax>=0.2.4"'))
    bootstrap.make()
    assert [command[1] for command in commands] == ["uv", "pip"]


def test_a_failed_set_up_leaves_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without network it must not be cleared, now or the next time."""
    commands = checkout_of_pins(tmp_path, monkeypatch)
    bootstrap.make()
    lock = tmp_path / "requirements.lock"
    lock.write_text(lock.read_text() + "#\n")
    commands.clear()
    pretend = bootstrap._run

    def fail(command: list, **_: object) -> None:
        pretend(command)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(bootstrap, "_run", fail)
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            bootstrap.make()
    assert "venv" not in {command[1] for command in commands}
    assert not any("--editable" in command for command in commands)


def test_data_lists_every_file(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["data"]) == 0
    assert "mass_function.npz" in capsys.readouterr().out


def test_course_home_moves_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DLCOURSE_HOME", str(tmp_path))
    assert paths.user_dir() == tmp_path
    assert paths.cache_dir().is_relative_to(tmp_path)
    monkeypatch.delenv("DLCOURSE_HOME")
    assert paths.user_dir().name == "dlcourse"
    assert paths.cache_dir().name == "dlcourse"


def test_set_up_cell_installs_the_released_tag() -> None:
    lines = env.colab_setup_lines(PROJECT["urls"]["Repository"], f"v{__version__}")
    for path in committed("course"):
        if path.suffix == ".ipynb":
            text = stored(path).decode()
            assert f"@v{__version__}" in text
            assert lines.splitlines()[2].strip().replace('"', '\\"') in text
