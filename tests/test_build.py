"""The builder: pure rendering, what it writes, what it refuses to write, what it leaves alone."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from dlcourse_utils import build as building
from dlcourse_utils import execute, files, leaks, lessons, pages, paths, render
from dlcourse_utils.build import build, reset
from dlcourse_utils.checks import engine
from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import SourceError

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
TEXT = (GOLDEN / "01_tiny.py").read_text(encoding="utf-8")
ADDRESS = ("https://github.com/example/course", "v1.2.3")
ANSWER = "total = sum(x, start=0.0)"
PROJECT = """[project]
name = "dlcourse"
version = "1.2.3"

[project.urls]
Repository = "https://github.com/example/course"
"""


@pytest.fixture(autouse=True)
def plain_setup(monkeypatch):
    """A set-up cell that costs nothing, so that these tests do not hang on `env`."""
    monkeypatch.setattr(
        render, "colab_setup_lines", lambda repository, tag: f"# {repository} {tag}"
    )


BEGIN, END = pages.marks("lessons")
# What a checkout has before the first build.
WRITTEN = {
    "solutions/01_tiny.py": TEXT,
    "pyproject.toml": PROJECT,
    "README.md": "# Course\n\n<!-- figure:begin -->\n<!-- figure:end -->\n"
    f"<!-- clone:begin -->\n<!-- clone:end -->\n{BEGIN}\n{END}\n\nEnd.\n",
    "CITATION.cff": (ROOT / "CITATION.cff").read_text(encoding="utf-8"),
    "LICENSE": "Do what you like.\n",
    "LICENSE-text": "Say what you like.\n",
    "data/registry.toml": "",
    "course/references.bib": "@misc{doe2020, author = {Doe, Jo}, title = {Means}, year = {2020}}\n",
}
MEDIAN = engine.Suspect("median", sorted, "You return the median.", "It forgets.", "Add.")
SPEC = engine.Spec("01.1", "mean", cases=lambda rng: {}, suspects=(MEDIAN,), insight="")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The root of a course of one tiny lesson."""
    for name, text in WRITTEN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(paths, "repository_root", lambda: tmp_path)
    monkeypatch.setattr(engine, "specs", lambda number: {SPEC.id: SPEC})
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """No kernel: code cells pretend to have run, and print which run it was; the list of runs."""
    done = []

    def pretend(notebook, lesson):
        done.append(lesson.stem)
        notebook = json.loads(json.dumps(notebook))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, 1):
            output = {"output_type": "stream", "name": "stdout", "text": f"run {len(done)}\n"}
            cell |= {"execution_count": number, "outputs": [output]}
        return execute.Execution(notebook, 1.0, [0.0] * len(notebook["cells"]))

    monkeypatch.setattr(building, "run_cells", pretend)
    return done


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def snapshot(root):
    return {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def rendered(text, stem, variant, *address):
    """The notebook of a source as the bytes of its file."""
    lesson = lessons.parse(text, Path("solutions") / f"{stem}.py")
    return render.dump(render.notebook(lesson, variant, *address))


# --- rendering --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["student", "solution"])
def test_rendering_is_as_stored(variant):
    # Kept as .json, so that no tool takes them for notebooks of the course. After a wanted change:
    # DLCOURSE_GOLDEN=write pytest tests/test_build.py -k as_stored, and read the diff.
    path = GOLDEN / f"01_tiny.{variant}.json"
    made = rendered(TEXT, "01_tiny", variant, *ADDRESS)
    if os.environ.get("DLCOURSE_GOLDEN") == "write":
        path.write_bytes(made)
    assert made.decode() == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", ["student", "solution"])
def test_rendering_is_valid_deterministic_and_laid_out_as_jupyter_does(
    variant, tmp_path, monkeypatch
):
    made = rendered(TEXT, "01_tiny", variant, *ADDRESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert rendered(TEXT, "01_tiny", variant, *ADDRESS) == made
    assert b"\r" not in made and made.endswith(b"}\n")
    notebook = nbformat.reads(made.decode(), as_version=4)
    nbformat.validate(notebook)
    assert (nbformat.writes(notebook) + "\n").encode() == made
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert {cell.cell_type for cell in notebook.cells} == {"code", "markdown"}
    assert all(c.outputs == [] for c in notebook.cells if c.cell_type == "code")
    assert all(c.execution_count is None for c in notebook.cells if c.cell_type == "code")


def test_ids_stay_when_other_cells_change():
    def ids(text):
        notebook = json.loads(rendered(text, "01_tiny", "student", *ADDRESS))
        return [cell["id"] for cell in notebook["cells"]]

    before = ids(TEXT)
    more = ids(
        TEXT.replace(
            "# %% [markdown] think", "# %%\nnumbers\n\n# %%\nnumbers\n\n# %% [markdown] think"
        )
    )
    assert [id for id in more if id in before] == before
    assert len(set(more)) == len(before) + 2
    assert ids(TEXT.replace("# Return the mean", "# Give the mean")) == before
    other = json.loads(rendered(TEXT, "01_tiny_b", "student", *ADDRESS))
    assert not {cell["id"] for cell in other["cells"]} & set(before)


def test_the_student_gets_the_stub_and_the_solution_the_code():
    student = rendered(TEXT, "01_tiny", "student", *ADDRESS).decode()
    solution = rendered(TEXT, "01_tiny", "solution", *ADDRESS).decode()
    assert ANSWER not in student and ANSWER in solution
    assert "SOLUTION" not in student + solution
    assert "solutions are welcome here" in student


def test_markdown_is_rendered():
    notebook = json.loads(rendered(TEXT, "01_tiny", "student", *ADDRESS))
    texts = ["".join(cell["source"]) for cell in notebook["cells"]]
    title, objectives = texts[:2]
    assert title.startswith("# The mean of three numbers\n\n[Open in Colab](https://")
    assert "github/example/course/blob/v1.2.3/course/01_tiny.ipynb" in title
    assert "*Densities · 8 minutes*" in title
    assert "- take a mean by hand" in objectives and "- a sum" in objectives
    assert notebook["cells"][2]["metadata"]["tags"] == ["setup"]
    task = texts[4]
    assert task.startswith("### Exercise 01.1 · A mean\n\n*5 minutes · difficulty ●●○*\n\nReturn")
    hint = "<details><summary>Hint 2</summary>\n\nthen divide\nby their number.\n\n</details>"
    assert task.endswith(hint)
    assert "<details><summary>Answer</summary>\n\nup by 198.\n\nOne outlier" in texts[7]
    assert notebook["cells"][9]["metadata"]["mystnb"] == {"image": {"alt": "A red dot."}}
    assert not any("Hint: " in text or "Answer: " in text for text in texts)


def test_what_is_no_address_is_refused():
    for address in ("github.com/a/b", "https://github.com/a", ""):
        with pytest.raises(CourseError, match="set Repository"):
            render.badge("01_tiny", address, "v1")


def test_a_fork_off_github_has_no_badge(checkout, runs):
    edit(checkout / "pyproject.toml", "github.com/example/course", "git.school.edu/a/b/course")
    assert build() == 0
    made = b"".join(snapshot(checkout).values())
    assert b"colab.research" not in made and b"git.school.edu/a/b/course" in made
    assert build(check=True) == 0


def test_the_hook_looks_at_all_that_is_read():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = (hook for hook in hooks if hook["id"] == "build-check")
    generated = ["course/index.md", "course/01_tiny.ipynb", "solutions/01_tiny.ipynb"]
    for name in [*WRITTEN, *generated, "dlcourse_utils/pages.py", "dlcourse_utils/checks/x.py"]:
        assert re.search(hook["files"], name), name
    assert not re.search(hook["files"], "tests/test_build.py")


# --- leaks ------------------------------------------------------------------------------------


def test_a_solution_line_in_a_page_is_refused(checkout, runs):
    build()
    (checkout / "course" / "glossary.md").write_text(f"# G\n\n```\n{ANSWER}\n```\n", "utf-8")
    line = TEXT.split("\n").index(f"    {ANSWER}") + 1
    with pytest.raises(SourceError, match=rf"01_tiny.py:{line}: .*course/glossary.md"):
        build(check=True)


def test_a_solution_line_quoted_in_a_hint_is_refused(checkout, runs):
    edit(checkout / "solutions" / "01_tiny.py", "# Hint: add", f"# Hint: `{ANSWER}` will add")
    with pytest.raises(SourceError, match=r"the solution line .* can be read in course/01_tiny"):
        build()
    assert [path.name for path in (checkout / "course").iterdir()] == ["references.bib"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Answer: up", f"# Answer: write\n#\n# ```\n# {ANSWER}\n# ```\n#\n# up"),
        ("numbers = [1.0", f"# {ANSWER}\nnumbers = [1.0"),
        ("numbers = [1.0", f"#{ANSWER}  # as asked\nnumbers = [1.0"),
        ("dot = (", f"one = 1.0  # {ANSWER}\ndot = ("),
    ],
    ids=["answer", "comment", "comment of a comment", "after code"],
)
def test_a_solution_line_in_the_source_outside_its_region_is_refused(old, new, checkout, runs):
    edit(checkout / "solutions" / "01_tiny.py", old, new)
    with pytest.raises(SourceError, match=r"the solution line .* can be read in course/01_tiny"):
        build()


def test_code_that_students_get_anyway_is_no_leak(checkout, runs):
    edit(checkout / "solutions" / "01_tiny.py", "dot = (", f"x = [1.0]\n{ANSWER}\ndot = (")
    assert build() == 0


@pytest.mark.parametrize("cutter", ["not cut", "metadata"])
def test_a_builder_that_ships_the_answer_is_found(cutter):
    lesson = lessons.load(GOLDEN / "01_tiny.py")
    notebook = render.notebook(lesson, "student", *ADDRESS)
    leaks.refuse_leaks([lesson], {"course/x": leaks.all_text(notebook)})
    if cutter == "not cut":
        notebook["cells"][5]["source"] = lesson.exercises["01.1"].solution
    else:
        notebook["metadata"]["dlcourse"]["hidden"] = {"a": [lesson.exercises["01.1"].solution]}
    with pytest.raises(SourceError, match="can be read in course/x"):
        leaks.refuse_leaks([lesson], {"course/x": leaks.all_text(notebook)})


def test_trivial_and_public_lines_are_no_leak():
    lesson = lessons.parse(TEXT.replace(ANSWER, "numbers = [1.0, 2.0, 6.0]"), GOLDEN / "01_tiny.py")
    leaks.refuse_leaks([lesson], {"course/x": "numbers = [1.0, 2.0, 6.0]\nreturn total\n"})


# --- building ---------------------------------------------------------------------------------


def test_build_makes_everything_once(checkout, runs, capsys):
    assert build() == 0
    made = snapshot(checkout)
    names = {path.relative_to(checkout).as_posix() for path in made}
    assert names - set(WRITTEN) == {
        "course/01_tiny.ipynb",
        "course/START_HERE.md",
        "course/_toc.yml",
        "course/cite.md",
        "course/index.md",
        "course/instructors.md",
        "course/instructors_01.md",
        "course/licence.md",
        "course/part_densities.md",
        "course/references.md",
        "solutions/01_tiny.ipynb",
    }
    assert build(check=True) == 0
    capsys.readouterr()
    assert build() == 0
    assert snapshot(checkout) == made
    assert runs == ["01_tiny"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("check", [True, False])
def test_pages_are_made_once_in_a_build(check, checkout, runs, monkeypatch):
    build()
    calls, made = [], pages.made

    def counted(*arguments):
        calls.append(arguments)
        return made(*arguments)

    monkeypatch.setattr(pages, "made", counted)
    assert build(check=check) == 0
    assert len(calls) == 1


def test_the_student_side_is_fast(checkout, runs):
    build()
    edit(checkout / "solutions" / "01_tiny.py", "One number stands", "A number stands")
    start = time.process_time()
    assert build(["01"], execute=False) == 0
    assert time.process_time() - start < 1.0


def test_pages_list_the_lessons(checkout, runs):
    build()
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("| 01"))
    assert "[The mean of three numbers](course/01_tiny.ipynb)" in row
    assert "What a mean is, and" in row and "| 8 |" in row and "Open in Colab" in row
    assert readme.startswith("# Course\n\n<!--") and readme.endswith("-->\n\nEnd.\n")
    index = (checkout / "course" / "index.md").read_text(encoding="utf-8")
    assert "### [Densities](part_densities.md)" in index and "(../solutions/01_tiny.ipynb)" in index
    toc = yaml.safe_load((checkout / "course" / "_toc.yml").read_text(encoding="utf-8"))
    assert toc["format"] == "jb-book" and toc["root"] == "course/index"
    first, _, last = toc["parts"]
    assert first == {
        "caption": "Densities",
        "chapters": [
            {"file": "course/part_densities", "title": "Overview"},
            {"file": "solutions/01_tiny"},
        ],
    }
    assert last == {
        "caption": "For instructors",
        "chapters": [
            {"file": "course/instructors", "title": "Overview"},
            {"file": "course/instructors_01", "title": "Teaching lesson 01"},
        ],
    }


def test_what_is_written_by_hand_stays(checkout, runs):
    build()
    path = checkout / "course" / "instructors_01.md"
    edit(path, "<!-- mistakes:begin -->", "By hand.\n\n<!-- mistakes:begin -->")
    by_hand = path.read_text(encoding="utf-8")
    assert "- **You return the median.** It forgets." in by_hand
    assert build(check=True) == 0
    edit(checkout / "solutions" / "01_tiny.py", "### A mean", "### The mean")
    assert build(execute=False) == 0
    assert path.read_text(encoding="utf-8") == by_hand.replace("A mean", "The mean")


MARKS = {
    "gone": (END, ""),
    "twice": (END, f"{END}\n{END}"),
    "crossed": (f"{BEGIN}\n{END}", f"{END}\n{BEGIN}"),
}


@pytest.mark.parametrize("case", MARKS)
def test_a_page_without_its_marks_is_refused(case, checkout, runs):
    edit(checkout / "README.md", *MARKS[case])
    with pytest.raises(CourseError, match=r"README.md must have the lines <!-- lessons:begin -->"):
        build()


def test_who_wrote_the_course_is_a_body_or_a_person(checkout, runs):
    persons = """
  - name: The School
  - family-names: Beauvoir
    given-names: Simone
    name-particle: de
  - family-names: King
    given-names: Martin Luther
    name-suffix: Jr."""
    edit(checkout / "CITATION.cff", "\n  - name: The dlcourse authors", persons)
    assert build() == 0
    page = (checkout / "course" / "cite.md").read_text(encoding="utf-8")
    assert "The School, Simone de Beauvoir, Martin Luther King Jr. (2026). *" in page
    assert "author = {{The School} and de Beauvoir, Simone and King, Jr., Martin Luther}" in page


UNREADABLE = {
    "author": ("CITATION.cff", "name: The dlcourse", "alias: The dlcourse", "has the author"),
    "no author": ("CITATION.cff", "authors:\n  - name: The", "members:\n  - name: The", "has no a"),
    "yaml": ("CITATION.cff", "title: ", "title: [", r"cannot be read \(while parsing a flow seq"),
    "brace": ("course/references.bib", "{Means}", "{Means", r"cannot be read \(syntax error in l"),
    "key": ("course/references.bib", "@misc", "@misc{doe2020}\n@misc", "cannot be read .repeated"),
    "work": ("course/references.bib", "author = {Doe, Jo}, ", "", ": doe2020 has no author"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_written_by_hand_and_cannot_be_read_is_named(case, checkout, runs):
    name, old, new, says = UNREADABLE[case]
    edit(checkout / name, old, new)
    with pytest.raises(CourseError, match=rf"^{name}:? ?{says}") as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["README.md", "course/index.md", "course/references.bib"])
def test_a_page_that_is_not_utf_8_is_named(name, checkout, runs):
    build()
    (checkout / name).write_bytes("# Café".encode("latin-1"))
    for check in (True, False):
        with pytest.raises(CourseError, match=f"^{name} is not UTF-8 text: save it with "):
            build(check=check)


def test_a_table_of_contents_that_is_not_utf_8_is_made_again(checkout, runs):
    build()
    (checkout / "course" / "_toc.yml").write_bytes(b"# Caf\xe9\n")
    assert build(check=True) == 1
    assert build() == 0
    assert build(check=True) == 0


def test_without_pybtex_there_is_a_sentence(checkout, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pybtex.database", None)
    with pytest.raises(CourseError, match=r"^The pages need pybtex, .*dlcourse\[dev\]"):
        build()


def test_the_first_figure_of_a_lesson_is_on_the_front_page(checkout, monkeypatch):
    def pretend(notebook, lesson):
        notebook = json.loads(json.dumps(notebook))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, 1):
            cell["execution_count"] = number
        data = {"image/png": "aGk=\n"}
        code[-1]["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
        return execute.Execution(notebook, 1.0, [])

    monkeypatch.setattr(building, "run_cells", pretend)
    monkeypatch.setattr(pages, "FRONT", "01")
    assert build() == 0
    assert (checkout / "course" / "front.png").read_bytes() == b"hi"
    index = (checkout / "course" / "index.md").read_text(encoding="utf-8")
    assert "![A red dot.](front.png)\n\n*From [lesson 01](../solutions/01_tiny.ipynb).*" in index
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    assert "![A red dot.](course/front.png)" in readme and "(solutions/01_tiny.ipynb)" in readme
    assert build(check=True) == 0
    (checkout / "course" / "front.png").write_bytes(b"ho")
    assert build(check=True) == 1


def test_changed_text_keeps_the_outputs_and_changed_code_does_not(checkout, runs):
    source, solved = checkout / "solutions" / "01_tiny.py", checkout / "solutions" / "01_tiny.ipynb"
    build()
    edit(source, "One number stands", "A number stands")
    assert build(check=True) == 1
    assert build() == 0
    assert runs == ["01_tiny"]
    assert "A number stands" in solved.read_text("utf-8") and "run 1" in solved.read_text("utf-8")
    edit(source, "numbers = [1.0", "numbers = [2.0")
    assert build(execute=False) == 0
    assert "run 1" in solved.read_text("utf-8")
    assert build(check=True) == 1
    assert build() == 0
    assert runs == ["01_tiny"] * 2
    assert "run 2" in solved.read_text("utf-8") and "run 1" not in solved.read_text("utf-8")
    assert build(check=True) == 0


def test_a_new_address_runs_nothing(checkout, runs):
    build()
    edit(checkout / "pyproject.toml", "example/course", "school/course")
    assert build(check=True) == 1
    assert build() == 0
    assert runs == ["01_tiny"]
    everything = b"".join(snapshot(checkout).values())
    assert b"example/course" not in everything and b"school/course" in everything


def test_a_source_that_breaks_a_rule_writes_nothing(checkout, runs):
    build()
    before = snapshot(checkout)
    source = checkout / "solutions" / "01_tiny.py"
    edit(source, "    # END SOLUTION\n", "")
    with pytest.raises(SourceError, match="not closed"):
        build()
    source.write_text(TEXT, encoding="utf-8")
    assert snapshot(checkout) == before


def refused_output(output, monkeypatch):
    def pretend(notebook, lesson):
        notebook = json.loads(json.dumps(notebook))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, 1):
            cell["execution_count"] = number
        code[-2]["outputs"] = [output]
        return execute.Execution(notebook, 1.0, [])

    monkeypatch.setattr(building, "run_cells", pretend)


OUTPUTS = {
    "stderr": ({"output_type": "stream", "name": "stderr", "text": "oh\n"}, r"stderr \(oh\)"),
    "error": (
        {"output_type": "error", "ename": "A", "evalue": "b", "traceback": []},
        "raises A: b",
    ),
    "warning": (
        {"output_type": "stream", "name": "stdout", "text": "x\n/a.py:1: UserWarning: dear me\n"},
        "a warning .*dear me",
    ),
    "figure": (
        {"output_type": "display_data", "data": {"image/png": "aGk="}, "metadata": {}},
        "a figure without alt text",
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_nobody_should_meet_are_refused(case, checkout, runs, monkeypatch):
    build()
    before = snapshot(checkout)
    output, words = OUTPUTS[case]
    refused_output(output, monkeypatch)
    source = checkout / "solutions" / "01_tiny.py"
    edit(source, "numbers = [1.0", "numbers = [2.0")
    line = TEXT.split("\n").index('# %% tags=["verdict"]') + 1
    with pytest.raises(SourceError, match=rf"solutions/01_tiny.py:{line}: .*{words}"):
        build()
    source.write_text(TEXT, encoding="utf-8")
    assert snapshot(checkout) == before


def test_a_lost_alt_text_is_found_without_a_run(checkout, monkeypatch):
    def pretend(notebook, lesson):
        notebook = json.loads(json.dumps(notebook))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, 1):
            cell["execution_count"] = number
        code[-1]["outputs"] = [OUTPUTS["figure"][0]]
        return execute.Execution(notebook, 1.0, [])

    monkeypatch.setattr(building, "run_cells", pretend)
    assert build() == 0
    edit(checkout / "solutions" / "01_tiny.py", ' alt="A red dot."', "")
    for check in (True, False):
        with pytest.raises(SourceError, match="a figure without alt text"):
            build(check=check)


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    files.write(path, b"old")

    def stop(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, b"new")
    assert snapshot(tmp_path) == {path: b"old"}


def test_an_interrupted_run_leaves_the_old_notebooks_whole(checkout, runs, monkeypatch):
    build()
    before = snapshot(checkout)
    source = checkout / "solutions" / "01_tiny.py"
    edit(source, "numbers = [1.0", "numbers = [2.0")

    def stop(notebook, lesson):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "run_cells", stop)
    with pytest.raises(KeyboardInterrupt):
        build()
    source.write_text(TEXT, encoding="utf-8")
    assert snapshot(checkout) == before


def test_outside_a_checkout_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(paths, "repository_root", lambda: None)
    with pytest.raises(CourseError, match="clone the repository"):
        build()


def test_a_lesson_that_is_not_there(checkout, runs):
    with pytest.raises(CourseError, match="no lesson '07'"):
        build(["07"])


# --- a student's work -------------------------------------------------------------------------


def work_in(path):
    """Edit the exercise as a student does, and save as JupyterLab does."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[5].source += "\n    return 3.0  # my own work"
    nbformat.write(notebook, path)
    return path.read_bytes()


def test_a_students_work_is_left_alone(checkout, runs, capsys):
    build()
    path = checkout / "course" / "01_tiny.ipynb"
    mine = work_in(path)
    edit(checkout / "solutions" / "01_tiny.py", "One number stands", "A number stands")
    capsys.readouterr()
    assert build() == 1
    assert "course/01_tiny.ipynb holds your work and was left as it is" in capsys.readouterr().out
    assert path.read_bytes() == mine
    assert len(list(path.parent.glob("*.ipynb"))) == 1


def test_force_keeps_a_copy_and_never_overwrites_one(checkout, runs):
    build()
    path = checkout / "course" / "01_tiny.ipynb"
    fresh = path.read_bytes()
    kept = []
    for number in (1, 2, 3):
        kept.append(work_in(path) if number < 3 else b"{ not a notebook")
        path.write_bytes(kept[-1])
        assert build(force=True) == 0
        assert path.read_bytes() == fresh
        copies = [path.with_name(f"01_tiny.mine-{n}.ipynb") for n in range(1, number + 1)]
        assert [copy.read_bytes() for copy in copies] == kept
    assert build(check=True) == 0  # copies are no orphans
    assert build(force=True) == 0
    assert len(list(path.parent.glob("*.ipynb"))) == 4  # nothing edited, nothing to keep


def test_a_copy_that_cannot_be_finished_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    path.write_bytes(b"work")
    real = Path.open

    def full(self, *arguments, **options):
        file = real(self, *arguments, **options)
        if ".mine-" in self.name:
            file.close()  # what is written then raises, as on a full disk
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ValueError, match="closed file"):
        files.keep_copy(path)
    assert snapshot(tmp_path) == {path: b"work"}


def test_reset_keeps_a_copy(checkout, runs):
    build()
    path = checkout / "course" / "01_tiny.ipynb"
    fresh = path.read_bytes()
    said, open_tab = reset("01").splitlines()
    assert said == "course/01_tiny.ipynb is as new."
    assert "File > Reload Notebook from Disk" in open_tab and "restart the kernel" in open_tab
    mine = work_in(path)
    assert "your work is kept in course/01_tiny.mine-1.ipynb" in reset("1")
    assert path.read_bytes() == fresh
    assert path.with_name("01_tiny.mine-1.ipynb").read_bytes() == mine


def test_an_attachment_is_work(checkout, runs):
    build()
    path = checkout / "course" / "01_tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0]["attachments"] = {"photo.png": {"image/png": "aGk="}}
    nbformat.write(notebook, path)
    assert building.is_edited(path.read_bytes())


def test_what_git_does_not_have_is_somebodys_own(checkout, runs, capsys):
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    build()
    for name in ("notes.ipynb", "answers.py", "01_tiny.mine-1.ipynb"):
        (checkout / "course" / name).write_text("{}", encoding="utf-8")
    assert build(check=True) == 0
    subprocess.run([*git, "add", "course/answers.py"], check=True)
    capsys.readouterr()
    assert build(check=True) == 1
    assert capsys.readouterr().out.startswith("course/answers.py: no source makes it: move it")


def test_outputs_alone_are_no_work(checkout, runs):
    build()
    path = checkout / "course" / "01_tiny.ipynb"
    fresh = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="ready")]
    notebook.cells[2].execution_count = 1
    notebook.metadata.language_info.version = "3.12"
    nbformat.write(notebook, path)
    assert not building.is_edited(path.read_bytes())
    assert build(check=True) == 1
    assert build() == 0
    assert path.read_bytes() == fresh


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"cells": 3}', b'{"cells": [], "metadata": []}', b"\xff", b"{}"]
)
def test_a_course_notebook_that_cannot_be_read_counts_as_work(data, checkout, runs):
    build()
    path = checkout / "course" / "01_tiny.ipynb"
    path.write_bytes(data)
    assert build(check=True) == 1
    assert build() == 1
    assert path.read_bytes() == data


# --- checking ---------------------------------------------------------------------------------


def damage(root, name, change):
    path = root / name
    if change is None:
        path.unlink()
    elif isinstance(change, tuple):
        edit(path, *change)
    else:
        path.write_text(change, encoding="utf-8")


STALE = {
    "student gone": ("course/01_tiny.ipynb", None, "course/01_tiny.ipynb: not there"),
    "solution gone": ("solutions/01_tiny.ipynb", None, "solutions/01_tiny.ipynb: not there"),
    "not a notebook": ("solutions/01_tiny.ipynb", "{", "solutions/01_tiny.ipynb: not a notebook"),
    "student text": (
        "course/01_tiny.ipynb",
        ("One number stands", "Some number stands"),
        r"course/01_tiny.ipynb: cell 1 \(solutions/01_tiny.py:\d+\) is not what",
    ),
    "solution text": (
        "solutions/01_tiny.ipynb",
        (ANSWER, "total = 0"),
        r"solutions/01_tiny.ipynb: cell 6 \(solutions/01_tiny.py:\d+\) is not what",
    ),
    "code changed": (
        "solutions/01_tiny.py",
        ("numbers = [1.0", "numbers = [2.0"),
        r"solutions/01_tiny.ipynb: outputs are older than the code of the source",
    ),
    "metadata": (
        "course/01_tiny.ipynb",
        ('"name": "python3"', '"name": "python4"'),
        "course/01_tiny.ipynb: metadata or layout",
    ),
    "layout": (
        "course/01_tiny.ipynb",
        ("\n}\n", "\n}"),
        "course/01_tiny.ipynb: metadata or layout",
    ),
    "not run": (
        "solutions/01_tiny.ipynb",
        ('"execution_count": 2', '"execution_count": null'),
        "solutions/01_tiny.ipynb: has cells that were not run",
    ),
    "student outputs": (
        "course/01_tiny.ipynb",
        ('"outputs": []', '"outputs": [{"name":"stdout","output_type":"stream","text":["a"]}]'),
        r"course/01_tiny.ipynb: cell 3 \(.*\) has outputs",
    ),
    "readme": ("README.md", ("What a mean is", "What a median is"), "README.md: out of date"),
    "index": ("course/index.md", ("Densities", "Flows"), "course/index.md: out of date"),
    "part": (
        "course/part_densities.md",
        ("a mean by hand", "it"),
        "part_densities.md: out of date",
    ),
    "part gone": ("course/part_densities.md", None, "course/part_densities.md: out of date"),
    "mistakes": (
        "course/instructors_01.md",
        ("the median", "a median"),
        "course/instructors_01.md: out of date",
    ),
    "old part": ("course/part_flows.md", "# Flows", "course/part_flows.md: no source makes it"),
    "toc": ("course/_toc.yml", ("Densities", "Flows"), "course/_toc.yml: out of date"),
    "toc gone": ("course/_toc.yml", None, "course/_toc.yml: out of date"),
    "orphan": ("course/02_gone.ipynb", "{}", "course/02_gone.ipynb: a notebook without source"),
    "another notebook": ("course/extra.ipynb", "{}", "course/extra.ipynb: no source makes it"),
    "a script": ("course/answers.py", "1", "course/answers.py: no source makes it"),
    "outputs edited": (
        "solutions/01_tiny.ipynb",
        ("run 1", "run 9"),
        "solutions/01_tiny.ipynb: code or outputs were changed after the run",
    ),
    "work without source": (
        "course/02_gone.ipynb",
        "{}",
        "holds your work: move it elsewhere",
    ),
    "old solution": (
        "solutions/02_gone.ipynb",
        "{}",
        "solutions/02_gone.ipynb: a notebook without",
    ),
}


@pytest.mark.parametrize("case", STALE)
def test_what_is_out_of_date_is_named(case, checkout, runs, capsys):
    build()
    name, change, words = STALE[case]
    damage(checkout, name, change)
    before = snapshot(checkout)
    capsys.readouterr()
    assert build(check=True) == 1
    out = capsys.readouterr().out
    assert re.search(words, out)
    assert len(out.splitlines()) < 40
    assert snapshot(checkout) == before


def test_the_difference_is_shown(checkout, runs, capsys):
    build()
    edit(checkout / "solutions" / "01_tiny.py", "One number stands", "A number stands")
    capsys.readouterr()
    assert build(check=True) == 1
    out = capsys.readouterr().out
    assert "    -One number stands" in out and "    +A number stands" in out
    assert out.splitlines()[-1].startswith("Next: `dlcourse build` makes these files again")


# --- the kernel -------------------------------------------------------------------------------


def test_a_lesson_is_executed_and_its_outputs_are_fit_to_keep(checkout, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    home = checkout / "home"
    monkeypatch.setenv("DLCOURSE_HOME", str(home))
    source = checkout / "solutions" / "01_tiny.py"
    probe = "import os, sys\nprint(os.environ['MPLBACKEND'], os.getcwd(), sys.executable)\n"
    probe += "print(os.environ['DLCOURSE_HOME'])\n"
    edit(source, "print(object())", f"print(object())\n{probe}")
    assert build() == 0
    solved = json.loads((checkout / "solutions" / "01_tiny.ipynb").read_text("utf-8"))
    nbformat.validate(nbformat.from_dict(solved))
    code = [cell for cell in solved["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all("execution" not in cell["metadata"] for cell in code)
    figure, printed = code[-1]["outputs"]
    assert list(figure["data"]) == ["image/png"]
    lines = "".join(printed["text"]).splitlines()
    assert lines[0] == "<object object at 0x...>"
    assert lines[1].startswith("module://matplotlib_inline.backend_inline")
    assert str(checkout / "solutions") in lines[1]
    assert lines[2] != str(home) and not home.exists()
    assert solved["metadata"]["dlcourse"]["environment"]["python"].startswith("3.")
    assert solved["metadata"]["language_info"] == {"name": "python"}
    assert build(check=True) == 0

    before = snapshot(checkout)
    edit(source, "record = {", "record = undefined + {")
    with pytest.raises(
        CourseError, match=r"01_tiny.py:\d+: the cell raises NameError: name 'undef"
    ):
        build()
    source.write_bytes(before[source])
    assert snapshot(checkout) == before


def test_what_changes_from_run_to_run_is_dropped():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "7"}, "text/plain": "Box()"}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "a"},
        {"output_type": "stream", "name": "stdout", "text": "b at 0x7f00aa>\n"},
        {"output_type": "display_data", "data": view, "metadata": {}},
        {"output_type": "display_data", "data": {**view, "image/png": "aGk="}, "metadata": {}},
    ]
    kept = execute.fit_to_keep(outputs)
    assert [sorted(o.get("data", {})) for o in kept] == [[], ["image/png", "text/plain"]]
    assert kept[0]["text"] == "ab at 0x...>\n"
