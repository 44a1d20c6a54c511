"""What the trainer has been told to do, until it is done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import structlog

from forkcast.lineage import LineageEntry
from forkcast_wire import forkcast_pb2 as pb

_log = structlog.get_logger()
#: No hold is longer: the most that a branch's budget.deadlineSeconds allows.
MOST_HOLD_SECONDS: Final = 604_800.0
#: How long a held run waits for the state of an ordered collapse before it trains on without it.
COLLAPSE_SECONDS: Final = 10.0


class Order(IntEnum):
    """What all ranks do at a step boundary; the largest that any rank wishes wins. WAIT: a moment,
    for what decides about the end. HOLD: while a branch is open.
    """

    GO_ON = 0
    WAIT = 1
    HOLD = 2
    STOP = 3


@dataclass(frozen=True)
class Hold:
    """A hold in force: whose, and until when on the monotonic clock."""

    branch: str
    until: float


class Orders:
    """Directives of one run, folded. epoch: the newest epoch that the run shall be in."""

    def __init__(self, run_uid: str) -> None:
        self._run_uid = run_uid
        self._hold: Hold | None = None
        self._released: set[str] = set()
        self._checkpoint = False
        self._saved: set[str] = set()
        self._digest = ""
        self.epoch = 0

    def hear(self, directive: pb.Directive) -> None:
        """Fold one directive. A repeated one changes nothing: a new stream tells all again."""
        kind = directive.WhichOneof("what")
        if directive.run_uid != self._run_uid:
            _log.warning("train.foreign_directive", id=directive.id)
        elif kind == "hold":
            branch = directive.hold.branch
            known = self._hold is not None and self._hold.branch == branch
            seconds = directive.hold.deadline_seconds
            if not 0 < seconds <= MOST_HOLD_SECONDS:
                _log.warning("train.hold_refused", branch=branch, seconds=seconds)
            elif not known and branch not in self._released:
                self._hold = Hold(branch, time.monotonic() + seconds)
        elif kind == "resume":
            self._released.add(directive.resume.branch)
            if self._hold is not None and self._hold.branch == directive.resume.branch:
                self._hold = None
        elif kind == "collapse" and directive.collapse.epoch > self.epoch:
            self.epoch = directive.collapse.epoch
            self._digest = directive.collapse.decision_digest
            if self._hold is not None:  # what it waited for is decided; its state may never come
                until = min(self._hold.until, time.monotonic() + COLLAPSE_SECONDS)
                self._hold = Hold(self._hold.branch, until)
        elif kind == "checkpoint_now" and directive.id not in self._saved:
            self._saved.add(directive.id)
            self._checkpoint = True

    def holds(self, now: float) -> bool:
        """Whether a hold is in force. One that is past its deadline is released for good."""
        if self._hold is not None and now >= self._hold.until:
            _log.warning("train.hold_expired", branch=self._hold.branch)
            self.release()
        return self._hold is not None

    def release(self) -> None:
        """End the hold in force, if there is one; it is not taken up again."""
        if self._hold is not None:
            self._released.add(self._hold.branch)
            self._hold = None

    def takes_checkpoint(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked, self._checkpoint = self._checkpoint, False
        return asked

    def compare(self, entry: LineageEntry) -> None:
        """The log is the truth; a directive that names another decision is worth a warning."""
        if entry.epoch == self.epoch and self._digest not in ("", entry.decision_digest):
            _log.warning("train.other_decision", told=self._digest, log=entry.decision_digest)
