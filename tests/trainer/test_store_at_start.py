"""A trainer or rollout that starts while its store is away waits; only bad input is final."""

import json
import signal
import subprocess
import sys

import boto3
import pytest
from moto.server import ThreadedMotoServer

from forkcast_wire.documents import RunInfo, dump
from tests.s3_gateway import gateway_to
from tests.versitygw import free_port


@pytest.fixture(scope="module")
def upstream():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server._port}"
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="runs")
    yield endpoint
    server.stop()


@pytest.fixture
def gateway(upstream):
    with gateway_to(upstream) as made:
        yield made


@pytest.fixture
def start(tmp_path, tiny, gateway):
    """Starts a process of a run whose store is behind the gateway; its log is DIR/log."""
    started = []
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "accessKeyId").write_text("k")
    (keys / "secretAccessKey").write_text("s")

    def make(module, *more, **storage):
        document = tiny(steps=3).document()
        document["spec"]["storage"] = {
            "endpoint": gateway.endpoint,
            "bucket": "runs",
            "prefix": f"{tmp_path.name}/".replace("[", "").replace("]", ""),
            "credentialsDir": str(keys),
            **storage,
        }
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        (tmp_path / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
        command = [sys.executable, "-m", module, "--manifest", "manifest.json", *more]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.wait()


OUTAGES = ["503", "silent", "no-key"]  # the others: tests/wire/test_s3_faults.py


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_trainer_waits_for_its_store(start, gateway, until, tmp_path, outage):
    gateway.always = outage
    process = start("forkcast_trainer", "--claim-attempt")
    until(lambda: b"store.away" in (tmp_path / "log").read_bytes(), "the outage in the log")
    assert process.poll() is None
    gateway.always = ""
    assert process.wait(120) == 0
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "finished"
    assert b"error: " not in (tmp_path / "log").read_bytes()  # the mark of bad input


def test_a_trainer_told_to_leave_while_it_waits_is_no_failure(start, gateway, until, tmp_path):
    gateway.always = "503"
    process = start("forkcast_trainer")
    until(lambda: b"store.away" in (tmp_path / "log").read_bytes(), "the outage in the log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("forkcast_trainer", ()),
        ("forkcast_trainer.rollout_job", ("--trigger=e0-t1", "--candidate=c001")),
        ("forkcast_trainer.rollout_server", ()),
    ],
)
def test_a_storage_section_that_cannot_work_is_final(start, gateway, tmp_path, module, more):
    gateway.ignore_conditions = True
    process = start(module, *more, conditionalWrites="Required")
    assert process.wait(120) == 2
    said = (tmp_path / "log").read_text().splitlines()
    assert [line for line in said if line.startswith("error: spec.storage.conditionalWrites")]


def test_a_rollout_waits_for_its_store(start, gateway, until, tmp_path):
    gateway.always = "503"
    process = start("forkcast_trainer.rollout_job", "--trigger=e0-t1", "--candidate=c001")
    until(lambda: b"store.away" in (tmp_path / "log").read_bytes(), "the outage in the log")
    gateway.always = ""
    assert process.wait(120) == 0  # there is no such job
    assert b"rollout.no_job" in (tmp_path / "log").read_bytes()
