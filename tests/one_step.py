"""One step of an engine, with what it looked like."""

from __future__ import annotations

from forkcast.records import StepStats
from forkcast_trainer.step import Engine


def one_step(engine: Engine) -> StepStats:
    """Take a step and wait for its statistics."""
    engine.step()
    engine.settle()
    *_, stats = engine.told()
    return stats
