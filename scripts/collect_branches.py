"""Produce the proxy's training records by real small runs.

    python scripts/collect_branches.py --runs 200 --workers 16 --minutes 8 --out records.parquet

Each run is a small GPT-2 over bytes on the standard library's sources, with its own learning rate,
schedule, batch, clipping and stressors. It is trained once, keeping its states in memory; it is
forked at drawn steps and where the detector fired; at every fork a few drawn actions of the lattice
are run for `horizon` steps on the same data. The control of a fork is the run itself, which went
on. Results are written after every run, atomically, so that an interrupted collection is a smaller
one. See docs/experiments.md.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from small_runs import draw_run

from forkcast.actions import Action, Lattice
from forkcast.records import Index, StepStats, Window, window_row
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_proxy.records import Fork, Outcome, Record, recovery_steps, write
from forkcast_trainer.apply import apply
from forkcast_trainer.checkpoint import Snapshot
from forkcast_trainer.course import DIVERGED_NATS, DIVERGED_STEPS, Course
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.placement import placement
from forkcast_trainer.state import restore, snapshot
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.process import die_with_parent

_SAVE_EVERY = 25
#: No fork before this step: the detector and the spike rule need a history.
_FIRST_FORK = 80
_DEPTHS = (0, 50, 100, 200)
_WRITE_SECONDS = 10.0
_QUIET = {"update_every_steps": 10_000, "internals_every_steps": 10_000}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for; horizons rise, the last is the longest. rate_scales: None
    for the lattice's own; with them no action resets the momentum. healthy: only healthy runs.
    """

    horizons: tuple[int, ...]
    forks: int
    actions: int
    seed: int
    workdir: Path
    deadline: float
    rate_scales: tuple[float, ...] | None = None
    healthy: bool = False


# -------------------------------------------------------------------------------------- the main run


@dataclass
class MainRun:
    """The run itself: its states, statistics, triggers, and what it measured as the control."""

    course: Course
    saved: dict[int, Snapshot]
    seen: list[tuple[StepStats, Index]]
    triggers: list[tuple[int, int]]
    measured: dict[int, tuple[float, float]]


def follow_main(
    engine: Engine, drawn: list[int], plan: Plan, validate_every: int
) -> MainRun | None:
    """Train the run to its end; None if time ran out. ``drawn``: fork steps known beforehand."""
    run = MainRun(Course(engine), {}, [], [], {})
    detector = Detector(configure(engine.spec.uncertainty), engine.run_uid)
    for step in drawn:
        _expect(run.course, step, plan)
    total = engine.spec.training.total_steps
    while engine.position.step < total and not run.course.diverged:
        if time.monotonic() > plan.deadline:
            return None
        step = engine.position.step
        if step % _SAVE_EVERY == 0:
            run.saved[step] = snapshot(engine)
        if run.course.expected:
            run.measured[step] = run.course.validate()
        (stats,) = [*run.course.step(), *run.course.settle()]
        if step % validate_every == validate_every - 1:
            stats = replace(stats, validation_loss=engine.evaluate())
        reading = detector.fold(stats)
        index, trigger = reading.index, reading.trigger
        run.seen.append((stats, index))
        last = total - plan.horizons[-1]
        if (
            trigger is not None
            and _FIRST_FORK <= step + 1 < last
            and len(run.triggers) < plan.forks
        ):
            run.triggers.append((step + 1, trigger.onset_step))
            _expect(run.course, step + 1, plan)
    return run


def _expect(course: Course, fork: int, plan: Plan) -> None:
    for horizon in plan.horizons:
        course.expect(fork + horizon)


def window_of(run: MainRun, uid: str, step: int, total_steps: int) -> Window:
    """The last 64 steps before ``step`` as the monitor would give them."""
    rows = [window_row(stats, index.z) for stats, index in run.seen[max(0, step - 64) : step]]
    return Window.of(uid, 0, total_steps, rows)


# ----------------------------------------------------------------------------------------- the forks


