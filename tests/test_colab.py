"""The course on what Colab has: its packages, the set-up cell and its trials, whole notebooks.

tests/colab/constraints.txt is Colab's own list, stable TFP included; a runtime is made from it, and
cells run there as they stand in the notebooks. `make test` runs what needs no runtime,
`make test-colab` the rest.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.version import Version

from dlcourse_utils import execute
from dlcourse_utils.build import Course, read_course
from dlcourse_utils.lessons import Lesson
from dlcourse_utils.render import colab_link
from tests.colab.runtime import NO_NETWORK, Ran, Repository, Runtime, Session
from tests.environments import ROOT, clean_environment, copy_checkout, find_python, run

PINS = ROOT / "tests" / "colab" / "constraints.txt"
COURSE = read_course()
FORK = "https://github.com/school/course"
LINK = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([^/]+)/([^)\s\"]+)")
NOT_INSTALLED = (
    "The course was not installed: read the message above, look at the network and at Python "
    "(3.11 to 3.13, see Runtime > Change runtime type), and run this cell again."
)

Measure = Callable[[str, float], None]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measure:
    """Keeps seconds under a name: tests/conftest.py prints them and writes build/colab.json."""
    return lambda name, seconds: record_property("seconds", [name, round(seconds, 1)])


def set_up_cell(notebook: dict) -> str:
    (cell,) = (c for c in notebook["cells"] if "setup" in c["metadata"].get("tags", []))
    return "".join(cell["source"])


def ready(version: str) -> str:
    """The one line with which set-up ends, as a pattern."""
    return rf"dlcourse {re.escape(version)} · Python \S+ · jax 0\.7\.2 on cpu · ready\n"


# --- what notebooks and pages say ---------------------------------------------------------------


def test_badges_open_files_of_the_tag() -> None:
    """Of the commit that is to get the tag, where git has none of this name."""
    for revision in (COURSE.tag, "HEAD"):
        command = ["git", "ls-tree", "-r", "-z", "--name-only", revision]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            break
    else:
        pytest.skip("git has no commit here")
    there = done.stdout.split("\0")
    owner = COURSE.repository.removeprefix("https://github.com/")
    all_badges = set()
    for lesson in COURSE.lessons:
        path = f"course/{lesson.stem}.ipynb"
        assert path in there, f"{revision} has no {path}: give the project a new version"
        # A fork outside GitHub has none.
        opens = colab_link(lesson.stem, COURSE.repository, COURSE.tag)
        badges = {(owner, COURSE.tag, path)} if opens else set()
        all_badges |= badges
        for folder in ("course", "solutions"):
            assert links(ROOT / folder / f"{lesson.stem}.ipynb") == badges
    for page in ("README.md", "course/index.md"):
        assert links(ROOT / page) == all_badges


def links(page: Path) -> set[tuple[str, str, str]]:
    """Repository, tag and path of each link of a page that opens Colab."""
    return set(LINK.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("variant", [Course.student, Course.solution], ids=["student", "solved"])
@pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.stem)
def test_a_notebook_asks_for_no_gpu_and_says_when_one_pays_off(variant, lesson: Lesson) -> None:
    """Colab reads the accelerator from the metadata; a notebook that names none gets none."""
    notebook = variant(COURSE, lesson)
    assert not {"accelerator", "colab"} & notebook["metadata"].keys()
    first = notebook["cells"][0]["source"]
    assert f"{lesson.minutes} minutes · {lesson.needs}" in first
    assert re.search(r"\bGPU pays off\b", lesson.needs)


# --- the set-up cell ----------------------------------------------------------------------------


class Trials(NamedTuple):
    """Runs of the set-up cell, in order, and the packages before, between and after them."""

    runtime: Runtime
    before: dict[str, str]
    without_network: Ran
    between: dict[str, str]
    first: Ran
    again: Ran
    restarted: Ran
    after: dict[str, str]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The checkout as it stands, under the public address and the tag of its version."""
    tree = copy_checkout(tmp_path_factory.mktemp("published") / "course")
    repository = Repository(tree, COURSE.repository)
    repository.tag(COURSE.tag)
    return repository


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory, published: Repository) -> Trials:
    """A new runtime; jax is in use when the set-up cell runs, at first without a network."""
    folder = tmp_path_factory.mktemp("colab")
    runtime = new_runtime(folder)
    cell = set_up_cell(COURSE.student(COURSE.lessons[0]))
    before = runtime.packages()
    with Session(runtime, folder / "home", **published.settings(), **NO_NETWORK) as session:
        assert session.run("import jax\nprint(jax.numpy.ones(3).sum())").text == "3.0\n"
        without_network = session.run(cell)
        between = runtime.packages()
        session.forget(*NO_NETWORK)
        first, again = session.run(cell), session.run(cell)
    with Session(runtime, folder / "home") as session:
        restarted = session.run(cell)
    after = runtime.packages()
    return Trials(runtime, before, without_network, between, first, again, restarted, after)


