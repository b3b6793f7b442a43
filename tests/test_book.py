"""The site: built without a warning, whole, at home without a network; a failure leaves the old."""

import errno
import html
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from http.server import HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
import yaml

from dlcourse_utils import book, book_pages, cli
from dlcourse_utils.build import Course, read_course
from dlcourse_utils.errors import CourseError
from dlcourse_utils.lessons import Lesson
from dlcourse_utils.render import colab_link, parse_notebook

COURSE = read_course()
LESSONS = {lesson.stem: lesson for lesson in COURSE.lessons}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
# What a browser fetches by itself, and which relations of <link> make it do so.
FETCHED = {"img", "script", "iframe", "source", "video", "audio", "track", "embed", "object", "use"}
NAMED_ONLY = {"canonical", "index", "search", "next", "prev", "author", "license"}
# Builds a site in a process of its own: Sphinx changes locale, logging and docutils for good.
BUILD = """
import sys
from pathlib import Path
from dlcourse_utils import book, build
from dlcourse_utils.errors import CourseError
course = build.read_course()
if len(sys.argv) > 2:
    course = build.Course(Path(sys.argv[2]), course.repository, course.tag, [])
try:
    book.build_site(course, Path(sys.argv[1]))
except CourseError as error:
    sys.exit(str(error))
"""


