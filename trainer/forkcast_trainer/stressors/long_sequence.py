"""Very long sequence: four times the usual length."""

from __future__ import annotations

import numpy as np

from forkcast_trainer.stressors.base import DataStressor, Ids, Text

LONGER = 4


class LongSequence(DataStressor):
    """At a struck step the micro-batch is read at 4x the sequence length."""

    def batch(self, step: int, batch: Ids, text: Text) -> Ids:
        """[count, 4 * length + 1] ids from windows drawn for the step."""
        if not self.strikes(step):
            return batch
        length = text.sequence_length * LONGER
        ids = self.generator(step).integers(0, text.windows, size=len(batch), dtype=np.int64)
        return text.read(ids, length)
