"""The work directory of a run: its lock, its identity, and what it holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forkcast.records import StateKind
from forkcast_cli.terminal import print_notice
from forkcast_wire import keys
from forkcast_wire.attempt_numbers import has_started
from forkcast_wire.documents import DocumentError, RunInfo, StateManifest, dump, load
from forkcast_wire.files import replace_bytes, sweep
from forkcast_wire.manifest import FIXED, TrainingRun
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.newer import NewerManifestError, resolved_document
from forkcast_wire.run_folder import (
    MANIFEST,
    read_identity,
    read_manifest,
)
from forkcast_wire.statistics import read_history
from forkcast_wire.store import KeyMissing, StoreError, open_store

#: Why the trainer ended last, if it said so: reason and text.
LAST_END = "trainer-ended.json"
_TOTAL = "training.totalSteps"
#: Bytes; with less not even progress.json can be replaced.
_LEAST_FREE = 1 << 14


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises ManifestError if another `forkcast run` holds it, or others
    could change what is in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(folder)
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


def in_use(folder: Path) -> bool:
    """Whether a `forkcast run` holds the folder's lock. Writes nothing."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def full(folder: Path) -> str:
    """That the disk of the folder is full, '' if it is not. A trainer cannot say so itself: what it
    says is a file.
    """
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"{folder}: no space left; nothing is saved until there is" if free < _LEAST_FREE else ""


def _close_to_others(folder: Path) -> None:
    """Take the right to write from everybody: with it another user swaps a manifest, and with it
    what the run executes. Raises ManifestError, OSError.
    """
    facts = folder.stat()
    if not facts.st_mode & stat.S_IWOTH:
        return
    if facts.st_mode & stat.S_ISVTX or facts.st_uid != os.geteuid():  # a shared place, or not ours
        raise ManifestError(
            "--workdir", f"{folder} is writable for every user", "choose a folder of your own"
        )
    folder.chmod(stat.S_IMODE(facts.st_mode) & ~stat.S_IWOTH)
    print_notice(f"{folder} was writable for every user; it no longer is")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is about to start. manifest: resolved, so that the length of the learning rate's
    schedule is filled in. before: the manifest of the start before this one. notices: what was
    damaged and is whole again.
    """

    info: RunInfo
    manifest: TrainingRun
    before: TrainingRun | None
    notices: tuple[str, ...] = ()


def prepare(folder: Path, manifest: TrainingRun) -> Prepared:
    """Write the resolved manifest and the run's identity, or check them against what is there.

    A folder in which no trainer was ever started, as after a start with a wrong address of the
    store, holds no run yet: the manifest given replaces what is there.

    Raises ManifestError where the folder belongs to another run, or where a field that makes the
    run what it is was changed.
    """
    if not _started(folder):
        return _write(folder, _identity(manifest), manifest, None, ())
    notices: list[str] = []
    before, info = None, None
    try:
        before = read_manifest(folder)
    except FileNotFoundError:
        pass
    except NewerManifestError:
        raise
    except ManifestError as error:
        notices.append(f"{error.field}: was damaged; written anew from the manifest given")
    if before is not None:
        _same_run(before.document(), manifest.document())
    try:
        info = read_identity(folder)
    except FileNotFoundError:
        info = _identity(manifest)
    except ManifestError as error:
        info = replace(_identity(manifest), uid=_uid_of_what_is_saved(folder, manifest, error))
        notices.append(
            f"{error.field}: was damaged; the run's uid {info.uid} is from what it saved"
        )
        info = replace(info, first_total_steps=_schedule_of(before))
    if info.first_total_steps is None:  # of a version that did not record it
        first = (before or manifest).spec.training.total_steps
        info = replace(info, first_total_steps=first)
    return _write(folder, info, manifest, before, tuple(notices))


def _started(folder: Path) -> bool:
    """Whether a trainer was ever started here."""
    return has_started(folder)


def _write(
    folder: Path,
    info: RunInfo,
    manifest: TrainingRun,
    before: TrainingRun | None,
    notices: tuple[str, ...],
) -> Prepared:
    resolved = resolve(manifest, info)
    try:
        for name in ("logs", "sockets"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        sweep(folder)
        replace_bytes(folder / keys.RUN, dump(info))
        document = json.dumps(resolved_document(resolved), sort_keys=True, indent=1)
        replace_bytes(folder / MANIFEST, document.encode())
    except OSError as error:
        why = (error.strerror or "cannot be written").lower()
        raise ManifestError(
            "--workdir", f"{folder}: {why}", "make room, or choose another"
        ) from None
    return Prepared(info, resolved, before, notices)


def _uid_of_what_is_saved(folder: Path, manifest: TrainingRun, error: ManifestError) -> str:
    """The uid in the run's saved states or statistics; a new one if it has saved nothing.

    error: what is wrong with run.json. Raises ManifestError if the store cannot be read.
    """
    try:
        store = open_store(manifest.spec.storage, folder)
        for kind in (StateKind.CHECKPOINT, StateKind.RING):
            for one in store.list(keys.state_prefix(kind)):
                if one.key.endswith("/manifest.json"):
                    with suppress(DocumentError, KeyMissing):
                        return load(StateManifest, store.get(one.key)[0]).run_uid
    except StoreError as unread:
        raise ManifestError(error.field, f"is damaged, and {unread}", "try again later") from None
    statistics = folder / "statistics"
    rows = read_history(statistics) if statistics.exists() else []
    return str(rows[-1]["run_uid"]) if rows else secrets.token_hex(8)


def _schedule_of(before: TrainingRun | None) -> int | None:
    """The first start's total, as far as the former manifest tells."""
    if before is None:
        return None
    training = before.spec.training
    return training.schedule_steps or training.total_steps


def resolve(manifest: TrainingRun, info: RunInfo) -> TrainingRun:
    """The manifest with what only the run's folder knows filled in."""
    spec = manifest.spec.with_schedule(info.first_total_steps)
    return manifest.model_copy(update={"spec": spec})


def going_on(folder: Path, manifest: TrainingRun) -> TrainingRun:
    """The manifest as a start in this folder would resolve it; nothing is written.

    Raises ManifestError.
    """
    try:
        before, info = read_manifest(folder), read_identity(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(str(folder), "holds no run", "give the --workdir of a run") from None
    _same_run(before.document(), manifest.document())
    return resolve(manifest, info)


def _identity(manifest: TrainingRun) -> RunInfo:
    return RunInfo(
        uid=secrets.token_hex(8),
        name=manifest.metadata.name,
        manifest_digest=hashlib.sha256(_text(manifest).encode()).hexdigest(),
        first_total_steps=manifest.spec.training.total_steps,
    )


def _text(manifest: TrainingRun) -> str:
    return json.dumps(manifest.document(), sort_keys=True, indent=1)


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
