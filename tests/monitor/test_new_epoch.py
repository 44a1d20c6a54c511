"""A collapse as the monitor sees it: the new epoch's hello, and what is counted afterwards."""

from __future__ import annotations

import pytest

from forkcast.records import StepStats
from forkcast_monitor.config import configure
from forkcast_monitor.history import History
from forkcast_monitor.run import Accepted, WatchedRun
from forkcast_wire.manifest import Uncertainty


def stats(step: int, epoch: int = 0, attempt: int = 0) -> StepStats:
    return StepStats(
        run_uid="u",
        epoch=epoch,
        attempt=attempt,
        rank=0,
        step=step,
        loss=3.0,
        grad_norm=1.0,
        grad_norm_clipped=1.0,
        learning_rate=1e-3,
        tokens=step,
    )


@pytest.fixture
def watched(tmp_path):
    history = History(tmp_path / "statistics")
    run = WatchedRun(configure(Uncertainty()), "u", tmp_path / "monitor", history)
    run.hello(0, 0, 0, 100)
    for step in range(20):
        assert run.accept(stats(step)) is Accepted.FOLDED
    return run


def test_a_collapse_before_the_first_chunk_is_closed_is_followed(watched) -> None:
    assert watched.hello(1, 18, 10, 100) == 18
    assert watched.accept(stats(18, epoch=1)) is Accepted.FOLDED
    assert watched.epoch == 1


def test_a_hello_that_failed_midway_is_made_good_by_the_next(watched, monkeypatch) -> None:
    def unreadable(*_):
        raise OSError("the history cannot be read now")

    with monkeypatch.context() as patch:
        patch.setattr(watched._attempts, "rows", unreadable)
        with pytest.raises(OSError, match="cannot be read"):
            watched.hello(1, 18, 10, 100)
    assert watched.hello(1, 18, 10, 100) == 18
    assert watched.accept(stats(18, epoch=1)) is Accepted.FOLDED
    assert [(one.epoch, one.attempt) for one in watched._attempts._all] == [(0, 0), (1, 0)]
