"""What the commands show of a watched run: its folder holds no manifest."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import forkcast
from forkcast_cli.__main__ import app
from forkcast_watch.run_folder import open_folder
from forkcast_watch.settings import Settings
from forkcast_wire.files import replace_bytes
from forkcast_wire.statistics import write_chunk
from tests.make import step_stats, trigger
from tests.watch.test_session import adam, train
from tests.watch.toys import Toy


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Five steps, the last with a loss that is not finite."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    model = Toy()
    optimizer = adam(model)
    rules = {"window": 16, "warmupSteps": 10}
    with forkcast.watch(model, optimizer, folder=folder, uncertainty=rules) as watch:
        train(model, optimizer, watch)
        watch.step(float("nan"))
    return folder


def said(*arguments, code=0):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_status_says_where_it_is_and_what_happened(watched):
    text = said("status", watched)
    assert "mine finished step 5, epoch 0, attempt 0" in text
    assert "unstable at step 4:" in text
    document = json.loads(CliRunner().invoke(app, ["status", "--json", str(watched)]).output)
    assert (document["run"], document["state"], document["suppressed"]) == ("mine", "finished", 1)


def test_the_report_has_the_loss_and_the_events_and_no_manifest(watched, tmp_path):
    page = tmp_path / "page.html"
    said("report", watched, "-o", page)
    text = page.read_text()
    assert "The run is watched only. One event." in text
    assert "<td>4</td><td>4</td><td>branch</td><td>" in text
    assert "The manifest, every default" not in text
    assert "steps/s" not in text.split("<footer>")[0]


def test_it_is_among_the_runs_and_has_no_branches_and_no_states(watched):
    rows = json.loads(CliRunner().invoke(app, ["runs", "--json", str(watched.parent)]).output)
    assert [(row["run"], row.get("branch")) for row in rows] == [("mine", None)]
    assert said("branches", watched) == "no branch was opened"
    said("checkpoint", "ls", watched)
    assert "known: none" in said("explain", "last", "-d", watched, code=2)


def test_its_rules_are_those_of_a_detection_in_its_log(watched):
    from forkcast_cli.detect.request import request_for

    given = {"columns": "", "manifest": None, "rules": (), "plot": None, "preset": ""}
    flags = dict.fromkeys(("follow", "tee", "as_json", "compare"), False)
    request = request_for(str(watched), **given, **flags)
    assert [one.trigger.warmup_steps for one in request.configs.values()] == [10]


def test_load_run_gives_its_steps_and_events(watched):
    run = forkcast.load_run(watched)
    assert run.steps()["step"].to_pylist() == [0, 1, 2, 3, 4]
    assert run.events()["step"].to_pylist() == [4]


def test_a_damaged_registration_is_one_line(watched, tmp_path):
    for name in ("run.json", "progress.json"):
        (tmp_path / name).write_bytes((watched / name).read_bytes())
    (tmp_path / "registration.json").write_text("{")
    assert "registration.json: is damaged" in said("status", tmp_path, code=2)


def test_a_long_run_in_progress_is_shown_as_running(tmp_path):
    folder = open_folder(Settings(folder=tmp_path / "run", total_steps=100))
    uid = folder.run_uid
    rows = [{**vars_of(step_stats(step)), "run_uid": uid} for step in range(3)]
    (folder.path / "statistics").mkdir()
    write_chunk(rows, folder.path / "statistics")
    progress = {"state": "running", "step": 3, "total_steps": 100, "loss": 1.0, "device": "cpu"}
    progress["events"] = [{"step": 2, "cause": "the loss jumped"}]
    replace_bytes(folder.path / "progress.json", json.dumps(progress).encode())
    folder.record(trigger(run_uid=uid, step=2))
    folder.record(trigger(run_uid=uid, step=2))  # the same event again
    text = said("status", folder.path)
    assert "run running step 3 of 100" in text
    assert "unstable at step 2: the loss jumped" in text
    assert len(forkcast.load_run(folder.path).event_records) == 1
    folder.close()


def vars_of(stats):
    from forkcast_wire.statistics import stats_row

    return stats_row(stats)
