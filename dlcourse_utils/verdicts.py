"""A verdict: one measured number beside the band it must lie in, said in one line.

The line carries the record in its output's metadata, where `dlcourse run` finds it: the notebook's
verdicts and the table of the command line come from the same call.
"""

from __future__ import annotations

import html
import math
from typing import NamedTuple

from IPython.core.getipython import get_ipython
from IPython.display import display

METADATA_KEY = "dlcourse"


class Verdict(NamedTuple):
    """A measured value and its band; ``low`` or ``high`` is None where the band is open."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str
    error: float | None  # Monte Carlo error of the value, one standard deviation
    ok: bool

    def _ipython_display_(self) -> None:
        """Nothing more: the line is already there when a cell ends on a verdict."""


def verdict(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    error: float | None = None,
) -> Verdict:
    """Judge ``value`` against [low, high], show the line and return the record.

    ``error`` is shown and not used: a band is not widened by the noise of its test. A value that is
    not finite fails. Raises ValueError without a band.
    """
    if low is None and high is None:
        raise ValueError(f"The verdict {name!r} has no band: give low, high or both.")
    value = float(value)
    low, high = (None if end is None else float(end) for end in (low, high))
    ok = math.isfinite(value)
    ok &= low is None or value >= low
    ok &= high is None or value <= high
    record = Verdict(name, value, low, high, unit, None if error is None else float(error), ok)
    _show(record)
    return record


def band(record: Verdict) -> str:
    """The band in words, such as ``at most 0.01`` or ``0.665 to 0.695``."""
    if record.low is None:
        return f"at most {record.high:g}"
    if record.high is None:
        return f"at least {record.low:g}"
    return f"{record.low:g} to {record.high:g}"


def sentence(record: Verdict) -> str:
    """The verdict in plain text."""
    word = "✓ pass" if record.ok else "✗ fail"
    error = "" if record.error is None else f" ± {record.error:.1g}"
    unit = f" {record.unit}" if record.unit else ""
    return f"{word} · {record.name}: {record.value:.5g}{error}{unit} (band: {band(record)})"


def _show(record: Verdict) -> None:
    text = sentence(record)
    if get_ipython() is None:
        print(text)
        return
    colour = "#009E73" if record.ok else "#D55E00"
    fields = {f: getattr(record, f) for f in ("name", "value", "low", "high", "unit", "ok")}
    if not math.isfinite(record.value):
        fields["value"] = None  # JSON has no NaN
    display(
        {
            "text/plain": text,
            "text/html": f'<div style="border-left:4px solid {colour};padding:2px 8px">'
            f"{html.escape(text)}</div>",
        },
        raw=True,
        metadata={METADATA_KEY: {"verdict": fields}},
    )
