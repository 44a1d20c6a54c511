"""A unit's lineage, its faults from the fork on, and its records with labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from instabilities.faults import FAULTS, Fault
from instabilities.model import SIZES
from instabilities.training import Run
from instabilities.units import Unit

LOOK_EVERY, EARLY_STEP = 50, 50


class Clock:
    """The end of the machine's time."""

    def __init__(self, end: float) -> None:
        self.end, self.begun, self.steps = end, time.time(), 0

    @property
    def rate(self) -> float:
        """Steps a second so far."""
        return self.steps / (time.time() - self.begun)

    @property
    def over(self) -> bool:
        """Time to stop."""
        return time.time() > self.end


def _labels(unit: Unit, kind: str, fault: str, onset: int | None) -> dict[str, Any]:
    shape = {k: v for k, v in asdict(unit).items() if k not in ("name", "faults", "tail", "stop")}
    shape["rate"] = SIZES[unit.size].rate * unit.rate_factor
    details: dict[str, Any] = {}
    if fault in FAULTS:
        details = {
            k: getattr(FAULTS[fault], k)
            for k in ("last", "rate", "rank", "length", "scale", "unchecked")
        }
    return {"kind": kind, "fault": fault, "onset_step": onset, "fault_details": details, **shape}


def _train(
    run: Run,
    steps: Iterator[int],
    fault: Fault | None,
    clock: Clock,
    save: Callable[[int, bool], bool],
) -> bool:
    """Train ``steps``; ``save(end, finished)`` at every look. False if time or the run is over."""
    end = 0
    for step in steps:
        active = fault if fault and (not fault.last or step < run.unit.fork + fault.last) else None
        run.step(step, active)
        end, clock.steps = step + 1, clock.steps + 1
        if step == min(EARLY_STEP, run.unit.fork // 2) and run.unit.faults and not fault:
            run.keep_early()
        if end % LOOK_EVERY == 0 and (not save(end, False) or clock.over):
            return False
    save(end, True)
    return True


def play(unit: Unit, run: Run, folder: Path, clock: Clock) -> None:
    """A unit's whole lineage, then its faults from the fork."""
    kind = "healthy" if unit.rate_factor <= 1 else "rate_from_start"
    onset = None if kind == "healthy" else 0

    def saver(name: str, labels: dict[str, Any]) -> Callable[[int, bool], bool]:
        return lambda end, done: run.record(folder, name, end, {**labels, "finished": done})

    if not unit.faults:
        labels = _labels(unit, kind, f"rate_x{unit.rate_factor:g}" if onset == 0 else "", onset)
        _train(run, iter(range(unit.stop)), None, clock, saver(unit.name, labels))
        return
    quiet: Callable[[int, bool], bool] = lambda _end, _done: True  # noqa: E731
    if not _train(run, iter(range(unit.fork)), None, clock, quiet):
        return
    kept = run.state()
    run.stale = kept["weights"]
    for name in unit.faults:
        if clock.over:
            return
        fault = FAULTS[name]
        run.restore(kept)
        run.generator.manual_seed(unit.seed)
        run.rows[unit.fork :], run.internals[unit.fork :] = torch.nan, torch.nan
        run.validation[unit.fork :] = torch.nan
        if fault.at_onset:
            fault.at_onset(run)
        labels = _labels(unit, fault.kind, name, None if name == "control" else unit.fork)
        steps = iter(range(unit.fork, unit.fork + unit.tail_of(name)))
        active = None if name == "control" else fault
        _train(run, steps, active, clock, saver(f"{unit.name}-{name}", labels))
        print(f"{unit.name}-{name} {clock.rate:.1f} steps/s", flush=True)
