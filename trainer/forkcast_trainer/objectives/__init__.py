"""Objectives by name. To add one: a file here, and a line in OBJECTIVES."""

from __future__ import annotations

from collections.abc import Mapping

from forkcast_trainer.objectives.base import Example, Objective
from forkcast_trainer.objectives.causal import Causal
from forkcast_trainer.objectives.head_loss import IGNORED, Loss, head_loss, logits_loss
from forkcast_trainer.objectives.span_corruption import SpanCorruption

__all__ = [
    "IGNORED",
    "OBJECTIVES",
    "Example",
    "Loss",
    "Objective",
    "head_loss",
    "logits_loss",
]

OBJECTIVES: Mapping[str, type[Objective]] = {
    "Causal": Causal,
    "SpanCorruption": SpanCorruption,
}
