"""The site: built offline from the outputs stored in solutions/*.ipynb, and shown on this machine.

A build that fails leaves the site of the last good one where it is.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import re
import shutil
import tempfile
import time
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dlcourse_utils import book_pages, files
from dlcourse_utils.build import Course, read_course
from dlcourse_utils.errors import CourseError
from dlcourse_utils.render import dump

CONFIGURATION = "book_config.yml"
SITE = Path("build", "site")
_THEME = Path(__file__).parent / "book_theme"
# Its folder has MathJax 3; that all formulas are drawn takes this one file of it.
_MATHJAX_PACKAGE, _MATHJAX = "sphinx-mathjax-offline", "tex-svg.js"
_NEEDS = ("sphinx", "myst_nb", "pydata_sphinx_theme", "sphinx_copybutton", _MATHJAX_PACKAGE)
_KEYS = {"title", "author", "copyright", "only_build_toc_files", "execute", "sphinx"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def book() -> None:
    """Build the site into build/site and say where it is."""
    course = read_course()
    begun = time.perf_counter()
    build_site(course, course.root / SITE)
    seconds = time.perf_counter() - begun
    print(f"wrote {SITE.as_posix()}/index.html in {seconds:.0f} s; `make serve` shows the site.")


def build_site(course: Course, site: Path) -> None:
    """Build the site of a course into a folder, whole or not at all.

    Raises CourseError, in one sentence, for packages, pages or notebooks that are missing, for a
    table of contents or a configuration that cannot be read, and for each warning of Sphinx.
    """
    _refuse_missing_packages()
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=site.parent) as folder:
        source, made = Path(folder, "source"), Path(folder, "made")
        root, *_ = _write_source(course, source)
        _run_sphinx(course, source, made, root)
        _replace(site, made, Path(folder, "old"))


def _replace(site: Path, made: Path, old: Path) -> None:
    """Put the site that was made in the place of the last one, which stays where that fails."""
    try:
        if site.exists():
            site.rename(old)
        made.rename(site)
    except BaseException:
        if old.exists() and not site.exists():
            old.rename(site)
        raise


def serve(port: int) -> None:
    """Show the built site on this machine until Ctrl-C; another port where that one is taken.

    Raises CourseError where no site was built, and for a port that nobody may use.
    """
    site = read_course().root / SITE
    if not (site / "index.html").is_file():
        raise CourseError(f"There is no site in {SITE.as_posix()}: run `make book` first.")
    with _server(site, port) as server:
        address = f"http://localhost:{server.server_address[1]}/"
        print(f"The site is on {address}; Ctrl-C stops it.", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: the address should stay in sight."""


def _server(site: Path, port: int) -> ThreadingHTTPServer:
    handler = partial(_Quiet, directory=str(site))
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        # Windows refuses what is reserved as it refuses what is not allowed.
        taken = error.errno == errno.EADDRINUSE or (error.errno == errno.EACCES and port >= 1024)
        if not taken:
            raise CourseError(
                f"Port {port} cannot be used ({error.strerror}): name another one with --port, "
                "for example 8000."
            ) from None
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


def _refuse_missing_packages() -> None:
    for name in _NEEDS:
        if importlib.util.find_spec(name) is None:
            raise CourseError(
                f"The site needs {name}, which is not installed: run `make setup`, or "
                "`pip install 'dlcourse[book]'` elsewhere."
            )


