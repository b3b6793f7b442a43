"""How a check's report looks: rich text in a notebook, the same words in plain text."""

from __future__ import annotations

import html
import re

from IPython.core.getipython import get_ipython
from IPython.display import display

from .engine import ERROR, NOT_STARTED, RIGHT, WRONG, Report

# Status by symbol and word, colour only beside them (Okabe-Ito, readable on white and on black).
_MARKS = {
    NOT_STARTED: ("○", "not started", "#808080"),
    ERROR: ("!", "your code raised an error", "#D55E00"),
    WRONG: ("✗", "not yet right", "#D55E00"),
    RIGHT: ("✓", "right", "#009E73"),
}


def plain(title: str, report: Report) -> str:
    """The report as lines of plain text."""
    symbol, word, _ = _MARKS[report.outcome]
    lines = [f"{symbol} {title} · {word}", f"  {report.says}"]
    lines += [f"  {text}" for text in (report.detail, *_rest(report)) if text]
    return "\n".join(lines)


def rich(title: str, report: Report) -> str:
    """The report as HTML that takes the page's own text colour and background."""
    symbol, word, colour = _MARKS[report.outcome]
    parts = [
        f'<strong><span style="color:{colour}" aria-hidden="true">{html.escape(symbol)}</span> '
        f"{html.escape(title)} · {html.escape(word)}</strong>",
        inline(report.says),
    ]
    if report.detail:
        parts.append(f"<code>{html.escape(report.detail)}</code>")
    parts += [inline(text) for text in _rest(report) if text]
    return (
        f'<div style="border-left:4px solid {colour};padding:4px 12px;line-height:1.5">'
        + "<br>".join(parts)
        + "</div>"
    )


def _rest(report: Report) -> tuple[str, ...]:
    goes_on = ""
    if report.outcome in (WRONG, ERROR):
        goes_on = (
            "The notebook goes on with your version."
            if report.usable
            else "The notebook goes on with the reference until this is mended."
        )
    return report.why, report.next, goes_on


def inline(text: str) -> str:
    """Text as HTML: escaped, with `code` in its own font and *stressed words* as such."""
    parts = re.split(r"`([^`]+)`", html.escape(text, quote=False))  # every second one is code
    parts[::2] = [re.sub(r"(?<!\w)\*(\w[\w ]*)\*(?!\w)", r"<em>\1</em>", p) for p in parts[::2]]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return "".join(parts)


def show(title: str, report: Report) -> None:
    """Display the report in a notebook, print it elsewhere."""
    show_both(plain(title, report), rich(title, report))


def show_both(text: str, markup: str) -> None:
    """Display rich text with its plain form, or print the plain form outside a notebook."""
    if get_ipython() is None:
        print(text)
    else:
        display({"text/plain": text, "text/html": markup}, raw=True)
