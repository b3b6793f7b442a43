"""The pages that people read: what is generated is whole, what is written by hand is true."""

import os
import re
import shutil
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml
from jupyter_server.services.contents.filemanager import FileContentsManager
from jupyterlab.labapp import LabApp
from jupyterlab_server import settings_utils
from pybtex.database import parse_file

from dlcourse_utils import __version__, blocks, cli, lessons
from dlcourse_utils.checks import engine, report
from dlcourse_utils.lessons import SourceError
from tests.environments import ROOT, committed

COURSE = ROOT / "course"
LESSONS = [lessons.load(path) for path in lessons.sources()]
EXERCISES = [id for lesson in LESSONS for id in lesson.exercises]
PAGES = [ROOT / "README.md", *sorted(COURSE.glob("*.md"))]
WORKS = parse_file(COURSE / "references.bib", bib_format="bibtex").entries
# Words in capitals that are names, not terms.
NAMES = {"BlackJAX", "COSMOS", "CPU", "GalSim", "NaN", "NumPy", "PLUS", "SDSS"}

by_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def flat(text):
    """Text on one line in small letters, without the marks of Markdown and LaTeX."""
    return " ".join(re.sub(r"[*$`]", "", text).split()).casefold()


def prose(lesson):
    """The text of a lesson, without code, formulas and references."""
    text = "\n\n".join(cell.source for cell in lesson.cells if cell.kind == "markdown")
    return re.sub(r"`[^`]*`|\$[^$]*\$", "", text.partition("## References")[0])


