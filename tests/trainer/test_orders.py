"""Directives as the trainer folds them."""

from __future__ import annotations

from dataclasses import replace

from forkcast_trainer.orders import Orders
from forkcast_wire import forkcast_pb2 as pb


def test_a_checkpoint_is_saved_once_for_each_time_it_is_asked_for() -> None:
    orders = Orders("u")

    def asked(name) -> bool:
        orders.hear(pb.Directive(run_uid="u", id=name, checkpoint_now=pb.CheckpointNow()))
        return orders.takes_checkpoint()

    assert asked("checkpoint/1")
    assert not asked("checkpoint/1")  # a new stream tells all again
    assert asked("checkpoint/2")


def test_only_the_rank_that_reports_copies_weights(make_engine, monkeypatch) -> None:
    """Regression: every rank cloned all weights at every sampled step, and threw them away."""
    for rank, copies in ((0, True), (1, False)):
        engine = make_engine()
        engine.place = replace(engine.place, rank=rank)
        stats = engine.step()
        assert (stats.update_ratio is not None) is copies
