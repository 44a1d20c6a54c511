"""The saver's other process: it encodes a state that is copied into a shared buffer, and uploads it, so
that neither the interpreter's lock nor the processor time of that slows a step.

It is told what to do over a socket pair: one message with the buffer's descriptor, one answer. The end
of the socket, or the trainer's death, ends it, whatever it is doing; it leaves nothing but a scratch file
under its process id, which the trainer sweeps. If it dies the trainer's own thread does the work until
the next one is up.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from forkcast.ports import Store
from forkcast.records import StateKind
from forkcast_trainer import checkpoint
from forkcast_trainer.checkpoint import CheckpointError, Encoding, Uploaded
from forkcast_trainer.staging import Staged, read_described
from forkcast_trainer.table import Snapshot
from forkcast_wire.documents import dump, load
from forkcast_wire.manifest import Storage
from forkcast_wire.process import configure_logging, die_with_parent
from forkcast_wire.store import StoreError, StoreRefused, StoreUnavailable, open_store

_log = structlog.get_logger()
#: Beside the training it takes what processor time is left.
_NICE = 5
_MOST_BYTES = 64 << 10
#: Between two starts, seconds: it may die of something that lasts.
_BETWEEN_STARTS = 60.0
_ERRORS: dict[str, type[Exception]] = {
    one.__name__: one for one in (CheckpointError, StoreUnavailable, StoreRefused, StoreError)
}


class UploadProcessDiedError(RuntimeError):
    """The process has ended before it answered."""


class UploadProcess:
    """The trainer's end; used by the saver's thread alone, which must live as long as the process:
    the kernel ends it with that thread.
    """

    def __init__(self, storage: Storage, workdir: Path) -> None:
        """Starts it. Raises OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "forkcast_trainer.uploading", str(theirs.fileno())]
        own = {"FORKCAST_COMPONENT": "saver", "FORKCAST_PARENT": str(os.getpid())}
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                command,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._up = False
        self._send({"storage": storage.model_dump(mode="json", by_alias=True), "at": str(workdir)})

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def up(self) -> bool:
        """Whether it is ready for work, as far as is known without waiting. Raises
        UploadProcessDiedError.
        """
        if not self._up:
            self._socket.setblocking(False)  # noqa: FBT003  its only argument
            try:
                self._receive()
                self._up = True
            except BlockingIOError:
                return False
            finally:
                self._socket.setblocking(True)  # noqa: FBT003
        return self._up

    def upload(
        self, snapshot: Snapshot, folder: str, kind: StateKind, encoding: Encoding
    ) -> Uploaded:
        """As `checkpoint.upload`, of a snapshot whose tensors are `Staged` and whole. Raises
        UploadProcessDiedError, CheckpointError, StoreError.
        """
        staged = snapshot.tensors
        assert isinstance(staged, Staged)
        at, length = staged.describe(snapshot)
        job = {"at": at, "length": length, "folder": folder, "kind": kind.value}
        self._send({**job, "encoding": asdict(encoding)}, staged.buffer.fd)
        answer = self._receive()
        if "error" in answer:
            raise _error(answer)
        return load(Uploaded, json.dumps(answer).encode())

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        with suppress(OSError):  # it has died, which the answer tells
            data = json.dumps(message).encode()
            if descriptors:
                socket.send_fds(self._socket, [data], list(descriptors))
            else:
                self._socket.send(data)

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._socket.recv(_MOST_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            data = b""
        if not data:
            raise UploadProcessDiedError(f"process {self.pid} has ended ({self._process.poll()})")
        found: dict[str, Any] = json.loads(data)
        return found

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class Uploads:
    """Uploads by the other process if that is up, by the calling thread if not. Of the saver's thread
    alone; see `UploadProcess`.
    """

    def __init__(self, storage: Storage | None, workdir: Path, scratch: Path) -> None:
        """storage: None for no other process."""
        self._storage, self._workdir, self._scratch = storage, workdir, scratch
        self._process: UploadProcess | None = None
        self._not_before = 0.0

    def start(self) -> None:
        """Unless it runs, or has been started a moment ago."""
        now = time.monotonic()
        if self._process is not None or self._storage is None or now < self._not_before:
            return
        self._not_before = now + _BETWEEN_STARTS
        try:
            self._process = UploadProcess(self._storage, self._workdir)
        except OSError as error:
            _log.warning("saver.process_not_started", error=str(error))
        else:
            _log.info("saver.process_started", pid=self._process.pid)

    def upload(
        self,
        store: Store,
        snapshot: Snapshot,
        folder: str,
        kind: StateKind,
        scratch: Path,
        encoding: Encoding,
    ) -> Uploaded:
        """As `checkpoint.upload`. If the process dies of it the calling thread writes the same copy."""
        if self._process is not None and isinstance(snapshot.tensors, Staged):
            try:
                if self._process.up():
                    return self._process.upload(snapshot, folder, kind, encoding)
            except UploadProcessDiedError as error:
                _log.warning("saver.process_died", error=str(error))
                self.close()
                checkpoint.sweep(self._scratch)
        return checkpoint.upload(store, snapshot, folder, kind, scratch, encoding)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.close()
            self._process = None


def _error(answer: dict[str, Any]) -> Exception:
    kind = _ERRORS.get(answer["error"], StoreError)
    if issubclass(kind, StoreUnavailable):
        return kind(answer["message"], why=answer["why"])
    return kind(answer["message"])


def _told(error: Exception) -> dict[str, str]:
    """An error as a message."""
    kind = next((k for k in type(error).__mro__ if k.__name__ in _ERRORS), None)
    message = str(error) if kind is not None else f"{type(error).__name__}: {error}"
    why = error.why if isinstance(error, StoreUnavailable) else ""
    return {"error": kind.__name__ if kind else "StoreError", "message": message, "why": why}


def _serve(connection: socket.socket) -> None:
    told = json.loads(connection.recv(_MOST_BYTES))
    storage, workdir = Storage.model_validate(told["storage"]), Path(told["at"])
    connection.send(b"{}")
    store: Store | None = None
    while True:
        descriptors = array.array("i")
        data, ancillary, _, _ = connection.recvmsg(_MOST_BYTES, socket.CMSG_LEN(4))
        if not data:
            return
        for _, _, found in ancillary:
            descriptors.frombytes(found[:4])
        try:
            store = store or open_store(storage, workdir)
            answer = dump(_upload(store, json.loads(data), descriptors[0], workdir / "scratch"))
        except Exception as error:  # noqa: BLE001  it is the trainer's to judge
            answer = json.dumps(_told(error)).encode()
        finally:
            for one in descriptors:
                os.close(one)
        connection.send(answer)


def _upload(store: Store, job: dict[str, Any], descriptor: int, scratch: Path) -> Uploaded:
    snapshot = read_described(descriptor, job["at"], job["length"])
    kind = StateKind(job["kind"])
    encoding = Encoding(**job["encoding"])
    return checkpoint.upload(store, snapshot, job["folder"], kind, scratch, encoding)


def main() -> int:
    """Serve until the trainer closes its end."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, which the trainer is sent as well
    configure_logging("saver")
    with suppress(OSError):
        os.nice(_NICE)
    with socket.socket(fileno=int(sys.argv[1])) as connection, suppress(ConnectionError):
        _serve(connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
