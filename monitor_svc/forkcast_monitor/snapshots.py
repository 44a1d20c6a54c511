"""Saved detector states: a restart folds only what came after the newest that still stands."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from forkcast_wire import crash
from forkcast_wire.fields import MOST_EPOCHS
from forkcast_wire.files import replaced

_log = structlog.get_logger()
_KEPT = 8
_NAME = re.compile(r"e(\d{1,20})-a(\d{1,20})-(\d{1,20})\.json")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The detector before it saw ``step`` of (epoch, attempt). found: as `LastEvents.state`."""

    epoch: int
    attempt: int
    step: int
    detector: dict[str, Any]
    found: list[list[Any]]


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
                "found": snapshot.found,
            }
        ).encode()
        name = f"e{snapshot.epoch:06d}-a{snapshot.attempt:06d}-{snapshot.step:012d}.json"
        try:
            with replaced(self._folder / name) as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                crash.reach("before-snapshot")
        except OSError as error:
            _log.warning("monitor.snapshot_not_written", error=str(error))
            return
        crash.reach("after-snapshot")
        for old in self._paths()[_KEPT:]:
            old.unlink(missing_ok=True)

    def newest_first(self) -> list[Snapshot]:
        """All that verify."""
        return [found for path in self._paths() if (found := self._read(path)) is not None]

    def _paths(self) -> list[Path]:
        """Newest first. A name whose epoch cannot be comes last, and so is the first to go."""
        named = [(_order(path), path) for path in self._folder.glob("e*.json")]
        return [path for _, path in sorted(named, reverse=True)]

    def _read(self, path: Path) -> Snapshot | None:
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
        except OSError as error:
            _log.warning("monitor.snapshot_not_read", path=path.name, error=str(error))
            return None
        if hashlib.sha256(body).hexdigest().encode() != digest:
            _log.warning("monitor.snapshot_corrupt", path=path.name)
            return None
        document = json.loads(body)
        if document["configuration"] != self._configuration:
            return None
        return Snapshot(
            document["epoch"],
            document["attempt"],
            document["step"],
            document["detector"],
            document.get("found", []),  # none in one of an earlier version
        )


def _order(path: Path) -> tuple[int, ...]:
    match = _NAME.fullmatch(path.name)
    found = tuple(int(part) for part in match.groups()) if match else (-1,)
    return found if found[0] <= MOST_EPOCHS else (-1, *found)
