"""How often a detector fires on healthy rows, and how unusual each value of volatility is.

    python scripts/simulate_healthy.py --rows 10000000 --seed 1 --processes 2

Prints events and branches per 100,000 rows of each kind of healthy run (scripts/healthy_runs.py), with
the exact Poisson interval of 95 %, and of how many rows one reaches a value of volatility: the table
of monitor_svc/forkcast_monitor/rarity.py. docs/experiments.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from healthy_runs import KINDS, ROWS, healthy_run

from forkcast_cli.metrics import poisson_interval
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.presets import PRESETS
from forkcast_wire.manifest import Uncertainty

#: Values of volatility that the table of rarity is made for.
_LEVELS = (1.6, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0, 4.5, 5.0, 5.6)


@dataclass(slots=True)
class Count:
    """rows: judged. events, branches: departures that began, and that asked for a branch, by component.
    peaks: of each excursion of volatility above 0 the largest value, in tenths.
    """

    rows: int = 0
    events: Counter[str] = field(default_factory=Counter)
    branches: Counter[str] = field(default_factory=Counter)
    peaks: Counter[int] = field(default_factory=Counter)

    def add(self, other: Count) -> None:
        """Add what another run counted."""
        self.rows += other.rows
        self.events += other.events
        self.branches += other.branches
        self.peaks += other.peaks


def count(task: tuple[str, str, int, int, int]) -> tuple[str, Count]:
    """Fold one run; its kind, and what was counted. task: preset, kind, seed, number, rows."""
    preset, kind, seed, number, rows = task
    detector = Detector(configure(Uncertainty(preset=preset)), "healthy")
    counted = Count()
    peak, last = 0.0, ("", -1)
    for stats in healthy_run(kind, seed, number, rows).rows():
        reading = detector.fold(stats)
        index, event = reading.index, reading.event
        counted.rows += index.ready
        if event is not None:
            departure = event.component, event.onset_step
            counted.events[event.component] += departure != last
            counted.branches[event.component] += reading.trigger is not None
            last = departure
        u = index.components.get("volatility", 0.0)
        if u > peak:
            peak = u
        elif peak and not u:
            counted.peaks[round(10 * peak)] += 1
            peak = 0.0
    return kind, counted


def _tasks(
    preset: str, kinds: list[str], seed: int, rows: int
) -> list[tuple[str, str, int, int, int]]:
    """As many runs of each kind as make about ``rows`` in all; the kinds take turns."""
    runs = max(1, math.ceil(rows / ROWS / len(kinds)))
    length = min(ROWS, max(1000, rows // len(kinds)))
    return [(preset, kind, seed, run, length) for run in range(runs) for kind in kinds]


def _rate(number: int, rows: int) -> str:
    """Events per 100,000 rows with their interval."""
    low, high = poisson_interval(number)
    per = 1e5 / max(rows, 1)
    return f"{number * per:.2f} [{low * per:.2f}, {high * per:.2f}]"


def _named(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counter.most_common() if n) or "-"


def show(counts: dict[str, Count]) -> None:
    """The two tables, as Markdown."""
    print("| kind | rows | events | per 100,000 | branches | per 100,000 | events by component |")
    print("|---|---|---|---|---|---|---|")
    whole = Count()
    for one in counts.values():
        whole.add(one)
    for kind, one in [*counts.items(), ("**all**", whole)]:
        events, branches = one.events.total(), one.branches.total()
        print(
            f"| {kind} | {one.rows:,} | {events} | {_rate(events, one.rows)} "
            f"| {branches} | {_rate(branches, one.rows)} | {_named(one.events)} |"
        )
    print("\n| volatility | excursions | one in so many rows |\n|---|---|---|")
    for level in _LEVELS:
        reached = sum(n for tenth, n in whole.peaks.items() if tenth >= round(10 * level))
        once = f"{whole.rows // reached:,}" if reached else f"more than {whole.rows:,}"
        print(f"| {level} | {reached} | {once} |")


def main() -> int:
    """0 after the tables were printed, 2 for a kind that there is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="in all, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--preset", choices=list(PRESETS), default="Forkcast")
    parser.add_argument("--kind", action="append", help="only this one; may be given again")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    given = parser.parse_args()
    kinds = given.kind or list(KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        print(f"healthy runs: {unknown[0]!r} is not one of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    counts = {kind: Count() for kind in kinds}
    tasks = _tasks(given.preset, kinds, given.seed, given.rows)
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for kind, one in pool.imap_unordered(count, tasks):
            counts[kind].add(one)
    print(f"preset {given.preset}, seed {given.seed}\n")
    show(counts)
    if given.json is not None:
        found = {
            kind: {"rows": one.rows, "events": one.events, "branches": one.branches}
            for kind, one in counts.items()
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
