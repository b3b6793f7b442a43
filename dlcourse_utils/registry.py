"""Named data files: each with its sha256, either shipped with the course or fetched once.

`path` looks on this machine first: the course's own ``data`` folder, the folder in the environment
variable DLCOURSE_DATA, then the user's folder. Only then does it fetch. No file is handed out
before its sha256 has been found right. The list itself is ``data/registry.toml``.
"""

import hashlib
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from dlcourse_utils import paths
from dlcourse_utils.errors import CourseError

TIMEOUT = (3.0, 20.0)  # seconds: to connect, and between two pieces of an answer
LEFTOVER_AGE = 3600.0  # seconds after which a partial file can only be one of a dead process
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RegistryError(CourseError):
    """A name, an entry or a shipped file is wrong."""


class OfflineError(RegistryError):
    """The file is not on this machine and could not be had: a lesson goes on without it.

    ``reason`` is the part of the text that says why.
    """

    def __init__(self, text: str, reason: str = ""):
        super().__init__(text)
        self.reason = reason


class _Refused(Exception):
    """What the server sends is not wanted; the text completes "could not be fetched: ..."."""


@dataclass(frozen=True)
class Entry:
    """One file. ``file`` is relative, with forward slashes; ``url`` is None for a shipped file."""

    name: str
    file: str
    sha256: str
    size: int
    licence: str
    citation: str
    url: str | None = None


@dataclass(frozen=True)
class Status:
    """Where a file is. ``place`` is shipped, DLCOURSE_DATA, fetched, absent or damaged."""

    entry: Entry
    place: str
    path: Path | None

    @property
    def ok(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        size = f"{self.entry.size / 1e6:.2f} MB"
        return f"{self.entry.name:<22} {self.place:<13} {size:>8}  {self.path or self.entry.url}"


def entries() -> dict[str, Entry]:
    """All registered files by name; `RegistryError` where an entry is not as it must be."""
    listing = paths.data_dir() / "registry.toml"
    try:
        tables = tomllib.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"The list of data files {listing} cannot be read ({error}): install the course again."
        ) from None
    return {name: _entry(name, table) for name, table in tables.items()}


def path(name: str) -> Path:
    """Path of the file ``name``, verified; fetched into the user's folder if it is nowhere else.

    Raises `RegistryError` for an unknown name or a damaged shipped file, `OfflineError` when the
    file is not here and cannot be fetched.
    """
    return _local(_registered(name)) or fetch(name)


def paths_of(names: Sequence[str]) -> list[Path]:
    """Paths of files that are of use only together, as `path` gives them.

    After the first that cannot be fetched no other is tried: one `OfflineError` names all that are
    not here.
    """
    found = {name: _local(_registered(name)) for name in names}
    for name in names:
        try:
            found[name] = found[name] or fetch(name)
        except OfflineError as error:
            missing = [_registered(name) for name in names if found[name] is None]
            if len(missing) == 1:
                raise
            raise OfflineError(_offline_together(missing, error.reason)) from None
    return [found[name] for name in names]


def fetch(name: str) -> Path:
    """Make sure that the user's folder holds ``name``, and return its path; see `path`.

    The download goes to a temporary file beside the target and replaces it in one step, so that
    an interruption leaves nothing that counts and two processes do not disturb each other.
    """
    entry = _registered(name)
    if entry.url is None:
        (_, shipped), *_ = _places(entry)
        if _matches(shipped, entry):
            return shipped
        raise RegistryError(
            f"{shipped}, which comes with the course, is missing or changed: "
            f"install the course again, or restore it with `git checkout -- data`."
        )
    target = _cached(entry)
    if _matches(target, entry):
        return target
    try:
        _download(entry, target)
    except (_Refused, OSError) as error:
        reason = _reason(entry, target, error)
        raise OfflineError(_offline_text(entry, reason), reason) from None
    return target


def status() -> list[Status]:
    """Where each registered file is, without touching the network; ``str()`` of one is a line."""
    found = []
    for entry in entries().values():
        places = list(_places(entry))
        good = [(label, place) for label, place in places if _matches(place, entry)]
        damaged = any(place.is_file() for _, place in places)
        label, place = good[0] if good else ("damaged" if damaged else "absent", None)
        found.append(Status(entry, label, place))
    return found


# --- entries ----------------------------------------------------------------------------------


def _registered(name: str) -> Entry:
    known = entries()
    if name not in known:
        raise RegistryError(
            f"There is no data file named {name!r}: the names are {', '.join(sorted(known))}."
        )
    return known[name]


def _entry(name: str, table: object) -> Entry:
    def wrong(what: str) -> RegistryError:
        return RegistryError(f"registry.toml: [{name}]: {what}.")

    known = {field.name for field in fields(Entry)} - {"name"}
    if not isinstance(table, dict) or not known - {"url"} <= set(table) <= known:
        raise wrong(f"expected the keys {', '.join(sorted(known))} (url only if it is fetched)")
    entry = Entry(name=name, **table)
    if not all(isinstance(v, str) and v for k, v in table.items() if k != "size"):
        raise wrong("every value but size must be a text that is not empty")
    if not _NAME.fullmatch(name) or entry.file.split("/")[-1] != name:
        raise wrong("the name must be the file's own, in small letters, digits, _ and .")
    # Each part of the path is a plain name, so that it cannot lead out of its folder.
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", p) for p in entry.file.split("/")):
        raise wrong(f"file {entry.file!r} must be a relative path of plain names")
    if not _SHA256.fullmatch(entry.sha256):
        raise wrong("sha256 must be 64 hexadecimal digits")
    if type(entry.size) is not int or entry.size <= 0:
        raise wrong("size must be a positive number of bytes")
    if entry.url is not None and not _allowed(entry.url):
        raise wrong(f"url {entry.url!r} must begin with https://")
    return entry


