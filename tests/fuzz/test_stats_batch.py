"""What a trainer streams: batches, folded by a run that has to stay sound."""

import pytest
from google.protobuf.message import DecodeError

from forkcast_monitor.attempts import TooManyAttemptsError
from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import WatchedRun
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_from_wire
from forkcast_wire.statistics import read_history

from .harness import fuzz

GIVEN = Registration(
    run_uid="a", name="x", namespace="y", uncertainty="", mode="Enforce", total_steps=1000
)


@pytest.fixture
def opened(tmp_path):
    def opened():
        return WatchedRun(GIVEN.config(), "a", tmp_path / "m", History(tmp_path / "s"))

    return opened


def test_any_batch_is_taken_or_refused_and_the_run_opens_again(opened, tmp_path):
    run = opened()
    run.hello(0, 0, 0, 1000)

    def read(data):
        batch = pb.StatsBatch.FromString(data)
        if batch.HasField("hello"):
            said = batch.hello
            run.hello(said.epoch, said.start_step, said.base_step, said.total_steps, said.attempt)
        run.lost([(gap.first_step, gap.last_step) for gap in batch.gaps])
        for one in batch.stats:
            run.accept(stats_from_wire(one))

    fuzz("stats_batch", read, (DecodeError, ValueError, TooManyAttemptsError))
    stood = run.epoch, run.attempt
    run.close()
    again = opened()
    assert (again.epoch, again.attempt) == stood
    assert len(read_history(tmp_path / "s")) > 0
    assert (
        not list((tmp_path / "s").glob("tail.jsonl"))
        or not (tmp_path / "s/tail.jsonl").read_bytes()
    )