def rollout(
    engine: Engine, base: Snapshot, action: Action, fork: int, plan: Plan
) -> tuple[Course, dict[int, tuple[float, float]]]:
    """Restore, apply, replay to the fork and on; ((raw, mean) by horizon)."""
    restore(engine, base)
    course = Course(engine)
    apply(engine, action)
    _expect(course, fork, plan)
    measured = {}
    for horizon in plan.horizons:
        course.run_to(fork + horizon)
        measured[horizon] = course.validate()
    return course, measured


def outcomes(
    run: MainRun,
    course: Course,
    measured: dict[int, tuple[float, float]],
    fork: tuple[int, int],
    *,
    healthy: bool,
) -> Iterator[Outcome]:
    """One outcome a horizon."""
    step, onset = fork
    main = _losses(run.course)
    level = _level(main, onset)
    before = {s: loss for s, loss in main.items() if s < course.first_step}
    lineage = before | _losses(course)
    for horizon, (raw, mean) in measured.items():
        end = step + horizon
        control = run.measured.get(end, (math.nan, math.nan))
        control_lost = _lost(main, step, end)
        control_event = control_lost or _event(run.course, step, end)
        lost = course.diverged if course is not run.course else control_lost
        yield Outcome(
            horizon=horizon,
            loss=math.nan if lost else raw,
            mean_loss=math.nan if lost else mean,
            control_loss=math.nan if control_lost else control[0],
            control_mean_loss=math.nan if control_lost else control[1],
            diverged=lost,
            event=lost or _event(course, step, end),
            control_event=control_event,
            recovery_steps=recovery_steps(lineage, step, end, level),
            steps_run=0 if course is run.course else len(course.rows),
            healthy=healthy and not control_lost,
        )


def _losses(course: Course) -> dict[int, float]:
    return {row.step: row.loss for row in course.rows}


def _event(course: Course, step: int, end: int) -> bool:
    return any(step <= flagged < end for flagged in course.spikes.flagged)


def _lost(losses: dict[int, float], step: int, end: int) -> bool:
    """Whether the control diverged between fork and horizon, by the rollouts' rule."""
    limit, high = losses[step - 1] + DIVERGED_NATS, 0
    for now in range(step, end):
        loss = losses.get(now, math.nan)
        high = high + 1 if loss > limit else 0
        if not math.isfinite(loss) or high >= DIVERGED_STEPS:
            return True
    return False


def _level(losses: dict[int, float], onset: int) -> float:
    """Median plus one sd of the 100 steps before the departure, nats/token."""
    before = [losses[s] for s in range(max(0, onset - 100), onset) if math.isfinite(losses[s])]
    return float(np.median(before) + np.std(before)) if before else math.inf


def draw_actions(
    rng: np.random.Generator, run: MainRun, fork: tuple[int, int], spec: TrainingRunSpec, plan: Plan
) -> list[tuple[Action, int]]:
    """(action, base step) of the plan's number of distinct lattice actions at the bases at hand."""
    step, onset = fork
    bases = set()
    for depth in _DEPTHS:
        older = [s for s in run.saved if s <= max(onset - depth, 0)]
        bases.add(max(older))
    clipping: tuple[str, ...] = ("Keep", "ZClip", "SPAM", "None")
    if spec.training.gradient_accumulation_steps >= 3:
        clipping = ("Keep", "ZClip", "ARC", "SPAM", "None")
    lattice = Lattice(clipping=clipping, rewind_steps=tuple(sorted(step - base for base in bases)))
    if plan.rate_scales is not None:
        lattice = replace(lattice, learning_rate_scales=plan.rate_scales, momentum_reset=(False,))
    choices = list(lattice.actions())
    drawn = rng.choice(len(choices), size=min(plan.actions, len(choices)), replace=False)
    return [(choices[int(i)], step - choices[int(i)].rewind_steps) for i in drawn]


