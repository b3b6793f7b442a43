"""A browser for the tests: find one, open pages that note their errors, hold them to axe-core."""

import functools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from tests.environments import ROOT

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It fetches nothing of its own, and runs in a container, where /dev/shm is small.
_FLAGS = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
_FLAGS += ("--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run")
expect.set_options(timeout=30_000)  # ms; other tests share the cores
_HERE = {"localhost", "127.0.0.1", ""}  # no host: data:, blob: and file:


@dataclass
class Visit:
    """A page, and what went wrong on it: its errors, the addresses that could not be fetched, and
    those on other machines."""

    page: Page
    errors: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.lost.append(request.url))
        self.page.on("request", lambda request: self._note(request.url))

    def _note(self, address: str) -> None:
        if (urlsplit(address).hostname or "") not in _HERE:
            self.foreign.append(address)


@functools.cache
def find() -> str | None:
    """Path of Chromium or Chrome, on PATH or installed by playwright; None without one."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        with sync_playwright() as driver:
            found = driver.chromium.executable_path
    return found if Path(found).is_file() else None


@contextmanager
def launched() -> Iterator[Browser]:
    """A running browser without window; skips the test where there is none."""
    path = find()
    if path is None:
        pytest.skip("no browser: install chromium, or run `playwright install chromium`")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, *, width: int = 1280, height: int = 900, **options) -> Iterator[Visit]:
    """A fresh page of its own profile; ``options`` are those of playwright's `new_context`.

    Where its test fails a screenshot is kept.
    """
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    try:
        page = context.new_page()
        try:
            yield Visit(page)
        except Exception:
            keep_failed(page)
            raise
    finally:
        context.close()


def barriers(page: Page, within: str | None = None) -> list[str]:
    """What axe-core finds serious or critical on a page, or in the elements of one selector."""
    found = Axe().run(page, context=within).response["violations"]
    return [
        f"{finding['id']} ({finding['impact']}): {node['html']}"
        for finding in found
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]


def keep(page: Page, name: str) -> None:
    """Take a screenshot, to be looked at after the run."""
    page.screenshot(path=_artefacts() / f"{name}.png")


def keep_failed(page: Page) -> None:
    """Take a screenshot under the name of the running test, where the page still is."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].rpartition(" ")[0]
    with suppress(Error):
        keep(page, re.sub(r"[^\w.-]+", "-", f"failed-{test}").strip("-"))


def note(what: str, value: float, unit: str) -> None:
    """Write down what was measured, beside the screenshots."""
    with (_artefacts() / "measured.txt").open("a", encoding="utf-8") as file:
        file.write(f"{what}: {value:.4g} {unit}\n")


def _artefacts() -> Path:
    """The folder of screenshots: DLCOURSE_SCREENSHOTS names another than build/screenshots."""
    folder = Path(os.environ.get("DLCOURSE_SCREENSHOTS") or ROOT / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
