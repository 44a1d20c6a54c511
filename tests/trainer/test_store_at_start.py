"""A trainer or rollout that starts while its store is away waits; only bad input is final."""

import json
import signal

import pytest

from tests.waiting import until

OUTAGES = ["503", "silent", "no-key"]  # the others: tests/wire/test_s3_faults.py


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_trainer_waits_for_its_store(start_on_bucket, gateway, tmp_path, outage):
    gateway.always = outage
    process = start_on_bucket("forkcast_trainer", "--claim-attempt")
    until(lambda: b"store.away" in (tmp_path / "log").read_bytes(), "the outage in the log")
    assert process.poll() is None
    gateway.always = ""
    assert process.wait() == 0
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "finished"
    assert b"error: " not in (tmp_path / "log").read_bytes()  # the mark of bad input


def test_a_trainer_told_to_leave_while_it_waits_is_no_failure(start_on_bucket, gateway, tmp_path):
    gateway.always = "503"
    process = start_on_bucket("forkcast_trainer")
    until(lambda: b"store.away" in (tmp_path / "log").read_bytes(), "the outage in the log")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("forkcast_trainer", ()),
        ("forkcast_trainer.rollout_job", ("--trigger=e0-t1", "--candidate=c001")),
        ("forkcast_trainer.rollout_server", ()),
    ],
)
def test_a_storage_section_that_cannot_work_is_final(
    start_on_bucket, gateway, tmp_path, module, more
):
    gateway.ignore_conditions = True
    process = start_on_bucket(module, *more, conditionalWrites="Required")
    assert process.wait() == 2
    said = (tmp_path / "log").read_text().splitlines()
    assert [line for line in said if line.startswith("error: spec.storage.conditionalWrites")]


def test_a_rollout_waits_for_its_store(start_on_bucket, gateway, tmp_path):
    gateway.always = "503"
    process = start_on_bucket("forkcast_trainer.rollout_job", "--trigger=e0-t1", "--candidate=c001")
    until(lambda: b"store.away" in (tmp_path / "log").read_bytes(), "the outage in the log")
    gateway.always = ""
    assert process.wait() == 0  # there is no such job
    assert b"rollout.no_job" in (tmp_path / "log").read_bytes()
