"""The detector's fold over 1, 50 and 500 streams, against a plain EMA and river's detectors.

    python benchmarks/detector.py [--scale 0.2]

CPU time of this process, one thread, the best of five passes: a machine with other work makes every
pass slower and none faster, and it says more than the wall clock.
All contestants are warm, and fold one step of every stream in turns, so that their states compete for
the caches as in a monitor. river is optional (`pip install river`): without it a line says so.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from figures import Row, times
from made_statistics import made_statistics
from rich.console import Console

from forkcast.records import StepStats
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty

_STREAMS = (1, 50, 500)
#: Timed, of all streams together.
_STEPS = 40_000
_PASSES = 5
_WARM = 300
_STATE_STEPS = 2_000
_GOAL_US, _GOAL_RATE, _GOAL_BYTES = 5.0, 50_000, 2048

#: Takes one step of one stream.
Fold = Callable[[StepStats], object]


class PlainEma:
    """The least that a detector can do: z of the loss over moving averages of level and square."""

    def __init__(self, decay: float = 0.98) -> None:
        self._decay, self._level, self._square = decay, 0.0, 0.0

    def fold(self, stats: StepStats) -> float:
        """The z of this step."""
        rest = stats.loss - self._level
        sd = math.sqrt(self._square)
        self._level += (1 - self._decay) * rest
        self._square += (1 - self._decay) * (rest * rest - self._square)
        return rest / sd if sd else 0.0


def contestants() -> dict[str, Callable[[], Fold]]:
    """By name, what makes a fold that has seen nothing."""
    config = configure(Uncertainty())
    found: dict[str, Callable[[], Fold]] = {
        "detector": lambda: Detector(config, "benchmark").fold,
        "plain EMA": lambda: PlainEma().fold,
    }
    try:
        drift, anomaly = import_module("river.drift"), import_module("river.anomaly")
    except ImportError:
        return found
    found["river ADWIN, loss"] = lambda: _of_loss(drift.ADWIN().update)
    found["river GaussianScorer, loss"] = lambda: _gaussian(anomaly.GaussianScorer())
    found["river HalfSpaceTrees, loss and norm"] = lambda: _trees(anomaly.HalfSpaceTrees(seed=0))
    return found


def _of_loss(update: Callable[[float], object]) -> Fold:
    return lambda stats: update(stats.loss)


def _gaussian(scorer: Any) -> Fold:
    def fold(stats: StepStats) -> object:
        score = scorer.score_one(None, stats.loss)
        scorer.learn_one(None, stats.loss)
        return score

    return fold


def _trees(trees: Any) -> Fold:
    def fold(stats: StepStats) -> object:
        seen = {"loss": stats.loss / 10, "norm": stats.grad_norm / 10}  # they expect [0, 1]
        score = trees.score_one(seen)
        trees.learn_one(seen)
        return score

    return fold


def cpu_us(
    make: Callable[[], Fold], streams: int, warm: Sequence[StepStats], timed: Sequence[StepStats]
) -> float:
    """CPU microseconds of one of the timed steps; each stream has folded the warm ones before."""
    folds = [make() for _ in range(streams)]
    for one in warm:
        for fold in folds:
            fold(one)
    spent = []
    for part in range(_PASSES):  # each goes on where the last ended: the rows are those of one run
        steps = timed[part * len(timed) // _PASSES : (part + 1) * len(timed) // _PASSES]
        began = time.process_time()
        for one in steps:
            for fold in folds:
                fold(one)
        spent.append((time.process_time() - began) / (len(steps) * streams) * 1e6)
    return min(spent)


def measure(scale: float) -> list[Row]:
    """Every contestant over every number of streams, and what the detector's state weighs."""
    warm = times(_WARM, scale)
    made = made_statistics(warm + times(_STEPS, scale), run_uid="benchmark")
    rows, makers = [], contestants()
    for streams in _STREAMS:
        timed = made[warm : warm + times(_STEPS // streams, scale, _PASSES)]
        spent = {n: cpu_us(make, streams, made[:warm], timed) for n, make in makers.items()}
        for name, us in spent.items():
            ours = name == "detector"
            goal = f"goal {_GOAL_US:.0f} us, {_GOAL_RATE:,}/s" if ours else ""
            rows.append(
                Row(
                    section="detector",
                    name=f"{name}, {streams} stream{'s' * (streams > 1)}",
                    value=us,
                    unit="CPU us/step",
                    ratio=us / spent["plain EMA"] if ours else None,
                    against="plain EMA" if ours else "",
                    note="; ".join(filter(None, (f"{1e6 / us:,.0f} steps/s", goal))),
                )
            )
    if len(makers) == 2:
        print("river is not installed: its detectors are left out")
    return [*rows, _state_row()]


def _state_row() -> Row:
    detector = Detector(configure(Uncertainty()), "benchmark")
    for one in made_statistics(_STATE_STEPS, run_uid="benchmark"):
        detector.fold(one)
    size = len(json.dumps(detector.state(), separators=(",", ":")).encode())
    return Row(
        section="detector",
        name=f"state of a run after {_STATE_STEPS:,} steps",
        value=size,
        unit="bytes",
        note=f"compact JSON; goal {_GOAL_BYTES:,}",
    )


def main() -> None:
    """Prints the table."""
    from loop import WIDTH, table  # loop imports this module as a section

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="below 1 only to try it out")
    rows = measure(parser.parse_args().scale)
    Console(width=WIDTH).print(table(rows, "CPU time of one thread"))


if __name__ == "__main__":
    main()
