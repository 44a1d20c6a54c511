"""The tokens of a run are made once: other processes fetch them, and make them if the store cannot help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from forkcast.actions import Action
from forkcast.records import StateKind
from forkcast_trainer.data import tokens
from forkcast_trainer.data.identity import compare
from forkcast_trainer.data.published import fetch, prepared, publish, publish_aside
from forkcast_trainer.data.sources import locate
from forkcast_trainer.data.token_file import Card, kept
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.errors import DataError
from forkcast_trainer.rollout import Rollout
from forkcast_wire import keys
from forkcast_wire.documents import RolloutJob, RunInfo, TextIdentity, dump, load, saved_states
from forkcast_wire.manifest import Data, TextSource, Validation
from forkcast_wire.store import FolderStore, StoreUnavailable
from tests.trainer.conftest import text_manifest
from tests.waiting import HANG_SECONDS, until
from tests.wire.memory_store import MemoryStore


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some words of a text\n" * 50)
    (tmp_path / "held.txt").write_text("held out words\n" * 20)
    held = Validation(source=TextSource(uri=str(tmp_path / "held.txt")))
    return Data(train=TextSource(uri=str(tmp_path / "text")), validation=held, sequence_length=8)


@pytest.fixture
def store(data, tmp_path):
    """Into which the run has published its two token files."""
    made = MemoryStore()
    found = prepare(data, tmp_path / "first", progress=False)
    publish_aside(made, found.files).join(HANG_SECONDS)
    return made


@pytest.fixture
def read(monkeypatch):
    """The sources of which text was read."""
    found, pieces = [], tokens.pieces

    def noted(source, field, counts, files):
        found.append(field)
        yield from pieces(source, field, counts, files)

    monkeypatch.setattr(tokens, "pieces", noted)
    return found


def names(data):
    return [text.name for text in locate(data).all]


def _equal(folder, other):
    for path in other.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_what_was_published_is_fetched_and_no_text_is_read(data, store, tmp_path, read):
    assert len(store.objects) == 4
    assert all(keys.is_record(key) for key in store.objects)
    found = prepared(store, data, tmp_path / "second", progress=False)
    assert read == []
    assert (found.train[0].count, found.held[0].count) == (1051, 301)
    _equal(tmp_path / "second", tmp_path / "first")


def test_a_second_start_reads_neither_text_nor_tokenizer(data, tmp_path, read, monkeypatch):
    first = prepare(data, tmp_path / "t", progress=False)
    monkeypatch.setattr(tokens, "open_tokenizer", None)
    assert prepare(data, tmp_path / "t", progress=False) == first
    assert read == ["spec.data.train", "spec.data.validation.source"]


def test_the_name_is_of_source_tokenizer_and_options(data, tmp_path):
    tokenizer = tmp_path / "tok"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    moved = shutil.copytree(tokenizer, tmp_path / "moved")
    by_folder = data.model_copy(update={"tokenizer": str(tokenizer)})
    less = data.train.model_copy(update={"max_bytes": 5})
    found = [names(one)[0] for one in (data, by_folder, data.model_copy(update={"train": less}))]
    assert len(set(found)) == 3
    assert names(data.model_copy(update={"tokenizer": str(moved)})) == names(by_folder)
    (moved / "tokenizer.json").write_text("{ }")
    assert names(data.model_copy(update={"tokenizer": str(moved)})) != names(by_folder)
    (tmp_path / "text" / "a.txt").write_text("others")
    assert names(data)[0] not in found


@pytest.mark.parametrize("damage", ["file", "shorter", "card", "no card", "another's card"])
def test_what_is_damaged_is_not_used_and_published_again(data, store, tmp_path, read, damage):
    before, name = dict(store.objects), names(data)[0]
    file, card = keys.token_file(name), keys.token_card(name)
    if damage == "file":
        store.objects[file] = store.objects[file][:-2] + b"\0\0"
    elif damage == "shorter":
        store.objects[file] = store.objects[file][:-2]
    elif damage == "card":
        store.objects[card] = b'{"dtype": "uint64"}'
    elif damage == "no card":
        del store.objects[card]
    else:
        other = replace(load(Card, store.objects[card]), sha256="0" * 64)
        store.objects[card] = dump(other)
    fetch(store, locate(data), tmp_path / "second")
    assert kept(tmp_path / "second", name) is None
    found = prepare(data, tmp_path / "second", progress=False)
    assert read == ["spec.data.train"]
    _equal(tmp_path / "second", tmp_path / "first")
    publish(store, found.files)
    assert store.objects == before


def test_who_meets_damage_takes_the_card_back_and_whoever_has_the_tokens_publishes_them(
    data, store, tmp_path, read
):
    before, file = dict(store.objects), keys.token_file(names(data)[0])
    store.objects[file] = store.objects[file][:-2] + b"\0\0"  # of as many bytes as its card says
    publish(store, prepare(data, tmp_path / "first", progress=False).files)
    assert store.objects != before  # who publishes reads no file back
    prepared(store, data, tmp_path / "second", progress=False)  # a rollout
    until(lambda: store.objects == before, "the tokens, published again")
    assert read == ["spec.data.train"]


@pytest.mark.parametrize("access", ["get", "put", "head"])
def test_a_store_that_is_away_leaves_the_work_to_the_process(data, tmp_path, read, access):
    def away(what, _key):
        if what == access:
            raise StoreUnavailable("away")

    store = MemoryStore()
    store.before = away
    found = prepared(store, data, tmp_path / "t", progress=False)
    publish(store, found.files)
    assert len(read) == 2
    assert not any(key.endswith(".json") for key in store.objects) or access == "head"


def test_the_card_is_written_last(data, tmp_path):
    found = prepare(data, tmp_path / "t", progress=False)
    store, put = MemoryStore(), []
    store.before = lambda what, key: put.append(key) if what == "put" else None
    publish(store, found.files)
    assert [key.rpartition(".")[2] for key in put] == ["bin", "json"] * 2


def test_a_source_that_is_gone_is_told_of_where_it_is_needed(data, store, tmp_path):
    (tmp_path / "held.txt").unlink()
    with pytest.raises(DataError, match=r"validation\.source\.uri: .*does not exist"):
        prepared(store, data, tmp_path / "second", progress=False)


def test_a_rollout_elsewhere_has_the_tokens_of_its_run_without_reading_text(tmp_path, read):
    (tmp_path / "text.txt").write_text("some words of a text\n" * 100)
    manifest = text_manifest(
        tmp_path / "text.txt",
        10**6,
        checkpoint={"ringKeep": 64},
        storage={"path": str(tmp_path / "store")},
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps(manifest.document()))
    (run / "run.json").write_bytes(dump(RunInfo(uid="u", name="t", manifest_digest="")))
    store, spec = FolderStore(tmp_path / "store"), manifest.spec
    command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen(command, cwd=run, stdout=log, stderr=log)
    try:
        (name,) = names(spec.data)
        until(lambda: store.head(keys.token_card(name)), "the card")
        base = until(lambda: saved_states(store, StateKind.RING), "a state")[0]
    finally:
        trainer.kill()
        trainer.wait()
    job = RolloutJob(
        run_uid="u", trigger_id="e0-t1", candidate="c000", action=Action(), base=base,
        trigger_step=1, rungs=(1,), publish_from=1,
    )  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    rollout = Rollout(job, spec, store, other)
    assert read == []
    assert rollout.engine.text == load(TextIdentity, store.get(keys.TEXT)[0])
    compare(store, rollout.engine.text)
