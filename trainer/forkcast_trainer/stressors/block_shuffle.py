"""Block-wise shuffle: for an interval, each batch comes from one neighbourhood of the text."""

from __future__ import annotations

from forkcast_trainer.stressors.base import DataStressor, Ids

_BLOCK = 64
_INTERVAL = 100


class BlockShuffle(DataStressor):
    """In a struck interval of 100 steps, a step's windows all lie in one block of 64 neighbouring
    windows, drawn for the step: sequences of a batch are correlated as in an unshuffled corpus.
    """

    def windows(self, step: int, ids: Ids, count: int) -> Ids:
        """Ids of the step's block; a last block of fewer than 64 windows is never drawn."""
        if not self.active(step) or not self.chance(step // _INTERVAL):
            return ids
        block = int(self.generator(step).integers(max(1, count // _BLOCK)))
        return block * _BLOCK + ids % min(_BLOCK, count)
