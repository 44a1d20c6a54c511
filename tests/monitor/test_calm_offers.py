"""A collapse and the calm after it, as a monitor sees them live, after a crash, and in a replay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkcast.actions import Action
from forkcast.level import AGAIN_ROWS
from forkcast.records import StateKind, StepStats, Trigger, TriggerRule
from forkcast_cli.detect.own import fold_own, read_own
from forkcast_cli.detect.session import Session
from forkcast_monitor.config import configure
from forkcast_monitor.history import History
from forkcast_monitor.run import Accepted, WatchedRun
from forkcast_wire.manifest import Uncertainty
from tests.make import lineage_entry, state_ref

RULES = Uncertainty(window=64, ema_decay="0.9", warmup_steps=60, cooldown_steps=50, calm_steps=80)
#: A shift at 150, severe by its fourth row; the winner ran from 140 to 200, where epoch 1 begins.
SHIFT, TRIGGER, BASE, ADOPTED, END = 150, 153, 140, 200, 480
#: The level is learnt again after the splice; then three calm periods.
OFFERS = [ADOPTED + AGAIN_ROWS + 80 * n - 1 for n in (1, 2, 3)]


def stats(step: int, epoch: int, attempt: int = 0) -> StepStats:
    loss = 3.0 + 2.0 * math.exp(-step / 80) + 0.1 * math.sin(step) + 0.05 * math.sin(7.3 * step)
    shifted = epoch == 0 and step >= SHIFT
    norm = (4.0 if shifted else 1.0) * math.exp(0.2 * math.sin(3.1 * step))
    return StepStats(
        run_uid="u",
        epoch=epoch,
        attempt=attempt,
        rank=0,
        step=step,
        loss=loss + (2.0 if shifted else 0.0),
        grad_norm=norm,
        grad_norm_clipped=norm,
        learning_rate=1e-3,
        tokens=step,
    )


def watch(folder: Path) -> WatchedRun:
    return WatchedRun(configure(RULES), "u", folder / "state", History(folder / "statistics"))


def live(run: WatchedRun, until: int = END) -> None:
    """Two epochs, from wherever the monitor stands, up to step ``until`` of the second."""
    if run.epoch == 0:
        run.hello(0, 0, 0, 1000)
        for step in range(run.next_step, SHIFT + 6):
            assert run.accept(stats(step, 0)) is Accepted.FOLDED
    first = run.hello(1, ADOPTED, BASE, 1000)
    for step in range(first, until):
        assert run.accept(stats(step, 1)) is Accepted.FOLDED


def calm(triggers: list[Trigger]) -> Iterator[str]:
    return (one.id for one in triggers if one.rule is TriggerRule.CALM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> WatchedRun:
    run = watch(tmp_path_factory.mktemp("whole"))
    live(run)
    return run


def test_nothing_fires_from_the_splice_and_then_calm_is_offered_again_and_again(whole) -> None:
    assert [one.id for one in whole.triggers if one.epoch == 0] == [f"e0-t{TRIGGER}"]
    assert [one.id for one in whole.triggers if one.epoch == 1] == [f"e1-t{at}" for at in OFFERS]
    assert list(calm(whole.triggers)) == [f"e1-t{at}" for at in OFFERS]


@pytest.mark.parametrize("cut", [ADOPTED, 230, OFFERS[0] - 1, OFFERS[0], OFFERS[0] + 1, 340])
def test_a_monitor_that_died_offers_the_same(tmp_path, whole, cut) -> None:
    live(watch(tmp_path), cut)  # and no more: killed
    again = watch(tmp_path)
    live(again)
    assert again.triggers == whole.triggers
    assert again.detector.state() == whole.detector.state()


def test_a_trainer_that_takes_steps_again_gets_no_second_offer(tmp_path, whole) -> None:
    run = watch(tmp_path)
    live(run, OFFERS[0] + 20)
    again = OFFERS[0] - 40
    assert run.hello(1, again, BASE, 1000, attempt=1) == again
    for step in range(again, END):
        run.accept(stats(step, 1, attempt=1))
    assert run.triggers == whole.triggers


def test_a_replay_sees_what_was_seen_live(whole) -> None:
    entry = lineage_entry(
        action=Action(learning_rate_scale=0.8, rewind_steps=10),
        state=state_ref(ADOPTED, StateKind.ROLLOUT),
        base_step=BASE,
        trigger_step=TRIGGER,
    )
    session = Session({"ours": configure(RULES)}, lambda _run, _happening: None)
    fold_own(session, read_own(whole.history.folder), [entry])
    (run,) = session.runs
    departures = [one for one in whole.triggers if one.rule is not TriggerRule.CALM]
    seen = [(one.step, one.onset, one.cause) for one in run.detector.events]
    assert seen == [(one.step, one.onset_step, one.cause) for one in departures]
