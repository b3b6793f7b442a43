"""Lesson sources: what is read from a good one, and the sentence for each way to break one."""

import inspect
import tomllib
import traceback
from pathlib import Path

import jupytext
import pytest

from dlcourse_utils import lessons, paths
from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import SourceError, parse

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "01_tiny.py"
TEXT = GOLDEN.read_text(encoding="utf-8")
PATH = Path("solutions/01_tiny.py")
STATEMENT = '# %% [markdown] exercise="01.1" minutes=5 difficulty=2'
REGION = """    # BEGIN SOLUTION
    total = sum(x, start=0.0)
    return total / len(x)
    # END SOLUTION
"""


def test_a_lesson_is_read():
    lesson = parse(TEXT, PATH)
    assert (lesson.stem, lesson.number, lesson.minutes, lesson.needs) == (
        "01_tiny",
        "01",
        8,
        "none",
    )
    assert lesson.objectives == ("take a mean by hand", "say what an outlier does to it")
    assert [cell.kind for cell in lesson.cells].count("markdown") == 3
    task = lesson.exercises["01.1"]
    assert (task.title, task.minutes, task.difficulty) == ("A mean", 5, 2)
    assert task.hints == ("add first.", "then divide\nby their number.")
    assert task.names == ("mean",)
    head = 'def mean(x):\n    """Mean of a list of numbers."""\n'
    assert task.stub == f"{head}    ..."
    assert task.solution == f"{head}    total = sum(x, start=0.0)\n    return total / len(x)"
    assert [text.strip() for _, text in task.solution_lines][1] == "return total / len(x)"
    number = task.solution_lines[1][0]
    assert TEXT.splitlines()[number - 1] == "    return total / len(x)"


def test_a_header_may_allow_more_seconds():
    assert parse(TEXT, PATH).seconds == lessons.MOST_SECONDS
    more = TEXT.replace("# part:", "# seconds: 90\n# part:")
    assert parse(more, PATH).seconds == 90
    with pytest.raises(SourceError, match="'seconds' is 'ninety', expected a whole number"):
        parse(TEXT.replace("# part:", "# seconds: ninety\n# part:"), PATH)


