"""Rare-token burst: a batch drawn from the rarest ids of the text."""

from __future__ import annotations

import numpy as np

from forkcast_trainer.stressors.base import DataStressor, Ids, Text
from forkcast_wire.manifest import Stressor

_RAREST = 0.01
_SAMPLE = 1 << 20


class RareTokenBurst(DataStressor):
    """At a struck step every id is drawn from the rarest 1 % of the ids that occur (at least 2)."""

    def __init__(self, spec: Stressor) -> None:
        super().__init__(spec)
        self._rare: Ids | None = None

    def batch(self, step: int, batch: Ids, text: Text) -> Ids:
        """[count, length + 1] rare ids."""
        if not self.strikes(step):
            return batch
        rare = self._rarest(text)
        return self.generator(step).choice(rare, size=batch.shape)

    def _rarest(self, text: Text) -> Ids:
        if self._rare is None:
            array = text.first_ids(_SAMPLE).astype(np.int64)
            ids, counts = np.unique(array, return_counts=True)
            order = ids[np.lexsort((ids, counts))]
            self._rare = order[: max(2, int(len(order) * _RAREST))]
        return self._rare