# --- all pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    found = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    inside = [link for link in found if not link.startswith("https://")]
    assert [link for link in inside if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_reads_as_plain_markdown(path):
    """GitHub and JupyterLab show what only MyST understands as raw text."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^#+ .*", text, re.MULTILINE)[0].startswith("# ")
    assert not re.search(r"^(`{3,}|~{3,})\{|\{[a-z:]+\}`|^\([\w-]+\)=", text, re.MULTILINE)
    assert ":::" not in text
    assert all(len(alt.split()) > 3 for alt in re.findall(r"(?<!\[)!\[([^]]*)\]", text))


def test_every_page_is_in_the_table_of_contents():
    toc = yaml.safe_load(read("course/_toc.yml"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert len(set(chapters)) == len(chapters)
    assert all((ROOT / f"{name}.md").exists() or "solutions/" in name for name in chapters)
    pages = {f"course/{path.stem}" for path in PAGES[1:]} - {"course/START_HERE"}
    assert pages == {name for name in chapters if "solutions/" not in name} | {toc["root"]}
    assert {f"solutions/{lesson.stem}" for lesson in LESSONS} == set(chapters) - pages


@by_lesson
def test_a_lesson_is_on_all_pages_that_list_lessons(lesson):
    page = read(f"course/{blocks.part_page(lesson.part)}.md")
    assert page.startswith(f"# {lesson.part}\n\n")
    assert f"*{lesson.minutes} minutes, " in page
    for item in (lesson.title, lesson.summary, *lesson.objectives, *lesson.prerequisites):
        assert item in page
    for name in ("README.md", "course/START_HERE.md"):
        assert f"| {lesson.minutes} |" in read(name) and f"{lesson.stem}.ipynb)" in read(name)
    assert f"{lesson.summary} *{lesson.minutes} minutes*" in read("course/index.md")
    assert f"({blocks.teaching_page(lesson)}.md)" in read("course/instructors.md")


@pytest.mark.parametrize("path", sorted(COURSE.glob("*.md")), ids=lambda path: path.name)
def test_a_page_says_something_by_hand(path):
    text = path.read_text(encoding="utf-8")
    by_hand = re.sub(r"(?s)<!-- (\w+):begin -->.*?<!-- \1:end -->", "", text)
    assert len(by_hand.split()) >= 20


def test_the_front_figure_is_small_and_described():
    data = (COURSE / "front.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 150_000
    for name, folder in {"README.md": "course/", "course/index.md": ""}.items():
        assert re.search(rf"!\[\w[^]]{{50,}}\]\({folder}front\.png\)", read(name))


def test_the_newest_change_is_that_of_this_version():
    assert re.findall(r"^## (.*)", read("course/changes.md"), re.MULTILINE)[0] == __version__


def test_the_lab_opens_on_the_start_page_as_it_reads(monkeypatch):
    given = []
    monkeypatch.setattr(LabApp, "launch_instance", given.extend)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    cli.main(["lab", "--no-browser"])
    options = dict(text.split("=", 1) for text in given if "=" in text)
    page = options["--LabApp.default_url"].removeprefix("/lab/tree/")
    assert (Path(options["--ServerApp.root_dir"]) / page).read_text("utf-8").startswith("# Start")
    overrides, error = settings_utils._get_overrides(options["--LabApp.app_settings_dir"])
    assert not error
    viewers = overrides["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]
    assert viewers == {"markdown": "Markdown Preview"}


def test_the_list_of_files_in_the_lab_is_what_a_student_works_with(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(LabApp, "launch_instance", given.extend)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    cli.main(["lab"])
    flag = "--ContentsManager.hide_globs="
    hidden = [text.removeprefix(flag) for text in given if text.startswith(flag)]
    manager = FileContentsManager(root_dir=str(tmp_path), hide_globs=hidden)
    for name in (*(path.name for path in committed("course")), "notes.md", "old.pyc"):
        (tmp_path / name).write_text("{}")
    seen = {entry["name"] for entry in manager.get("")["content"]}
    assert seen == {"START_HERE.md", "notes.md", *(f"{lesson.stem}.ipynb" for lesson in LESSONS)}


def test_terminals_of_the_lab_know_the_command(monkeypatch):
    """The start page names it alone, and nobody has activated the environment."""
    scripts = Path(sys.executable).parent
    elsewhere = [place for place in os.get_exec_path() if Path(place) != scripts]
    monkeypatch.setenv("PATH", os.pathsep.join(elsewhere))
    monkeypatch.setattr(LabApp, "launch_instance", lambda _: None)
    cli.main(["lab", "--no-browser"])
    assert Path(shutil.which("dlcourse")).parent == scripts


# --- checks and teaching ----------------------------------------------------------------------


@pytest.mark.tfp_ranks  # the mistake is one of shapes
def test_the_example_of_a_report_is_what_the_check_says():
    page = read("course/how_the_checks_work.md")
    assert "`jnp.mean((prediction - target) ** 2)`" in page

    def mse(prediction, target):
        return jnp.mean((prediction - target) ** 2)

    found = engine.judge(engine.find("01.2"), mse)
    assert found.diagnosis == "broadcast"
    assert f"```text\n{report.plain('Exercise 01.2', found)}\n```" in page


def test_what_the_page_says_of_all_checks_holds():
    """How often they are tried is held to it in test_checks.py."""
    page = flat(read("course/how_the_checks_work.md"))
    assert "at least five" in page and f"{engine.TIME_LIMIT:.0f} seconds" in page
    assert min(len(engine.find(id).suspects) for id in EXERCISES) >= 5


@by_lesson
def test_every_exercise_and_its_mistakes_are_on_the_instructors_page(lesson):
    page = read(f"course/{blocks.teaching_page(lesson)}.md")
    for id, task in lesson.exercises.items():
        head, _, body = page.partition(f"### {id} · {task.title}\n")
        assert f"{id} {task.title}, {task.minutes} min" in head
        known = re.findall(r"^- \*\*(.*)\*\* (.*)", body.partition("\n### ")[0], re.MULTILINE)
        assert known == [(suspect.says, suspect.why) for suspect in engine.find(id).suspects]


@by_lesson
def test_a_timetable_adds_up_to_the_minutes_of_the_lesson(lesson):
    sections = blocks.sections(lesson)
    assert all(section.minutes >= 1 for section in sections)
    tasks = [task for section in sections for task in section.exercises]
    assert tasks == list(lesson.exercises.values())
    total = sum(section.minutes for section in sections) + sum(task.minutes for task in tasks)
    assert total == lesson.minutes
    end = f"| {total // 60}:{total % 60:02} | end |"
    assert end in read(f"course/{blocks.teaching_page(lesson)}.md")


@by_lesson
@pytest.mark.parametrize("minutes", [45, 90])
def test_a_shorter_plan_fits(lesson, minutes):
    """Sections are named by number, exercises by id; the opening is never left out. What the plan
    goes on to say uses no other section, and what it says to leave out it has not counted."""
    page = read(f"course/{blocks.teaching_page(lesson)}.md")
    plan = " ".join(page.partition(f"## In {minutes} minutes\n")[2].partition("\n## ")[0].split())
    found = re.match(r"Sections ([^;]*); exercises? ([^:]*): (\d+) minutes\.", plan)
    assert found, "Sections 1, 2; exercises NN.1, NN.2: 40 minutes."
    counted = {*found[1].split(", "), *found[2].split(", ")}
    opening, *others = blocks.sections(lesson)
    every = {section.title.partition(" · ")[0]: section.minutes for section in others}
    every |= {id: task.minutes for id, task in lesson.exercises.items()}
    total = opening.minutes + sum(every[name] for name in counted)
    assert total == int(found[3])
    assert 0.8 * minutes <= total <= minutes
    for sentence in re.split(r"(?<=[.!?]) ", plan[found.end() :].strip()):
        numbers = re.findall(r"(?i)\bsections? (\d+(?:(?:, | and )\d+)*)", sentence)
        named = set(re.findall(r"\d+", " ".join(numbers)))
        if sentence.startswith("Leave out "):
            named |= set(re.findall(r"\b\d\d\.\d\b", sentence))
            assert not named & counted, sentence
        else:
            assert named <= counted, sentence


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [0, 5, 2, 2], [0, 0], [3, 1000, 7]])
@pytest.mark.parametrize("total", [0, 1, 26, 90])
def test_minutes_are_shared_out_whole(total, weights):
    shares = blocks._shared_out(total, weights)
    assert all(isinstance(share, int) and share >= 0 for share in shares)
    assert sum(shares) == total
    weights = weights if any(weights) else [1 for _ in weights]
    exact = [total * weight / sum(weights) for weight in weights]
    assert all(abs(a - b) < 1 for a, b in zip(shares, exact, strict=True))


def test_a_lesson_too_short_for_its_sections_and_exercises_is_refused():
    lesson = LESSONS[0]
    count = len(blocks.sections(lesson))
    least = count + sum(task.minutes for task in lesson.exercises.values())
    assert all(section.minutes == 1 for section in blocks.sections(replace(lesson, minutes=least)))
    says = rf"01_cluster_masses.py:1: {least - 1} minutes for {count} sections and the exercises, "
    with pytest.raises(SourceError, match=rf"{says}expected at least {least}:"):
        blocks.sections(replace(lesson, minutes=least - 1))


# --- glossary ---------------------------------------------------------------------------------


def entries():
    """Term, definition and linked lessons of each entry of the glossary."""
    body = re.search(r"(?s)<!-- glossary -->\n\n(.*)\n\n<!-- end of", read("course/glossary.md"))[1]
    found = []
    for entry in body.split("\n\n"):
        match = re.fullmatch(r"(?s)\*\*(.+?)\*\*\n  (.+)\n  Lessons? (.+)\.", entry)
        assert match, entry
        stems = re.findall(r"\[(\d\d)\]\((\w+)\.ipynb\)", match[3])
        found.append((match[1], match[2], stems))
    return found


def test_the_glossary_is_in_order():
    def key(term):
        return unicodedata.normalize("NFKD", term.casefold()).encode("ascii", "ignore")

    terms = [term for term, _, _ in entries()]
    assert len(terms) >= 60 and len(set(terms)) == len(terms)
    latin = [term.replace("σ", "sigma") for term in terms if not term.startswith("χ")]
    assert sorted(latin, key=key) == latin


def test_an_entry_of_the_glossary_is_short_and_its_term_is_in_the_lessons():
    texts = {
        lesson.stem: flat("\n".join([*lesson.objectives, *(cell.source for cell in lesson.cells)]))
        for lesson in LESSONS
    }
    for term, definition, stems in entries():
        assert 1 <= len(re.findall(r"[.!?](?=\s|$)", definition)) <= 2, term
        assert stems, term
        for number, stem in stems:
            assert stem.startswith(number)
            names = (flat(name) for name in re.split(r"[()]", term) if name)
            assert any(name in texts[stem] for name in names), f"{term} is not in {stem}"


@by_lesson
def test_abbreviations_of_a_lesson_are_in_the_glossary(lesson):
    text = read("course/glossary.md")
    used = set(re.findall(r"\b[A-Z][A-Za-z]*[A-Z]+[A-Za-z]*\b", prose(lesson)))
    unknown = {word for word in used - NAMES if word not in text and word.rstrip("s") not in text}
    assert unknown == set()


# --- references -------------------------------------------------------------------------------


def cited(lesson):
    """The lines of a lesson's list of references."""
    text = "\n\n".join(cell.source for cell in lesson.cells if cell.kind == "markdown")
    return re.findall(r"^- .*", text.partition("## References")[2], re.MULTILINE)


def doi_of(line):
    """The DOI of a reference in a lesson; that of the preprint where only its number is given."""
    found = re.search(r"\[doi:(\S+)\]\(https://doi\.org/(\S+)\)", line)
    if found:
        assert found[2].replace("%28", "(").replace("%29", ")") == found[1], line
        return found[1]
    preprint = re.search(r"\[arXiv:(\S+)\]\(https://arxiv\.org/abs/\1\)", line)
    return f"10.48550/arXiv.{preprint[1]}" if preprint else None


@by_lesson
def test_the_references_of_a_lesson_are_those_of_the_bibliography(lesson):
    lines = cited(lesson)
    assert lines
    for line in lines:
        title = re.search(r", \*(.+?)\*", line)[1]
        (work,) = [w for w in WORKS.values() if blocks.plain(w, "title") == title]
        assert line.startswith(f"- {blocks.authors(work)} {work.fields['year']}, *"), line
        assert doi_of(line) == work.fields.get("doi"), line
        if "doi" not in work.fields and "url" in work.fields:
            assert work.fields["url"] in line
        rest = line.partition(title)[2]
        for field in ("journal", "booktitle", "institution", "publisher", "volume", "pages"):
            assert blocks.plain(work, field) in rest, (line, field)


def test_every_work_of_the_bibliography_is_cited():
    titles = {re.search(r", \*(.+?)\*", line)[1] for x in LESSONS for line in cited(x)}
    assert {blocks.plain(work, "title") for work in WORKS.values()} == titles
    dois = {doi_of(line) for x in LESSONS for line in cited(x)} - {None}
    assert {work.fields["doi"] for work in WORKS.values() if "doi" in work.fields} == dois
    assert "\\" not in read("course/references.bib")  # accents as they are: no LaTeX is decoded


def test_the_page_of_references_is_in_order_and_names_the_lessons():
    lines = re.findall(r"^- .*", read("course/references.md"), re.MULTILINE)
    assert len(lines) == len(WORKS)
    surnames = [line.partition(" ")[2].split()[0].strip(",").casefold() for line in lines]
    assert surnames == sorted(surnames)
    for lesson in LESSONS:
        naming = [line for line in lines if f"({'../solutions/' + lesson.stem}.ipynb)" in line]
        assert len(naming) == len(cited(lesson))
