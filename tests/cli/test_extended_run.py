"""A finished run whose totalSteps is raised: trained on, protected and told of as any other."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from forkcast_cli import rate, workdir
from forkcast_cli.__main__ import app
from forkcast_cli.facts import gather
from forkcast_cli.report import report_document
from forkcast_cli.supervisor import Supervisor
from forkcast_cli.view import RunReader, look
from forkcast_wire.attempt_numbers import next_attempt
from forkcast_wire.completion import completion, record
from forkcast_wire.documents import Complete
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.statistics import read_history
from forkcast_wire.store import FolderStore
from tests.make import little_text, tiny_run


def document(total, steps=None, **schedule):
    return tiny_run(
        "ext",
        data=little_text(32, everySteps=20, maxBatches=2),
        optimizer={
            "learningRate": "1e-3",
            "schedule": {"warmupSteps": 5, "minLearningRate": "1e-4", **schedule},
        },
        training={"totalSteps": total, "microBatchSize": 4, "seed": 1}
        | ({"scheduleSteps": steps} if steps else {}),
        checkpoint={"everySteps": 20, "ringEverySteps": 10},
        branching={"mode": "Observe"},
    )


def forkcast(folder, total):
    (folder / "m.yaml").write_text(yaml.safe_dump(document(total)))
    return subprocess.run(
        [sys.executable, "-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """40 steps, then 80 in the same folder; what the second command printed."""
    folder = tmp_path_factory.mktemp("extended")
    first = forkcast(folder, 40)
    assert first.returncode == 0, first.stderr
    second = forkcast(folder, 80)
    assert second.returncode == 0, second.stderr
    return folder / "w", second.stdout


def test_every_reader_tells_the_end_of_the_longer_run(extended):
    folder, _ = extended
    view = look(folder)
    assert view.complete is not None
    assert view.complete.step == 80
    assert view.progress["validation_loss"] == view.complete.validation_loss
    told = json.dumps(report_document(gather(folder)))
    assert str(view.complete.validation_loss) in told


def test_the_learning_rate_stays_at_its_minimum_and_this_is_said(extended):
    folder, said = extended
    rates = {row["step"]: row["learning_rate"] for row in read_history(folder / "statistics")}
    assert rates[39] == pytest.approx(1e-4)
    assert {rates[step] for step in range(40, 80)} == {rates[39]}
    assert "learning rate: steps 40 to 79 keep 0.0001; spec.training.scheduleSteps" in said


def test_what_an_extension_does_to_the_rate_is_planned_beforehand(extended):
    folder, _ = extended
    (folder.parent / "longer.yaml").write_text(yaml.safe_dump(document(120)))
    told = CliRunner().invoke(
        app, ["plan", str(folder.parent / "longer.yaml"), "--workdir", str(folder), "--json"]
    )
    assert told.exit_code == 0, told.output
    assert "steps 40 to 119 keep 0.0001" in json.loads(told.output)["learning_rate"]


def test_a_finished_run_is_not_started_again(extended):
    folder, _ = extended
    parts = ("attempts.json", "logs/trainer.log", "logs/monitor.log")
    before = {name: (folder / name).read_bytes() for name in parts}
    states = sorted(folder.glob("checkpoints/*/*/*"))
    again = forkcast(folder.parent, 80)
    assert again.returncode == 0, again.stderr
    assert "complete since step 80 of 80; raise spec.training.totalSteps" in again.stdout
    assert before == {name: (folder / name).read_bytes() for name in parts}
    assert states == sorted(folder.glob("checkpoints/*/*/*"))


def prepared(folder, total, **schedule):
    """A start up to where its trainer begins."""
    folder.mkdir(exist_ok=True)
    made = workdir.prepare(folder, TrainingRun.model_validate(document(total, **schedule)))
    next_attempt(folder)
    return made


def test_a_trainer_that_was_stopped_in_the_extension_is_started_again(tmp_path):
    """Regression: the end of the shorter run made SIGTERM in the longer one a success."""
    spec = prepared(tmp_path, 80).manifest.spec
    reader = RunReader(tmp_path)
    one = Supervisor(spec, tmp_path, lambda _: reader.look().complete is not None)
    trainer = one.children["trainer"]
    for child in one.children.values():
        child.done = child is not trainer
    record(
        FolderStore(tmp_path), Complete(epoch=0, step=40, tokens=1, validation_loss=2, seconds=1)
    )
    trainer.process = subprocess.Popen([sys.executable, "-c", ""])
    trainer.process.wait()
    one.look()  # it has left
    one.look()  # and the store shows that it has to go on
    assert not trainer.done
    assert trainer.deaths == 1
    record(
        FolderStore(tmp_path), Complete(epoch=0, step=80, tokens=1, validation_loss=2, seconds=1)
    )
    trainer.process = subprocess.Popen([sys.executable, "-c", ""])
    trainer.process.wait()
    one.look()  # it has left
    one.look()  # and the store shows that it has to go on
    assert trainer.done


def test_the_schedule_is_as_long_as_the_first_start_wanted_until_a_length_is_given(tmp_path):
    def length(total, **schedule):
        return prepared(tmp_path, total, **schedule).manifest.spec.learning_rate().steps

    assert [length(40), length(80), length(120)] == [40, 40, 40]
    assert length(120, steps=100) == 100
    assert length(120) == 40


def test_a_run_of_an_older_version_keeps_the_schedule_it_had(tmp_path):
    prepared(tmp_path, 40)
    identity = json.loads((tmp_path / "run.json").read_text())
    del identity["first_total_steps"]
    (tmp_path / "run.json").write_text(json.dumps(identity))
    written = json.loads((tmp_path / "manifest.json").read_text())
    del written["spec"]["training"]["scheduleSteps"]
    (tmp_path / "manifest.json").write_text(json.dumps(written))
    assert prepared(tmp_path, 80).manifest.spec.learning_rate().steps == 40


def test_a_constant_rate_has_no_length(tmp_path):
    assert prepared(tmp_path, 40, type="Constant").manifest.spec.learning_rate().steps is None
    with_a_length = document(40, type="Constant", steps=30)
    with pytest.raises(
        ValueError, match="scheduleSteps: is the length of Cosine, Linear, WSD; leave it out"
    ):
        TrainingRun.model_validate(with_a_length)


def test_a_start_says_what_a_longer_schedule_changes(tmp_path):
    def spec(steps):
        given = document(200, steps=steps, type="WSD", decaySteps=20)
        return TrainingRun.model_validate(given).spec

    assert rate.change(spec(100), spec(200), 50) == (
        "the schedule is 200 steps long now, not 100; step 50 keeps 0.001"
    )
    assert rate.change(spec(100), spec(200), 99) == (
        "the schedule is 200 steps long now, not 100: step 99 has 0.001 instead of 0.0001"
    )
    assert rate.change(spec(200), spec(200), 99) == ""


def test_the_end_of_the_shorter_run_is_not_the_runs_end(tmp_path):
    prepared(tmp_path, 40)
    record(
        FolderStore(tmp_path), Complete(epoch=0, step=40, tokens=1, validation_loss=2, seconds=1)
    )
    assert look(tmp_path).complete is not None
    prepared(tmp_path, 80)
    assert look(tmp_path).complete is None
    assert completion(FolderStore(tmp_path), 80) is None
