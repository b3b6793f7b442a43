"""`dlcourse doctor`: looks at what the course stands on, one line each, and says what to do."""

import os
import platform
import shutil
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from dlcourse_utils import env, paths
from dlcourse_utils.errors import CourseError

_SYMBOLS = {"ok": "✓", "warning": "!", "broken": "✗"}
_MEMORY = 2.0  # GiB that the largest lesson needs, with room for the browser
_DISK = 1.0  # GiB


class Finding(NamedTuple):
    """What was looked at, how it is ("ok", "warning", "broken"), and what was seen or is to do."""

    name: str
    state: str
    text: str


def doctor() -> int:
    """Print a line for each thing looked at; 1 when one of them is broken, else 0."""
    broken = False
    for finding in examine():
        broken |= finding.state == "broken"
        print(f"{_SYMBOLS[finding.state]} {finding.state:<8}{finding.name:<10}{finding.text}")
    return int(broken)


def examine() -> Iterator[Finding]:
    """Look at one thing after the other."""
    for look in (_python, _packages, _tfp, _numpy, _device, _memory, _disk, _network, _data):
        try:
            yield look()
        except CourseError as error:
            yield Finding(look.__name__.strip("_"), "broken", str(error))
        except ImportError as error:
            missing = error.name or env.first_line(error)
            text = f"not looked at, because {missing} is missing: run `pip install {missing}`."
            yield Finding(look.__name__.strip("_"), "warning", text)


def _python() -> Finding:
    return _or_broken("python", env.python_trouble(), f"Python {platform.python_version()}")


def _packages() -> Finding:
    seen = _versions("flax", "optax", "ipywidgets")
    return _or_broken("packages", env.packages_trouble(), seen)


def _numpy() -> Finding:
    return _or_broken("numpy", env.loaded_trouble(), _versions("numpy", "scipy"))


def _or_broken(name: str, trouble: str | None, seen: str) -> Finding:
    return Finding(name, "broken", trouble) if trouble else Finding(name, "ok", seen)


def _versions(*names: str) -> str:
    return ", ".join(f"{name} {env.installed(name)}" for name in names)


def _tfp() -> Finding:
    trouble = env.tfp_trouble()
    if not trouble and env.installed("tensorflow-probability"):
        text = (
            "tfp-nightly lies over a stable tensorflow-probability: it works, but uninstalling "
            "either spoils the other; if it breaks, uninstall both and install tfp-nightly."
        )
        return Finding("tfp", "warning", text)
    return _or_broken("tfp", trouble, _versions("tfp-nightly"))


def _device() -> Finding:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a driver, plugin or package that does not fit raises anything
        text = (
            f"jax finds no device ({env.first_line(error)}): set JAX_PLATFORMS=cpu and try again."
        )
        return Finding("device", "broken", text)
    seen = f"jax {jax.__version__} on {len(devices)} {devices[0].device_kind}"
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        text = (
            f"{seen}, though there is an NVIDIA GPU: all lessons run as they are; "
            'to use it run `pip install "jax[cuda12]"`.'
        )
        return Finding("device", "warning", text)
    return Finding("device", "ok", seen)


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < _MEMORY:
        text = f"{free:.1f} GiB free, a lesson may need {_MEMORY:.0f}: close other programs."
        return Finding("memory", "warning", text)
    return Finding("memory", "ok", f"{free:.1f} GiB free, {os.cpu_count()} cores")


def _disk() -> Finding:
    folder = paths.user_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        text = (
            f"{folder} cannot be made ({error.strerror}), so progress and fetched data are not "
            "kept: set DLCOURSE_HOME to a folder of yours."
        )
        return Finding("disk", "warning", text)
    if not os.access(folder, os.W_OK) or free < _DISK:
        text = (
            f"{folder} cannot be written or has only {free:.1f} GiB free, so progress and fetched "
            "data may not be kept: set DLCOURSE_HOME to a folder with room."
        )
        return Finding("disk", "warning", text)
    return Finding("disk", "ok", f"{free:.1f} GiB free at {folder}")


def _network() -> Finding:
    import requests

    from dlcourse_utils import registry

    hosts = sorted(
        {urlsplit(entry.url).hostname for entry in registry.entries().values() if entry.url}
    )
    for host in hosts:
        try:
            requests.head(f"https://{host}", timeout=3)
        except requests.RequestException:
            text = (
                f"{host} does not answer: lessons run without network, only data that do not "
                "ship with the course cannot be fetched now."
            )
            return Finding("network", "warning", text)
    return Finding("network", "ok", f"{' and '.join(hosts)} answer")


def _data() -> Finding:
    from dlcourse_utils import registry

    files = registry.status()
    for file in files:
        name = file.entry.name
        if file.entry.url is None and not file.ok:
            anew = "run `git checkout -- data`" if paths.repository_root() else "install it again"
            text = f"{name}, which ships with the course, is missing or damaged: {anew}."
            return Finding("data", "broken", text)
        if file.place == "damaged":
            text = f"{name} is damaged: run `dlcourse data {name}`."
            return Finding("data", "warning", text)
    absent = [file.entry.name for file in files if not file.ok]
    later = f"; fetched when a lesson asks: {', '.join(absent)}" if absent else ""
    return Finding("data", "ok", f"{len(files) - len(absent)} of {len(files)} files here{later}")
