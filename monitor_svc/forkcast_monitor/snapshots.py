"""Saved detector states: a restart folds only what came after the newest that still stands."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from forkcast_wire import crash

_log = structlog.get_logger()
_KEPT = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The detector before it saw ``step`` of (epoch, attempt)."""

    epoch: int
    attempt: int
    step: int
    detector: dict[str, Any]


class Snapshots:
    """Files of two lines: sha256 of the second, and the state as JSON. A file whose digest is wrong,
    or that another configuration wrote, does not exist.
    """

    def __init__(self, folder: Path, configuration: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._configuration = configuration

    def save(self, snapshot: Snapshot) -> None:
        """Write one and drop the oldest. A full disk costs a longer replay, nothing else."""
        body = json.dumps(
            {
                "configuration": self._configuration,
                "epoch": snapshot.epoch,
                "attempt": snapshot.attempt,
                "step": snapshot.step,
                "detector": snapshot.detector,
            }
        ).encode()
        name = f"e{snapshot.epoch:06d}-a{snapshot.attempt:06d}-{snapshot.step:012d}.json"
        partial = self._folder / (name + ".part")
        try:
            with partial.open("wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            crash.reach("before-snapshot")
            partial.replace(self._folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            _log.warning("monitor.snapshot_not_written", error=str(error))
            return
        crash.reach("after-snapshot")
        for old in self._paths()[_KEPT:]:
            old.unlink(missing_ok=True)

    def newest_first(self) -> list[Snapshot]:
        """All that verify."""
        return [found for path in self._paths() if (found := self._read(path)) is not None]

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("e*.json"), reverse=True)

    def _read(self, path: Path) -> Snapshot | None:
        digest, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            _log.warning("monitor.snapshot_corrupt", path=path.name)
            return None
        document = json.loads(body)
        if document["configuration"] != self._configuration:
            return None
        return Snapshot(
            document["epoch"], document["attempt"], document["step"], document["detector"]
        )
