"""`kubectl forkcast report` with the history of the run's store: a real trainer's, on a real S3 server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from forkcast_cli.kubectl import app
from forkcast_operator.kubernetes import manifests
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import Run, store_place
from forkcast_wire.documents import RunInfo
from tests.make import little_text, tiny_run
from tests.versitygw import ACCESS, SECRET, Versitygw

SINCE = "2026-01-01T00:00:00Z"
UID = "075a10ff-1f5a-48a3-9968-60e178b53fc8"
#: A baseline: nothing watches it, so that nobody but the trainer has its history.
GIVEN = tiny_run(
    "base",
    data=little_text(32, everySteps=5, maxBatches=2),
    training={"totalSteps": 12, "microBatchSize": 2},
    checkpoint={"everySteps": 6, "ringEverySteps": 6},
    branching={"mode": "Disabled"},
)
CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Completed",
    "message": "12 steps",
    "observedGeneration": 1,
    "lastTransitionTime": SINCE,
}
STATUS = {
    "observedGeneration": 1,
    "conditions": [CONDITION],
    "progress": {"step": 12, "totalSteps": 12, "tokens": 768, "percentage": 100},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    made = Versitygw(tmp_path_factory.mktemp("versitygw"))
    made.start()
    made.make_bucket("runs")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def settings(gateway, tmp_path_factory):
    """The ConfigMap of a run whose trainer has gone to its end; pods have their keys elsewhere."""
    meta = {"name": "base", "namespace": "ml", "uid": UID, "generation": 1}
    run = Run.of({"metadata": meta, "spec": GIVEN["spec"]})
    store = {"endpoint": gateway.endpoint, "bucket": "runs", "runSecretName": "s3"}
    config = OperatorConfig.model_validate({"trainer": {"image": "t:1"}, "stores": [store]})
    spec = run.parsed()
    info = RunInfo(uid=UID, name="base", manifest_digest="0" * 64, first_total_steps=12)
    body = manifests.config_map(run, spec, store_place(run, spec, config), info, "")
    folder = tmp_path_factory.mktemp("pod")
    resolved = json.loads(body["data"]["manifest.json"])
    resolved["spec"]["storage"]["credentialsDir"] = str(gateway.credentials)
    (folder / "manifest.json").write_text(json.dumps(resolved))
    (folder / "run.json").write_text(body["data"]["run.json"])
    command = [sys.executable, "-m", "forkcast_trainer", f"--workdir={folder}", "--monitor="]
    command += [f"--manifest={folder}/manifest.json", "--attempt=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return body


@pytest.fixture
def report(tmp_path, monkeypatch, settings):
    """Writes the report with a kubectl that prints these objects; gives the page and what was said."""
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    secret = {"accessKeyId": ACCESS, "secretAccessKey": SECRET}
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in secret.items()}
    meta = {"name": "base", "namespace": "ml"}
    objects = {
        "trainingrun": {"metadata": meta, "spec": GIVEN["spec"], "status": STATUS},
        "branches": {"items": []},
        "configmaps": {"items": [settings]},
        "secret": {"data": encoded},
    }
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ -f {tmp_path}/$2 ] || {{ echo "Error: no $2" >&2; exit 1; }}\ncat {tmp_path}/$2\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def run(*arguments, **changed):
        for kind, document in {**objects, **changed}.items():
            if document is not None:
                (tmp_path / kind).write_text(json.dumps(document))
        page = tmp_path / "page.html"
        done = CliRunner().invoke(app, ["report", "base", "-o", str(page), *arguments])
        assert done.exit_code == 0, done.output
        return page.read_text(), done.output

    return run


def test_a_baseline_has_a_report_with_its_history(report) -> None:
    page, said = report()
    assert "Complete: 12 steps" in page
    assert "training and validation loss by step" in page  # the chart
    assert "Completed: 12 steps" in page  # what the cluster says
    assert "<script" not in page
    assert "without its history" not in said
    assert SECRET not in page


def test_keys_of_whoever_asks_are_taken_if_the_secret_may_not_be_read(report, monkeypatch) -> None:
    page, said = report(secret=None)
    assert "Its history could not be read from its store" in page
    assert "without its history" in said
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert "Complete: 12 steps" in report(secret=None)[0]


def test_a_store_that_has_another_address_from_here_is_reached_by_it(
    report, settings, gateway
) -> None:
    document = yaml.safe_load(settings["data"]["manifest.json"])
    document["spec"]["storage"]["endpoint"] = "http://store.forkcast-system.svc:9000"
    inside = {**settings, "data": {**settings["data"], "manifest.json": json.dumps(document)}}
    page, _ = report("--endpoint", gateway.endpoint, configmaps={"items": [inside]})
    assert "Complete: 12 steps" in page


def test_without_settings_the_report_is_of_the_objects(report) -> None:
    page, said = report(configmaps={"items": []})
    assert "no ConfigMap of the run" in page
    assert "no ConfigMap of the run" in said
