"""The processes of the local world: started, watched, restarted, and ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from forkcast_cli.ending import BAD_INPUT, FAILED, NOT_RECORDED
from forkcast_cli.workdir import LAST_END
from forkcast_wire import beats, crash, hang, last_words
from forkcast_wire.attempt_numbers import next_attempt
from forkcast_wire.files import replace_bytes, sweep
from forkcast_wire.last_words import Ended, LastWords
from forkcast_wire.manifest import Mode, TrainingRunSpec
from forkcast_wire.run_folder import MANIFEST

_log = structlog.get_logger()
_MONITOR, _PROXY = "unix:sockets/monitor.sock", "unix:sockets/proxy.sock"
_BACKOFF = (0.1, 0.5, 1.0, 2.0, 5.0)
_MOST_FAST_DEATHS = 8
_FAST_SECONDS = 20.0
_GRACE_SECONDS = 30.0
_USAGE = 2
_GOES_ON = "; training goes on without it"


class RunFailedError(Exception):
    """The trainer cannot be kept alive; the message says why, or where its log is.

    code: of the command, see `ending`.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


#: Children that open no store and read no data of the user's: they get no credentials of theirs.
_PLAIN_CHILDREN = frozenset({"monitor", "proxy"})
_PLAIN_NAMES = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
_PLAIN_PREFIXES = ("COVERAGE_", "FORKCAST_", "GRPC_", "LC_", "PYTHON")


