"""The generated blocks of the pages as Markdown, from lessons, checks and bibliography.

Text in, text out: nothing here reads or writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import Exercise, Lesson
from dlcourse_utils.percent import SourceError
from dlcourse_utils.render import badge

if TYPE_CHECKING:
    from pybtex.database import BibliographyData, Entry

    from dlcourse_utils.checks.engine import Spec
    from dlcourse_utils.registry import Entry as DataFile


@dataclass(frozen=True)
class Figure:
    """An image file of course/ and what it shows in words; the lesson it is taken from."""

    name: str
    alt: str
    lesson: Lesson


# --- lists of lessons -------------------------------------------------------------------------


def lesson_table(lessons: Iterable[Lesson], repository: str, tag: str) -> str:
    """The README's table of lessons."""
    rows = []
    for lesson in lessons:
        link = f"[{_cell(lesson.title)}](course/{lesson.stem}.ipynb)"
        fields = [lesson.number, link, _cell(lesson.summary), lesson.minutes]
        rows.append([*fields, badge(lesson.stem, repository, tag)])
    return _table(["", "lesson", "what you will find out", "minutes", ""], rows)


def lessons_by_part(lessons: Iterable[Lesson], repository: str, tag: str) -> str:
    """The lessons of the site's front page, by part."""
    blocks = []
    for part, members in parts(lessons).items():
        blocks.append(f"### [{part}]({part_page(part)}.md)")
        lines = []
        for lesson in members:
            about = f"{lesson.summary} *{lesson.minutes} minutes*"
            lines.append(
                f"- {_solved(lesson)}: {about} {badge(lesson.stem, repository, tag)}".rstrip()
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def part_lessons(lessons: Iterable[Lesson], repository: str, tag: str) -> str:
    """The lessons of one part with objectives, prerequisites and minutes."""
    blocks = []
    for lesson in lessons:
        exercises = sum(task.minutes for task in lesson.exercises.values())
        facts = (
            f"*{lesson.minutes} minutes, {exercises} of them for {len(lesson.exercises)} "
            f"exercises · {lesson.needs}* {badge(lesson.stem, repository, tag)}"
        )
        blocks += [f"## {_solved(lesson)}", facts.rstrip(), lesson.summary]
        blocks += ["You will be able to", _bullets(lesson.objectives)]
        if lesson.prerequisites:
            blocks += ["You need", _bullets(lesson.prerequisites)]
    return "\n\n".join(blocks)


def lab_list(lessons: Iterable[Lesson]) -> str:
    """The notebooks of the lab's start page."""
    rows = [
        [f"[{lesson.stem}.ipynb]({lesson.stem}.ipynb)", _cell(lesson.title), lesson.minutes]
        for lesson in lessons
    ]
    return _table(["open", "lesson", "minutes"], rows)


def ways_in(lessons: list[Lesson], repository: str, tag: str) -> str:
    """Three ways to begin; the first lesson stands for all."""
    first = lessons[0]
    more = f"the [README]({repository}#start) has the lines for Windows and conda"
    rows = [
        ["on your machine", f"`git clone {repository}`, then `make lab` in the new folder; {more}"],
        ["only to read", f"{_solved(first)}, solved, with all figures"],
    ]
    if icon := badge(first.stem, repository, tag):
        rows.insert(0, ["nothing to install", f"{icon} opens lesson {first.number}"])
    return _table(["way", "how"], rows)


def clone_lines(repository: str) -> str:
    """How to get the course, as lines for any shell."""
    folder = repository.rpartition("/")[2]
    return f"```sh\ngit clone {repository}\ncd {folder}\n```"


def front_figure(figure: Figure | None, folder: str = "", solutions: str = "../solutions/") -> str:
    """The figure of the front page with its source; nothing where there is none."""
    if figure is None:
        return ""
    link = f"[lesson {figure.lesson.number}]({solutions}{figure.lesson.stem}.ipynb)"
    return f"![{figure.alt}]({folder}{figure.name})\n\n*From {link}.*"


def parts(lessons: Iterable[Lesson]) -> dict[str, list[Lesson]]:
    """The lessons of each part, in order."""
    found: dict[str, list[Lesson]] = {}
    for lesson in lessons:
        found.setdefault(lesson.part, []).append(lesson)
    return found


def part_page(part: str) -> str:
    """Name of a part's page, without extension."""
    return f"part_{re.sub(r'[^a-z0-9]+', '_', part.lower()).strip('_')}"


# --- for those who teach ----------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A section of a lesson: its heading, the minutes without its exercises, the exercises."""

    title: str
    minutes: int
    exercises: tuple[Exercise, ...]


def teaching_page(lesson: Lesson) -> str:
    """Name of the instructors' page of a lesson, without extension."""
    return f"instructors_{lesson.number}"


def sections(lesson: Lesson) -> list[Section]:
    """The sections of a lesson with their minutes, which add up to those of the lesson.

    Exercises take the minutes that they say. Of what is left each section gets one, and the rest
    is shared out by the words of its text: nobody has measured it. Raises SourceError where not so
    much is left.
    """
    titles, words, tasks = ["Opening"], [0], [[]]
    for cell in lesson.cells:
        if cell.kind != "markdown":
            continue
        if cell.exercise:
            tasks[-1].append(lesson.exercises[cell.exercise])
            continue
        for line in cell.source.split("\n"):
            if line.startswith("## "):
                titles.append(line.removeprefix("## "))
                words.append(0)
                tasks.append([])
            else:
                words[-1] += len(line.split())
    if titles[-1] == "References":  # to look things up in, not to teach
        titles, words, tasks = titles[:-1], words[:-1], tasks[:-1]
    least = len(titles) + sum(task.minutes for task in lesson.exercises.values())
    if lesson.minutes < least:
        what = f"{lesson.minutes} minutes for {len(titles)} sections and the exercises"
        raise SourceError(lesson.path, 1, what, f"at least {least}: one a section beside exercises")
    shares = [1 + share for share in _shared_out(lesson.minutes - least, words)]
    return [
        Section(title, share, tuple(some))
        for title, share, some in zip(titles, shares, tasks, strict=True)
    ]


def timetable(lesson: Lesson) -> str:
    """When each section and each exercise of a lesson begins, as a table."""
    rows, clock = [], 0
    for section in sections(lesson):
        tasks = "; ".join(
            f"{task.id} {task.title}, {task.minutes} min" for task in section.exercises
        )
        length = section.minutes + sum(task.minutes for task in section.exercises)
        rows.append([f"{clock // 60}:{clock % 60:02}", _cell(section.title), length, _cell(tasks)])
        clock += length
    rows.append([f"{clock // 60}:{clock % 60:02}", "end", "", ""])
    table = _table(["from", "section", "minutes", "with the exercises"], rows)
    return f"The lesson, solved: {_solved(lesson)}\n\n{table}"


def mistakes(lesson: Lesson, specs: Mapping[str, Spec]) -> str:
    """For each exercise the wrong answers that its check knows by name, and why they matter."""
    blocks = []
    for task in lesson.exercises.values():
        known = specs[task.id].suspects
        facts = f"*{task.minutes} minutes · difficulty {task.difficulty} of 3 · {len(known)} known*"
        lines = [f"- **{suspect.says}** {suspect.why}" for suspect in known]
        blocks += [f"### {task.id} · {task.title}", facts, "\n".join(lines)]
    return "\n\n".join(blocks)


def teaching_table(lessons: Iterable[Lesson], specs: Mapping[str, Spec]) -> str:
    """All lessons with their minutes, their exercises and the number of known mistakes."""
    rows = []
    for lesson in lessons:
        tasks = lesson.exercises.values()
        link = f"[{lesson.number} · {_cell(lesson.title)}]({teaching_page(lesson)}.md)"
        known = sum(len(specs[task.id].suspects) for task in tasks)
        minutes = sum(task.minutes for task in tasks)
        rows.append([link, lesson.minutes, minutes, len(tasks), known])
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5))])
    head = ["lesson", "minutes", "of these exercises", "exercises", "mistakes known by name"]
    return _table(head, rows)