def new_runtime(folder: Path) -> Runtime:
    """What Colab gives; on another Python where this machine does not have Colab's."""
    try:
        python = find_python("3.13")
    except pytest.skip.Exception:
        python = find_python("{}.{}".format(*sys.version_info[:2]))
    return Runtime(folder, python, "--no-deps", "--requirement", PINS)


@pytest.mark.colab
def test_without_network_set_up_says_what_to_do_and_the_next_run_mends_it(colab: Trials) -> None:
    assert colab.without_network.error == NOT_INSTALLED
    assert "error" in colab.without_network.text.lower(), "pip says why"
    assert colab.before.keys() - colab.between.keys() == {"tensorflow-probability"}
    assert "dlcourse" not in colab.between
    assert colab.first.error is None


@pytest.mark.colab
def test_set_up_changes_nothing_but_what_it_must(colab: Trials) -> None:
    added = {name: colab.after[name] for name in colab.after.keys() - colab.before.keys()}
    assert set(added) == {"dlcourse", "tfp-nightly"}
    assert Version(added["tfp-nightly"]) >= Version("0.26.0.dev20261027")
    assert colab.before.keys() - colab.after.keys() == {"tensorflow-probability"}
    kept = colab.before.keys() & colab.after.keys()
    assert {n: colab.before[n] for n in kept} == {n: colab.after[n] for n in kept}
    assert (colab.after["jax"], colab.after["numpy"]) == ("0.7.2", "2.1.3")


@pytest.mark.colab
def test_set_up_says_one_line_and_is_quick(colab: Trials, measured: Measure) -> None:
    for name in ("first", "again", "restarted"):
        ran = getattr(colab, name)
        measured(f"set-up cell, {name}", ran.seconds)
        assert [output["output_type"] for output in ran.outputs] == ["stream"], ran.outputs
        assert re.fullmatch(ready(COURSE.tag.removeprefix("v")), ran.text), ran.text
    assert colab.first.seconds <= 90
    assert colab.again.seconds <= 3


@pytest.mark.colab
def test_an_old_python_is_refused_with_a_sentence(tmp_path: Path, published: Repository) -> None:
    pins = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line)
    names = ("ipykernel", "ipython", "jupyter-client", "pip", "setuptools", "traitlets")
    runtime = Runtime(tmp_path, find_python("3.10"), *(f"{name}=={pins[name]}" for name in names))
    with Session(runtime, tmp_path / "home", **published.settings()) as session:
        ran = session.run(set_up_cell(COURSE.student(COURSE.lessons[0])))
    assert ran.error == NOT_INSTALLED
    assert "requires a different Python: 3.10" in ran.text


