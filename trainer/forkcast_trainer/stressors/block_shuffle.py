"""Block-wise shuffle: for an interval, batches come from one neighbourhood of the text."""

from __future__ import annotations

from forkcast_trainer.stressors.base import DataStressor, Ids

_BLOCK = 64
_INTERVAL = 100


class BlockShuffle(DataStressor):
    """In a struck interval of 100 steps, every window is replaced by one of the same 64-window
    block per step, so that neighbouring batches are correlated as in an unshuffled corpus.
    """

    def windows(self, step: int, ids: Ids, count: int) -> Ids:
        """Ids of one block, the block being drawn for the step's interval."""
        interval = step // _INTERVAL
        chance = self.generator((1 << 40) + interval)  # apart from the steps' own
        if not self.active(step) or chance.random() >= self.probability:
            return ids
        blocks = max(1, -(-count // _BLOCK))
        block = int(chance.integers(blocks))
        return (block * _BLOCK + ids % _BLOCK) % count
