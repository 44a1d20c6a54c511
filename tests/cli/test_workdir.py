"""A folder stays the run's: what may change in its manifest between two starts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from forkcast_cli import workdir
from forkcast_cli.__main__ import app
from forkcast_cli.run import troubles
from forkcast_cli.show import state_word
from forkcast_cli.view import look
from forkcast_wire.attempt_numbers import next_attempt
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_file import ManifestError

GOOD = {
    "apiVersion": "forkcast.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "one"},
    "spec": {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 10}},
}


def _manifest(**spec):
    return TrainingRun.model_validate({**GOOD, "spec": {**GOOD["spec"], **spec}})


@pytest.fixture
def folder(tmp_path):
    workdir.prepare(tmp_path, _manifest())
    next_attempt(tmp_path)
    return tmp_path


def test_until_a_trainer_was_started_everything_may_be_corrected(tmp_path):
    """A first start that fails for a wrong address must not make another folder necessary."""
    wrong = {"endpoint": "http://127.0.0.1:1", "bucket": "runs", "credentialsDir": "/absent"}
    workdir.prepare(tmp_path, _manifest(storage=wrong))
    right = _manifest(storage={**wrong, "credentialsDir": "/creds"}, training={"totalSteps": 5})
    prepared = workdir.prepare(tmp_path, right)
    assert (prepared.before, prepared.info.first_total_steps) == (None, 5)
    assert workdir.read_manifest(tmp_path).spec.storage.credentials_dir == "/creds"
    next_attempt(tmp_path)
    with pytest.raises(ManifestError, match=r"spec\.storage: cannot change"):
        workdir.prepare(tmp_path, _manifest(storage=wrong, training={"totalSteps": 5}))


@pytest.mark.parametrize(
    "spec",
    [
        {"training": {"totalSteps": 20}},
        {"training": {"totalSteps": 10, "threads": 2}},
        {"branching": {"mode": "Observe"}},
        {"training": {"totalSteps": 10, "scheduleSteps": 20}},
        {"image": {"trainer": "forkcast/trainer"}},
    ],
)
def test_may_change(folder, spec):
    uid = workdir.prepare(folder, _manifest()).info.uid
    assert workdir.prepare(folder, _manifest(**spec)).info.uid == uid


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"training": {"totalSteps": 9}}, "spec.training.totalSteps: may only grow"),
        ({"training": {"totalSteps": 10, "seed": 7}}, "spec.training.seed: cannot change"),
        ({"model": {"architecture": "gpt2-tiny"}}, "spec.model: cannot change"),
        ({"optimizer": {"learningRate": "1e-3"}}, "spec.optimizer: cannot change"),
        ({"parallelism": {"processesPerNode": 2}}, "spec.parallelism: cannot change"),
    ],
)
def test_cannot_change(folder, spec, said):
    with pytest.raises(ManifestError, match=said):
        workdir.prepare(folder, _manifest(**spec))


def test_a_folder_older_than_a_field_is_resumed(folder):
    """Regression: a field that came with a newer version made every older run another run."""
    path = folder / workdir.MANIFEST
    document = json.loads(path.read_text())
    del document["spec"]["parallelism"]["nodes"]
    del document["spec"]["image"]
    path.write_text(json.dumps(document))
    workdir.prepare(folder, _manifest())


def test_a_folder_that_everybody_may_write_to_is_closed_to_others(tmp_path, capsys):
    folder = tmp_path / "w"
    folder.mkdir()
    for mode, after in ((0o777, 0o775), (0o757, 0o755), (0o775, 0o775), (0o700, 0o700)):
        folder.chmod(mode)
        with workdir.locked(folder):
            assert folder.stat().st_mode & 0o777 == after
        said = capsys.readouterr().err
        assert ("was writable for every user; it no longer is" in said) is (mode != after)


def test_a_shared_folder_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    folder.chmod(0o1777)
    refused = pytest.raises(ManifestError, match="writable for every user; choose a folder of your")
    with refused, workdir.locked(folder):
        pass
    assert folder.stat().st_mode & 0o7777 == 0o1777


def test_a_full_disk_is_said_for_the_trainer_that_cannot_write_it(made_run, monkeypatch):
    assert workdir.full(made_run) == ""
    full = shutil.disk_usage(made_run)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert workdir.full(made_run) == f"{made_run}: no space left; nothing is saved until there is"
    done = CliRunner().invoke(app, ["status", str(made_run)], env={"COLUMNS": "400"})
    assert "no space left" in done.output


def test_a_run_that_says_nothing_is_running_as_long_as_its_folder_is_held(made_run):
    """At its end a run waits for its store without a word."""
    (made_run / "complete.json").unlink(missing_ok=True)
    (made_run / "progress.json").write_text(json.dumps({"state": "running", "step": 400}))
    os.utime(made_run / "progress.json", (1, 1))
    view = look(made_run)
    assert state_word(made_run, view) == "not running"
    with workdir.locked(made_run):
        assert state_word(made_run, view) == "running"
    assert state_word(made_run, view) == "not running"
    away = replace(view, away="HTTP 503")
    assert troubles(away, running=False) == ["store away: HTTP 503"]
