"""Directives as the trainer folds them."""

from __future__ import annotations

from dataclasses import replace

from structlog.testing import capture_logs

from forkcast_trainer.orders import Orders
from forkcast_wire import forkcast_pb2 as pb
from tests.one_step import one_step


def test_a_checkpoint_is_saved_once_for_each_time_it_is_asked_for() -> None:
    orders = Orders("u")

    def asked(name) -> bool:
        orders.hear(pb.Directive(run_uid="u", id=name, checkpoint_now=pb.CheckpointNow()))
        return orders.takes_checkpoint()

    assert asked("checkpoint/1")
    assert not asked("checkpoint/1")  # a new stream tells all again
    assert asked("checkpoint/2")


def test_directives_that_nobody_makes_are_logged_once_and_the_next_counts() -> None:
    orders = Orders("u")
    with capture_logs() as logs:
        for number in range(1000):
            orders.hear(pb.Directive(run_uid="u", id="x" * 9999, hold=pb.Hold()))
            orders.hear(pb.Directive(run_uid=f"v{number}", id="x" * 9999))
    assert [log["event"] for log in logs] == ["train.directive_refused", "train.foreign_directive"]
    assert all(len(log["id"]) == 256 for log in logs)
    orders.hear(pb.Directive(run_uid="u", id="c", checkpoint_now=pb.CheckpointNow()))
    assert orders.takes_checkpoint()


def test_only_the_rank_that_reports_copies_weights(make_engine, monkeypatch) -> None:
    """Regression: every rank cloned all weights at every sampled step, and threw them away."""
    for rank, copies in ((0, True), (1, False)):
        engine = make_engine()
        engine.place = replace(engine.place, rank=rank)
        stats = one_step(engine)
        assert (stats.update_ratio is not None) is copies
