"""`python -m forkcast_trainer.rollout_server`: imports torch once, then forks a child per rollout.

Level-based: it looks at the jobs in the store, at what they have published and at its children, and
starts what should run and does not. A child that dies without its trial is started once more; the
second time its rollout is recorded as failed. One that ran out of device memory is no failure of its
candidate: from then on one rollout computes at a time, and it is started again. Nothing is remembered
that the store does not show, but the count of deaths.
"""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import argparse
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import structlog
import torch
import transformers  # noqa: F401  (imported before the first fork, where it costs nothing)
from transformers import GPT2LMHeadModel  # noqa: F401

from forkcast.ports import Store
from forkcast_trainer import checkpoint
from forkcast_trainer.rollout import Rollout, slots_of
from forkcast_wire import branches, crash, keys
from forkcast_wire.documents import RolloutJob, RolloutUntil
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.newer import read_resolved
from forkcast_wire.process import configure_logging, die_with_parent
from forkcast_wire.store import (
    Remembered,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
    open_store,
    read_document,
    wait_for,
)

_log = structlog.get_logger()
#: Between two looks; in a bucket, where each costs money, while children run and while none does.
_LOOK_SECONDS, _BUCKET_BUSY_SECONDS, _BUCKET_SECONDS = 0.1, 0.5, 2.0
_STARTS = 2
#: Exit code of a child that ran out of device memory, and how often it is started again.
_NO_MEMORY, _MEMORY_STARTS = 75, 8


class RolloutServer:
    """The children of this process, by (trigger id, candidate)."""

    def __init__(self, spec: TrainingRunSpec, store: Store, workdir: Path) -> None:
        """store: the run's own. A child polls it; only this process lists, so only here may what has
        not changed since the last list come from memory.
        """
        self.spec, self.store, self.workdir = spec, store, workdir
        self._seen = Remembered(store)
        self.children: dict[tuple[str, str], int] = {}
        self.deaths: Counter[tuple[str, str]] = Counter()
        self.unfitting: Counter[tuple[str, str]] = Counter()

    def look(self) -> None:
        """One pass: reap, start what is wanted, end what is not."""
        self._reap()
        for name, desired in self._desired():
            wanted = desired.until is not None and not self._has_trial(name, desired.until)
            if wanted and name not in self.children:
                if self.deaths[name] >= _STARTS:
                    reason = f"its process died {_STARTS} times; see logs/rollouts.log"
                    branches.give_up(self.store, *name, desired.until or 0, reason)
                elif self.unfitting[name] >= _MEMORY_STARTS:
                    branches.give_up(
                        self.store,
                        *name,
                        desired.until or 0,
                        "it does not fit into the device's memory",
                    )
                else:
                    self._start(name)
            elif desired.until is None and name in self.children:
                os.kill(self.children[name], signal.SIGTERM)

    def close(self) -> None:
        """End all children."""
        for pid in self.children.values():
            os.kill(pid, signal.SIGTERM)
        while self.children:
            self._reap(block=True)

    def _desired(self) -> list[tuple[tuple[str, str], RolloutUntil]]:
        found = []
        self._seen.refresh()
        for info in self._seen.list(keys.ROLLOUTS_PREFIX):
            file = keys.rollout_of(info.key)
            if file is not None and file[2] == "until":
                until = read_document(self._seen, RolloutUntil, info.key)
                if until is not None:
                    found.append((file[:2], until))
        return found

    def _has_trial(self, name: tuple[str, str], rung: int) -> bool:
        return self.store.head(keys.rollout_trial(*name, rung)) is not None

    def _start(self, name: tuple[str, str]) -> None:
        job = read_document(self.store, RolloutJob, keys.rollout_job(*name))
        if job is None:
            return
        parent = os.getpid()
        crash.reach("before-fork")
        # until the child has let go of this process's handler a SIGTERM for it has to wait
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            crash.reach("after-fork")
            self.children[name] = pid
            return
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            os.environ["FORKCAST_COMPONENT"] = "rollout"
            os.environ["FORKCAST_PARENT"] = str(parent)
            die_with_parent()
            Rollout(job, self.spec, self.store, self.workdir).run()
            code = 0
        except Exception as error:  # noqa: BLE001  the child's end, whatever it is, is reported
            text = f"{type(error).__name__}: {error}"
            _log.error("rollout.died", candidate=name[1], error=text)
            if "out of memory" in text:  # OutOfMemoryError, or the runtime's own
                slots_of(self.spec, self.workdir).narrow()
                code = _NO_MEMORY
        finally:
            os._exit(code)

    def _reap(self, *, block: bool = False) -> None:
        while self.children:
            pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
            if pid == 0:
                return
            for name, child in list(self.children.items()):
                if child == pid:
                    del self.children[name]
                    code = os.waitstatus_to_exitcode(status)
                    if code == _NO_MEMORY:
                        self.unfitting[name] += 1
                    elif code not in (0, -signal.SIGTERM):
                        self.deaths[name] += 1
                        checkpoint.sweep(self.workdir / "scratch")
                        _log.warning("rollout.child_died", candidate=name[1], status=status)
            if block and not self.children:
                return


def _pause(spec: TrainingRunSpec, *, busy: bool) -> float:
    if spec.storage.bucket is None:
        return _LOOK_SECONDS
    return _BUCKET_BUSY_SECONDS if busy else _BUCKET_SECONDS


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="rollout_server", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="resolved manifest, JSON")
    parser.add_argument("--workdir", type=Path, default=Path(), help="the run's folder")
    given = parser.parse_args()
    configure_logging("rollouts")
    die_with_parent()
    stop = termination.stop_event_on_sigterm()
    spec = read_resolved(given.manifest.read_text()).spec
    torch.set_num_threads(spec.training.threads)
    try:
        store = wait_for(lambda: open_store(spec.storage, given.workdir), stop)
    except StoreUnavailable:  # told to leave while the store was away
        return 0
    except StoreMisconfigured as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  its last words
        return 2
    server = RolloutServer(spec, store, given.workdir)
    _log.info("rollouts.serving")
    while not stop.is_set():
        try:
            server.look()
        except StoreError as error:
            _log.warning("rollouts.store", error=str(error))
            time.sleep(1)
        stop.wait(_pause(spec, busy=bool(server.children)))
    server.close()
    return 0


if __name__ == "__main__":
    termination.leave(main())
