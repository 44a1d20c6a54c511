"""Kills parts of a local run at random until there have been enough, lets the run end, and checks it.

    python tests/loop/storm.py [--kills 100] [--seed 1] [--store folder|s3] [--folder DIR]

Any process of the run may be the victim: `forkcast run` itself, trainer, monitor, operator, proxy,
rollout server, a rollout. `forkcast run` is started again when it has died; a run that ends before
there have been enough kills is extended. Each fsync is slow, and with --store s3 the object store is
in turn well, flaky, slow and silent, behind a gateway. In the end `check_run` reads the folder. Exit
code 0: no broken invariant.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from check_run import check
from short_run import MANIFEST

_BUCKET = "runs"
_STEPS, _MORE_STEPS = 400, 400
#: Between two kills, seconds: from "while it starts" to "long after".
_LEAST, _MOST = 0.2, 6.0
_SLOW_FSYNC = 0.03
#: How many of the kills hit `forkcast run`; all kinds of parts have equal shares of the rest.
_OF_RUN = 0.15
#: Past this nothing moves any more, seconds.
_STUCK = 900.0


def manifest(total: int, storage: dict[str, Any]) -> dict[str, Any]:
    """The short scenario with many forced branches, each of which may raise the rate: most of them are
    adopted.
    """
    made = copy.deepcopy(MANIFEST)
    made["metadata"]["name"] = "storm"
    spec = made["spec"]
    spec["optimizer"]["schedule"]["type"] = "Constant"
    spec["training"]["totalSteps"] = total
    spec["checkpoint"]["ringEverySteps"] = 10
    spec["uncertainty"] |= {
        "warmupSteps": 100000,
        "cooldownSteps": 100,
        "trigger": {"forceEverySteps": 150},
    }
    branching = spec["branching"]
    branching["candidates"] = 4
    branching["actions"]["learningRateScales"] = ["3"]
    branching["budget"] = {
        "maxBranches": 50,
        "maxPerHundredThousandSteps": 1000,
        "deadlineSeconds": 600,
    }
    spec["storage"] = storage
    return made


class Storm:
    """One run and what befalls it. place: a folder; the run's is ``place/w``."""

    def __init__(self, place: Path, seed: int, storage: dict[str, Any]) -> None:
        self.place, self.folder = place, place / "w"
        self._dice, self._storage = random.Random(seed), storage
        self.total, self.kills = _STEPS, Counter[str]()
        self.started = 0
        self._run: subprocess.Popen[bytes] | None = None

    def rage(self, kills: int) -> None:
        """Until there have been so many kills."""
        while self.kills.total() < kills:
            if self._running() is None:
                self._start()
            time.sleep(self._dice.uniform(_LEAST, _MOST))
            self._kill()

    def calm(self) -> None:
        """Let the run end. Raises TimeoutError, RuntimeError."""
        end = time.monotonic() + _STUCK
        while True:
            run = self._running() or self._start()
            try:
                code = run.wait(max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"the run has not ended in {_STUCK:.0f} s") from None
            if code == 0:
                return
            if code != -signal.SIGKILL:
                raise RuntimeError(f"forkcast run ended with {code}: {self._said()}")

    def close(self) -> None:
        """Leave no process behind."""
        for process in [*self._parts(), *([self._run] if self._run else [])]:
            process.kill()

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._run is None or (code := self._run.poll()) is None:
            return self._run
        if code == 0:  # it was faster than the storm
            self.total += _MORE_STEPS
        elif code != -signal.SIGKILL and "exits with" not in self._said():  # too many deaths
            raise RuntimeError(f"forkcast run ended with {code}: {self._said()}")
        self._run = None
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        document = manifest(self.total, self._storage)
        (self.place / "m.yaml").write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "-q"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FORKCAST_PACE": "trainer/step:0.02",
            "SLOW_FSYNC": str(_SLOW_FSYNC),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent / "slow_disk"), os.environ.get("PYTHONPATH", "")]
            ),
        }
        with (self.place / "said").open("ab") as said:
            self._run = subprocess.Popen(
                command, cwd=self.place, env=environment, stdout=said, stderr=said
            )
        self.started += 1
        return self._run

    def _said(self) -> str:
        return (self.place / "said").read_text(errors="replace")[-500:]

    def _parts(self) -> list[psutil.Process]:
        """The processes below the run's, and those that have outlived it."""
        found = []
        for process in psutil.process_iter(["cwd", "status"]):
            if process.info["cwd"] == str(self.folder) and process.info["status"] != "zombie":
                found.append(process)
        return found

    def _kill(self) -> None:
        run = self._running()
        victims: list[tuple[str, Any]] = [("run", run)] if run is not None else []
        for process in self._parts():
            try:
                victims.append((_name(process.cmdline()), process))
            except psutil.Error:
                continue
        if not victims:
            return
        names = sorted({name for name, _ in victims} - {"run"})
        chosen = "run" if not names or self._dice.random() < _OF_RUN else self._dice.choice(names)
        of_it = [one for one in victims if one[0] == chosen]
        if not of_it:
            return
        name, victim = self._dice.choice(of_it)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return
        if name == "run":
            victim.wait()
        self.kills[name] += 1


