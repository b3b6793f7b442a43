"""What the benchmarks share: the clock of one training, and the machine it ran on."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import numpy as np

try:
    import torch
except ImportError:  # not every benchmark compares with it
    torch = None


class Trained(NamedTuple):
    """What a training returns: when its first step could run, on `time.perf_counter`, and a
    function that computes its held-out NLL, in nats."""

    ready: float
    held_out: Callable[[], float]


Trainer = Callable[[int, int], Trained]  # of (steps, seed)


class Run(NamedTuple):
    """One training: what it cost and what it reached."""

    speed: float  # steps per second, from `Trained.ready` on
    start: float  # seconds until then: set-up and compilation
    total: float  # seconds of the whole training, the start included
    nll: float  # held-out, in nats


def measure(run: Trainer, steps: int, seed: int) -> Run:
    """Train once and read the clock."""
    begin = time.perf_counter()
    trained = run(steps, seed)
    end = time.perf_counter()
    speed = steps / (end - trained.ready)
    return Run(speed, trained.ready - begin, end - begin, trained.held_out())


def compile_clock() -> Callable[[], float]:
    """A function that says when JAX last ended a compilation, on `time.perf_counter`.

    A training loop in JAX compiles its step anew at each call, and nothing after it: what the
    function returns after the loop is when the first step could run.
    """
    compiled = time.perf_counter()

    def on_event(event: str, duration: float, **_: Any) -> None:
        nonlocal compiled
        if event.endswith("backend_compile_duration"):
            compiled = time.perf_counter()

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return lambda: compiled


def median(field: str, runs: list[Run]) -> float:
    """The median of one field over the runs."""
    return float(np.median([getattr(run, field) for run in runs]))


def conditions(*packages: str) -> str:
    """The machine, the versions and the date; the threads of torch, if that is one of them."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    threads = f", torch on {torch.get_num_threads()} thread(s)" if "torch" in packages else ""
    return (
        f"{os.cpu_count()}-core {platform.machine().replace('_', '-')} CPU{threads}; "
        f"Python {platform.python_version()}, {versions}; {date.today().isoformat()}."
    )


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, every one a number of at least 1 or None; sets the threads of torch, and JAX to
    the CPU, where torch is."""
    options = parser.parse_args()
    for name, value in vars(options).items():
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}: give a whole number of at least 1.")
    if options.threads:
        torch.set_num_threads(options.threads)
    jax.config.update("jax_platforms", "cpu")
    return options
