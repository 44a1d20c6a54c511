"""What one look at the world shows of a branch: the only input of `forkcast.branch.decide` that changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forkcast.decision import Decision, Draft
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSeen:
    """One rollout as it stands: its desired rung, the trials it has published, its failure."""

    until: int | None
    trials: Mapping[int, Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look at the world shows. Absent things are None or empty, never guessed.

    bases: the pinned base states, newest first; None until the pin is durable, () where no state
        from before the departure exists.
    main_losses: the main run's training losses by step, from the oldest base to where it stands.
    main_over_threshold: whether the index is still over its threshold at the main run's last step.
    lineage: the record of epoch (trigger.epoch + 1), whichever operator wrote it.
    durable_epoch: highest epoch of which a checkpoint with a valid manifest exists.
    expired: the branch's deadline has passed. run_finished: the trainer has ended the run.
    released: no rollout, pin or hold of this branch is left.
    """

    bases: tuple[StateRef, ...] | None
    draft: Draft | None
    rollouts: Mapping[str, RolloutSeen]
    main_losses: Mapping[int, float]
    main_over_threshold: bool
    decision: Decision | None
    lineage: LineageEntry | None
    durable_epoch: int
    expired: bool
    run_finished: bool
    released: bool
