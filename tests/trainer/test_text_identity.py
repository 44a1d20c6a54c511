"""A run goes on with the text it began with, or is told that it has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from forkcast.actions import Action
from forkcast.records import StateKind
from forkcast_trainer import state
from forkcast_trainer.checkpoint import CheckpointError, publish
from forkcast_trainer.data.identity import agree, claim, compare
from forkcast_trainer.errors import DataError
from forkcast_trainer.placement import placement
from forkcast_trainer.rollout import Rollout
from forkcast_trainer.step import Engine
from forkcast_wire import keys
from forkcast_wire.documents import RolloutJob, RunInfo, TextIdentity, dump, load
from forkcast_wire.manifest import Data, TextSource
from forkcast_wire.store import FolderStore
from tests.make import state_ref
from tests.trainer.conftest import text_manifest
from tests.trainer.prepared import prepare
from tests.wire.memory_store import MemoryStore

OURS = TextIdentity(tokens=100, sha256="a" * 64, validation_tokens=10, validation_sha256="b" * 64)
OTHERS = [
    replace(OURS, tokens=101, sha256="c" * 64),
    replace(OURS, sha256="c" * 64),
    replace(OURS, validation_tokens=9),
    replace(OURS, validation_sha256="c" * 64),
]


def test_the_first_start_records_its_text_and_later_ones_have_it():
    store = MemoryStore()
    compare(store, OURS)  # nothing is on record yet
    for _ in range(2):
        claim(store, OURS, accept=False)
    assert load(TextIdentity, store.get(keys.TEXT)[0]) == OURS
    compare(store, OURS)
    assert keys.is_record(keys.TEXT)


@pytest.mark.parametrize("other", OTHERS)
def test_another_text_is_refused_in_one_line_until_it_is_accepted(other):
    store = MemoryStore()
    claim(store, OURS, accept=False)
    for call in (lambda: claim(store, other, accept=False), lambda: compare(store, other)):
        with pytest.raises(DataError, match=r"spec\.data\.(train|validation): .*changed"):
            call()
    with pytest.raises(DataError, match="the same text"):
        agree(OURS, other)
    assert load(TextIdentity, store.get(keys.TEXT)[0]) == OURS
    claim(store, other, accept=True)
    claim(store, other, accept=False)
    with pytest.raises(DataError, match="changedText: Accept"):
        claim(store, OURS, accept=False)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"tokens": 1}'])
def test_a_damaged_record_is_written_again(damage):
    store = MemoryStore({keys.TEXT: damage})
    compare(store, OURS)
    claim(store, OURS, accept=False)
    assert load(TextIdentity, store.get(keys.TEXT)[0]) == OURS


def test_the_digest_is_of_the_text_not_of_the_files(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("some words\n" * 50)
        data = Data(train=TextSource(uri=str(tmp_path / name)), sequence_length=8)
        found.append(prepare(data, tmp_path / f"t{name}", progress=False)[0].file.sha256)
    assert found[0] == found[1]
    assert len(found[0]) == 64


def _start(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest.document()))
    (folder / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_run_whose_text_changed_between_two_starts(tmp_path):
    text, run = tmp_path / "text", tmp_path / "run"
    text.mkdir()
    run.mkdir()
    (text / "a.txt").write_text("some words of a text\n" * 100)
    assert _start(run, text_manifest(text, 2)).returncode == 0
    (text / "b.txt").write_text("and others\n")
    refused = _start(run, text_manifest(text, 4))
    assert refused.returncode == 2
    (line,) = [one for one in refused.stderr.splitlines() if one.startswith("error: ")]
    assert (
        "spec.data.train: the text, its tokenizer or its mixture has changed: 2,113 tokens" in line
    )
    assert "but the run has 2,101 tokens" in line
    accepted = _start(run, text_manifest(text, 4, training={"changedText": "Accept"}))
    assert accepted.returncode == 0, accepted.stderr
    assert json.loads((run / "progress.json").read_text())["step"] == 4


def test_a_rollout_with_another_text_does_not_begin(tmp_path):
    (tmp_path / "a.txt").write_text("some words of a text\n" * 100)
    store = FolderStore(tmp_path / "run")
    claim(store, OURS, accept=False)
    base = state_ref(0)
    job = RolloutJob(
        run_uid="u", trigger_id="e0-t1", candidate="c000", action=Action(), base=base,
        trigger_step=1, rungs=(1,), publish_from=1,
    )  # fmt: skip
    with pytest.raises(DataError, match="every pod of the run the same text"):
        Rollout(job, text_manifest(tmp_path / "a.txt", 4).spec, store, tmp_path / "run")


def test_a_rollout_from_a_state_of_another_text_does_not_begin(tmp_path):
    """Its own text may be the run's: the state that a branch forks from names the text it has seen."""
    (tmp_path / "a.txt").write_text("some words of a text\n" * 100)
    (tmp_path / "b.txt").write_text("others, and other ones\n" * 100)
    store, bases = FolderStore(tmp_path / "run"), {}
    for name in ("a", "b"):
        spec = text_manifest(tmp_path / f"{name}.txt", 4).spec
        engine = Engine(spec, "u", tmp_path / name, placement(spec))
        engine.step()
        folder, saved = f"ring/e0/a0/{ord(name):08d}", state.snapshot(engine)
        bases[name] = publish(store, saved, folder, StateKind.RING, tmp_path / "s", level=0)
    spec = text_manifest(tmp_path / "a.txt", 4).spec
    engine = Engine(spec, "u", tmp_path / "a", placement(spec))
    claim(store, engine.text, accept=False)

    def begin(base, **training):
        job = RolloutJob(
            run_uid="u", trigger_id="e0-t1", candidate="c000", action=Action(), base=base,
            trigger_step=1, rungs=(1,), publish_from=1,
        )  # fmt: skip
        given = text_manifest(tmp_path / "a.txt", 4, training=training).spec
        return Rollout(job, given, store, tmp_path / "run")

    assert begin(bases["a"]).engine.position.step == 1
    with pytest.raises(CheckpointError, match="of another text: the text, its tokenizer or its"):
        begin(bases["b"])
    assert begin(bases["b"], changedText="Accept").engine.position.step == 1
