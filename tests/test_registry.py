"""The registry: what it lists, where it looks, and every way in which fetching can go wrong.

A server on the loopback address plays the faults. It speaks http, which the registry refuses, so
the fixture `allow` lets exactly this server's address through.
"""

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dlcourse_utils import paths, registry

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 1200  # 300 kB, several pieces
NAME = "stars.dat"


class Server:
    """Answers every request by ``behave(handler)``, which a test sets."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                outer.behave(self)

            def log_message(self, *_: object) -> None:
                pass

        self.requests = 0
        self.behave = send()
        self.over = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


def send(body: bytes = CONTENT, *, length: int | None = len(CONTENT), wait=None):
    """Behaviour: answer 200 with ``body``, claiming ``length`` bytes; ``wait`` is called midway."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        half = len(body) // 2
        try:
            handler.wfile.write(body[:half])
            if wait:
                wait()
            handler.wfile.write(body[half:])
        except OSError:
            pass  # the client has gone, as some tests want

    return behave


def redirect(to: str):
    def behave(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/moved":
            send()(handler)
            return
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behave


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def course(tmp_path, monkeypatch, server):
    """A course whose registry lists one file, to be fetched from the test's server."""
    monkeypatch.setenv("DLCOURSE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DLCOURSE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr(paths, "data_dir", lambda: data)
    real = registry._allowed
    monkeypatch.setattr(
        registry, "_allowed", lambda url: real(url) or url.startswith(server.address)
    )
    monkeypatch.setattr(registry, "TIMEOUT", (2.0, 0.5))
    list_file(data, url=server.address + NAME)
    return data


def list_file(data: Path, *, name: str = NAME, **changes: object) -> None:
    table = {
        "file": f"sky/{NAME}",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
        "licence": "CC0",
        "citation": "nobody",
        **changes,
    }
    lines = [f"{k} = {v if isinstance(v, int) else repr(v)}" for k, v in table.items() if v != ""]
    (data / "registry.toml").write_text(f'["{name}"]\n' + "\n".join(lines) + "\n")


def target() -> Path:
    return paths.user_dir() / "data" / "sky" / NAME


def leftovers() -> list[Path]:
    folder = target().parent
    return sorted(folder.iterdir()) if folder.is_dir() else []


def refused() -> str:
    """The sentence with which fetching fails; nothing may be left behind."""
    before = leftovers()
    with pytest.raises(registry.OfflineError) as caught:
        registry.path(NAME)
    assert leftovers() == before
    text = str(caught.value)
    assert text.startswith(f"{NAME} is not on this machine and could not be fetched (")
    assert "the lesson goes on without it" in text and str(target()) in text
    assert "\n" not in text and text.endswith(".")
    return text


# --- the list ---------------------------------------------------------------------------------


def test_every_shipped_file_is_registered_and_whole():
    known = registry.entries()
    shipped = {e.file for e in known.values() if e.url is None}
    there = {
        p.relative_to(ROOT / "data").as_posix() for p in (ROOT / "data").rglob("*") if p.is_file()
    }
    assert there - {"registry.toml", "README.md"} == shipped
    for entry in known.values():
        assert entry.licence and entry.citation
        if entry.url is None:
            assert registry.path(entry.name) == ROOT / "data" / entry.file
            assert "none stated" not in entry.licence
        else:
            assert re.match(
                r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/", entry.url
            )


def test_every_registered_file_is_in_the_readme():
    text = (ROOT / "data" / "README.md").read_text()
    assert all(f"`{name}`" in text for name in registry.entries())


def test_nothing_is_unpickled():
    for source in (ROOT / "dlcourse_utils").rglob("*.py"):
        text = source.read_text().replace("allow_pickle=False", "")
        assert not re.search(r"(import|from) c?pickle|allow_pickle|joblib", text), source


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": "http://example.org/stars.dat"}, "must begin with https://"),
        ({"url": "file:///etc/passwd"}, "must begin with https://"),
        ({"file": f"../{NAME}"}, "relative path of plain names"),
        ({"file": f"sky/../../{NAME}"}, "relative path of plain names"),
        ({"file": f"/tmp/{NAME}"}, "relative path of plain names"),
        ({"file": f"..\\x/{NAME}"}, "relative path of plain names"),
        ({"file": "sky/other.dat"}, "the name must be the file's own"),
        ({"name": "../stars.dat"}, "the name must be the file's own"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"size": 0}, "positive number of bytes"),
        ({"size": "1"}, "positive number of bytes"),
        ({"licence": ""}, "expected the keys"),
        ({"colour": "red"}, "expected the keys"),
        ({"citation": 3}, "must be a text"),
    ],
)
def test_a_wrong_entry_is_refused(course, changes, says):
    list_file(course, **{"url": "https://example.org/stars.dat", **changes})
    with pytest.raises(registry.RegistryError, match=re.escape(says)):
        registry.path(NAME)


