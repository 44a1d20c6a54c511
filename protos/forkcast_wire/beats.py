"""The beats of a training thread, by which a process that is stuck or stopped is told from a slow one.

Only the thread that trains beats: helper threads of a stuck rank live on. A beat changes a few bytes of
mapped memory, no more. Whoever watches names a folder in FORKCAST_BEATS, and reads there a file of
each rank.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import structlog

from forkcast_wire.files import replace_bytes

_log = structlog.get_logger()
FOLDER_VARIABLE: Final = "FORKCAST_BEATS"
#: No limit is shorter than so many times the longest step of this process.
LONGEST_STEPS: Final = 3.0
#: count, step, limit (s), rank, process id, phase.
_FORM: Final = struct.Struct("<QQdIIB")


class Phase(IntEnum):
    """What a training thread is at. FIRST_STEP: compiles and imports. STORE: a call of the store at the
    start, whose client has timeouts of its own. MEET: it waits for other ranks. END: the last save.
    """

    START = 0
    FIRST_STEP = 1
    STEP = 2
    EVALUATE = 3
    HOLD = 4
    STORE = 5
    MEET = 6
    END = 7

    @property
    def patience(self) -> float | None:
        """How many limits may pass between two beats; None: any time, however long."""
        if self in (Phase.STORE, Phase.MEET):
            return None
        return 6.0 if self in (Phase.START, Phase.FIRST_STEP, Phase.END) else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The last sign of a rank. count: it grows with each. limit: seconds, 0 for none."""

    rank: int
    pid: int
    phase: Phase
    step: int
    count: int
    limit: float


class Pulse:
    """The beats of the thread that makes it; those of other threads are ignored."""

    def __init__(self, rank: int, limit: float, folder: Path | None) -> None:
        """limit: see `Beat`. folder: of the watching process; None: this process watches itself.

        Raises OSError if the folder cannot be written.
        """
        self._thread = threading.get_ident()
        self._rank, self._limit = rank, limit
        self._phase, self._step, self._count = Phase.START, 0, 0
        self._wanted, self._beaten = limit, time.monotonic()
        self._memory: mmap.mmap | bytearray = bytearray(_FORM.size)
        if folder is not None:
            # a new file, not the former process's: a mapped file must not become shorter
            replace_bytes(folder / f"rank-{rank}", self._packed(), durable=False)
            with (folder / f"rank-{rank}").open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _FORM.size)
        self.beat()

    def beat(self, phase: Phase | None = None, step: int | None = None) -> None:
        """One sign of life; phase, step: if they change."""
        if threading.get_ident() != self._thread:
            return
        self._measure()
        self._phase = self._phase if phase is None else phase
        self._step = self._step if step is None else step
        self._count += 1
        self._memory[:] = self._packed()

    def _measure(self) -> None:
        """A limit that steps reach would end a healthy run again and again."""
        before, self._beaten = self._beaten, time.monotonic()
        if self._phase not in (Phase.FIRST_STEP, Phase.STEP):
            return
        longest = LONGEST_STEPS * (self._beaten - before)
        if not 0 < self._limit < longest:
            return
        if longest > 2 * self._limit or self._limit == self._wanted:
            _log.warning(
                "train.hang_limit",
                step=self._step,
                step_seconds=round(self._beaten - before, 1),
                hang_seconds=self._wanted,
                in_force=round(longest, 1),
            )
        self._limit = longest

    @property
    def limit(self) -> float:
        """The limit in force, seconds: the one given, or longer because steps are; 0 for none."""
        return self._limit

    def seen(self) -> Beat:
        """The last one."""
        return _unpacked(bytes(self._memory))

    @property
    def phase(self) -> Phase:
        """The present one."""
        return self._phase

    def _packed(self) -> bytes:
        place = self._rank, os.getpid(), int(self._phase)
        return _FORM.pack(self._count, self._step, self._limit, *place)


_pulse: Pulse | None = None


def start(rank: int, limit: float) -> Pulse:
    """Let the calling thread beat from now on, in the folder of FORKCAST_BEATS if that is set.

    Raises OSError.
    """
    global _pulse  # noqa: PLW0603  a process has one training thread
    folder = os.environ.get(FOLDER_VARIABLE)
    _pulse = Pulse(rank, limit, Path(folder) if folder else None)
    return _pulse


def beat(phase: Phase | None = None, step: int | None = None) -> None:
    """A sign of life of the training thread. Of another thread, or of a process that has not called
    `start`: nothing.
    """
    if _pulse is not None:
        _pulse.beat(phase, step)


def limit() -> float:
    """The limit in force of the training thread, seconds; 0 if it is not watched."""
    return 0.0 if _pulse is None else _pulse.limit


@contextmanager
def during(phase: Phase) -> Iterator[None]:
    """What is done inside is that phase; afterwards it is again the one before."""
    former = None if _pulse is None else _pulse.phase
    beat(phase)
    try:
        yield
    finally:
        beat(former)


def read(folder: Path) -> list[Beat]:
    """The last beat of each rank that has left one there, also of processes that have ended."""
    found = []
    for path in sorted(folder.glob("rank-*")):
        try:
            found.append(_unpacked(path.read_bytes()))
        except (OSError, struct.error, ValueError):
            continue  # a file that is being replaced, or is none of ours
    return found


def _unpacked(data: bytes) -> Beat:
    count, step, limit, rank, pid, phase = _FORM.unpack(data)
    return Beat(rank=rank, pid=pid, phase=Phase(phase), step=step, count=count, limit=limit)