@dataclass
class Page(HTMLParser):
    """What the tests want to know of a page; tags that are closed out of order are `crossed`."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    images: list[str | None] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    open: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.text = self.path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.classes.update((found.get("class") or "").split())
        addresses = [found[key] for key in ("href", "src", "data") if found.get(key)]
        self.links += addresses
        relations = set((found.get("rel") or "").split())
        if tag in FETCHED or (tag == "link" and not relations & NAMED_ONLY):
            self.fetched += addresses
            self.fetched += [
                part.split()[0] for part in (found.get("srcset") or "").split(", ") if part
            ]
        self.fetched += re.findall(r"url\(([^)]*)\)", found.get("style") or "")
        if tag == "img":
            self.images.append(found.get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and self.open.pop() != tag:
            self.crossed.append(f"{tag} in line {self.getpos()[0]}")


@dataclass
class Site:
    folder: Path
    done: subprocess.CompletedProcess[str]
    seconds: float
    pages: dict[str, Page]


def build(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("book") / "site"
    before = os.times()
    done = build(folder)
    after = os.times()
    assert done.returncode == 0, done.stderr
    # Of the processor: the clock depends on what else the machine does.
    used = after.children_user + after.children_system
    seconds = used - before.children_user - before.children_system
    pages = {path.name: Page(path) for path in sorted(folder.glob("*.html"))}
    return Site(folder, done, seconds, pages)


@pytest.fixture(params=LESSONS)
def lesson(request: pytest.FixtureRequest) -> Lesson:
    return LESSONS[request.param]


@pytest.fixture
def page(site: Site, lesson: Lesson) -> Page:
    return site.pages[f"{lesson.stem}.html"]


def test_the_build_is_quick_and_says_nothing(site: Site) -> None:
    assert (site.done.stdout, site.done.stderr) == ("", "")
    assert site.seconds <= 60


def test_the_site_has_all_pages_of_the_table(site: Site) -> None:
    toc = yaml.safe_load((COURSE.root / book_pages.TOC).read_text(encoding="utf-8"))
    names = [book_pages.docname(name) for name in book_pages.entries(toc)]
    assert names[0] == "index"
    assert {f"{name}.html" for name in names} <= set(site.pages)
    index = (site.folder / "searchindex.js").read_text(encoding="utf-8")
    search = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    # In titles a word is kept apart, and not once more for the text below.
    found = search["terms"]["posterior"] + search["titleterms"]["posterior"]
    assert {search["docnames"][k] for k in found} >= set(LESSONS)


def test_a_lesson_opens_with_what_one_needs_to_know(page: Page, lesson: Lesson) -> None:
    head, _, rest = page.text.partition('<div class="objectives">')
    assert f"{lesson.minutes} minutes" in head
    items = rest.partition("</div>")[0].count("<li>")
    assert items == len(lesson.objectives) + len(lesson.prerequisites) > 0
    assert f'content="{html.escape(lesson.summary)}" name="description"' in page.text


def test_a_lesson_offers_its_student_notebook(site: Site, page: Page, lesson: Lesson) -> None:
    # A fork outside GitHub has none.
    colab = {colab_link(lesson.stem, COURSE.repository, COURSE.tag)} - {""}
    assert {x for x in page.links if x.startswith("https://colab.")} == colab
    file = f"notebooks/{lesson.stem}.ipynb"
    assert f'href="{file}" download' in page.text
    committed = (COURSE.root / "course" / f"{lesson.stem}.ipynb").read_bytes()
    assert (site.folder / file).read_bytes() == committed


def test_solutions_are_folded_and_exercises_marked(page: Page, lesson: Lesson) -> None:
    for id in lesson.exercises:
        assert (
            f'<details class="solution"><summary>Solution of exercise {id}</summary>' in page.text
        )
    assert page.classes["exercise"] == len(lesson.exercises) > 0
    assert page.crossed == [] and page.open == []


def test_lessons_lead_to_the_pages_before_and_after(site: Site) -> None:
    toc = yaml.safe_load((COURSE.root / book_pages.TOC).read_text(encoding="utf-8"))
    names = [book_pages.docname(name) for name in book_pages.entries(toc)]
    for before, here, after in zip(["", *names], names, [*names[1:], ""], strict=False):
        if here not in LESSONS:
            continue
        text = site.pages[f"{here}.html"].text
        assert re.search(rf'class="left-prev"\s+href="{before}.html"', text)
        if after:
            assert re.search(rf'class="right-next"\s+href="{after}.html"', text)


def test_all_images_have_words(site: Site, page: Page, lesson: Lesson) -> None:
    figures = [cell for cell in lesson.cells if cell.alt]
    assert len(page.images) >= len(figures) > 0
    assert [alt for alt in page.images if not (alt or "").strip()] == []


def test_still_pictures_of_widgets_say_so(page: Page, lesson: Lesson) -> None:
    stored = (COURSE.root / "solutions" / f"{lesson.stem}.ipynb").read_bytes()
    stills = 0
    for cell in parse_notebook(stored)["cells"]:
        if "widget" in cell["metadata"].get("tags", []):
            data = [output.get("data", {}) for output in cell["outputs"]]
            stills += sum("image/png" in kinds and "text/html" not in kinds for kinds in data)
    assert page.classes["still"] == stills


def test_links_and_anchors_lead_somewhere(site: Site) -> None:
    broken = []
    for name, page in site.pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (site.folder / name).parent / unquote(address.path) if address.path else None
            if target is not None and not target.is_file():
                broken.append(f"{name}: {link}")
            here = page if target is None else site.pages.get(target.name)
            anchor = unquote(address.fragment)
            if anchor and here is not None and anchor not in here.ids:
                broken.append(f"{name}: {link}")
    assert broken == []


def test_a_browser_asks_no_other_host(site: Site) -> None:
    outside = re.compile(r"\s*['\"]?(https?:)?//")
    fetched = [
        f"{name}: {address[:80]}"
        for name, page in site.pages.items()
        for address in page.fetched
        if outside.match(address)
    ]
    for path in site.folder.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
        fetched += [f"{path.name}: {a or b}" for a, b in found if outside.match(a or b)]
    assert fetched == []


def test_links_follow_the_pages_into_one_folder() -> None:
    pages = {"course/index", "course/glossary", "solutions/03_realnvp"}

    def linked(text: str, name: str = "course/index") -> str:
        return book_pages.linked(text, name, pages, COURSE)

    assert linked("[a](../solutions/03_realnvp.ipynb#x)") == "[a](03_realnvp.ipynb#x)"
    assert linked("[a](03_realnvp.ipynb)") == "[a](03_realnvp.ipynb)"
    assert linked("[a](../course/glossary.md)", "solutions/03_realnvp") == "[a](glossary.md)"
    assert linked("[a](#x) [b](https://a.org/x.md)") == "[a](#x) [b](https://a.org/x.md)"
    public = f"{COURSE.repository}/blob/{COURSE.tag}/LICENSE"
    assert linked("[a](../LICENSE)") == f"[a]({public})"
    badge = "[![Open in Colab](https://elsewhere/badge.svg)](https://elsewhere/x)"
    assert linked(badge) == '<a class="course-button" href="https://elsewhere/x">Open in Colab</a>'


def test_sections_of_the_table_are_nested() -> None:
    below = [{"file": "course/b"}, {"url": "https://a.org", "title": "A"}]
    toc = {"root": "course/index", "chapters": [{"file": "course/a", "sections": below}]}
    assert list(book_pages.entries(toc)) == ["course/index", "course/a", "course/b"]
    trees = book_pages.toctrees(toc)
    assert set(trees) == {"course/index", "course/a"}
    assert "\n/a\n" in trees["course/index"]
    assert "\n/b\nA <https://a.org>\n" in trees["course/a"]


@pytest.fixture
def small(tmp_path: Path) -> Course:
    """A course of one lesson and a front page, with a good site beside it."""
    lesson = COURSE.lessons[0]
    files = {
        "book_config.yml": (COURSE.root / "book_config.yml").read_bytes(),
        "course/index.md": b"# Front\n",
        f"solutions/{lesson.stem}.ipynb": (
            COURSE.root / "solutions" / f"{lesson.stem}.ipynb"
        ).read_bytes(),
        "site/index.html": b"the last good one",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    course = replace(COURSE, root=tmp_path, lessons=[lesson])
    write_toc(course, "course/index", f"solutions/{lesson.stem}")
    return course


def write_toc(course: Course, root: str, *chapters: str) -> None:
    toc = {"root": root, "chapters": [{"file": name} for name in chapters]}
    (course.root / book_pages.TOC).write_text(yaml.safe_dump(toc), encoding="utf-8")


def refused(course: Course) -> str:
    """The sentence with which a site is not built, the last good one in place."""
    with pytest.raises(CourseError) as caught:
        book.build_site(course, course.root / "site")
    assert (course.root / "site" / "index.html").read_bytes() == b"the last good one"
    assert [path.name for path in course.root.glob(".site-*")] == []
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_missing_notebook_is_named(small: Course) -> None:
    name = f"solutions/{small.lessons[0].stem}.ipynb"
    (small.root / name).unlink()
    assert f"there is no {name}" in refused(small)


@pytest.mark.parametrize("broken", ["cut", "edited", "not run"])
def test_a_broken_notebook_is_named(small: Course, broken: str) -> None:
    path = small.root / "solutions" / f"{small.lessons[0].stem}.ipynb"
    notebook: dict[str, Any] = json.loads(path.read_bytes())
    if broken == "edited":
        notebook["cells"][-1]["source"] = ["1 + 1"]
    notebook["cells"][-1]["execution_count"] = None
    text = json.dumps(notebook)
    path.write_text(text[:-100] if broken == "cut" else text, encoding="utf-8")
    says = "was not run" if broken == "not run" else "is not what its source makes"
    assert f"solutions/{path.name} {says}: run `make notebooks ARGS=" in refused(small)


def test_a_page_that_is_not_utf_8_is_named(small: Course) -> None:
    (small.root / "course" / "index.md").write_bytes(b"# Caf\xe9\n")
    assert refused(small).startswith("course/index.md is not UTF-8 text")


def test_a_table_that_names_no_file_is_refused(small: Course) -> None:
    write_toc(small, "course/index", "course/lost")
    assert refused(small).startswith("course/_toc.yml names course/lost, and there is no")


@pytest.mark.parametrize("text", ["root: [", "parts: []", "root: a\nparts: [3]"])
def test_a_table_that_cannot_be_read_is_refused(small: Course, text: str) -> None:
    (small.root / book_pages.TOC).write_text(text, encoding="utf-8")
    assert refused(small).startswith("course/_toc.yml ")


def test_an_unknown_setting_is_named(small: Course) -> None:
    (small.root / book.CONFIGURATION).write_text("title: x\nlogo: y\n", encoding="utf-8")
    assert refused(small).startswith("book_config.yml has an unknown key 'logo'")


def test_a_missing_package_is_named(small: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    sentence = refused(small)
    assert sentence.startswith("The site needs myst_nb, which is not installed")
    assert "dlcourse[book]" in sentence


def test_a_warning_of_sphinx_is_an_error(small: Course) -> None:
    write_toc(small, "course/index")
    page = small.root / "course" / "index.md"
    page.write_text("# Front\n\n[lost](nowhere.md)\n", encoding="utf-8")
    done = build(small.root / "site", small.root)
    assert done.returncode == 1
    assert done.stderr.startswith("The site was not built: course/index.md:3: WARNING: ")
    assert "nowhere.md" in done.stderr and done.stderr.count("\n") == 1
    assert (small.root / "site" / "index.html").read_bytes() == b"the last good one"


def test_a_new_site_takes_the_place_of_the_old(small: Course) -> None:
    write_toc(small, "course/index")
    done = build(small.root / "site", small.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Front" in (small.root / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("trouble", [PermissionError(13, "denied"), KeyboardInterrupt()])
def test_a_swap_that_fails_leaves_the_old_site(
    small: Course, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    move = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == "made":
            raise trouble
        return move(path, target)

    monkeypatch.setattr(book, "_run_sphinx", lambda course, source, made, root: made.mkdir())
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(trouble)):
        book.build_site(small, small.root / "site")
    assert (small.root / "site" / "index.html").read_bytes() == b"the last good one"
    assert [path.name for path in small.root.glob(".site-*")] == []


def test_the_site_is_shown_also_where_the_port_is_taken(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello", encoding="utf-8")
    with book._server(tmp_path, 0) as one, book._server(tmp_path, one.server_address[1]) as two:
        assert one.server_address[1] != two.server_address[1]
        thread = threading.Thread(target=two.serve_forever)
        thread.start()
        with urlopen(f"http://127.0.0.1:{two.server_address[1]}/") as answer:
            assert answer.read() == b"hello"
        two.shutdown()
        thread.join()


def test_a_port_that_nobody_may_use_is_not_exchanged_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may use port 80, and the tests may be root's."""

    bind = HTTPServer.server_bind

    def refuse(server: HTTPServer) -> None:
        if port := server.server_address[1]:
            raise PermissionError(errno.EACCES, f"Permission denied for {port}")
        bind(server)

    monkeypatch.setattr(HTTPServer, "server_bind", refuse)
    with pytest.raises(
        CourseError, match=r"^Port 80 cannot be used \(Permission denied for 80\): "
    ):
        book._server(tmp_path, 80)
    with book._server(tmp_path, 8000) as server:  # Windows says so of ports that are taken
        assert server.server_address[1] != 8000


@pytest.mark.parametrize("port", ["99999", "65536", "-1", "x", "8e3"])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", f"--port={port}"])
    assert f"{port!r} is no port; ports are numbers from 0 to 65535" in capsys.readouterr().err


def test_without_a_site_there_is_nothing_to_show(
    small: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "read_course", lambda: small)
    with pytest.raises(CourseError, match="run `make book` first"):
        book.serve(0)
