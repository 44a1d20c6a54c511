"""Small files that a crash of the machine left empty or cut short: ignored, restored, or named."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from forkcast.decision import Decision
from forkcast.records import StateKind
from forkcast_cli import workdir
from forkcast_cli.__main__ import app
from forkcast_cli.view import RunReader, look
from forkcast_wire import keys
from forkcast_wire.attempt_numbers import next_attempt
from forkcast_wire.documents import DocumentError, RunInfo, StateManifest, dump, load
from forkcast_wire.manifest_file import ManifestError

from .conftest import UID, state

DAMAGE = [b"", b"{", b"[1", b"[]", b"null", b'"x"', b"\xff\xfe", b"7" * 5000]
FILES = [
    "manifest.json",
    "run.json",
    "progress.json",
    "complete.json",
    "lineage/1.json",
    "branches/e0-t150/branch.json",
    "branches/e0-t150/phase.json",
    "branches/e0-t150/outcome.json",
    "branches/e0-t150/decision.json",
    "branches/e0-t150/bases.json",
    "branches/e0-t150/draft.json",
    "rollouts/e0-t150/control/trial-000010.json",
    "rollouts/e0-t150/control/until.json",
]


@pytest.mark.parametrize("name", FILES)
def test_no_damage_of_a_file_ends_a_command_in_a_traceback(made_run, name):
    for damage in DAMAGE:
        path = made_run / name
        whole = path.read_bytes() if path.exists() else None
        path.write_bytes(damage)
        for command in ("status", "branches", "report", "explain last -d", "runs", "checkpoint ls"):
            words = [*command.split(), str(made_run)]
            done = CliRunner().invoke(app, words)
            assert isinstance(done.exception, SystemExit | None), (words, damage, done.exception)
            assert done.exit_code in (0, 2), (words, damage, done.output)
            if done.exit_code:
                said = done.output.splitlines()[-1]
                assert said.startswith("error: ")
                assert name.rpartition("/")[2] in said
                assert ";" in said  # the remedy
        if whole is None:
            path.unlink()
        else:
            path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGE)
def test_progress_only_informs(made_run, damage):
    (made_run / "progress.json").write_bytes(damage)
    assert look(made_run).progress == {}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_lost_count_of_starts_is_taken_from_what_the_run_has_written(made_run, damage):
    (made_run / "attempts.json").write_bytes(damage)
    assert next_attempt(made_run) == 1  # the statistics are attempt 0's
    (made_run / "attempts.json").write_bytes(damage)
    (made_run / "ring/e1/a000007").mkdir(parents=True)
    assert next_attempt(made_run) == 8
    assert next_attempt(made_run) == 9
    (made_run / "attempts.json").unlink()
    assert next_attempt(made_run) == 8


def test_the_first_start_has_number_0(tmp_path):
    assert next_attempt(tmp_path) == 0


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_written_anew_and_this_is_said(made_run, damage):
    manifest = look(made_run).manifest
    (made_run / "manifest.json").write_bytes(damage)
    prepared = workdir.prepare(made_run, manifest)
    assert "manifest.json: was damaged" in prepared.notices[0]
    assert look(made_run).manifest.spec.training == prepared.manifest.spec.training
    assert workdir.prepare(made_run, manifest).notices == ()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("source", ["states", "statistics"])
def test_a_damaged_identity_is_restored_from_what_the_run_saved(made_run, damage, source):
    manifest = look(made_run).manifest
    (made_run / "run.json").write_bytes(damage)
    if source == "states":
        shutil.rmtree(made_run / "statistics")
        key = keys.state(StateKind.RING, 1, 0, 250)
        saved = StateManifest(
            format_version=1,
            run_uid=UID,
            state=state(250, epoch=1),
            lossless=True,
            loss=3.0,
            versions={},
        )
        path = made_run / keys.state_manifest(key)
        path.parent.mkdir(parents=True)
        path.write_bytes(dump(saved))
    prepared = workdir.prepare(made_run, manifest)
    assert prepared.info.uid == UID
    assert load(RunInfo, (made_run / "run.json").read_bytes()) == prepared.info
    assert "run.json: was damaged" in prepared.notices[0]


def test_a_full_disk_is_one_line(made_run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workdir, "replace_bytes", full)
    with pytest.raises(ManifestError, match=r"no space left on device; make room"):
        workdir.prepare(made_run, look(made_run).manifest)


def test_an_edited_document_is_named_with_its_key(made_run):
    """Whatever shows more than this branch shows the rest."""
    path = made_run / "branches/e0-t150/decision.json"
    document = json.loads(path.read_text())
    del document["outcome"]
    path.write_text(json.dumps(document))
    commands = {"explain last -d": 2, "status": 0, "branches": 0, "report": 0, "runs": 0}
    for command, code in commands.items():
        words = [*command.split(), str(made_run)]
        done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
        assert done.exit_code == code
        assert "branches/e0-t150/decision.json: is damaged (Decision: outcome" in done.output
    assert "decision.json: is damaged" in (made_run / "report.html").read_text()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    [
        "lineage/1.json",
        "branches/e0-t150/branch.json",
        "branches/e0-t150/decision.json",
        "rollouts/e0-t150/control/trial-000010.json",
    ],
)
def test_a_damaged_record_hides_neither_the_rest_nor_the_end_of_a_run(made_run, name, damage):
    whole = look(made_run)
    (made_run / name).write_bytes(damage)
    view = RunReader(made_run).look_past_damage()
    assert view.damaged
    assert all(said.startswith(f"{name}: is damaged") for said in view.damaged)
    assert view.branches[-1].id == whole.branches[-1].id
    assert (view.active, view.complete, view.progress) == (0, whole.complete, whole.progress)
    with pytest.raises(DocumentError, match="restore it from a copy"):
        look(made_run)


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def texts(folder):
    for command in ("status", "branches", "explain last -d", "explain e0-t150 -d", "report --json"):
        done = CliRunner().invoke(app, [*command.split(), str(folder)], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        yield command, done.output


@pytest.mark.parametrize("branch", ["e0-t150", "e1-t250"])
def test_a_decision_that_was_edited_is_not_shown_as_true(made_run, branch):
    """The adopted one's digest is in the lineage, the other's in outcome.json."""
    path = made_run / "branches" / branch / "decision.json"
    digest = load(Decision, path.read_bytes()).digest
    edit(made_run / "branches" / branch / "outcome.json", decision_digest=digest)
    for _, said in texts(made_run):
        assert "NOT AS RECORDED" not in said
        assert "was edited" not in said
    edit(path, cost={"rollout_steps": 1, "rollout_seconds": 1.0})
    said = dict(texts(made_run))
    assert "decision.json was edited" in said["status"]
    assert "decision.json was edited" in said["branches"]
    assert "NOT AS RECORDED" in said["report --json"]
    shown = said["explain last -d" if branch == "e1-t250" else "explain e0-t150 -d"]
    assert "NOT AS RECORDED" in shown


def test_the_lineage_alone_shows_that_an_adopted_decision_was_edited(made_run):
    edit(made_run / "branches/e0-t150/decision.json", reason="NoSafeCheckpoint")
    assert [one.edited for one in look(made_run).branches] == [True, False]
