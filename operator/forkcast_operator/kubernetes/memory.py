"""What the operator keeps of a run between two looks. Losing it costs a few requests, no more."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from forkcast.ports import Store
from forkcast_operator.kubernetes.adoption import adopted_place
from forkcast_operator.kubernetes.ledger import Ledger
from forkcast_operator.kubernetes.run import Run, StorePlace, manifest_json
from forkcast_operator.kubernetes.run_facts import former_status
from forkcast_wire.documents import RunInfo
from forkcast_wire.manifest import Storage, TrainingRunSpec

_log = structlog.get_logger()
_LONG_AGO = float("-inf")


@dataclass
class Memory:
    """Of one run. Times are of the monotonic clock, seconds.

    ledger: its records, at `place`; wanted: the place that its spec asks for. info: its identity
    there, None until it was read. leaving: what it holds in its store is being freed.
    applied, applied_at: digest of the ConfigMap (and Service) as written last, and when. relisted: when its children
    were listed. written: its status. deleting_since: when it was first seen to be deleted.
    checkpoint, checkpoint_at: the newest one, and when it was first seen. left_out: fields of a newer
    definition that were told of.
    """

    ledger: Ledger | None = None
    place: StorePlace | None = None
    wanted: Storage | None = None
    info: RunInfo | None = None
    leaving: asyncio.Future[str] | None = None
    applied: str = ""
    applied_at: float = _LONG_AGO
    relisted: float = _LONG_AGO
    written: float = _LONG_AGO
    deleting_since: float | None = None
    checkpoint: str = ""
    checkpoint_at: float = 0.0
    left_out: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The uid in the run's records, "" if they are not known or are its own."""
        return self.ledger.identity if self.ledger else ""

    def claim(
        self,
        run: Run,
        spec: TrainingRunSpec,
        place: StorePlace,
        open_store: Callable[[Storage], Store],
    ) -> Ledger:
        """The run's records, opened once, where they are; `place` and `info` are known then.
        Blocking.

        Raises SpecError if another run's records are there, or its own are lost; StoreError.
        """
        ledger, place = self.records(run, place, open_store)
        digest = hashlib.sha256(manifest_json(run, spec, place).encode()).hexdigest()
        self.info = ledger.claim(digest, spec.training.total_steps, former_status(run))
        return ledger

    def records(
        self, run: Run, place: StorePlace, open_store: Callable[[Storage], Store]
    ) -> tuple[Ledger, StorePlace]:
        """The run's records, opened once: at the place given, or at the former one if the run has
        them there already. Nothing is written. Blocking. Raises StoreError.
        """
        if self.ledger is None or self.place is None or self.wanted != place.operator:
            self.wanted, wanted = None, place.operator
            if place.adopt_from:
                place = adopted_place(run, place, open_store)
            ledger = Ledger(run, open_store(place.operator))
            self.wanted = wanted
            if place.former and not ledger.owned():
                former = place.below(place.former)
                older = Ledger(run, open_store(former.operator))
                if older.owned():
                    _log.info("run.kept_at_former_prefix", prefix=place.former)
                    ledger, place = older, former
            self.ledger, self.place = ledger, place
        return self.ledger, self.place
