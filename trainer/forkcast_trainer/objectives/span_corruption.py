"""Spans of the text are hidden and have to be said again (Raffel et al. 2020, section 3.1.4; seqio's
`random_spans_noise_mask`): of L ids round(.15 L) are hidden in spans of 3 on average.

    text      a b c d e f g h          hidden: c d, g
    inputs    a b <0> e f <1> h END
    targets   <0> c d <1> g END        the decoder reads START and the targets before the last

<k> is the k-th sentinel. There are never more spans than sentinels; then they are longer.

Which spans are hidden depends on the window's ids and on its last column, and on nothing else: no
generator is drawn from, and a resume, a rollout, a GPU and a CPU hide the same. In training that
column carries the step (`Steps`), so that another pass over the text hides other spans.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from forkcast_trainer.objectives.base import Example, Objective
from forkcast_trainer.stressors.base import DataStressor, Ids, Text

DENSITY: Final = 0.15
MEAN_SPAN: Final = 3.0
_GOLDEN: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST: Final = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND: Final = 0x94D049BB133111EB - (1 << 64)


class Steps(DataStressor):
    """Writes the step into the last column, which this objective does not read as text."""

    def __init__(self) -> None:
        """Draws nothing."""

    def batch(self, step: int, batch: Ids, text: Text) -> Ids:
        """[count, length + 1]."""
        del text
        return np.concatenate([batch[:, :-1], np.full_like(batch[:, -1:], step)], axis=1)


class SpanCorruption(Objective):
    """See the module."""

    stages = (Steps,)

    def example(self, batch: Tensor) -> Example:
        """batch: [count, length + 1]; the last column is no text, see `Steps`."""
        ids = batch[:, :-1]
        hidden, spans = self._hidden(batch)
        sentinels = torch.tensor(self.special.sentinels, device=ids.device)
        starts = hidden & ~functional.pad(hidden, (1, 0))[:, :-1]
        span = starts.cumsum(1) - 1  # of each position the last span that has begun
        label = sentinels[span.clamp_min(0)]
        inputs = _kept(torch.where(starts, label, ids), ~hidden | starts, spans)
        end = torch.full_like(ids[:, :1], self.special.end)
        targets = self._targets(ids, hidden, starts, span, label)
        targets = torch.cat([targets, end], dim=1)
        start = torch.full_like(end, self.special.start)
        read = torch.cat([start, targets[:, :-1]], dim=1)
        return Example(
            {"input_ids": torch.cat([inputs, end], dim=1), "decoder_input_ids": read}, targets
        )

    def look(self, sequence: Tensor) -> dict[str, Tensor]:
        """The sequence with some spans hidden."""
        return self.example(functional.pad(sequence[None], (0, 1))).inputs

    def counts(self, length: int) -> tuple[int, int]:
        """(hidden ids, spans) of a sequence of that length."""
        noise = min(max(round(length * DENSITY), 1), length - 1)
        most = min(noise, length - noise, len(self.special.sentinels))
        return noise, min(max(round(noise / MEAN_SPAN), 1), most)

    def _hidden(self, batch: Tensor) -> tuple[Tensor, int]:
        """[count, length] bool, and how many ids the encoder gets of each row."""
        length = batch.shape[1] - 1
        noise, spans = self.counts(length)
        key = _key(batch)
        shown = _segments(key, length - noise, spans)
        said = _segments(_mixed(key), noise, spans)
        # a shown span, a hidden span, a shown span, ...: it begins with text
        ends = torch.stack([shown, said], dim=2).flatten(1).cumsum(1)
        places = torch.arange(length, device=batch.device).expand(len(batch), -1).contiguous()
        number = torch.searchsorted(ends, places, right=True)
        return number % 2 == 1, length - noise + spans

    def _targets(
        self, ids: Tensor, hidden: Tensor, starts: Tensor, span: Tensor, label: Tensor
    ) -> Tensor:
        """[count, hidden + spans]: each span behind its sentinel."""
        noise, spans = self.counts(ids.shape[1])
        size = noise + spans
        before = hidden.cumsum(1) - 1
        out = ids.new_zeros(len(ids), size + 1)  # the last column takes what is no target
        out.scatter_(1, torch.where(hidden, before + span + 1, size), ids)
        out.scatter_(1, torch.where(starts, before + span, size), label)
        return out[:, :size]


def _kept(values: Tensor, keep: Tensor, count: int) -> Tensor:
    """[rows, count]: of each row the values to keep, in their order; as many in each."""
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return values.gather(1, order)


def _segments(key: Tensor, items: int, pieces: int) -> Tensor:
    """[rows, pieces] lengths >= 1 that sum to ``items``, every division equally likely. key: [rows]."""
    places = torch.arange(items - 1, device=key.device)
    drawn = _mixed(key[:, None] + places * _GOLDEN)
    cuts = drawn.argsort(dim=1, stable=True)[:, : pieces - 1].sort(dim=1).values + 1
    edges = functional.pad(functional.pad(cuts, (1, 0)), (0, 1), value=items)
    return edges.diff(dim=1)


def _key(batch: Tensor) -> Tensor:
    """[rows] of all ids and their places."""
    places = torch.arange(batch.shape[1], device=batch.device)
    return _mixed(_mixed(batch + places * _GOLDEN).sum(1))


def _mixed(value: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014); int64 wraps round on every device."""
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, places: int) -> Tensor:
    """To the right, zeros coming in."""
    return (value >> places) & ((1 << (64 - places)) - 1)
