"""What a step costs in the monitor, part by part: `python benchmarks/monitor_parts.py [--batch 10]`.

CPU time of this process, one thread, without the network and the waiting for the disk; best of three.
Made statistics as a run of the quickstart's size reports them. `benchmarks/streams.py` measures the
whole process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from made_statistics import made_statistics
from rich.console import Console
from rich.table import Table

from forkcast.records import window_row
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.history import History
from forkcast_monitor.run import WatchedRun
from forkcast_monitor.signals import SIGNALS
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import tail
from forkcast_wire.codec import stats_from_wire, stats_to_wire
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.statistics import tail_columns, tail_of, write_columns

_STEPS, _CHUNK, _ROUNDS = 8_192, 1_024, 3
_UID = "00000000-0000-4000-8000-000000000000"


def measured(folder: Path, size: int) -> dict[str, float]:
    """By part, CPU us a step."""
    made = made_statistics(_STEPS, run_uid=_UID)
    records = [stats_to_wire(one) for one in made]
    starts = range(0, _STEPS, size)
    sent = [
        pb.StatsBatch(stats=records[start : start + size]).SerializeToString() for start in starts
    ]
    rows = [tail.Row(one, 0.1, 0.2, dict.fromkeys(SIGNALS, 0.3)) for one in records]
    batches = [rows[start : start + size] for start in starts]
    config = configure(Uncertainty())

    def decode() -> None:
        for data in sent:
            for one in pb.StatsBatch.FromString(data).stats:
                stats_from_wire(one)

    def fold() -> None:
        detector = Detector(config, _UID)
        for one in made:
            detector.fold(one)

    def chunks() -> None:
        for start in range(0, _STEPS, _CHUNK):
            place = folder / f"chunk{start}"
            place.mkdir(exist_ok=True)
            tail_of(place).write_bytes(tail.encoded(rows[start : start + _CHUNK], SIGNALS))
            for path in place.glob("*.parquet"):
                path.unlink()
            write_columns(tail_columns(place), place)

    def whole() -> None:
        place = Path(tempfile.mkdtemp(dir=folder))
        run = WatchedRun(config, _UID, place / "monitor", History(place / "statistics"))
        run.hello(0, 0, 0, _STEPS)
        for data in sent:
            run.accept_all(pb.StatsBatch.FromString(data).stats)

    return {
        "decoding: bytes to records": _cpu_us(decode),
        "the detector's fold": _cpu_us(fold),
        "the window's row": _cpu_us(lambda: _each(lambda one: window_row(one, 0.0), made)),
        "the tail's frame, no write": _cpu_us(
            lambda: _each(lambda batch: tail.encoded(batch, SIGNALS), batches)
        ),
        "the chunk: tail to Parquet": _cpu_us(chunks),
        "all of it, with locks, snapshots and writes": _cpu_us(whole),
    }


def _each(call: Callable[..., object], given: Sequence[object]) -> None:
    for one in given:
        call(one)


def _cpu_us(part: Callable[[], None]) -> float:
    spent = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        part()
        spent.append(time.process_time() - began)
    return min(spent) / _STEPS * 1e6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=10, help="records of a batch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), given.batch)
    table = Table("part", "CPU us a step")
    for part, us in found.items():
        table.add_row(part, f"{us:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