def environment_of(child: str, given: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of the supervisor's environment."""
    if child not in _PLAIN_CHILDREN:
        return dict(given)
    return {
        name: value
        for name, value in given.items()
        if name in _PLAIN_NAMES or name.startswith(_PLAIN_PREFIXES)
    }


@dataclass
class Child:
    """One supervised process."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0
    done: bool = False
    left_at: float | None = None  # when it ended as asked for; whether the run is complete is open
    log_from: int = 0  # where its log stood when it was started
    words: LastWords | None = None  # why its last process ended, if it said so
    hangs: int = 0  # ends in a row because it hung, without a step between them
    hung_step: int = -1  # that it was at then


class Supervisor:
    """Keeps the children of one run alive until the run has ended. Never waits for the store."""

    def __init__(
        self,
        spec: TrainingRunSpec,
        folder: Path,
        complete_since: Callable[[float], bool | None] = lambda _: None,
    ) -> None:
        """complete_since: whether the run is complete by a look at the store that began after this
        time (monotonic seconds), None while there was none.
        """
        self.spec, self.folder, self._complete_since = spec, folder, complete_since
        self.trainer_code: int | None = None
        watched = spec.branching.mode is not Mode.DISABLED
        branching = spec.branching.mode in (Mode.DRY_RUN, Mode.ENFORCE)
        names = ["trainer"]
        if watched:
            names = ["monitor", *names, "operator"]
        if branching:
            names.append("rollouts")
            if spec.proxy.mode == "Service":
                names.insert(1, "proxy")
        self.children = {name: Child(name) for name in names}
        self._beats = folder / "beats"
        self._watch = hang.Watch(self._beats)
        self.trouble = ""  # what keeps a child from running, in words

    def _command(self, name: str) -> list[str]:
        python = [sys.executable, "-m"]
        manifest = ["--manifest", MANIFEST]
        proxy = _PROXY if "proxy" in self.children else ""
        monitor = _MONITOR if "monitor" in self.children else ""
        match name:
            case "monitor":
                return [*python, "forkcast_monitor", *manifest, "--listen", _MONITOR]
            case "proxy":
                return [*python, "forkcast_proxy", "--listen", _PROXY]
            case "operator":
                where = ["--monitor", _MONITOR, "--proxy", proxy]
                return [*python, "forkcast_operator", *manifest, *where]
            case "rollouts":
                return [*python, "forkcast_trainer.rollout_server", *manifest]
        ranks = self.spec.parallelism.processes_per_node
        run = [*python, "forkcast_trainer"]
        if ranks > 1:
            run = [*python, "forkcast_trainer.launch", "--standalone", f"--nproc-per-node={ranks}"]
            run += ["-m", "--", "forkcast_trainer"]  # else torchrun takes --monitor for its own
        attempt = str(next_attempt(self.folder))
        return [*run, *manifest, "--monitor", monitor, "--attempt", attempt]

    def start(self, name: str) -> None:
        """Start one child with its log, its threads pinned, tied to this process."""
        child = self.children[name]
        threads = str(self.spec.training.threads)
        environment = {
            **environment_of(name, os.environ),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "FORKCAST_PARENT": str(os.getpid()),
            "FORKCAST_COMPONENT": name,
        }
        if name == "trainer":
            self._beats.mkdir(mode=0o700, exist_ok=True)
            environment[beats.FOLDER_VARIABLE] = str(self._beats.absolute())
        crash.reach(f"before-start:{name}")
        child.words = None
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            child.log_from = log.tell()
            child.process = subprocess.Popen(  # noqa: S603  our own modules
                self._command(name),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        crash.reach(f"after-start:{name}")
        child.started = time.monotonic()
        _log.info("supervisor.started", child=name, pid=child.process.pid)

    def look(self) -> None:
        """One pass: start what should run and does not. Raises RunFailedError."""
        now = time.monotonic()
        for name, child in self.children.items():
            if child.done:
                continue
            if child.left_at is not None:
                self._settle(child, child.left_at)
                continue
            if child.process is None:
                if now >= child.not_before:
                    self._try_to_start(child, now)
                continue
            code = child.process.poll()
            if code is None:
                if name == "trainer":
                    self._end_if_hung(child.process.pid)
                continue
            child.process = None
            if name == "trainer" and code == 0:
                child.left_at = now
                continue
            self._died(child, code, now)

    def _end_if_hung(self, trainer: int) -> None:
        """A lone process; of several ranks each is watched by what launches them."""
        if found := self._watch.look([trainer]):
            self.children["trainer"].words = LastWords(Ended.HUNG, hang.words(found))
            hang.end(found, [trainer])

    def _settle(self, trainer: Child, left_at: float) -> None:
        """The trainer has left with everything saved: the run is complete, or it goes on."""
        complete = self._complete_since(left_at)
        if complete is None:
            return
        trainer.left_at = None
        if complete:
            trainer.done = True
            (self.folder / LAST_END).unlink(missing_ok=True)
        else:
            self._died(trainer, 0, time.monotonic())

    def _try_to_start(self, child: Child, now: float) -> None:
        """Start it, or say what this machine refuses now: space on the disk, a process."""
        try:
            self.start(child.name)
        except OSError as error:
            child.not_before = now + _BACKOFF[-1]
            where = f"{error.filename or self.folder}: {error.strerror}"
            goes_on = "" if child.name == "trainer" else _GOES_ON
            self._trouble(f"{child.name} cannot be started: {where}{goes_on}; it is tried again")
        else:
            self.trouble = ""

    def _trouble(self, what: str) -> None:
        self.trouble = what
        _log.warning("supervisor.trouble", what=what)

    def _died(self, child: Child, code: int, now: float) -> None:
        fast = now - child.started < _FAST_SECONDS
        child.deaths = child.deaths + 1 if fast else 1
        log = self.folder / "logs" / f"{child.name}.log"
        # torchrun exits with 1 whatever its ranks say
        launched = child.name == "trainer" and self.spec.parallelism.processes_per_node > 1
        usage = code == _USAGE or (launched and _last_error(log, child.log_from) is not None)
        often = child.deaths >= _MOST_FAST_DEATHS
        if child.name == "trainer":
            self._hear(child, log)
        if usage or (often and (child.name == "trainer" or self.children["trainer"].done)):
            said = child.words or _last_error(log) or f"{child.name} exits with {code}; see {log}"
            raise RunFailedError(str(said), code=BAD_INPUT if usage else FAILED)
        if often:  # the run does without
            said = f"{child.name} exits with {code} again and again; see {log}"
            self._trouble(f"{said}{_GOES_ON}; it is tried again")
        child.not_before = now + _BACKOFF[min(child.deaths, len(_BACKOFF)) - 1]
        _log.warning("supervisor.died", child=child.name, code=code)

    def _hear(self, trainer: Child, log: Path) -> None:
        """What the trainer said when it ended. Raises RunFailedError if another start is of no use now:
        its end cannot be recorded, or it hung at the same step again and again.
        """
        said = last_words.heard(_lines(log, trainer.log_from)) or trainer.words
        trainer.words = said
        if said is None:
            trainer.hangs = 0
            return
        self._keep_words(said)
        if said.reason is Ended.END_NOT_RECORDED:
            raise RunFailedError(f"{said}; run it again once the store answers", code=NOT_RECORDED)
        step = max((beat.step for beat in beats.read(self._beats)), default=-1)
        trainer.hangs = hang.in_a_row(trainer.hangs, trainer.hung_step, step, said.reason)
        trainer.hung_step = step
        if trainer.hangs >= hang.MOST_IN_A_ROW:
            raise RunFailedError(f"{trainer.hangs} times in a row: {said}", code=FAILED)
        self._trouble(f"trainer ended: {said}; it is started again")

    def _keep_words(self, said: LastWords) -> None:
        """For `forkcast status`."""
        try:
            replace_bytes(self.folder / LAST_END, json.dumps(asdict(said)).encode(), durable=False)
        except OSError as error:
            _log.warning("supervisor.end_not_kept", error=str(error))

    def finished(self, active_branches: int) -> bool:
        """The run has ended: the trainer is done and no branch is open."""
        return self.children["trainer"].done and active_branches == 0

    def stop(self) -> None:
        """End all children: trainer and rollouts first, so that what they report is kept.
        Afterwards ``trainer_code`` is the trainer's exit code, None if it did not run.
        """
        if self.children["trainer"].left_at is not None:
            self.trainer_code = 0
        for names in (("trainer",), ("rollouts", "operator"), ("proxy",), ("monitor",)):
            live = [
                child.process
                for name in names
                if (child := self.children.get(name)) and child.process is not None
            ]
            for process in live:
                if process.poll() is None:
                    process.terminate()
            deadline = time.monotonic() + _GRACE_SECONDS
            for process in live:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if names == ("trainer",) and live:
                self.trainer_code = live[0].returncode
            for name in names:
                if name in self.children:
                    self.children[name].process = None
        sweep(self.folder)  # what those that were killed had begun to write


def _last_error(log: Path, start: int | None = None) -> str | None:
    """The last `error: ...` line of a log: among its last lines, or after ``start`` bytes."""
    lines = _lines(log, start or 0)[-50 if start is None else 0 :]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return None


def _lines(log: Path, start: int) -> list[str]:
    """The lines of a log after ``start`` bytes; none if it cannot be read."""
    try:
        return log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return []
