"""The number of a trainer's start in a run's folder: counted durably, and found again if the count is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from forkcast.records import StateKind
from forkcast_wire import keys
from forkcast_wire.files import replace_bytes
from forkcast_wire.run_folder import damaged_as_none, read_progress
from forkcast_wire.statistics import read_tail

_FILE: Final = "attempts.json"


def has_started(folder: Path) -> bool:
    """Whether a trainer has ever started in the folder."""
    return (folder / _FILE).exists() or _last_attempt(folder) >= 0


def next_attempt(folder: Path) -> int:
    """The number of the trainer's next start, counted durably before it is used.

    A count that is lost or damaged is taken from the numbers in what the run has written. Raises
    OSError.
    """
    path = folder / _FILE
    known = damaged_as_none(path)
    attempt = (known if type(known) is int else _last_attempt(folder)) + 1
    replace_bytes(path, json.dumps(attempt).encode())
    return attempt


def _last_attempt(folder: Path) -> int:
    """The highest number of a start that has left a trace here; -1 if none has."""
    kept = (keys.state_prefix(kind) for kind in (StateKind.CHECKPOINT, StateKind.RING))
    states = [path.name for prefix in kept for path in folder.glob(f"{prefix}e*/a*")]
    chunks = [path.name.split("-")[1] for path in (folder / "statistics").glob("e*-a*-*.parquet")]
    rows = [row["attempt"] for row in read_tail(folder / "statistics")]
    progress = read_progress(folder).get("attempt", -1)
    named = [int(name[1:]) for name in (*states, *chunks) if name[1:].isdecimal()]
    return int(max([-1, progress if isinstance(progress, int) else -1, *named, *rows]))
