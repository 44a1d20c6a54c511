"""What goes wrong outside the operator, as the failures that a run's conditions and events name. Pure.

The same cause is told in the same words at every look: each change of words is an event.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from forkcast_operator.kubernetes.cluster import ClusterError
from forkcast_operator.kubernetes.rollout_state import PODLESS_SECONDS
from forkcast_operator.kubernetes.run import StorePlace
from forkcast_operator.kubernetes.run_facts import Failure
from forkcast_operator.kubernetes.seen import PodSeen, TrainerSeen, Work
from forkcast_wire.last_words import heard
from forkcast_wire.store import StoreError, StoreUnavailable

#: Answers that the same request gets again: malformed, forbidden, invalid.
_REFUSALS: Final = (400, 403, 422)


def store_unavailable(place: StorePlace, error: StoreError) -> Failure:
    """The run's store cannot be used."""
    why = error.why if isinstance(error, StoreUnavailable) else str(error)
    where = f"{place.operator.endpoint} {place.operator.bucket}"
    return Failure(reason="StoreUnavailable", message=f"{where}: {why}")


def monitor_unavailable(trouble: str) -> Failure:
    """The monitor is away. trouble: what certificates have to do with it, "" for nothing."""
    message = "the verdict waits for it"
    return Failure(
        reason="MonitorUnavailable", message=f"{message}: {trouble}" if trouble else message
    )


def trainer_ended(reason: str, message: str, said: str) -> tuple[str, str]:
    """The reason and the words for an end of the trainer. reason, message: as far as its workload
    shows. said: its pod's last words, "" for none; if they name a reason it is the better one.
    """
    words = heard([said.partition(": ")[2]])
    if words is None:
        return reason, said or message
    return words.reason, words.text


def refused(what: str, error: ClusterError) -> Failure | None:
    """The API server will not have what the run is made of: a person is needed. what: Trainer or
    Rollout. None where the request may succeed another time.
    """
    if error.status not in _REFUSALS:
        return None
    return Failure(reason=f"{what}Refused", message=error.message, stalled=True)


def trainer_trouble(
    trainer: TrainerSeen | None, pods: Sequence[PodSeen], now: dt.datetime
) -> Failure | None:
    """What keeps a trainer from running though its workload stands. pods: all of them, ended ones,
    too.
    """
    if trainer is None or trainer.work is not Work.ACTIVE:
        return None
    if lost := [pod for pod in pods if pod.lost]:
        names = ", ".join(pod.name for pod in lost)
        return Failure(
            reason="NodeLost",
            message=f"node {lost[0].node} does not answer: {names}; nothing is started instead "
            "while the pod may still run",
        )
    if pods or trainer.created is None:
        return None
    if (now - trainer.created).total_seconds() < PODLESS_SECONDS:
        return None
    kind = trainer.kind.lower()
    return Failure(
        reason="NoPods",
        message=f"no pod could be created: see `kubectl describe {kind} {trainer.name}`",
    )
