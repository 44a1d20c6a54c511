"""Whether the store has lost a run's records: its status has progress that no stored state has. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from forkcast.records import StateKind
from forkcast_operator.kubernetes.run import SpecError
from forkcast_wire import keys
from forkcast_wire.resources import TrainingRunStatus

_STATES = tuple(keys.state_prefix(kind) for kind in (StateKind.CHECKPOINT, StateKind.RING))


class RecordsLostError(SpecError):
    """A trainer would begin at step 0 though the run has come further; a person has to decide."""

    def __init__(self, step: int) -> None:
        super().__init__(
            "RecordsLost",
            f"the store has no state of this run any more, and the run had come to step {step}: "
            "restore the bucket; or delete the run and apply it again, which starts at step 0",
        )


def refuse_loss(status: TrainingRunStatus, stored: Iterable[str]) -> None:
    """Raises RecordsLostError if a start would find nothing to go on from although the status has a
    checkpoint after step 0, or progress while even the run's identity is gone. status: the last one
    written; stored: all keys of the run.
    """
    names = set(stored)
    if any(map(_to_go_on_from, names)):
        return
    latest, progress = status.checkpoints.latest, status.progress
    saved = latest.step if latest is not None else 0
    known = progress.step if progress is not None else 0
    if saved or (known and keys.RUN not in names):
        raise RecordsLostError(saved or known)


def _to_go_on_from(key: str) -> bool:
    """Whether a start finds its state, or its end, by this key."""
    state = key.startswith(_STATES) and key.endswith("/manifest.json")
    return state or key.startswith(keys.LINEAGE_PREFIX) or key == keys.COMPLETE
