"""The command `dlcourse`: reads its arguments and calls the module that does the work.

Modules are imported in the command that needs them, so that `dlcourse --help` is immediate.
"""

import argparse
import logging
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dlcourse_utils import __version__, paths
from dlcourse_utils.errors import CourseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all is well, 2 with one sentence on stderr for expected trouble."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # an old Windows console has no tick mark
    try:
        try:
            return _called(arguments)
        finally:
            sys.stdout.flush()  # here, not at Python's end, a reader who has gone can be excused
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has seen enough, as `head` does. Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        what = error.strerror or type(error).__name__
        where = f": {error.filename}" if error.filename else ""
        todo = "look at the rights of the file and its folder, and at the room on the disk"
        print(f"{what}{where}: {todo}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _called(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options, options.others = parser.parse_known_args(arguments)
    if options.others and options.command not in (_lab, _test):
        parser.error(f"unknown argument: {options.others[0]}")
    if options.command is None:
        parser.print_help()
        return 2
    return options.command(options) or 0


def _parser() -> argparse.ArgumentParser:
    about = "Open the course, see where you stand, begin a lesson again, and what else it can do."
    parser = argparse.ArgumentParser(prog="dlcourse", description=about)
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"dlcourse {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command")

    def add(command, summary: str) -> argparse.ArgumentParser:
        name = command.__name__.strip("_")
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        return sub

    add(_lab, "open the course in JupyterLab; further arguments go to JupyterLab")
    run = add(_run, "execute a solved lesson and show its verdicts")
    run.add_argument("lesson", help="its number, for example 01")
    add(_test, "run the tests; further arguments go to pytest")
    build = add(_build, "make the notebooks from solutions/*.py")
    build.add_argument("lesson", nargs="*", help="numbers, for example 01; all when none is given")
    build.add_argument("--check", action="store_true", help="only say what is out of date")
    build.add_argument("--force", action="store_true", help="also where a student has edited")
    build.add_argument("--no-execute", action="store_true", help="leave the outputs as they are")
    add(_book, "build the site from the stored outputs")
    serve = add(_serve, "show the built site on this machine")
    serve.add_argument("--port", type=_port, default=8000, help="8000, or a free one where taken")
    data = add(_data, "show where the data files are, or fetch one")
    data.add_argument("name", nargs="?", help="the file to fetch")
    add(_doctor, "look at what the course stands on, and say what to do")
    reset = add(_reset, "give a fresh student notebook and keep the old one beside it")
    reset.add_argument("lesson", help="its number, for example 01")
    progress = add(_progress, "show which exercises are done")
    progress.add_argument("lesson", nargs="?", help="its number; all lessons when none is given")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; ports are numbers from 0 to 65535")
    return int(text)


def _lab(options: argparse.Namespace) -> None:
    course = _checkout() / "course"
    if not any(course.glob("*.ipynb")):
        raise CourseError(f"There is no notebook in {course}: run `dlcourse build --no-execute`.")
    # The start page, as it reads and not as it is written, and no question about news.
    settings = Path(__file__).with_name("lab_settings")
    start = ["--LabApp.default_url=/lab/tree/START_HERE.md"]
    start.append(f"--LabApp.app_settings_dir={settings}")
    # jsonschema would take 1.5 s to compile this optional package's grammar, for a format that
    # the server does not use; to find it absent is a case that jsonschema handles.
    sys.modules.setdefault("rfc3987_syntax", None)
    try:
        from jupyter_server.services.contents.manager import ContentsManager
        from jupyterlab.labapp import LabApp
    except ImportError:
        raise CourseError("JupyterLab is missing: run `pip install 'dlcourse[lab]'`.") from None
    print("Opening the course in JupyterLab; its address follows, Ctrl-C stops it.", flush=True)
    # Warnings are of no use to who opens a notebook (it is "not trusted" until it has run), and the
    # address is no warning. Kernels warn where the server could encrypt what they say and does not.
    quiet = ["--ServerApp.log_level=ERROR", "--LabApp.log_level=ERROR"]
    quiet.append("--KernelManager.transport_encryption=auto")
    logging.getLogger("asyncio").addFilter(_is_trouble)
    # Terminals and kernels of the lab find `dlcourse` without its folder: the server hands on PATH.
    # Where it runs in no terminal, its own would be login shells, which often set PATH anew.
    scripts = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    os.environ["PATH"] = os.pathsep.join(scripts)
    if os.name != "nt":
        shell = os.environ.get("SHELL") or "/bin/sh"
        quiet.append(f"--ServerApp.terminado_settings={{'shell_command': [{shell!r}]}}")
    # In a container one often is root, and the server listens on this machine only.
    own = [f"--ServerApp.root_dir={course}", "--allow-root", *quiet]
    names = [*ContentsManager.hide_globs.default(), *_site_only(course)]
    hide = [f"--ContentsManager.hide_globs={name}" for name in names]
    LabApp.launch_instance([*own, *start, *hide, *options.others])


def _site_only(course: Path) -> list[str]:
    """Files of course/ that only the site needs: links open them, the lab's list of files would be
    long with them. By name, so that a page that a student writes is in the list."""
    toc = (course / "_toc.yml").read_text(encoding="utf-8")
    pages = [f"{name}.md" for name in re.findall(r"course/(\w+)", toc)]
    return [*pages, "_toc.yml", "front.png", "references.bib"]


def _is_trouble(record: logging.LogRecord) -> bool:
    """Not where a tab was closed while the server wrote to it: nobody awaits that write."""
    from tornado.websocket import WebSocketClosedError

    return not (record.exc_info and isinstance(record.exc_info[1], WebSocketClosedError))


def _run(options: argparse.Namespace) -> int:
    from dlcourse_utils.run import run

    return run(options.lesson)


def _test(options: argparse.Namespace) -> int:
    """All tests in two processes, a file in one; what is named in the arguments in this one."""
    # Not the files with most tests first: tests/conftest.py puts first those that take longest.
    everything = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", *(options.others or everything)]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"DLCOURSE_HOME": home}
        return subprocess.run(command, cwd=_checkout(), env=environment).returncode


def _build(options: argparse.Namespace) -> int:
    from dlcourse_utils.build import build

    return build(
        options.lesson or None,
        check=options.check,
        force=options.force,
        execute=not options.no_execute,
    )


def _book(_: argparse.Namespace) -> None:
    from dlcourse_utils.book import book

    book()


def _serve(options: argparse.Namespace) -> None:
    from dlcourse_utils.book import serve

    serve(options.port)


def _data(options: argparse.Namespace) -> None:
    from dlcourse_utils import registry

    if options.name:
        print(registry.fetch(options.name))
    else:
        print(*registry.status(), sep="\n")


def _doctor(_: argparse.Namespace) -> int:
    from dlcourse_utils.doctor import doctor

    return doctor()


def _reset(options: argparse.Namespace) -> None:
    from dlcourse_utils.build import reset

    print(reset(options.lesson))


def _progress(options: argparse.Namespace) -> None:
    from dlcourse_utils.checks import progress

    progress(options.lesson)


def _checkout() -> Path:
    root = paths.repository_root()
    if root is None:
        raise CourseError(
            "This command works in a copy of the course's repository, and dlcourse runs from an "
            "installed package: clone the repository and use `make` there."
        )
    return root


if __name__ == "__main__":
    sys.exit(main())