def _shared_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to the total; even where all are 0."""
    weights = weights if any(weights) else [1] * len(weights)
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_rest[: total - sum(shares)]:
        shares[i] += 1
    return shares


# --- references, citation, licences -----------------------------------------------------------


def references(bibliography: BibliographyData, lessons: Iterable[Lesson]) -> str:
    """All works of the bibliography in its order, each with the lessons that cite its title."""
    texts = [(lesson, "\n".join(cell.source for cell in lesson.cells)) for lesson in lessons]
    lines = []
    for entry in bibliography.entries.values():
        citing = [x for x, text in texts if f"*{plain(entry, 'title')}*" in text]
        links = ", ".join(f"[{x.number}](../solutions/{x.stem}.ipynb)" for x in citing)
        lines.append(f"- {_work(entry)}. Lesson{'s' if len(citing) > 1 else ''} {links}.")
    return "\n".join(lines)


def plain(entry: Entry, field: str) -> str:
    """A field of a bibliography's entry without the braces that keep capitals; empty for none."""
    return re.sub("[{}]", "", entry.fields.get(field, ""))


def authors(entry: Entry) -> str:
    """The surnames of an entry as the lessons write them: A, B & C, or A et al."""
    names = [
        " ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]
    ]
    if names[-1] == "others":
        return f"{names[0]} et al."
    return f"{', '.join(names[:-1])} & {names[-1]}" if len(names) > 1 else names[0]


