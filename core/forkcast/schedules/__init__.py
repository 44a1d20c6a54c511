"""Schedules of the learning rate by name. To add one: a file here, and a line in SCHEDULES."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forkcast.schedules.base import LearningRate
from forkcast.schedules.constant import Constant
from forkcast.schedules.cosine import Cosine
from forkcast.schedules.linear import Linear
from forkcast.schedules.wsd import WarmupStableDecay

__all__ = ["SCHEDULES", "WITH_DECAY", "WITH_LENGTH", "LearningRate"]

SCHEDULES: Final[Mapping[str, type[LearningRate]]] = {
    "Cosine": Cosine,
    "Linear": Linear,
    "WSD": WarmupStableDecay,
    "Constant": Constant,
}
#: Which of them end at a step, and which have a decay that a manifest describes.
WITH_LENGTH: Final = tuple(name for name, kind in SCHEDULES.items() if kind.has_length)
WITH_DECAY: Final = tuple(name for name, kind in SCHEDULES.items() if kind.has_decay)
