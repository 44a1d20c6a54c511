"""The lineage log: one create-only record for each epoch after the first. It is the truth.

Whoever starts reads the highest epoch. Epochs only rise, without gaps; a second record for the
same epoch cannot be created, so two operators cannot collapse twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from forkcast.actions import Action
from forkcast.records import StateRef


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEntry:
    """What opened ``epoch``: the state adopted, the action already in it, the decision's digest.

    base_step: the step of the base the winner started from; the statistics of the lineage up to
    it stay those of the previous epoch.
    """

    epoch: int
    run_uid: str
    branch: str
    decision_digest: str
    action: Action
    state: StateRef
    base_step: int
    trigger_step: int


def key(epoch: int) -> str:
    """The store key of an epoch's record."""
    return f"lineage/{epoch}.json"


def head(entries: Sequence[LineageEntry]) -> LineageEntry | None:
    """The entry of the highest epoch, None in epoch 0.

    Raises ValueError if the log has a gap or a repeated epoch: such a log is damaged.
    """
    ordered = sorted(entries, key=lambda entry: entry.epoch)
    for expected, entry in enumerate(ordered, start=1):
        if entry.epoch != expected:
            raise ValueError(f"lineage: epoch {expected} is missing or repeated; {entry.epoch=}")
    return ordered[-1] if ordered else None


class Opening(Protocol):
    """What opened an epoch: a LineageEntry, or a trainer's first hello in it."""

    @property
    def epoch(self) -> int: ...  # noqa: D102

    @property
    def base_step(self) -> int: ...  # noqa: D102


def limits(openings: Iterable[Opening], epoch: int) -> dict[int, int]:
    """By earlier epoch: its steps before this one, and its states up to it, belong to the lineage
    of ``epoch``; what lies beyond was abandoned. Openings may come in any order. Nothing is known
    to belong before an epoch whose opening is missing.

    Costs as much as there are openings, whatever number ``epoch`` is.
    """
    found: dict[int, int] = {}
    at, limit = epoch, None
    for opening in sorted(openings, key=lambda one: one.epoch, reverse=True):
        if opening.epoch > at:
            continue
        if opening.epoch < at or at == 0:
            break
        limit = opening.base_step if limit is None else min(limit, opening.base_step)
        at -= 1
        found[at] = limit
    return found


def in_force(entries: Sequence[LineageEntry], epoch: int) -> tuple[LineageEntry, ...]:
    """The collapses that the state of ``epoch`` rests on, newest first: their actions are in it.

    A collapse whose base lies before an earlier one abandoned that one, and its action with it.
    Raises ValueError if the log has a gap below ``epoch``.
    """
    known = {entry.epoch: entry for entry in entries}
    if missing := set(range(1, epoch + 1)) - known.keys():
        raise ValueError(f"lineage: epoch {min(missing)} is missing; {epoch=}")
    found: list[LineageEntry] = []
    at = epoch
    while at > 0:
        found.append(known[at])
        at -= 1
        while at > 0 and known[at].state.step > found[-1].base_step:
            at -= 1  # the base is older than this epoch's first state
    return tuple(found)