def _work(entry: Entry) -> str:
    places = ("journal", "booktitle", "institution", "publisher")
    place = next((plain(entry, field) for field in places if field in entry.fields), "")
    issue = f"({plain(entry, 'number')})" if "volume" in entry.fields else plain(entry, "number")
    number = plain(entry, "volume") + issue.replace("()", "")
    said = [f"{authors(entry)} {plain(entry, 'year')}", f"*{plain(entry, 'title')}*"]
    said += [" ".join(part for part in (place, number) if part), plain(entry, "pages")]
    if doi := entry.fields.get("doi"):
        escaped = doi.replace("(", "%28").replace(")", "%29")
        said.append(f"[doi:{doi}](https://doi.org/{escaped})")
    elif url := entry.fields.get("url"):
        said.append(f"<{url}>")
    return ", ".join(part for part in said if part)


def citation(cff: Mapping[str, Any], repository: str) -> str:
    """How to cite the course, in a line and as BibTeX, from CITATION.cff.

    Raises CourseError for an author without a name.
    """
    names, in_bibtex = zip(*map(_author, cff["authors"]), strict=True)
    date, version = str(cff["date-released"]), cff["version"]
    line = f"{', '.join(names)} ({date[:4]}). *{cff['title']}* (version {version}). <{repository}>"
    fields = {
        "author": " and ".join(in_bibtex),
        "title": cff["title"],
        "version": version,
        "year": date[:4],
        "url": repository,
    }
    body = "\n".join(f"  {name} = {{{value}}}," for name, value in fields.items())
    return f"{line}\n\n```bibtex\n@software{{dlcourse,\n{body}\n}}\n```"


def _author(author: Mapping[str, str]) -> tuple[str, str]:
    """An author of CITATION.cff in words and in BibTeX: a person, or a body, which has one name."""
    if isinstance(author, Mapping) and author.get("name"):
        return author["name"], f"{{{author['name']}}}"
    if not isinstance(author, Mapping) or not author.get("family-names"):
        raise CourseError(
            f"CITATION.cff has the author {author!r}: give each a name, or family-names and "
            "given-names."
        )
    given, suffix = author.get("given-names", ""), author.get("name-suffix", "")
    family = f"{author.get('name-particle', '')} {author['family-names']}".strip()
    in_words = " ".join(filter(None, [given, family, suffix]))
    return in_words, ", ".join(filter(None, [family, suffix, given]))


def data_licences(entries: Iterable[DataFile]) -> str:
    """The data files with their licences and sources, as a table."""
    rows = []
    for entry in entries:
        ships = "no, fetched" if entry.url else "yes"
        rows.append([f"`{entry.name}`", ships, _cell(entry.licence), _cell(entry.citation)])
    return _table(["file", "ships with the course", "licence", "source"], rows)


# --- Markdown ---------------------------------------------------------------------------------


def _solved(lesson: Lesson) -> str:
    return f"[{lesson.number} · {lesson.title}](../solutions/{lesson.stem}.ipynb)"


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: list[str], rows: Iterable[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(field) for field in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text fit for a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)
