"""The work directory of a run: its lock, its identity, and what it holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forkcast_wire import keys
from forkcast_wire.documents import RunInfo, dump, load
from forkcast_wire.manifest import CHANGEABLE, IMMUTABLE, TrainingRun
from forkcast_wire.manifest_file import ManifestError

MANIFEST = "manifest.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises ManifestError where another `forkcast run` holds it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ManifestError(
            "--workdir", f"{folder}: {(error.strerror or '').lower()}", "choose a writable folder"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ManifestError(
                "--workdir", f"{folder} is in use by another forkcast run", "choose another"
            ) from None
        yield


def prepare(folder: Path, manifest: TrainingRun) -> RunInfo:
    """Write the resolved manifest and the run's identity, or check them against what is there.

    Raises ManifestError where the folder belongs to another run, or where a field that makes the
    run what it is was changed.
    """
    for name in ("logs", "sockets"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    document = manifest.document()
    text = json.dumps(document, sort_keys=True, indent=1)
    path = folder / MANIFEST
    if path.exists():
        # read through the model, so that a field that is newer than the run has its default
        before = TrainingRun.model_validate(json.loads(path.read_text()))
        _same_run(before.document(), document)
    partial = path.with_suffix(".part")
    partial.write_text(text)
    partial.replace(path)
    known = folder / keys.RUN
    if not known.exists():
        info = RunInfo(
            uid=secrets.token_hex(8),
            name=manifest.metadata.name,
            manifest_digest=hashlib.sha256(text.encode()).hexdigest(),
        )
        pending = known.with_suffix(".part")
        pending.write_bytes(dump(info))
        pending.replace(known)
    return load(RunInfo, known.read_bytes())


def _same_run(before: dict[str, Any], after: dict[str, Any]) -> None:
    if before["metadata"]["name"] != after["metadata"]["name"]:
        raise ManifestError(
            "metadata.name",
            f"the folder holds run {before['metadata']['name']}",
            "use another --workdir",
        )
    for field in IMMUTABLE:
        if before["spec"].get(field) != after["spec"].get(field):
            raise ManifestError(
                f"spec.{field}", "cannot change within a run", "use another --workdir, or undo it"
            )
    training = before["spec"]["training"], after["spec"]["training"]
    for field in training[0]:
        if field not in CHANGEABLE and training[0][field] != training[1][field]:
            raise ManifestError(
                f"spec.training.{field}",
                "cannot change within a run",
                "use another --workdir, or undo it",
            )
    if training[1]["totalSteps"] < training[0]["totalSteps"]:
        raise ManifestError("spec.training.totalSteps", "may only grow", "raise it")


def next_attempt(folder: Path) -> int:
    """The number of the trainer's next start, counted durably before it is used."""
    path = folder / "attempts.json"
    attempt = json.loads(path.read_text()) + 1 if path.exists() else 0
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(attempt))
    partial.replace(path)
    return int(attempt)
