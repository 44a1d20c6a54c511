"""Detector steps a second on one core, and the time of a single step."""

from __future__ import annotations

import time

from figures import Row, quantile, times
from made_statistics import made_statistics

from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty

_STEPS = 30_000
_WARM = 1_000
_GOAL_US = 20.0


def measure(scale: float) -> list[Row]:
    """Fold made statistics with the shipped rules (window 512)."""
    steps = made_statistics(times(_STEPS, scale, 50) + _WARM, run_uid="benchmark")
    detector = Detector(configure(Uncertainty()), "benchmark")
    for one in steps[:_WARM]:
        detector.fold(one)
    spent: list[float] = []
    cpu = time.process_time()
    for one in steps[_WARM:]:
        before = time.perf_counter_ns()
        detector.fold(one)
        spent.append((time.perf_counter_ns() - before) / 1e3)
    cpu = time.process_time() - cpu
    median, goal = quantile(spent, 0.5), f"goal {_GOAL_US:.0f} us"
    return [
        Row(section="detector", name="steps/s, one core", value=len(spent) / cpu, unit="1/s"),
        Row(section="detector", name="step p50", value=median, unit="us", note=goal),
        Row(section="detector", name="step p99", value=quantile(spent, 0.99), unit="us"),
    ]
