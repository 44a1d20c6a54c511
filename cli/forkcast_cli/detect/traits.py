"""What the rows of a log are: how many steps each stands for, one rank's or a batch's, rounded or not.
It decides what can be seen in them at all, so it is reported.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final

#: Four rows are the least that tell a departure from a row with a heavy tail.
ROWS_OF_AN_EVENT: Final = 4
_GAIN: Final = 0.02
_CLIP: Final = 2.5
_TO_SD: Final = 1.2533
_WARM: Final = 50
_FAR: Final = 5.0
#: Share of rows beyond five scales above which a loss is that of one rank: batch means stay under it.
_ONE_RANK: Final = 0.003
_LEAST_ROWS: Final = 1000
_MOST_DECIMALS: Final = 6
_COARSE: Final = 0.5
_GAP: Final = 1.5
_MOST_DIFFERENCES: Final = 1024
#: Nats per token that no language model's loss stays above: an untrained one has the logarithm of its
#: vocabulary, about 11.
_IMPLAUSIBLE: Final = 20.0
_FLOAT: Final = struct.Struct("<f")


class Traits:
    """Takes the points of one run as they are folded."""

    def __init__(self) -> None:
        self.rows = 0
        self._differences: Counter[int] = Counter()
        self._longest = (0, 0)
        self._last: int | None = None
        self._decimals = 0
        self._bfloat16 = True
        self._level = math.nan
        self._scale = 0.0
        self._least = math.inf
        self._counted = self._far = 0

    def add(self, step: int, loss: float) -> None:
        """One more row; a step at or before the last one begins anew there."""
        self.rows += 1
        if self._last is not None and step > self._last:
            self._between(step - self._last)
        self._last = step
        if math.isfinite(loss):
            self._least = min(self._least, loss)
            self._rounding(loss)
            self._noise(loss)

    def _between(self, difference: int) -> None:
        if len(self._differences) < _MOST_DIFFERENCES or difference in self._differences:
            self._differences[difference] += 1
        assert self._last is not None
        self._longest = max(self._longest, (difference, self._last))

    def _rounding(self, loss: float) -> None:
        while self._decimals < _MOST_DECIMALS and round(loss, self._decimals) != loss:
            self._decimals += 1
        if self._bfloat16:
            try:
                self._bfloat16 = (
                    _FLOAT.pack(loss)[:2] == b"\0\0" and _FLOAT.unpack(_FLOAT.pack(loss))[0] == loss
                )
            except OverflowError:
                self._bfloat16 = False

    def _noise(self, loss: float) -> None:
        if math.isnan(self._level):
            self._level = loss
            return
        gain = max(_GAIN, 1 / self.rows)
        rest, scale = loss - self._level, self._scale
        if self.rows > _WARM and scale > 0:
            self._counted += 1
            self._far += rest > _FAR * scale
            rest = min(max(rest, -_CLIP * scale), _CLIP * scale)
        self._level += gain * rest
        self._scale += gain * (_TO_SD * abs(rest) - scale)

    def interval(self) -> int:
        """Median steps from row to row, at least 1."""
        return median(self._differences)

    def remarks(self) -> Iterator[str]:
        """In words."""
        every = self.interval()
        if every > 1:
            yield (
                f"{every:,} steps a row: spikes shorter than about {ROWS_OF_AN_EVENT * every:,} steps"
                " cannot be seen"
            )
        gaps = sum(n for difference, n in self._differences.items() if difference > _GAP * every)
        if gaps:
            size, after = self._longest
            which = "1 gap" if gaps == 1 else f"{gaps:,} gaps"
            yield f"{which} in the steps, the longest of {size - every:,} after step {after:,}"
        if self._counted >= _LEAST_ROWS and self._far > _ONE_RANK * self._counted:
            share = 100 * self._far / self._counted
            yield (
                f"{share:.1f} % of rows lie 5 scales above their level: this looks like the loss of one"
                " rank or micro-batch; log the mean over all of them to see more"
            )
        yield from self._rounded()
        if self.rows >= _WARM and _IMPLAUSIBLE < self._least < math.inf:
            yield (
                f"the loss stays above {_IMPLAUSIBLE:g}: it is hardly a mean over tokens in nats, for which"
                " the sizes told here hold; divide a sum by the number of what it sums over"
            )

    def _rounded(self) -> Iterator[str]:
        if self.rows < _WARM:
            return
        unit = 10.0**-self._decimals
        if self._decimals <= 2 or (
            self._decimals < _MOST_DECIMALS and unit > _COARSE * self._scale
        ):
            shown = f"{unit:.{self._decimals}f}".lstrip("0") or "1"
            yield f"the loss is rounded to {shown}: what is smaller cannot be seen"
        elif self._bfloat16:
            step = 2.0 ** (math.frexp(self._level)[1] - 8)
            yield f"the loss is a bfloat16: near {self._level:.1f} it moves in steps of {step:.3g}"


def median(counts: Counter[int]) -> int:
    """The median of counted differences; 1 if there are none."""
    half, seen = sum(counts.values()) / 2, 0
    for difference in sorted(counts):
        seen += counts[difference]
        if seen >= half:
            return difference
    return 1
