"""What the trainer has been told to do, until it is done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import structlog

from forkcast.directives import CheckpointNow, Collapse, Hold, Resume
from forkcast.lineage import LineageEntry
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import directive_from_wire

_log = structlog.get_logger()
#: How long a held run waits for the state of an ordered collapse before it trains on without it.
COLLAPSE_SECONDS: Final = 10.0
#: Characters of a directive's id in the log.
_MOST_ID: Final = 256


class Order(IntEnum):
    """What all ranks do at a step boundary; the largest that any rank asks for wins. WAIT: a moment,
    for what decides about the end. HOLD: while a branch is open.
    """

    GO_ON = 0
    WAIT = 1
    HOLD = 2
    STOP = 3


@dataclass(frozen=True)
class Held:
    """A hold in force: whose, and until when on the monotonic clock."""

    branch: str
    until: float


class Orders:
    """Directives of one run, folded. epoch: the newest epoch that the run is to be in."""

    def __init__(self, run_uid: str) -> None:
        self._run_uid = run_uid
        self._hold: Held | None = None
        self._released: set[str] = set()
        self._checkpoint = False
        self._saved: set[str] = set()
        self._digest = ""
        self._told: set[str] = set()
        self.epoch = 0

    def hear(self, message: pb.Directive) -> None:
        """Fold one directive. A repeated one changes nothing: a new stream tells all again. Another
        run's is ignored, and so is one that no operator makes; the log has the first of each kind.
        """
        if message.run_uid != self._run_uid:
            self._ignored("train.foreign_directive", message)
            return
        try:
            directive = directive_from_wire(message)
        except ValueError as error:
            self._ignored("train.directive_refused", message, reason=str(error))
            return
        match directive:
            case Hold(branch=branch, deadline_seconds=seconds):
                known = self._hold is not None and self._hold.branch == branch
                if not known and branch not in self._released:
                    self._hold = Held(branch, time.monotonic() + seconds)
            case Resume(branch=branch):
                self._released.add(branch)
                if self._hold is not None and self._hold.branch == branch:
                    self._hold = None
            case Collapse(epoch=epoch, decision_digest=digest) if epoch > self.epoch:
                self.epoch, self._digest = epoch, digest
                if (
                    self._hold is not None
                ):  # what it waited for is decided; its state may never come
                    until = min(self._hold.until, time.monotonic() + COLLAPSE_SECONDS)
                    self._hold = Held(self._hold.branch, until)
            case CheckpointNow(id=name) if name not in self._saved:
                self._saved.add(name)
                self._checkpoint = True

    def _ignored(self, event: str, message: pb.Directive, **more: str) -> None:
        if event not in self._told:
            self._told.add(event)
            _log.warning(event, id=message.id[:_MOST_ID], **more)

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