def collect_run(task: tuple[int, Plan]) -> list[Record]:
    """All records of one run; fewer where time runs out."""
    index, plan = task
    if time.monotonic() > plan.deadline:
        return []
    torch.set_num_threads(1)
    rng = np.random.default_rng([plan.seed, index])
    regime, spec = draw_run(rng, index)
    if plan.healthy and regime != "healthy":
        return []
    uid, total = f"{plan.seed}-{index}", spec.training.total_steps
    latest = total - plan.horizons[-1]
    drawn = sorted(int(s) for s in rng.integers(_FIRST_FORK, latest, size=plan.forks))
    engine = Engine(spec, uid, plan.workdir, placement(spec))
    run = follow_main(engine, drawn, plan, int(rng.choice([25, 50, 100])))
    if run is None:
        return []
    reached = len(run.seen)
    points = [("trigger", *one) for one in run.triggers[: (plan.forks + 1) // 2]]
    points += [("drawn", step, step) for step in drawn][: plan.forks - len(points)]
    engine.observer.statistics = spec.statistics.model_copy(update=_QUIET)
    records: list[Record] = []
    for cause, step, onset in {point[1]: point for point in reversed(points)}.values():
        if step >= reached or time.monotonic() > plan.deadline:
            continue  # the run diverged before this fork, or time is up
        window = window_of(run, uid, step, total)
        fork = Fork(run=uid, regime=regime, cause=cause, step=step, window=window)
        healthy = regime == "healthy"
        control = {h: run.measured.get(step + h, (math.nan, math.nan)) for h in plan.horizons}
        found = outcomes(run, run.course, control, (step, onset), healthy=healthy)
        records += [Record(fork=fork, action=Action(), outcome=one) for one in found]
        for action, base in draw_actions(rng, run, (step, onset), spec, plan):
            if time.monotonic() > plan.deadline:
                return records
            course, measured = rollout(engine, run.saved[base], action, step, plan)
            found = outcomes(run, course, measured, (step, onset), healthy=healthy)
            records += [Record(fork=fork, action=action, outcome=one) for one in found]
    return records


# ------------------------------------------------------------------------------------- the collection


def main() -> int:
    """0 when records were written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=64, help="runs to train, at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--horizon", type=int, default=200, help="steps after the fork, > 50")
    parser.add_argument("--forks", type=int, default=2, help="forks of a run")
    parser.add_argument("--actions", type=int, default=8, help="actions tried at a fork")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after so long")
    parser.add_argument("--rate-scales", help="instead of the lattice's, e.g. 0.25,0.5; no resets")
    parser.add_argument("--healthy", action="store_true", help="healthy runs only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("collect"), help="of the token file")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    given = parser.parse_args()
    started = time.monotonic()
    plan = Plan(
        horizons=tuple(sorted({50, given.horizon})),
        forks=given.forks,
        actions=given.actions,
        seed=given.seed,
        workdir=given.workdir,
        deadline=started + 60 * given.minutes,
        rate_scales=(
            tuple(map(float, given.rate_scales.split(","))) if given.rate_scales else None
        ),
        healthy=given.healthy,
    )
    _, spec = draw_run(np.random.default_rng(0), 0)
    prepare(spec.data, plan.workdir / "tokens", progress=True)  # once, before the workers fork
    records: list[Record] = []
    written = started
    context = multiprocessing.get_context("fork")
    with context.Pool(given.workers, initializer=die_with_parent) as pool:
        tasks = [(index, plan) for index in range(given.runs)]
        results = pool.imap_unordered(collect_run, tasks)
        for number in range(1, given.runs + 1):
            try:
                records += next(results)
            except (ValueError, RuntimeError) as error:  # one run's failure is not the collection's
                print(f"a run failed: {error}", file=sys.stderr, flush=True)
            now = time.monotonic()
            if records and now - written > _WRITE_SECONDS:
                write(records, given.out)
                written = now
            print(
                f"{number}/{given.runs} runs, {len(records)} records, {now - started:.0f} s",
                flush=True,
            )
    if records:
        write(records, given.out)
    return 0 if records else 1


if __name__ == "__main__":
    sys.exit(main())