@pytest.mark.parametrize("text", ["[", None])
def test_an_unreadable_list_is_one_sentence(course, text):
    (course / "registry.toml").unlink()
    if text:
        (course / "registry.toml").write_text(text)
    with pytest.raises(registry.RegistryError, match="install the course again"):
        registry.entries()


@pytest.mark.parametrize("name", ["nebula.dat", f"../{NAME}", "", "/etc/passwd"])
def test_an_unknown_name_is_told_the_known_ones(course, name):
    with pytest.raises(
        registry.RegistryError, match=rf"no data file named .*: the names are {NAME}"
    ):
        registry.path(name)


# --- where it looks ---------------------------------------------------------------------------


def test_fetched_once_then_found_without_the_network(course, server):
    assert registry.path(NAME) == target()
    assert target().read_bytes() == CONTENT
    assert registry.path(NAME) == registry.fetch(NAME) == target()
    assert server.requests == 1
    assert leftovers() == [target()]


def test_own_copy_in_dlcourse_data_is_used_first(course, server, tmp_path, monkeypatch):
    monkeypatch.setenv("DLCOURSE_DATA", str(tmp_path / "mine"))
    copy = tmp_path / "mine" / "sky" / NAME
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    assert registry.path(NAME) == copy
    assert server.requests == 0
    assert registry.fetch(NAME) == target()


def test_a_wrong_copy_in_dlcourse_data_is_passed_over_and_named(
    course, server, tmp_path, monkeypatch
):
    monkeypatch.setenv("DLCOURSE_DATA", str(tmp_path / "mine"))
    copy = tmp_path / "mine" / "sky" / NAME
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT[:-1] + b"?")
    server.behave = send(b"", length=0)
    with pytest.raises(registry.OfflineError, match="it is not that file"):
        registry.path(NAME)
    server.behave = send()
    assert registry.path(NAME) == target()
    assert copy.read_bytes() != CONTENT


def test_a_damaged_copy_is_fetched_again(course):
    registry.path(NAME)
    target().write_bytes(b"\0" * len(CONTENT))
    assert registry.status()[0].place == "damaged"
    assert registry.path(NAME).read_bytes() == CONTENT


def test_a_shipped_file_is_verified(course):
    list_file(course, file=NAME)
    for content in (None, CONTENT[:-1], CONTENT[:-1] + b"?"):
        if content is not None:
            (course / NAME).write_bytes(content)
        for call in (registry.path, registry.fetch):
            with pytest.raises(registry.RegistryError, match="missing or changed"):
                call(NAME)
    (course / NAME).write_bytes(CONTENT)
    assert registry.path(NAME) == registry.fetch(NAME) == course / NAME


def test_status_says_where_a_file_is(course):
    (before,) = registry.status()
    assert (before.place, before.ok) == ("absent", False)
    registry.path(NAME)
    (after,) = registry.status()
    assert (after.place, after.ok, after.path) == ("fetched", True, target())
    assert NAME in str(after) and "0.31 MB" in str(after) and str(target()) in str(after)


# --- faults of the server ---------------------------------------------------------------------


def test_truncated_body(course, server):
    server.behave = send(CONTENT[:1000])
    assert "127.0.0.1 stopped half-way" in refused()
    server.behave = send(CONTENT[:1000], length=1000)
    assert "it ended after 1000 of 307200 bytes" in refused()
    server.behave = send(CONTENT[:1000], length=None)
    assert "it ended after 1000 of 307200 bytes" in refused()


def test_flipped_byte(course, server):
    body = bytearray(CONTENT)
    body[777] ^= 1
    server.behave = send(bytes(body))
    assert "its sha256 differs" in refused()


def test_wrong_hash_in_the_registry(course, server):
    list_file(course, url=server.address + NAME, sha256="0" * 64)
    assert "its sha256 differs" in refused()


@pytest.mark.parametrize("length", [len(CONTENT) + 1, None])
def test_too_long_an_answer_is_cut(course, server, length):
    server.behave = send(CONTENT + b"!", length=length)
    assert "sent more than the file should have" in refused()


def test_server_that_stops_half_way_and_a_clean_restart(course, server):
    server.behave = send(wait=lambda: server.over.wait(5))
    assert "127.0.0.1 stopped half-way" in refused()
    server.over.set()
    server.behave = send()
    assert registry.path(NAME).read_bytes() == CONTENT


