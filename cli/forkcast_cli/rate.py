"""What the learning rate does over a run, in sentences: for `plan`, and for a run that goes on."""

from __future__ import annotations

from forkcast.schedules import LearningRate
from forkcast_wire.manifest import TrainingRunSpec

_FIELD = "training.scheduleSteps"


def course(spec: TrainingRunSpec) -> str:
    """The rate from the first step to the last one that the manifest wants."""
    schedule, total = spec.learning_rate(), spec.training.total_steps
    length = total if schedule.steps is None else schedule.steps
    if schedule.warmup >= total:
        highest = schedule.at(total - 1)
        return (
            f"the warm-up of {schedule.warmup:,} steps is longer than the run of {total:,}: the "
            f"peak {schedule.peak:g} is never reached, the highest rate is {highest:.3g}"
        )
    if schedule.steps is None:
        return f"{_warmup(schedule)}, {schedule.course(length)}"
    if schedule.warmup >= length:
        return (
            f"{_warmup(schedule)}, longer than the schedule of {length:,} steps: then at once "
            f"{schedule.low:g}"
        )
    said = f"{_warmup(schedule)}, {schedule.course(length)}"
    if length < total:
        return f"{said}; {_beyond(schedule, length, total)}"
    if length > total:
        return f"{said}, beyond the run: its last step has {schedule.at(total - 1):.3g}"
    return said


def change(before: TrainingRunSpec, after: TrainingRunSpec, step: int) -> str:
    """What a start changes about the rate from ``step`` on, "" if nothing. Both specs resolved."""
    old, new = before.learning_rate(), after.learning_rate()
    total = after.training.total_steps
    if new.steps is None or total <= step:
        return ""
    if old != new:
        said = f"the schedule is {new.steps:,} steps long now, not {old.steps:,}"
        if old.at(step) == new.at(step):
            return f"{said}; step {step:,} keeps {new.at(step):.3g}"
        return f"{said}: step {step:,} has {new.at(step):.3g} instead of {old.at(step):.3g}"
    if total > before.training.total_steps and total > new.steps:
        if new.warmup >= new.steps:
            return course(after)
        return _beyond(new, max(step, new.steps), total)
    return ""


def _beyond(schedule: LearningRate, first: int, total: int) -> str:
    said = f"steps {first:,} to {total - 1:,} keep {schedule.at(total - 1):.3g}"
    if schedule.at(total - 1) == 0:
        said += ", so they change no weight"
    return f"{said}; spec.{_FIELD} lengthens the schedule"


def _warmup(schedule: LearningRate) -> str:
    if not schedule.warmup:
        return f"from {schedule.peak:g}"
    return f"up to {schedule.peak:g} over {schedule.warmup:,} steps"
