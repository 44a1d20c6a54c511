"""How soon a run is looked at again when nothing happens."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from forkcast_operator.kubernetes.pace import RESYNC_SECONDS, pause
from forkcast_operator.kubernetes.run_facts import Failure, RunFacts

from .test_projection import DONE, NOW, RUNNING, STORE

LOST = Failure(reason="RecordsLost", message="m", stalled=True)


@pytest.mark.parametrize(
    ("sooner", "later"),
    [
        (replace(RUNNING, store=replace(STORE, outcomes={"b": None})), RUNNING),
        (RUNNING, RunFacts(store=STORE, failure=LOST)),
        (RunFacts(store=STORE, failure=LOST), RunFacts(store=DONE)),
    ],
)
def test_what_moves_is_looked_at_sooner(make_run, sooner, later) -> None:
    run = make_run()
    first, second = (pause(run, run.parsed(), facts, NOW) for facts in (sooner, later))
    assert first < second


def test_a_finished_run_is_looked_at_when_its_time_is_over(make_run) -> None:
    run = make_run(lifecycle={"ttlSecondsAfterFinished": 100})
    assert pause(run, run.parsed(), RunFacts(store=DONE), NOW) == RESYNC_SECONDS
    ended = replace(run, status={"completionTime": (NOW - dt.timedelta(seconds=40)).isoformat()})
    assert pause(ended, ended.parsed(), RunFacts(store=DONE), NOW) == pytest.approx(60)
