"""`forkcast run` with its states in a bucket: outages of any kind, and what it asks while idle."""

import itertools
import json
import os
import signal
import subprocess
import sys
from urllib.parse import unquote

import pytest
import yaml

from tests.make import little_text, tiny_run
from tests.s3_gateway import gateway_to
from tests.versitygw import Versitygw
from tests.waiting import until

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Versitygw(tmp_path_factory.mktemp("versitygw"))
    made.start()
    made.make_bucket("runs")
    yield made
    made.kill()


@pytest.fixture
def gateway(server):
    with gateway_to(server.endpoint) as made:
        yield made


def document(gateway, keys, *, total, every=20, **branching):
    return tiny_run(
        "away",
        data=little_text(32, everySteps=100000, maxBatches=2),
        optimizer={"learningRate": "1e-3"},
        uncertainty={"warmupSteps": 10**6},  # no trigger
        training={"totalSteps": total, "microBatchSize": 4, "seed": 1},
        checkpoint={"everySteps": every, "ringEverySteps": every, "logSpacedFrom": 0},
        storage={
            "endpoint": gateway.endpoint,
            "bucket": "runs",
            "prefix": f"r{next(_numbers)}/",
            "credentialsDir": str(keys),
        },
        branching={"mode": "Disabled", **branching},
    )


class Running:
    """`forkcast run` in a folder of its own."""

    def __init__(self, folder, manifest):
        self.folder = folder / "w"
        (folder / "m.yaml").write_text(yaml.safe_dump(manifest))
        self.out = folder / "out"
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w"],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                stdout=out,
                stderr=out,
            )

    def progress(self):
        try:
            return json.loads((self.folder / "progress.json").read_text())
        except (OSError, ValueError):
            return {}

    def said(self):
        return self.out.read_text()

    def until(self, condition, what):
        came = []

        def over():
            came[:] = [condition()]
            return came[0] or self.process.poll() is not None

        until(over, what)
        assert came[0], self.said()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait()


@pytest.fixture
def start(tmp_path, server, gateway):
    started = []

    def make(**more):
        running = Running(tmp_path, document(gateway, server.credentials, **more))
        started.append(running)
        return running

    yield make
    gateway.always = ""
    for running in started:
        if running.process.poll() is None:
            running.stop()


