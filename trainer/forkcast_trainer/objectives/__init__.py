"""Objectives by name. To add one: a file here, and a line in OBJECTIVES."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from forkcast_trainer.objectives.base import Example, Objective
from forkcast_trainer.objectives.causal import Causal
from forkcast_trainer.objectives.head_loss import IGNORED, Loss, head_loss, logits_loss

__all__ = [
    "IGNORED",
    "OBJECTIVES",
    "Example",
    "Loss",
    "Objective",
    "head_loss",
    "logits_loss",
]

OBJECTIVES: Mapping[str, Callable[[], Objective]] = {
    "Causal": Causal,
}
