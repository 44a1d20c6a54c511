"""`forkcast replay`: recorded statistics through the detector, as the monitor would have seen them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkcast.lineage import LineageEntry
from forkcast.lineage import limits as lineage_limits
from forkcast.records import StepStats, Trigger
from forkcast_cli.words import trigger_sentence
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.statistics import read_history, row_to_stats

_NEEDED = ("step", "loss", "grad_norm")
_DEFAULTS: dict[str, Any] = {
    "run_uid": "replay",
    "epoch": 0,
    "attempt": 0,
    "rank": 0,
    "learning_rate": 0.0,
    "tokens": 0,
    "skipped": False,
}


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave: steps folded, triggers fired, and the z of every step."""

    steps: int
    triggers: list[Trigger]
    z: list[tuple[int, float]]

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "steps": self.steps,
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
        if not self.triggers:
            return [f"{self.steps} steps, no trigger"]
        return [f"{self.steps} steps, {len(self.triggers)} triggers"] + [
            trigger_sentence(one) for one in self.triggers
        ]


def read(path: Path) -> list[StepStats]:
    """The records of a statistics folder, a Parquet file or JSON lines, rank 0 only.

    A file of one's own needs the columns step, loss and grad_norm. Raises ManifestError.
    """
    if not path.exists():
        raise ManifestError(str(path), "does not exist", "give a statistics folder or file")
    try:
        if path.is_dir():
            inner = path / "statistics"
            rows: Iterable[dict[str, Any]] = read_history(inner if inner.is_dir() else path)
        elif path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (ValueError, OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(
            str(path), f"not readable: {first}", "give Parquet or JSON lines"
        ) from None
    prepared = [_complete(row, path) for row in rows if not row.get("rank")]
    if not prepared:
        raise ManifestError(str(path), "holds no statistics", "give the folder of a run")
    return [row_to_stats(row) for row in prepared]


def _complete(row: Any, path: Path) -> dict[str, Any]:
    """The row with what a foreign file may lack."""
    if not isinstance(row, dict) or any(name not in row for name in _NEEDED):
        raise ManifestError(
            str(path), f"needs the columns {', '.join(_NEEDED)}", "rename the file's columns"
        )
    full = _DEFAULTS | {"grad_norm_clipped": row["grad_norm"]} | row
    groups = full.get("group_grad_norms")
    full["group_grad_norms"] = dict(groups) if groups else {}
    return full


def replay(
    records: list[StepStats], rules: Uncertainty, lineage: Sequence[LineageEntry] = ()
) -> Replayed:
    """Fold the records in order. A new epoch starts from the detector as it was at the base of its
    collapse, and with the cooldown; without a lineage record it starts afresh.

    Raises ValueError where the rules contradict each other.
    """
    config = configure(rules)
    detector, epoch = Detector(config, records[0].run_uid), records[0].epoch
    triggers, z = [], []
    for stats in records:
        if stats.epoch != epoch:
            epoch = stats.epoch
            detector = Detector(config, stats.run_uid)
            for earlier in before(records, lineage, epoch):
                detector.fold(earlier)
            detector.triggers.quiet(stats.step + config.trigger.cooldown_steps)
        index, trigger = detector.fold(stats)
        z.append((stats.step, index.z))
        if trigger is not None:
            triggers.append(trigger)
    return Replayed(len(records), triggers, z)


def before(
    records: list[StepStats], lineage: Sequence[LineageEntry], epoch: int
) -> Iterator[StepStats]:
    """The records that the lineage of ``epoch`` rests on, before its own."""
    limits = lineage_limits(lineage, epoch)
    for stats in records:
        if stats.epoch < epoch and stats.step < limits.get(stats.epoch, 0):
            yield stats