# Each case: text replaced, its replacement, text of the line that the message must name, words.
BROKEN = {
    "no header": ("# ---\n# title", "# title", None, "no header"),
    "open header": (
        "# ---\n\n# %% [markdown]\n# # The",
        "# %% [markdown]\n# # The",
        None,
        "header",
    ),
    "not yaml": ("# part: Densities", "# part: [Densities", "# summary", "not YAML"),
    "tab in yaml": ("# part: Densities", "# part:\tDensities: x", "# part", "not YAML"),
    "missing key": ("# part: Densities\n", "", None, "without 'part'"),
    "unknown key": ("# part:", "# colour: red\n# part:", "# colour", "unknown header key 'colour'"),
    "minutes as text": ("# minutes: 8", "# minutes: long", "# minutes", "a whole number"),
    "minutes as bool": ("# minutes: 8", "# minutes: true", "# minutes", "a whole number"),
    "objective with colon": ("by hand\n", "by hand: so\n", "# objectives", "quote"),
    "no objectives": ("minutes: 8", "minutes: 0", "# minutes", "'minutes' is 0"),
    "other title": ("# # The mean of", "# # A mean of", "# %% [markdown]", "without the title"),
    "text before cells": ("# ---\n\n", "# ---\nx = 1\n", "x = 1", "before the first cell"),
    "magic": ("# %% tags", "# %%time tags", "# %%time", "does not start a cell"),
    "no space": ("# %% tags", "#%% tags", "#%%", "does not start a cell"),
    "raw cell": ("# %% [markdown] think", "# %% [raw] think", "# %% [raw]", "type [raw]"),
    "cell title": ("# %% tags", "# %% numbers tags", "# %% numbers", "no option"),
    "unknown option": ("# %% tags", "# %% colour=1 tags", "colour=1", "unknown option 'colour'"),
    "option of code": ("# %% tags", "# %% minutes=5 tags", "# %% minutes", "'minutes' of a code"),
    "option of text": ("] think=true", "] tags=[]", "] tags=[]", "'tags' of a markdown"),
    "option twice": ("think=true", "think=true think=true", "think=true", "twice"),
    "python value": ("think=true", "think=True", "think=True", "true or false"),
    "wrong type": ("minutes=5 diff", 'minutes="5" diff', 'minutes="5"', "a whole number"),
    "empty alt": ('alt="A red dot."', 'alt=""', 'alt=""', "a sentence"),
    "difficulty": ("difficulty=2", "difficulty=4", "difficulty=4", "out of range"),
    "unknown tag": ('["verdict"]', '["verdicts"]', '["verdicts"]', "context, verdict, widget"),
    "empty cell": ('\nmean = check("01.1", mean)', "", "# %%\n", "an empty cell"),
    "code in markdown": ("# One number", "One number", "One number", "does not start with '# '"),
    "directive": ("# One number", "# :::{note}", "# :::", "MyST directive"),
    "fenced directive": ("# One number", "# ```{note}", "# ```{", "MyST directive"),
    "role": ("# One number", "# A {term}`number`", "# A {term}", "MyST role"),
    "label": ("# One number", "# (mean)=\n# One", "# (mean)=", "MyST label"),
    "inline display maths": ("# $$\\bar", "# so\n# $$\\bar", "# $$\\bar", "blank lines"),
    "syntax": ("numbers = [", "numbers = = [", "numbers = =", "does not parse"),
    "unclosed": ("    # END SOLUTION\n", "", "# BEGIN SOLUTION", "not closed"),
    "unclosed by indentation": ("    # END", "  # END", "  # END", "another indentation"),
    "nested": (
        "    total =",
        "    # BEGIN SOLUTION\n    total =",
        "    # BEGIN SOLUTION\n    total",
        "inside the region",
    ),
    "stray end": ("    # BEGIN SOLUTION\n", "", "# END SOLUTION", "of no region"),
    "stray in text": ("# Return the", "# # BEGIN SOLUTION\n# Return", "# # BEGIN", "markdown"),
    "stray in code": ("numbers = [", "# BEGIN SOLUTION\nnumbers = [", "# BEGIN", "not closed"),
    "region outside": (
        "numbers = [1.0, 2.0, 6.0]",
        "# BEGIN SOLUTION\nnumbers = [1.0, 2.0, 6.0]\n# END SOLUTION",
        '# %% tags=["context"]',
        "outside an exercise",
    ),
    "misspelt": ("# BEGIN SOL", "#BEGIN SOL", "#BEGIN SOL", "misspelt"),
    "lower case": ("# END SOL", "# end sol", "# end sol", "misspelt"),
    "plural": ("BEGIN SOLUTION", "BEGIN SOLUTIONS", "SOLUTIONS", "misspelt"),
    "after code": ("=0.0)\n", "=0.0)  # END SOLUTION\n", "=0.0)", "misspelt"),
    "empty region": (
        REGION,
        "    # BEGIN SOLUTION\n\n    # END SOLUTION\n    return 1\n",
        "# BEGIN",
        "empty",
    ),
    "comment region": (
        REGION,
        "    # BEGIN SOLUTION\n    # x\n    # END SOLUTION\n",
        "# BEGIN",
        "empty",
    ),
    "no region": (
        REGION,
        "    return sum(x) / len(x)\n",
        '# %% exercise="01.1"',
        "without solution",
    ),
    "stub does not parse": (
        REGION,
        "    return (\n    # BEGIN SOLUTION\n    sum(x) / len(x))\n    # END SOLUTION\n",
        '# %% exercise="01.1"',
        "a stub that does not parse",
    ),
    "other signature": (
        REGION,
        REGION.replace("    # END", "def mean(x, y):\n    pass\n    # END"),
        '# %% exercise="01.1"',
        "changes the signature of 'mean'",
    ),
    "other docstring": (
        f'    """Mean of a list of numbers."""\n{REGION}',
        REGION.replace("    total", '    """Mean of a list of numbers."""\n    total'),
        '# %% exercise="01.1"',
        "changes the docstring of 'mean'",
    ),
    "name in the region only": (
        REGION,
        REGION + "\n\n# BEGIN SOLUTION\nhalf = 0.5\n# END SOLUTION\n",
        '# %% exercise="01.1"',
        "defines 'half' in its region only",
    ),
    "without check": ('mean = check("01.1", mean)', "mean", STATEMENT, "without check"),
    "check of another": ('check("01.1", mean)', 'check("01.2", mean)', "01.2", "before its code"),
    "check before code": (
        STATEMENT,
        '# %%\nmean = check("01.1", max)\n\n' + STATEMENT,
        'check("01.1", max)',
        "before its code",
    ),
    "check in context": (
        "numbers = [",
        'check("01.1", max)\nnumbers = [',
        '# %% tags=["context"]',
        "a cell of its own",
    ),
    "one hint": ("# Hint: then", "# And then", STATEMENT, "with 1 hints"),
    "no minutes": (" minutes=5 difficulty", " difficulty", "difficulty=2", "without minutes"),
    "no difficulty": (" difficulty=2", "", "minutes=5", "without minutes or difficulty"),
    "no heading": ("# ### A mean\n", "", STATEMENT, "without heading"),
    "other lesson": (STATEMENT, STATEMENT.replace("01.1", "02.1"), "02.1", "expected 01.1"),
    "odd id": (STATEMENT, STATEMENT.replace("01.1", "01.one"), "01.one", "expected 01.1"),
    "no statement": (
        STATEMENT,
        STATEMENT.replace("01.1", "01.2"),
        '# %% exercise="01.1"',
        "without its statement",
    ),
    "code twice": (
        "# %% [markdown] think",
        '# %% exercise="01.1"\npass\n\n# %% [markdown] think',
        'exercise="01.1"\npass',
        "again (first on line 47)",
    ),
    "no code": (
        "# %% [markdown] think=true",
        STATEMENT.replace("01.1", "01.2")
        + "\n# ### B\n#\n# Hint: a\n#\n# Hint: b\n\n# %% [markdown] think=true",
        '"01.2"',
        "without code",
    ),
    "tagged context": (
        '# %% exercise="01.1"',
        '# %% exercise="01.1" tags=["context"]',
        '# %% exercise="01.1"',
        "tagged context",
    ),
    "hint elsewhere": (
        "# One number",
        "# Hint: no\n#\n# x",
        "# %% [markdown]\n# # The",
        "hint outside",
    ),
    "hint in a paragraph": ("# by their", "# Hint: by their", STATEMENT, "blank line above"),
    "no answer": ("# Answer: up", "# Up", "think=true", "without its answer"),
    "answer elsewhere": (" think=true", "", "# %% [markdown]\n# **Think", "think=true on its cell"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_source_names_its_line(case):
    old, new, culprit, words = BROKEN[case]
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    line = 1 if culprit is None else text[: text.index(culprit)].count("\n") + 1
    with pytest.raises(SourceError) as caught:
        parse(text, PATH)
    message = str(caught.value)
    assert message.startswith(f"solutions/01_tiny.py:{line}: ")
    assert words in message
    assert ", expected " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "comment",
    [
        "# solutions are welcome",
        "# the solution begins here",
        "# the end, a solution",
        "# BEGINNING",
    ],
)
def test_a_comment_is_no_marker(comment):
    text = TEXT.replace("numbers = [", f"{comment}\nnumbers = [")
    assert comment in parse(text, PATH).cells[1].source


def test_a_region_may_be_at_any_indentation_and_there_may_be_two():
    solved = """    if x:
        # BEGIN SOLUTION
        y = 1
        # END SOLUTION
    # BEGIN SOLUTION
    return sum(x) / len(x)
    # END SOLUTION
"""
    stub = parse(TEXT.replace(REGION, solved), PATH).exercises["01.1"].stub
    assert stub.endswith('numbers."""\n    if x:\n        ...\n    ...')


@pytest.mark.parametrize("name", ["tiny", "1_tiny", "01-tiny", "01_Tiny"])
def test_a_lesson_has_a_number_and_a_name(name):
    with pytest.raises(SourceError, match="two digits"):
        parse(TEXT, Path(f"solutions/{name}.py"))


def test_a_source_that_is_not_text_is_refused(tmp_path):
    source = tmp_path / "01_tiny.py"
    source.write_bytes(b"# ---\n\xff")
    with pytest.raises(SourceError, match="UTF-8"):
        lessons.load(source)


# --- finding ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "solutions_dir", lambda: tmp_path)
    (tmp_path / "01_tiny.py").write_text(TEXT, encoding="utf-8")
    (tmp_path / "notes.py").write_text("", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["01", "1", 1, "01_tiny", "01.1"])
def test_a_lesson_is_found(folder, name):
    assert lessons.load(name).stem == "01_tiny"
    assert lessons.sources() == [folder / "01_tiny.py"]
    assert lessons.solution_text("01.1").endswith("return total / len(x)")


@pytest.mark.parametrize("name", ["02", "nonsense", "", "02.1", "nowhere/01_tiny.py"])
def test_a_lesson_that_is_not_there_gets_a_sentence(folder, name):
    with pytest.raises(CourseError, match=r"There is no (lesson|exercise|file)"):
        lessons.load(name)


def test_an_exercise_that_is_not_there_gets_a_sentence(folder):
    with pytest.raises(CourseError, match=r"no exercise '01.7'; it has: 01.1"):
        lessons.solution_text("01.7")


@pytest.mark.parametrize("name", ["2_flows.py", "02-flows.py", "02_Flows.py"])
def test_a_misnamed_lesson_is_refused(name, folder):
    (folder / name).write_text(TEXT, encoding="utf-8")
    with pytest.raises(SourceError, match=f"{name}:1: a lesson named"):
        lessons.sources()


def test_two_lessons_of_one_number_are_refused(folder):
    (folder / "01_other.py").write_text(TEXT, encoding="utf-8")
    with pytest.raises(CourseError, match=r"01_other.py, 01_tiny.py"):
        lessons.sources()


# --- references -------------------------------------------------------------------------------


def test_the_reference_is_the_solved_source():
    lesson = lessons.load(GOLDEN)
    scope = lessons.reference(lesson)
    assert scope["mean"]([1.0, 2.0, 6.0]) == 3.0
    assert "record" not in scope  # neither context nor exercise
    assert "return total / len(x)" in inspect.getsource(scope["mean"])
    assert lessons.reference(lesson)["numbers"] is not scope["numbers"]


def test_a_traceback_through_a_reference_shows_its_line():
    scope = lessons.reference(lessons.load(GOLDEN))
    try:
        scope["mean"]([])
    except ZeroDivisionError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
    assert (Path(last.filename).name, last.line) == ("01_tiny.py", "return total / len(x)")


def test_the_stub_is_defined_beside_the_reference():
    lesson = lessons.load(GOLDEN)
    scope = lessons.reference(lesson)
    stub = lessons.stub_namespace(lesson, "01.1", scope)["mean"]
    assert stub([1.0]) is None
    assert inspect.getsource(stub).rstrip().endswith("...")
    assert scope["mean"]([1.0]) == 1.0
    assert lessons.stub_namespace(lesson, "01.1")["mean"]([1.0]) is None


def test_a_reference_stops_after_the_exercise_asked_for():
    text = TEXT + STATEMENT.replace("01.1", "01.2") + "\n# ### B\n#\n# Hint: a\n#\n# Hint: b\n\n"
    text += '# %% exercise="01.2"\nlast = 1\n# BEGIN SOLUTION\nlast = 2\n# END SOLUTION\n\n'
    lesson = parse(text + '# %%\ncheck("01.2", last)\n', PATH)
    assert "last" not in lessons.reference(lesson, upto="01.1")
    assert lessons.reference(lesson)["last"] == 2
    assert lessons.stub_namespace(lesson, "01.2")["last"] == 1


def test_dataclasses_work_in_a_reference():
    text = TEXT.replace(
        "numbers = [",
        "import dataclasses\n\n@dataclasses.dataclass\nclass A:\n    a: 'int'\n\nnumbers = [",
    )
    assert lessons.reference(parse(text, PATH))["A"](1).a == 1


def test_a_context_cell_that_raises_names_its_line():
    lesson = parse(TEXT.replace("numbers = [", "1 / 0\nnumbers = ["), PATH)
    with pytest.raises(SourceError, match=r"01_tiny.py:24: the cell raises ZeroDivisionError"):
        lessons.reference(lesson)


# --- jupytext ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [GOLDEN, *lessons.sources()], ids=lambda path: path.stem)
def test_a_source_saved_by_jupyterlab_stays_as_it_was(source):
    config = tomllib.loads((ROOT / "solutions" / "jupytext.toml").read_text(encoding="utf-8"))
    assert config.pop("formats") == "py:percent"  # not paired: see the file
    notebook = jupytext.read(source)
    notebook.metadata.setdefault("jupytext", {}).update(config)
    assert jupytext.writes(notebook, "py:percent") == source.read_text(encoding="utf-8")


@pytest.mark.parametrize("source", [GOLDEN, *lessons.sources()], ids=lambda path: path.stem)
def test_jupytext_reads_the_same_cells(source):
    theirs = [cell for cell in jupytext.read(source).cells if cell.cell_type != "raw"]  # no header
    mine = lessons.load(source).cells
    assert [cell.source for cell in mine] == [cell.source for cell in theirs]
    assert [cell.kind for cell in mine] == [cell.cell_type for cell in theirs]
