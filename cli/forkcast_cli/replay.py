"""`forkcast replay`: recorded statistics through the detector, as the monitor would have seen them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkcast.lineage import LineageEntry
from forkcast.lineage import limits as lineage_limits
from forkcast.records import StepStats, Trigger
from forkcast_cli import log_rows
from forkcast_cli.log_rows import Log
from forkcast_cli.words import trigger_sentence
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.statistics import read_history


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave: steps folded, triggers fired, the z of every step, and what is to be said
    of the log.
    """

    steps: int
    triggers: list[Trigger]
    z: list[tuple[int, float]]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "steps": self.steps,
            "notes": list(self.notes),
            "triggers": [
                {
                    "epoch": one.epoch,
                    "step": one.step,
                    "onset": one.onset_step,
                    "rule": one.rule.value,
                    "z": one.z,
                    "components": dict(one.components),
                }
                for one in self.triggers
            ],
        }

    def lines(self) -> list[str]:
        """For people."""
        number = len(self.triggers)
        count = f"{number or 'no'} trigger{'s' * (number > 1)}"
        said = [f"{self.steps} steps, {count}"]
        return [*said, *map(trigger_sentence, self.triggers), *self.notes]


def read(path: Path) -> Log:
    """The records of a statistics folder, a Parquet file, JSON lines or a JSON array, rank 0 only.

    A file of one's own needs the columns step, loss and grad_norm. Raises ManifestError.
    """
    if not path.exists():
        raise ManifestError(str(path), "does not exist", "give a statistics folder or file")
    if not path.is_dir() and not path.is_file():
        raise ManifestError(str(path), "is no ordinary file", "give a statistics folder or file")
    notes: tuple[str, ...] = ()
    try:
        if path.is_dir():
            inner = path / "statistics"
            rows = _numbered(read_history(inner if inner.is_dir() else path))
        elif path.suffix == ".parquet":
            rows = _numbered(pq.read_table(path).to_pylist())
        else:
            rows, notes = log_rows.parse(path.read_bytes())
        log = log_rows.read(rows)
    except log_rows.LogError as error:
        what, _, remedy = str(error).rpartition("; ")
        raise ManifestError(str(path), what, remedy) from None
    except (ValueError, OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(
            str(path), f"not readable: {first}", "give Parquet or JSON lines"
        ) from None
    return Log(log.records, (*notes, *log.notes))


def _numbered(rows: Iterable[dict[str, Any]]) -> list[log_rows.Placed]:
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]


def replay(log: Log, rules: Uncertainty, lineage: Sequence[LineageEntry] = ()) -> Replayed:
    """Fold the records in order. A new epoch starts from the detector as it was at the base of its
    collapse, and with the cooldown; without a lineage record it starts afresh.

    Raises ValueError if the rules contradict each other.
    """
    config, records = configure(rules), log.records
    detector, epoch = Detector(config, records[0].run_uid), records[0].epoch
    triggers, z = [], []
    for stats in records:
        if stats.epoch != epoch:
            epoch = stats.epoch
            detector = Detector(config, stats.run_uid)
            for earlier in before(records, lineage, epoch):
                detector.fold(earlier)
            if quiet := config.trigger.tiers.quiet_steps:
                detector.triggers.departures.quiet(stats.step + quiet)
        reading = detector.fold(stats)
        z.append((stats.step, reading.index.z))
        if reading.trigger is not None:
            triggers.append(reading.trigger)
    return Replayed(len(records), triggers, z, log.notes)


def before(
    records: list[StepStats], lineage: Sequence[LineageEntry], epoch: int
) -> Iterator[StepStats]:
    """The records that the lineage of ``epoch`` rests on, before its own."""
    limits = lineage_limits(lineage, epoch)
    for stats in records:
        if stats.epoch < epoch and stats.step < limits.get(stats.epoch, 0):
            yield stats
