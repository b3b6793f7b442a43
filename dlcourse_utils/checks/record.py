"""A person's own record of checks: one line of JSON a check, appended to a local file.

Exercise, outcome, diagnosis and time; nothing personal, sent nowhere. It survives a restart of the
kernel, and a record that cannot be written or read is never in the way.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from dlcourse_utils import lessons, paths


def file() -> Path:
    """Where the record is."""
    return paths.user_dir() / "progress.jsonl"


def append(exercise: str, outcome: str, diagnosis: str) -> None:
    """Append one line; silently does nothing where the folder cannot be written."""
    line = json.dumps(
        {
            "exercise": exercise,
            "outcome": outcome,
            "diagnosis": diagnosis,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        # One write of one line in append mode: two kernels cannot mix their lines.
        descriptor = os.open(file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)
    except OSError:
        pass


def read() -> list[dict[str, str]]:
    """All lines that can be read, oldest first; a damaged line is left out."""
    try:
        lines = file().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and {"exercise", "outcome"} <= entry.keys():
            entries.append(entry)
    return entries


def table(lesson: str | int | None = None) -> list[tuple[str, str, str, int]]:
    """A row for each exercise of one lesson or all: id, title, where it stands, number of tries.

    It stands where its last check left it; one that was right before says so.
    """
    entries = read()
    rows = []
    for path in lessons.sources() if lesson is None else [lessons.find(lesson)]:
        for task in lessons.load(path).exercises.values():
            outcomes = [e["outcome"] for e in entries if e["exercise"] == task.id]
            tries = [o for o in outcomes if o != "not started"]
            state = tries[-1] if tries else "not started"
            if "right" in tries and state != "right":
                state += ", was right before"
            rows.append((task.id, task.title, state, len(tries)))
    return rows