def _name(command: list[str]) -> str:
    module = next((word for word in command if word.startswith("forkcast_")), "other")
    return module.removeprefix("forkcast_")


class Weather(threading.Thread):
    """Turns the gateway's faults: mostly well, at times flaky, slow or silent, seconds each."""

    def __init__(self, gateway: Any, seed: int) -> None:
        super().__init__(daemon=True)
        self._gateway, self._dice, self.over = gateway, random.Random(seed), threading.Event()
        self.turns: Counter[str] = Counter()

    def run(self) -> None:
        while not self.over.wait(self._dice.uniform(5.0, 20.0)):
            fault = self._dice.choice(["slow-down", "close", "lose", "drip", "silent", "500"])
            self.turns[fault] += 1
            self._gateway.always = fault
            self.over.wait(self._dice.uniform(0.5, 12.0))
            self._gateway.always = ""
        self._gateway.always = ""


def _storage(kind: str, place: Path) -> Iterator[tuple[dict[str, Any], Path | None, Any]]:
    """What the manifest says, where the records are then, and the gateway."""
    if kind == "folder":
        yield {}, None, None
        return
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.s3_gateway import Gateway
    from tests.versitygw import Versitygw

    server = Versitygw(place / "s3")
    server.start()
    server.make_bucket(_BUCKET)
    gateway = Gateway(server.endpoint)
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    storage = {
        "endpoint": gateway.endpoint,
        "bucket": _BUCKET,
        "prefix": "storm/",
        "credentialsDir": str(server.credentials),
    }
    try:
        yield storage, place / "s3/data" / _BUCKET / "storm", gateway
    finally:
        gateway.over.set()
        gateway.shutdown()
        server.kill()


def storm(place: Path, *, kills: int, seed: int, kind: str = "folder") -> dict[str, Any]:
    """One storm. Returns its figures, and under ``broken`` what `check_run` has found."""
    begun = time.monotonic()
    if kind != "folder":
        (place / "s3").mkdir(parents=True)
    for storage, store, gateway in _storage(kind, place):
        weather = Weather(gateway, seed) if gateway is not None else None
        one = Storm(place, seed, storage)
        try:
            if weather is not None:
                weather.start()
            one.rage(kills)
            if weather is not None:
                weather.over.set()
                weather.join()
            one.calm()
            broken = check(one.folder, store)
        finally:
            one.close()
    return {
        "seed": seed,
        "store": kind,
        "kills": dict(one.kills),
        "starts of forkcast run": one.started,
        "store faults": dict(weather.turns) if weather is not None else {},
        "steps": one.total,
        "lineage": len(list((store or one.folder).glob("lineage/*.json"))),
        "branches": len(list((store or one.folder).glob("branches/*"))),
        "seconds": round(time.monotonic() - begun),
        "broken": broken,
    }


def main() -> int:
    """0 if no invariant is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of victims and weather")
    parser.add_argument("--store", choices=("folder", "s3"), default="folder", help="which store")
    parser.add_argument("--folder", type=Path, help="kept afterwards; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as temporary:
        place = given.folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        found = storm(place, kills=given.kills, seed=given.seed, kind=given.store)
    print(json.dumps(found, indent=1))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