def _write_source(course: Course, source: Path) -> list[str]:
    """Write all that Sphinx reads, and return the names of the pages, the root first.

    That is pages and pictures, and in extra/ what is offered for download.
    """
    toc = _yaml(course.root / book_pages.TOC)
    names = list(book_pages.entries(toc))
    below = book_pages.toctrees(toc)
    lessons = {f"solutions/{lesson.stem}": lesson for lesson in course.lessons}
    beside = shutil.ignore_patterns("*.md", "*.ipynb", "_toc.yml", ".*")
    shutil.copytree(course.root / "course", source / "pages", ignore=beside)
    for name in names:
        lesson = lessons.get(name)
        suffix = ".ipynb" if lesson else ".md"
        path = course.root / f"{name}{suffix}"
        if not path.is_file():
            raise CourseError(
                f"{book_pages.TOC} names {name}, and there is no {name}{suffix}: restore the "
                "file, or run `make notebooks`, which makes the notebooks and the table."
            )
        if lesson:
            data = path.read_bytes()
            text = book_pages.lesson_page(course, lesson, data, below.get(name, ""), set(names))
        else:
            written = files.text(course.root, f"{name}{suffix}")
            text = book_pages.linked(written, name, set(names), course) + below.get(name, "")
        page = source / "pages" / f"{book_pages.docname(name)}{suffix}"
        files.write(page, text.encode())
    offered = source / "extra" / book_pages.NOTEBOOKS
    offered.mkdir(parents=True)
    for lesson in course.lessons:
        files.write(offered / f"{lesson.stem}.ipynb", dump(course.student(lesson)))
    return names


def _run_sphinx(course: Course, source: Path, made: Path, root: str) -> None:
    settings = _settings(course, source, root)
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError

    warnings = io.StringIO()
    try:
        Sphinx(
            srcdir=source / "pages",
            confdir=None,
            outdir=made,
            doctreedir=source / "doctrees",
            buildername="html",
            confoverrides=settings,
            status=None,
            warning=warnings,
        ).build()
        trouble = _COLOUR.sub("", warnings.getvalue()).strip()
    except SphinxError as error:
        trouble = str(error)
    if trouble:
        written = re.compile(rf"{re.escape(str(source / 'pages'))}[/\\](\S+\.(md|ipynb))")
        folder = {"md": "course", "ipynb": "solutions"}
        named = written.sub(lambda found: f"{folder[found[2]]}/{found[1]}", trouble)
        first, *others = named.splitlines()
        more = f" (and {len(others)} more lines)" if others else ""
        raise CourseError(f"The site was not built: {first}{more}: mend the page and build again.")


def _settings(course: Course, source: Path, root: str) -> dict[str, Any]:
    """Sphinx's settings: those of the configuration, and those that the build knows better."""
    book = _yaml(course.root / CONFIGURATION)
    unknown = set(book) - _KEYS
    if unknown or not isinstance(book.get("title"), str):
        what = f"an unknown key {min(unknown)!r}" if unknown else "no title"
        raise CourseError(f"{CONFIGURATION} has {what}: its keys are {', '.join(sorted(_KEYS))}.")
    sphinx = book.get("sphinx", {})
    mathjax = source / "static"
    mathjax.mkdir()
    package = importlib.util.find_spec(_MATHJAX_PACKAGE).submodule_search_locations[0]
    shutil.copy(Path(package, "static", "mathjax", _MATHJAX), mathjax)
    return {
        "project": book["title"],
        "html_title": book["title"],
        "author": book.get("author", ""),
        "copyright": f"{book.get('copyright', '')}, {book.get('author', '')}".strip(", "),
        "nb_execution_mode": book.get("execute", {}).get("execute_notebooks", "off"),
        **sphinx.get("config", {}),
        "root_doc": book_pages.docname(root),
        "extensions": ["myst_nb", *sphinx.get("extra_extensions", [])],
        "mathjax_path": _MATHJAX,
        "templates_path": [str(_THEME)],
        "html_static_path": [str(_THEME / "static"), str(mathjax)],
        "html_extra_path": [str(source / "extra")],
        "html_css_files": ["course.css"],
        "html_js_files": [("course.js", {"defer": "defer"})],
        "html_favicon": str(_THEME / "favicon.svg"),
    }


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    name = path.name if path.name == CONFIGURATION else book_pages.TOC
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CourseError(f"There is no {name}: restore it with `git checkout {name}`.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise CourseError(f"{name} cannot be read ({first}): mend it, or restore it.") from None
    return read if isinstance(read, dict) else {}
