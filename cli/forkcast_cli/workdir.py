"""The work directory of a run: its lock, its identity, and what it holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forkcast_wire import keys
from forkcast_wire.documents import RunInfo, dump, load
from forkcast_wire.manifest import FIXED, TrainingRun
from forkcast_wire.manifest_file import ManifestError

MANIFEST = "manifest.json"
_TOTAL = "training.totalSteps"


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is about to start. manifest: resolved, so that the length of the learning rate's
    schedule is filled in. before: the manifest of the start before this one.
    """

    info: RunInfo
    manifest: TrainingRun
    before: TrainingRun | None


def prepare(folder: Path, manifest: TrainingRun) -> Prepared:
    """Write the resolved manifest and the run's identity, or check them against what is there.

    Raises ManifestError where the folder belongs to another run, or where a field that makes the
    run what it is was changed.
    """
    for name in ("logs", "sockets"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    before, known = _before(folder), folder / keys.RUN
    if before is not None:
        _same_run(before.document(), manifest.document())
    info = load(RunInfo, known.read_bytes()) if known.exists() else _identity(manifest)
    if info.first_total_steps is None:  # of a version that did not record it
        first = (before or manifest).spec.training.total_steps
        info = replace(info, first_total_steps=first)
    resolved = resolve(manifest, info)
    _replace(known, dump(info))
    _replace(folder / MANIFEST, _text(resolved).encode())
    return Prepared(info, resolved, before)


def resolve(manifest: TrainingRun, info: RunInfo) -> TrainingRun:
    """The manifest with what only the run's folder knows filled in."""
    spec = manifest.spec.with_schedule(info.first_total_steps)
    return manifest.model_copy(update={"spec": spec})


def going_on(folder: Path, manifest: TrainingRun) -> TrainingRun:
    """The manifest as a start in this folder would resolve it; nothing is written.

    Raises ManifestError.
    """
    known, before = folder / keys.RUN, _before(folder)
    if before is None or not known.exists():
        raise ManifestError(str(folder), "holds no run", "give the --workdir of a run")
    _same_run(before.document(), manifest.document())
    return resolve(manifest, load(RunInfo, known.read_bytes()))


def _before(folder: Path) -> TrainingRun | None:
    """The manifest of the last start; read through the model, so that a field that is newer than
    the run has its default.
    """
    path = folder / MANIFEST
    return TrainingRun.model_validate(json.loads(path.read_text())) if path.exists() else None


def _identity(manifest: TrainingRun) -> RunInfo:
    return RunInfo(
        uid=secrets.token_hex(8),
        name=manifest.metadata.name,
        manifest_digest=hashlib.sha256(_text(manifest).encode()).hexdigest(),
        first_total_steps=manifest.spec.training.total_steps,
    )


def _text(manifest: TrainingRun) -> str:
    return json.dumps(manifest.document(), sort_keys=True, indent=1)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(path)


def _same_run(before: dict[str, Any], after: dict[str, Any]) -> None:
    if before["metadata"]["name"] != after["metadata"]["name"]:
        raise ManifestError(
            "metadata.name",
            f"the folder holds run {before['metadata']['name']}",
            "use another --workdir",
        )
    for path in FIXED:
        if _at(before["spec"], path) != _at(after["spec"], path):
            raise ManifestError(
                f"spec.{path}", "cannot change within a run", "use another --workdir, or undo it"
            )
    if _at(after["spec"], _TOTAL) < _at(before["spec"], _TOTAL):
        raise ManifestError(f"spec.{_TOTAL}", "may only grow", "raise it")


def _at(document: Any, path: str) -> Any:
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def next_attempt(folder: Path) -> int:
    """The number of the trainer's next start, counted durably before it is used."""
    path = folder / "attempts.json"
    attempt = json.loads(path.read_text()) + 1 if path.exists() else 0
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(attempt))
    partial.replace(path)
    return int(attempt)
