"""The folder of a watched run, as `forkcast status`, `report` and `runs` read it: run.json,
registration.json, attempts.json, progress.json; the monitor beside it adds statistics/ and monitor/.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from forkcast.admission import Refusal
from forkcast.records import Trigger
from forkcast_monitor.registration import Registration
from forkcast_watch.settings import Settings, WatchError
from forkcast_watch.tolerance import log
from forkcast_wire import keys
from forkcast_wire.attempt_numbers import next_attempt
from forkcast_wire.branches import Suppression
from forkcast_wire.documents import DocumentError, RunInfo, dump, load
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import Mode
from forkcast_wire.run_folder import MANIFEST, REGISTRATION, read_progress
from forkcast_wire.store import AlreadyExists, FolderStore, put_document

_PROGRESS_SECONDS = 0.5


@dataclass
class RunFolder:
    """An open one; nobody else may write to it. attempt: starts before this one."""

    path: Path
    registration: Registration
    attempt: int
    _lock: IO[bytes]
    _told: float = field(default=0.0)

    @property
    def run_uid(self) -> str:
        """Of the run, the same in every attempt."""
        return self.registration.run_uid

    def tell(self, document: dict[str, Any], *, force: bool = False) -> None:
        """Write progress.json, at most twice a second."""
        now = time.monotonic()
        if not force and now - self._told < _PROGRESS_SECONDS:
            return
        self._told = now
        try:
            data = json.dumps(document).encode()
            replace_bytes(self.path / "progress.json", data, durable=False)
        except OSError as error:
            log.debug("progress.json not written: %s", error)

    def record(self, trigger: Trigger) -> None:
        """A trigger that opens no branch, for `status`, `report` and `load_run`; once."""
        store = FolderStore(self.path)
        with suppress(AlreadyExists):
            document = Suppression(trigger=trigger, reason=Refusal.WATCHED)
            put_document(store, keys.suppressed(trigger), document)

    def close(self) -> None:
        """Let others use it."""
        self._lock.close()


def open_folder(settings: Settings) -> RunFolder:
    """Make the folder, or go on with the run that it holds. Raises WatchError."""
    name, path = settings.place()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "logs").mkdir(exist_ok=True)
        lock = (path / "lock").open("wb")
    except OSError as error:
        why = (error.strerror or "cannot be written").lower()
        raise WatchError("folder", f"{path}: {why}", "choose a writable one") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _opened(path, name, settings, lock)
    except BlockingIOError:
        lock.close()
        raise WatchError("folder", f"{path} is in use by another run", "choose another") from None
    except (OSError, DocumentError, ValueError) as error:
        lock.close()
        if isinstance(error, WatchError):
            raise
        raise WatchError("folder", f"{path}: {error}", "choose another") from None


def _opened(path: Path, name: str, settings: Settings, lock: IO[bytes]) -> RunFolder:
    if (path / MANIFEST).exists():
        raise WatchError("folder", f"{path} holds a run of `forkcast run`", "choose another")
    if (path / keys.RUN).exists():
        info = load(RunInfo, (path / keys.RUN).read_bytes())
    else:
        info = RunInfo(uid=secrets.token_hex(8), name=name, manifest_digest="")
        replace_bytes(path / keys.RUN, dump(info))
    registration = Registration(
        run_uid=info.uid,
        name=info.name,
        namespace=settings.namespace,
        uncertainty=settings.rules,
        mode=Mode.OBSERVE.value,
        total_steps=0,  # more steps than were announced are no reason to stop watching
    )
    registration.check()
    if settings.start_step == 0 and (steps := _steps_before(path)):
        log.warning(
            "%s holds a run of %d steps, which are taken again from step 0; for another run give another"
            " folder, to go on with this one start_step",
            path,
            steps,
        )
    replace_bytes(path / REGISTRATION, dump(registration))
    return RunFolder(path, registration, next_attempt(path), lock)


def _steps_before(path: Path) -> int:
    """The steps of the run that the folder holds, as far as is known."""
    steps = read_progress(path).get("step")
    return steps if type(steps) is int else 0
