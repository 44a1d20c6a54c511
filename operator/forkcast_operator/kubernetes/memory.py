"""What the operator keeps of a run between two looks. Losing it costs a few requests, no more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from forkcast.ports import Store
from forkcast_operator.kubernetes.ledger import Ledger
from forkcast_operator.kubernetes.run import Run, StorePlace, manifest_json
from forkcast_wire.documents import RunInfo
from forkcast_wire.manifest import Storage, TrainingRunSpec

_LONG_AGO = float("-inf")


@dataclass
class Memory:
    """Of one run. Times are of the monotonic clock, seconds.

    applied: digest of the ConfigMap (and Service) as written last. relisted: when its children
    were listed. written: its status. deleting_since: when it was first seen to be deleted.
    checkpoint, checkpoint_at: the newest one, and when it was first seen.
    """

    ledger: Ledger | None = None
    storage: Storage | None = None
    applied: str = ""
    relisted: float = _LONG_AGO
    written: float = _LONG_AGO
    deleting_since: float | None = None
    checkpoint: str = ""
    checkpoint_at: float = 0.0

    def claim(
        self,
        run: Run,
        spec: TrainingRunSpec,
        place: StorePlace,
        open_store: Callable[[Storage], Store],
    ) -> tuple[Ledger, RunInfo]:
        """The run's records, opened once, and its identity in them. Blocking.

        Raises SpecError where another run's records stand there; StoreError.
        """
        if self.ledger is None or self.storage != place.operator:
            self.ledger = Ledger(run, open_store(place.operator))
            self.storage = place.operator
        digest = hashlib.sha256(manifest_json(run, spec, place).encode()).hexdigest()
        return self.ledger, self.ledger.claim(digest, spec.training.total_steps)
