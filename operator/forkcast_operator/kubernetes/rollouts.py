"""Which rollout Jobs should exist, given the desired rungs, the trials and the Jobs there are. Pure.

The desired rungs are in the store (until.json), as on one machine; this is what the rollout server of a
folder does with processes. A Job takes its candidate to one rung and waits there a while for more;
where it has left, a Job for the next rung begins at the base again and skips what is measured.
While another rollout of the branch finds no room, none waits: a rung ends only when all entrants
are measured, the control among them, so a request that is held for the next rung would hold it up.
Nor does any wait while a trainer or a rollout of whatever run finds no room for what it holds: two
branches, each with parked rollouts and without room for its control, would wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from forkcast.decision import CONTROL
from forkcast.seen import RolloutSeen
from forkcast_operator.kubernetes.seen import JobSeen, Work

#: How long a Job waits at a rung for the next, seconds, where all entrants may run at once.
PARK_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Start:
    """Let a Job take the candidate to this rung."""

    candidate: str
    rung: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Delete the Job."""

    job: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record that the candidate failed at this rung."""

    candidate: str
    rung: int
    failure: str


Act: TypeAlias = Start | Stop | GiveUp


def park_seconds(entrants: int, limit: int) -> int:
    """A Job that others wait for leaves at once."""
    return PARK_SECONDS if entrants <= limit else 0


def _measured(rollouts: Mapping[str, RolloutSeen], job: JobSeen) -> bool:
    """Whether its candidate is measured as far as is desired."""
    seen = rollouts.get(job.candidate)
    return seen is not None and seen.until in seen.trials


def plan(rollouts: Mapping[str, RolloutSeen], jobs: Sequence[JobSeen], limit: int) -> list[Act]:
    """What is still to be done, at most ``limit`` Jobs alive. rollouts: by candidate."""
    acts: list[Act] = []
    kept: list[JobSeen] = []
    for job in jobs:
        wish = rollouts.get(job.candidate)
        unwanted = wish is None or wish.until is None
        if unwanted and job.work in (Work.QUEUED, Work.ACTIVE):
            acts.append(Stop(job.name))
        else:
            kept.append(job)
    parked = [job for job in kept if job.work is Work.ACTIVE and _measured(rollouts, job)]
    short = any(job.short and not _measured(rollouts, job) for job in kept)
    acts += [Stop(job.name) for job in parked if short or job.pressed]
    alive = sum(job.work.alive for job in kept)
    for candidate in sorted(rollouts, key=lambda name: (name != CONTROL, name)):
        until = rollouts[candidate].until
        if until is None or until in rollouts[candidate].trials:
            continue
        mine = [job for job in kept if job.candidate == candidate]
        if any(job.work.alive for job in mine):
            continue
        last = next((job for job in mine if job.rung == until), None)
        if last is not None and last.work is Work.FAILED:
            failure = f"{last.reason}: {last.message}".strip(": ") or "its Job failed"
            acts.append(GiveUp(candidate, until, failure))
        elif last is not None:  # it left without a measurement: its name has to be free first
            acts.append(Stop(last.name))
        elif alive < limit:
            acts.append(Start(candidate, until))
            alive += 1
    return acts