def status(folder):
    command = [sys.executable, "-m", "forkcast_cli", "status", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_training_goes_on_while_the_store_is_away(start, gateway):
    """Refused; silent below, the other kinds in tests/wire/test_s3_faults.py."""
    running = start(total=10**6)
    running.until(lambda: running.progress().get("saved_step"), "a saved state")
    gateway.always = "503"
    running.until(lambda: "store away: " in running.said(), "the outage on the console")
    running.until(lambda: running.progress().get("save_error"), "a failed save")
    before = running.progress()["step"]
    running.until(lambda: running.progress()["step"] > before + 20, "training")
    shown = status(running.folder)
    assert shown["storeAway"]
    assert shown["progress"]["save_error"]
    gateway.always = ""
    running.until(lambda: "store away: well again" in running.said(), "the end of the outage")
    running.until(lambda: not running.progress()["save_error"], "a save")
    assert running.stop() == 130
    assert "stopped; everything is saved" in running.said()
    assert running.said().count("store away: ") == 2  # its begin and its end


def test_a_run_ends_although_its_store_was_away_at_the_end(start, gateway):
    running = start(total=60)
    running.until(lambda: running.progress().get("saved_step"), "a saved state")
    gateway.always = "503"
    running.until(lambda: "store away: " in running.said(), "the outage on the console")
    gateway.always = ""
    assert running.process.wait() == 0, running.said()
    assert json.loads((running.folder / "progress.json").read_text())["state"] == "finished"


def test_what_is_not_saved_is_said(start, gateway):
    running = start(total=10**6)
    running.until(lambda: running.progress().get("saved_step"), "a saved state")
    gateway.always = "denied"
    running.until(lambda: "saving: " in running.said(), "the failed save on the console")
    assert running.stop() == 3
    said, progress = running.said(), running.progress()
    assert "everything is saved" not in said
    words = f"stopped at {progress['step']}; the newest saved state is step "
    assert f"{words}{progress['saved_step']}: AccessDenied" in said


def test_a_silent_store_holds_up_neither_restarts_nor_the_end(start, gateway):
    running = start(total=10**6, mode="Observe")
    running.until(lambda: running.progress().get("saved_step"), "a saved state")
    gateway.always = "silent"
    running.until(lambda: "store away: " in running.said(), "the outage on the console")
    log = running.folder / "logs" / "supervisor.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    monitor = next(one["pid"] for one in lines if one.get("child") == "monitor")
    os.kill(monitor, signal.SIGKILL)
    started = '"child": "monitor", "pid"'
    running.until(lambda: log.read_text().count(started) == 2, "another monitor")
    before = running.progress()["step"]
    running.until(lambda: running.progress()["step"] > before + 20, "training")
    assert running.stop() in (3, 130)
    said = running.said()
    why = ("answer in time", "has not taken the last state")
    assert "everything is saved" in said or any(one in said for one in why), said


@pytest.mark.parametrize(
    ("fault", "said"),
    [("page", "no S3 API answers here"), ("denied", "AccessDenied: A policy wants encryption")],
)
def test_a_store_that_refuses_at_the_start_is_one_line(start, gateway, fault, said):
    gateway.always = fault
    running = start(total=100)
    assert running.process.wait() == 2
    lines = running.said().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: spec.storage.endpoint: http://127.0.0.1:")
    assert said in lines[0]
    assert lines[0].count("spec.storage") == 1


def test_a_store_that_is_away_at_the_start_is_waited_for(start, gateway):
    gateway.always = "503"
    running = start(total=60)
    running.until(lambda: "waiting for it" in running.said(), "the outage on the console")
    gateway.always = ""
    assert running.process.wait() == 0, running.said()


def test_an_idle_run_asks_its_store_for_little(start, gateway):
    """Counted by what one look asks, not by the clock: no probe, no write but of what was trained, four
    requests a look."""
    running = start(total=10**6, every=10**6, mode="Enforce")
    running.until(lambda: running.progress().get("saved_step") is not None, "the first state")
    marked = "the mark of the first state: the last that there is to write"
    running.until(lambda: any("/good?" in p for _, p in list(gateway.requests)), marked)
    running.until(lambda: _probes(gateway.requests) == 4, "supervisor, trainer, operator, rollouts")
    running.until(lambda: _token_cards(gateway.requests) == 1, "the tokens of its only text")
    before = _looks(gateway.requests)
    running.until(lambda: _looks(gateway.requests) > before, "a look after it")
    gateway.requests.clear()
    running.until(lambda: _looks(gateway.requests) >= 4, "four looks")
    requests = list(gateway.requests)
    # this model takes a thousand steps in a moment: their statistics are written in one piece
    assert {method for method, path in requests if "/history/" not in path} == {"GET"}, requests
    assert not [path for _, path in requests if "probe" in path]
    looks = _looks(requests)
    of_supervisor = [r for r in requests if _asks(r, "branches/", "suppressed/", "lineage/")]
    assert len(of_supervisor) <= 4 * looks + 4


def _asks(request, *prefixes):
    path = unquote(request[1])
    return "prefix=" in path and any(prefix in path for prefix in prefixes)


def _probes(requests):
    """How many processes have tried what the store can do."""
    return sum(method == "DELETE" and "/probe/" in path for method, path in list(requests))


def _token_cards(requests):
    """How many token files are in the store, each with the card that is put last."""
    cards = {path for method, path in list(requests) if method == "PUT" and "/tokens/" in path}
    return sum(path.endswith(".json") for path in cards)


def _looks(requests):
    return sum(_asks(request, "suppressed/") for request in list(requests))