@pytest.mark.colab
def test_a_fork_installs_its_own_tag_and_a_newer_notebook_the_newer_one(
    tmp_path: Path, measured: Measure
) -> None:
    """The newer notebook is opened in a kernel that has loaded the older course."""
    fork = Repository(copy_checkout(tmp_path / "fork"), FORK)
    tag = COURSE.tag
    edit(fork.tree / "pyproject.toml", COURSE.repository, FORK)
    old_cell = rebuilt(fork, tag)
    for page in ("README.md", f"course/{COURSE.lessons[0].stem}.ipynb"):
        assert {link[:2] for link in links(fork.tree / page)} == {("school/course", tag)}
    new_tag = f"{tag}.post1"
    edit(fork.tree / "pyproject.toml", f'version = "{tag[1:]}"', f'version = "{new_tag[1:]}"')
    new_cell = rebuilt(fork, new_tag)

    runtime = new_runtime(tmp_path / "colab")
    with Session(runtime, tmp_path / "home", **fork.settings()) as session:
        first = session.run(old_cell)
        measured("set-up cell, first, of a fork", first.seconds)
        assert re.fullmatch(ready(tag[1:]), first.text), first
        assert first.seconds <= 90
        origin = "from importlib.metadata import distribution as d\n"
        origin += "print(d('dlcourse').read_text('direct_url.json'))"
        address = json.loads(session.run(origin).text)
        assert address["url"] == FORK
        assert address["vcs_info"]["requested_revision"] == tag
        newer = session.run(new_cell)
        assert newer.error == (
            f"dlcourse was replaced while this kernel runs ({tag[1:]} is loaded, {new_tag[1:]} is "
            "installed): restart the kernel and run the notebook from the top."
        )
    with Session(runtime, tmp_path / "home", **fork.settings()) as session:
        restarted = session.run(new_cell)
    assert re.fullmatch(ready(new_tag[1:]), restarted.text), restarted


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def rebuilt(fork: Repository, tag: str) -> str:
    """Make the notebooks as CONTRIBUTING.md says, tag them; the set-up cell of one."""
    build = ["-m", "dlcourse_utils.cli", "build", "--no-execute"]
    run(sys.executable, *build, cwd=fork.tree, env=clean_environment())
    fork.tag(tag)
    notebook = (fork.tree / "course" / f"{COURSE.lessons[0].stem}.ipynb").read_text("utf-8")
    return set_up_cell(json.loads(notebook))


# --- whole notebooks ----------------------------------------------------------------------------


@pytest.mark.colab
@pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.stem)
def test_a_lesson_runs_as_a_student_finds_it_and_solved(
    lesson: Lesson, colab: Trials, tmp_path: Path, measured: Measure
) -> None:
    """The solved notebook finds what was compiled for the student's."""
    for name, variant in (("student", Course.student), ("solved", Course.solution)):
        notebook = variant(COURSE, lesson)
        with Session(colab.runtime, tmp_path / name, **compile_cache(tmp_path)) as session:
            seconds = 0.0
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    ran = session.run(cell["source"])
                    cell["outputs"] = ran.outputs
                    seconds += ran.seconds
                    assert ran.error is None, f"{cell['source']}\n{ran.error}"
            measured(f"{lesson.stem}, {name}", seconds)
            execute.inspect_outputs(notebook, lesson)
            records = execute.verdicts(notebook)
            assert records
            assert [record["name"] for record in records if not record["ok"]] == []
            expected = "not started" if name == "student" else "right"
            assert set(checks(notebook).values()) == {expected}
            assert checks(notebook).keys() == lesson.exercises.keys()
            assert_sliders_redraw(session)


def compile_cache(folder: Path) -> dict[str, str]:
    """Variables with which JAX keeps everything that it compiles in this folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def checks(notebook: dict) -> dict[str, str]:
    """What the check of each exercise says of it."""
    said = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/plain", "")
            if found := re.match(r"\S Exercise (\d\d\.\d+) · (.+)", text):
                said[found[1]] = found[2]
    return said


def assert_sliders_redraw(session: Session) -> None:
    sliders = session.sliders()
    assert sliders
    for slider in sliders:
        answers = session.move(slider)
        assert not [a for a in answers if a["msg_type"] in ("error", "stream")]
        assert [a for a in answers if a["msg_type"] == "comm_msg" and a["buffers"]]
