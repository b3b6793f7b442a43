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
    ok = _within(value, low, high)
    record = Verdict(name, value, low, high, unit, None if error is None else float(error), ok)
    _show(record)
    return record


def _within(value: float, low: float | None, high: float | None) -> bool:
    inside = (low is None or value >= low) and (high is None or value <= high)
    return inside and math.isfinite(value)


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
    unit = f" {record.unit}" if record.unit else ""
    return f"{word} · {record.name}: {_measured(record)}{unit} (band: {band(record)})"


def _measured(record: Verdict) -> str:
    """The value to two digits of its error, or to three of its own."""
    value, error = record.value, record.error
    text, tail = f"{value:.0f}" if 99.95 <= abs(value) < 1e6 else f"{value:#.3g}", ""
    if error is not None:
        tail = f" ± {error:.2g}"
        if math.isfinite(error) and error > 0.0 and math.isfinite(value):
            decimals = max(1 - math.floor(math.log10(error)), 0)
            text, tail = f"{value:.{decimals}f}", f" ± {error:.{decimals}f}"
    # Rounding must not carry a value across the end of its band.
    texts = [text, *(f"{value:.{digits}g}" for digits in range(4, 17)), repr(value)]
    honest = (t for t in texts if _within(float(t), record.low, record.high) is record.ok)
    return next(honest) + tail


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
