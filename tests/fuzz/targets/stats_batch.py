"""A batch of statistics, as any trainer may send it."""

import json

from google.protobuf.message import DecodeError

from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.signals.base import MOST
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import stats_from_wire, stats_to_wire
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.statistics import row_to_stats, to_table
from forkcast_wire.tail import Row, columns, decoded, encoded, rows_of_columns
from tests.make import step_stats

REFUSALS = (DecodeError, ValueError)
_CONFIG = configure(Uncertainty())


def seeds():
    """A batch of a few steps, with and without what is sampled."""
    batch = pb.StatsBatch(seq=3)
    for step in range(4):
        stats = step_stats(
            step,
            attempt=1,
            loss=2.5,
            tokens=100 * step,
            attention_entropy=(0.5, 0.25) if step % 2 else None,
            group_grad_norms={"mlp": 1.0},
        )
        batch.stats.append(stats_to_wire(stats))
    yield batch.SerializeToString()


def feed(data):
    """What the codec lets through can be folded and explained, makes a sound row of the history, and leaves
    a state that can be stored.
    """
    batch = pb.StatsBatch()
    batch.ParseFromString(data)
    detector = Detector(_CONFIG, "u")
    for message in batch.stats:
        stats = stats_from_wire(message)
        frames, whole = decoded(encoded([Row(message)], ["a"]))
        assert whole
        (row,) = rows_of_columns(columns(frames, "u_"))
        assert repr(row_to_stats(row)) == repr(stats)
        to_table([row])
        reading = detector.fold(stats)
        assert 0 <= reading.index.z < 100
        assert all(0 <= u <= MOST for u in reading.index.components.values())
        assert reading.event is None or reading.event.cause
    json.dumps(detector.state(), allow_nan=False)
