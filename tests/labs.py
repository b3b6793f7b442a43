"""JupyterLab as a person uses it: a server on a copy of the course, and a notebook in a browser."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, expect

from tests.browsers import Visit
from tests.environments import run, unprivileged

PATIENCE = 30  # seconds that a server has to end before it is killed
# All cells are in the page, also those out of sight, and nothing is asked of the network.
_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"checkForUpdates": False},
}
_RAN = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
        .map(prompt => prompt.textContent);
    return prompts.some(text => /\\d/.test(text)) && !prompts.some(text => text.includes('*'));
}"""
# When the kernel began and ended each message of a widget, by its own clock.
_WATCH = """() => {
    window.statuses = [];
    jupyterapp.shell.currentWidget.sessionContext.session.kernel.iopubMessage.connect(
        (_, message) => {
            if (message.header.msg_type === 'status'
                && message.parent_header.msg_type === 'comm_msg')
                window.statuses.push([message.content.execution_state, message.header.date]);
        });
}"""
_HANDLED = "n => window.statuses.filter(([state]) => state === 'idle').length >= n"


@contextmanager
def serving(
    command: list[str], folder: Path, log: Path, environment: dict[str, str]
) -> Iterator[str]:
    """Run a command that serves JupyterLab from a folder; the address of its start page.

    ``log`` takes what it says.
    """
    with log.open("w") as said:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"BROWSER": "no-such-browser"},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 180
        while not (address := re.search(r"(http://localhost:\d+/lab\S*)\s", log.read_text())):
            if server.poll() is not None or time.monotonic() > until:
                pytest.fail(f"no address in: {log.read_text()}")
            time.sleep(0.05)
        yield address[1]
    finally:
        _stop(server)


def _stop(server: subprocess.Popen) -> None:
    """End a server, which may have died by itself, and what it has started."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, end)
        with suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
            return


@dataclass(frozen=True)
class Lab:
    """A JupyterLab on a copy of the checkout; what it writes stays in the folder of the test."""

    checkout: Path
    environment: dict[str, str]
    address: str
    log: Path

    def dlcourse(self, *words: str) -> str:
        """What the course's command says in this checkout, for this person."""
        command = [sys.executable, "-m", "dlcourse_utils.cli", *words]
        return run(*command, cwd=self.checkout, env=self.environment)

    def page(self, notebook: str) -> str:
        """Address of a notebook of course/, in a workspace of its own: no other is open there."""
        workspace = notebook.partition(".")[0]
        path = f"/lab/workspaces/{workspace}/tree/{notebook}"
        return urlsplit(self.address)._replace(path=path).geturl()


@contextmanager
def lab(checkout: Path, folder: Path) -> Iterator[Lab]:
    """`dlcourse lab` in a copy of the checkout, for somebody without settings and progress.

    And without rights: that of root, and that to write into data/.
    """
    for path in [checkout / "data", *(checkout / "data").rglob("*")]:
        path.chmod(path.stat().st_mode & 0o555)
    for name, values in _SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    places = {
        "DLCOURSE_HOME": "course",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    hidden = {"MPLBACKEND", "PYTHONSTARTUP"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {name: str(folder / place) for name, place in places.items()}
    environment["PYTHONPATH"] = str(checkout)  # kernels import the copy
    command = [*unprivileged(), sys.executable, "-m", "dlcourse_utils.cli", "lab"]
    command.append("--LabApp.expose_app_in_browser=True")
    log = folder / "lab.log"
    with serving(command, checkout, log, environment) as address:
        yield Lab(checkout, environment, address, log)


class Notebook:
    """A notebook open in JupyterLab, with its kernel running."""

    def __init__(self, visit: Visit, address: str):
        self.visit, self.page = visit, visit.page
        self.page.goto(address)
        self._wait_for_kernel()
        self.page.evaluate(_WATCH)
        self.cells = self.page.locator(".jp-Notebook .jp-Cell")

    def _wait_for_kernel(self) -> None:
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session"
            "?.kernel?.status === 'idle'",
            timeout=180_000,
        )

    def content(self) -> dict[str, Any]:
        """The notebook as it would be saved, outputs included."""
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON()")

    def cell(self, text: str) -> Locator:
        """The one cell whose source has this text."""
        (index,) = (i for i, c in enumerate(self.content()["cells"]) if text in c["source"])
        return self.cells.nth(index)

    def choose(self, menu: str, item: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def run_all(self, seconds: float) -> float:
        """Run all cells; the seconds that they took. Fails after those that are given."""
        begun = time.perf_counter()
        self.choose("Run", "Run All Cells")
        self.page.wait_for_function(_RAN, timeout=1000 * seconds, polling=200)
        return time.perf_counter() - begun

    def type(self, cell: Locator, source: str) -> None:
        """Replace the source of a cell by typing in its editor."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(source)

    def run(self, cell: Locator) -> None:
        """Run one cell to its end."""
        cell.locator(".cm-content").click()
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell')")

    def restart(self) -> None:
        self.choose("Kernel", "Restart Kernel…")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self._wait_for_kernel()

    def use_theme(self, theme: str) -> None:
        self.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
        )
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", theme)
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    def save(self) -> None:
        self.page.keyboard.press("ControlOrMeta+S")
        expect(self.page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)

    def close(self) -> None:
        """Shut the kernel down, which gives its memory back."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def move(self, slider: Locator, keys: list[str]) -> list[float]:
        """Press keys on a slider; the seconds that the kernel was busy after each of them."""
        self.page.evaluate("() => { window.statuses = []; }")
        slider.focus()
        for count, key in enumerate(keys, 1):
            self.page.keyboard.press(key)
            self.page.wait_for_function(_HANDLED, arg=count)
        statuses = self.page.evaluate("() => window.statuses")
        times = [datetime.fromisoformat(date) for _, date in statuses]
        assert [state for state, _ in statuses] == ["busy", "idle"] * (len(times) // 2)
        pairs = zip(times[::2], times[1::2], strict=True)
        return [(end - begin).total_seconds() for begin, end in pairs]