def _allowed(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname)


# --- places -----------------------------------------------------------------------------------


def _places(entry: Entry) -> Iterator[tuple[str, Path]]:
    if entry.url is None:
        yield "shipped", paths.data_dir() / entry.file
        return
    if folder := os.environ.get("DLCOURSE_DATA"):
        yield "DLCOURSE_DATA", Path(folder).expanduser() / entry.file
    yield "fetched", _cached(entry)


def _local(entry: Entry) -> Path | None:
    """Where the file is on this machine; None if it is nowhere."""
    return next((place for _, place in _places(entry) if _matches(place, entry)), None)


def _cached(entry: Entry) -> Path:
    return paths.user_dir() / "data" / entry.file


def _matches(place: Path, entry: Entry) -> bool:
    try:
        if not place.is_file() or place.stat().st_size != entry.size:
            return False
        return hashlib.sha256(place.read_bytes()).hexdigest() == entry.sha256
    except OSError:
        return False


# --- fetching ---------------------------------------------------------------------------------


class _Sink:
    """The file being written: keeps the sha256 and stops a server that sends too much."""

    def __init__(self, out: BinaryIO, limit: int) -> None:
        self.out, self.limit, self.written = out, limit, 0
        self.hash = hashlib.sha256()

    def write(self, chunk: bytes) -> int:
        self.written += len(chunk)
        if self.written > self.limit:
            raise _Refused("the server sent more than the file should have")
        self.hash.update(chunk)
        return self.out.write(chunk)

    def flush(self) -> None:
        self.out.flush()


def _download(entry: Entry, target: Path) -> None:
    _make_room(target)
    handle, part = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)
    part = Path(part)
    try:
        with os.fdopen(handle, "wb") as out:
            sink = _Sink(out, entry.size)
            _transfer(entry.url, sink)
        if sink.written < entry.size:
            raise _Refused(f"it ended after {sink.written} of {entry.size} bytes")
        if sink.hash.hexdigest() != entry.sha256:
            raise _Refused("what came is not the registered file, its sha256 differs")
        try:
            part.replace(target)
        except OSError:
            # Windows refuses while another process reads the same file, which then is good.
            if not _matches(target, entry):
                raise
    finally:
        part.unlink(missing_ok=True)


def _make_room(target: Path) -> None:
    home = paths.user_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(home.resolve()):
        raise _Refused(f"{target.parent} leads out of {home} through a link")
    for old in target.parent.glob(f"{target.name}.*.part"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFTOVER_AGE:
                old.unlink()


def _transfer(url: str, sink: _Sink) -> None:
    import pooch  # takes 0.3 s, and most runs fetch nothing
    import requests

    answers: list[requests.Response] = []

    def inspect(response: requests.Response, **_: object) -> None:
        # Called for every answer, before a redirection is followed.
        answers.append(response)
        where = urljoin(response.url, response.headers.get("location", ""))
        if response.is_redirect and not _allowed(where):
            raise _Refused(f"the server sends us on to {where}, which is not https")

    get = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=65536, hooks={"response": inspect})
    host = urlsplit(url).hostname
    try:
        get(url, sink, None)
    except requests.HTTPError as error:
        raise _Refused(f"{host} answered {error.response.status_code}") from None
    except requests.Timeout:
        raise _Refused(f"{host} does not answer") from None
    except requests.RequestException:
        if answers:
            raise _Refused(f"{host} stopped half-way") from None
        raise _Refused(f"no connection to {host}") from None
    finally:
        for answer in answers:
            answer.close()


def _reason(entry: Entry, target: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        reason = f"cannot write to {error.filename or target.parent}: {error.strerror or error}"
    else:
        reason = str(error)
    damaged = [str(place) for _, place in _places(entry) if place.is_file()]
    return reason + (f"; {damaged[0]} is there, but it is not that file" if damaged else "")


def _by_hand(entry: Entry) -> Path:
    """Where a file may be put that was downloaded by hand."""
    folder = os.environ.get("DLCOURSE_DATA")
    return Path(folder).expanduser() / entry.file if folder else _cached(entry)


def _offline_text(entry: Entry, reason: str) -> str:
    return (
        f"{entry.name} is not on this machine and could not be fetched ({reason}): the lesson goes "
        f"on without it; to have it, download {entry.url} and save it as {_by_hand(entry)}."
    )


def _offline_together(missing: Sequence[Entry], reason: str) -> str:
    *most, last = (entry.name for entry in missing)
    folders = dict.fromkeys(str(_by_hand(entry).parent) for entry in missing)
    return (
        f"{', '.join(most)} and {last} are not on this machine, and {missing[0].name} could not be "
        f"fetched ({reason}): the lesson goes on without them; to have them, download each from "
        "the address that `dlcourse data` shows beside its name, and save it by that name in "
        f"{' and '.join(folders)}."
    )