def test_hanging_server(course, server):
    server.behave = lambda handler: server.over.wait(5)
    start = time.perf_counter()
    assert "127.0.0.1 does not answer" in refused()
    assert time.perf_counter() - start < 3.0


@pytest.mark.parametrize("code", [403, 404, 500])
def test_error_answer(course, server, code):
    server.behave = lambda handler: handler.send_error(code)
    assert f"127.0.0.1 answered {code}" in refused()


def test_no_network(course, server):
    server.close()
    assert "no connection to 127.0.0.1" in refused()


def test_files_that_belong_together_are_named_together(course, server):
    names, tables = ("a.bin", "b.bin", "c.bin"), []
    for name in names:
        list_file(course, name=name, file=f"sky/{name}", url=server.address + name)
        tables.append((course / "registry.toml").read_text())
    (course / "registry.toml").write_text("".join(tables))
    assert registry.paths_of(["b.bin"]) == [target().with_name("b.bin")]
    server.behave = send(b"", length=0)
    before = server.requests
    with pytest.raises(registry.OfflineError) as caught:
        registry.paths_of(names)
    text = str(caught.value)
    assert text.startswith(
        "a.bin and c.bin are not on this machine, and a.bin could not be fetched ("
    )
    assert "b.bin" not in text and f"save it by that name in {target().parent}." in text
    assert server.requests == before + 1, "the others would fail in the same way"
    target().with_name("a.bin").write_bytes(CONTENT)
    with pytest.raises(registry.OfflineError, match=r"^c\.bin is not on this machine and could"):
        registry.paths_of(names)
    server.behave = send()
    assert registry.paths_of(names) == [target().with_name(name) for name in names]


def test_a_name_without_an_address(course):
    list_file(course, url="https://no-such-host.invalid/stars.dat")
    assert "no connection to no-such-host.invalid" in refused()


def test_redirection_to_http_is_refused_and_another_followed(course, server):
    server.behave = redirect(server.address.replace("127.0.0.1", "localhost") + "moved")
    assert "which is not https" in refused()
    server.behave = redirect("ftp://127.0.0.1/moved")
    assert "which is not https" in refused()
    server.behave = redirect("/moved")
    assert registry.path(NAME).read_bytes() == CONTENT


# --- faults of this machine -------------------------------------------------------------------


def test_read_only_folder(course, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")  # holds for root too, unlike permissions
    monkeypatch.setenv("DLCOURSE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(registry.OfflineError, match=r"cannot write to .*home"):
        registry.path(NAME)


def test_full_disk(course, monkeypatch):
    def full(self, chunk):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry._Sink, "write", full)
    assert "cannot write to" in refused()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_out_of_the_folder_is_not_followed(course, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target().parent.parent.mkdir(parents=True)
    target().parent.symlink_to(tmp_path / "elsewhere")
    assert "through a link" in refused()


def test_leftover_partial_files_are_harmless_and_go_when_old(course):
    target().parent.mkdir(parents=True)
    fresh, old = (target().with_name(f"{NAME}.{which}.part") for which in ("new", "old"))
    for part in (fresh, old):
        part.write_bytes(CONTENT[:100])
    long_ago = time.time() - 2 * registry.LEFTOVER_AGE
    os.utime(old, (long_ago, long_ago))
    assert registry.path(NAME).read_bytes() == CONTENT
    assert leftovers() == [target(), fresh]


def test_interrupt_leaves_nothing(course, server, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry._Sink, "flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.path(NAME)
    assert leftovers() == []


CHILD = """
import sys
from pathlib import Path
from dlcourse_utils import paths, registry
data, address, name = sys.argv[1:]
paths.data_dir = lambda: Path(data)
registry._allowed = lambda url: url.startswith(address)
print(registry.path(name))
"""


def child(course: Path, server: Server) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(course), server.address, NAME],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once(course, server):
    both = threading.Barrier(2)  # neither answer ends before both have begun
    server.behave = send(wait=lambda: both.wait(30))
    for process in [child(course, server), child(course, server)]:
        out, errors = process.communicate(timeout=60)
        assert (out.strip(), errors) == (str(target()), "")
    assert server.requests == 2
    assert target().read_bytes() == CONTENT
    assert leftovers() == [target()]


def test_killed_half_way_then_a_clean_restart(course, server):
    half = threading.Event()
    server.behave = send(wait=lambda: (half.set(), server.over.wait(30)))
    process = child(course, server)
    assert half.wait(30)
    process.kill()
    process.communicate()
    assert not target().exists()
    server.over.set()
    server.behave = send()
    assert registry.path(NAME).read_bytes() == CONTENT
