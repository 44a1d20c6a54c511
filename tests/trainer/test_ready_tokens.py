"""Text that is tokenised already is trained on where it is: nanoGPT's files, Megatron-LM's, our own."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest

from forkcast_trainer.data import ready, tokens
from forkcast_trainer.data.batches import Windows
from forkcast_trainer.data.identity import identity_of
from forkcast_trainer.data.published import prepared, publish
from forkcast_trainer.data.token_file import Card, card_of
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.errors import DataError
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire import keys
from forkcast_wire.documents import dump
from forkcast_wire.manifest import Data, IdType, TrainingRun
from tests.one_step import one_step
from tests.trainer.conftest import text_manifest
from tests.trainer.prepared import bpe_folder
from tests.wire.memory_store import MemoryStore

IDS = np.random.default_rng(0).integers(0, 300, size=2000)
LENGTH = 8


def data(uri, **more):
    source = {"uri": str(uri), "format": "Tokens"}
    source |= {name: more.pop(name) for name in ("idType", "maxBytes", "split") if name in more}
    return Data.model_validate(
        {"train": source, "sequenceLength": LENGTH, "vocabularySize": 300} | more
    )


def megatron(folder, documents, dtype="<u2", code=8, name="text_document"):
    """As Megatron-LM's IndexedDatasetBuilder writes it: one sequence a document."""
    lengths = [len(one) for one in documents]
    width = np.dtype(dtype).itemsize
    np.concatenate(documents).astype(dtype).tofile(folder / f"{name}.bin")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    pointers = (np.cumsum([0, *lengths[:-1]]) * width).astype("<i8")
    body = np.array(lengths, dtype="<i4").tobytes() + pointers.tobytes()
    body += np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(head + body)
    return folder / f"{name}.bin"


def all_ids(found):
    parts = [part for text in (*found.train, *found.held) for part in text.parts]
    return np.concatenate([np.asarray(part.array) for part in parts])


@pytest.fixture
def nano(tmp_path):
    """A folder as nanoGPT's prepare.py leaves it."""
    folder = tmp_path / "nano"
    folder.mkdir()
    IDS[:1800].astype("<u2").tofile(folder / "train.bin")
    IDS[1800:].astype("<u2").tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"\x80\x04never read")
    return folder


def test_a_folder_of_nanogpt_is_mapped_and_nothing_is_copied(nano, tmp_path):
    held = {"source": {"uri": str(nano), "format": "Tokens", "split": "val"}}
    found = prepare(data(nano, validation=held), tmp_path / "t", progress=False)
    assert np.array_equal(all_ids(found), IDS)
    assert found.vocabulary_size == 300
    assert [file.path for file in found.files] == [nano / "train.bin", nano / "val.bin"]
    assert sorted(path.suffix for path in (tmp_path / "t").iterdir()) == [".json"] * 2
    rows = Windows(found.train, LENGTH).read(np.arange(3), LENGTH)
    assert np.array_equal(rows, [IDS[n : n + LENGTH + 1] for n in (0, 8, 16)])


@pytest.mark.parametrize(
    ("dtype", "code"), [("<u1", 1), ("<i4", 4), ("<i8", 5), ("<u2", 8)], ids=str
)
def test_megatrons_indexed_data_set(tmp_path, dtype, code):
    ids = IDS % 256
    path = megatron(tmp_path, [ids[:700], ids[700:701], ids[701:]], dtype, code)
    for uri in (path, path.with_suffix(".idx"), tmp_path):
        found = prepare(data(uri), tmp_path / "t", progress=False)
        assert np.array_equal(all_ids(found), ids)


@pytest.mark.parametrize("kind", IdType)
def test_bare_ids_of_each_type(tmp_path, kind):
    IDS.astype(kind.numpy).tofile(tmp_path / "ids.bin")
    found = prepare(data(tmp_path / "ids.bin", idType=kind), tmp_path / "t", progress=False)
    assert np.array_equal(all_ids(found), IDS)


def test_a_token_file_of_another_run_says_its_vocabulary_itself(tmp_path):
    (tmp_path / "a.txt").write_text("some words of a text\n" * 50)
    text = Data.model_validate({"train": {"uri": str(tmp_path / "a.txt")}, "sequenceLength": 8})
    made = prepare(text, tmp_path / "t", progress=False)
    again = prepare(
        data(made.files[0].path, vocabularySize=None), tmp_path / "other", progress=False
    )
    assert np.array_equal(all_ids(again), all_ids(made))
    assert again.vocabulary_size == made.vocabulary_size == 257
    assert identity_of(again) == identity_of(made)


def test_many_files_are_one_text_and_max_bytes_ends_it(tmp_path):
    folder = tmp_path / "shards"
    (folder / "b").mkdir(parents=True)
    IDS[:800].astype("<u2").tofile(folder / "a.bin")
    IDS[800:].astype("<u2").tofile(folder / "b" / "c.bin")
    found = prepare(data(folder), tmp_path / "t", progress=False)
    assert np.array_equal(all_ids(found), IDS)
    less = prepare(data(folder, maxBytes=2 * 900), tmp_path / "t", progress=False)
    assert np.array_equal(all_ids(less), IDS[:900])


def test_the_tokenizer_says_the_vocabulary(tmp_path):
    bpe_folder(tmp_path / "bpe", 270)
    size = tokens.open_tokenizer(str(tmp_path / "bpe")).vocabulary_size
    (IDS % size).astype("<u2").tofile(tmp_path / "ids.bin")
    given = {"vocabularySize": None, "tokenizer": str(tmp_path / "bpe")}
    found = prepare(data(tmp_path / "ids.bin", **given), tmp_path / "t", progress=False)
    assert found.vocabulary_size == size
    more = data(tmp_path / "ids.bin", **given | {"vocabularySize": 512})
    assert prepare(more, tmp_path / "t", progress=False).vocabulary_size == 512


def test_a_larger_vocabulary_is_the_models_and_a_smaller_one_than_the_tokenizers_is_refused(
    tmp_path,
):
    (tmp_path / "a.txt").write_text("some words of a text\n" * 50)
    given = {"train": {"uri": str(tmp_path / "a.txt")}, "sequenceLength": 8, "vocabularySize": 320}
    found = prepare(Data.model_validate(given), tmp_path / "t", progress=False)
    assert found.vocabulary_size == 320
    with pytest.raises(DataError, match=r"^spec\.data\.vocabularySize: 200 is fewer than the 257"):
        prepare(
            Data.model_validate(given | {"vocabularySize": 200}), tmp_path / "t", progress=False
        )


def test_a_file_is_read_whole_once_and_again_when_it_has_changed(nano, tmp_path, monkeypatch):
    first = prepare(data(nano), tmp_path / "t", progress=False)
    checked = ready._checked
    monkeypatch.setattr(ready, "_checked", None)
    assert prepare(data(nano), tmp_path / "t", progress=False).files == first.files
    monkeypatch.setattr(ready, "_checked", checked)
    IDS[::-1][:1800].astype("<u2").tofile(nano / "train.bin")
    os.utime(nano / "train.bin", ns=(1, 1))
    again = prepare(data(nano), tmp_path / "t", progress=False)
    assert identity_of(again) != identity_of(first)


def test_a_rollout_elsewhere_reads_no_file_whole_and_the_store_holds_no_copy(
    nano, tmp_path, monkeypatch
):
    store = MemoryStore()
    found = prepare(data(nano), tmp_path / "t", progress=False)
    publish(store, found.files)
    assert list(store.objects) == [keys.token_card(found.files[0].name)]
    monkeypatch.setattr(ready, "_checked", None)
    again = prepared(store, data(nano), tmp_path / "other", progress=False)
    assert [card_of(file) for file in again.files] == [card_of(file) for file in found.files]
    assert np.array_equal(all_ids(again), all_ids(found))


def _short_index(folder):
    path = megatron(folder, [IDS])
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:-20])
    return path


def _huge_index(folder):
    path = megatron(folder, [IDS])
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 1 << 60, 1 << 60)
    path.with_suffix(".idx").write_bytes(head)
    return path


def _written(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def _overlapping(folder):
    path = megatron(folder, [IDS[:100], IDS[100:]])
    index = path.with_suffix(".idx")
    found = bytearray(index.read_bytes())
    at = 9 + struct.calcsize("<QBQQ") + 8 + 8
    found[at : at + 8] = struct.pack("<q", 0)
    index.write_bytes(bytes(found))
    return path


def _beside(folder, suffix, content):
    path = _written(folder, "ids.bin", IDS.astype("<u2").tobytes())
    path.with_suffix(suffix).write_bytes(content)
    return path


def _other_card(folder):
    card = Card(dtype="uint16", count=2000, vocabulary_size=300, end_of_text=0, sha256="0" * 64)
    return _beside(folder, ".json", dump(card))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: _written(f, "a.bin", b"123"), r"idType: .*3 bytes are no whole number of uint16"),
        (lambda f: _written(f, "a.bin", b""), "uri: .*is empty"),
        (lambda f: _written(f, "a.bin", IDS.astype("<i4").tobytes() + b"\xff\xff\xff\xff"), "id 65535"),
        (lambda f: _written(f, "a.bin", np.array([1, 300], "<u2").tobytes()), "id 300 of token 1 .*vocabulary of 300; set vocabularySize"),
        (lambda f: f / "gone.bin", "gone.bin does not exist"),
        (lambda f: f, "holds no .bin file"),
        (_short_index, "idx is cut short"),
        (_huge_index, "idx is cut short"),
        (_overlapping, "do not follow one another"),
        (lambda f: _beside(f, ".idx", b"other"), "no index of Megatron-LM's"),
        (lambda f: _beside(f, ".idx", b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 7, 0, 0)), "ids of type 7"),
        (lambda f: _beside(f, ".json", b"{}"), "ids.json"),
        (_other_card, "not those of its card"),
        (lambda f: megatron(f, [IDS]).with_name("other.bin"), "other.bin does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, make, said):
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(DataError, match=said) as caught:
        prepare(data(make(folder)), tmp_path / "t", progress=False)
    assert str(caught.value).startswith("spec.data.train.")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_is_told(tmp_path):
    path = megatron(tmp_path, [IDS])
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"has 1,000 bytes, but its index or card says 4,000"):
        prepare(data(path), tmp_path / "t", progress=False)


def test_negative_ids_and_no_vocabulary_are_refused(tmp_path):
    np.array([*range(50), -1], "<i4").tofile(tmp_path / "ids.bin")
    with pytest.raises(DataError, match="id -1 of token 50"):
        prepare(data(tmp_path / "ids.bin", idType="Int32"), tmp_path / "t", progress=False)
    with pytest.raises(DataError, match=r"^spec\.data\.vocabularySize: is not set"):
        prepare(
            data(tmp_path / "ids.bin", idType="Int32", vocabularySize=None),
            tmp_path / "t",
            progress=False,
        )


def test_a_run_trains_on_tokens_beside_text(nano, tmp_path):
    (tmp_path / "a.txt").write_text("some words of a text\n" * 50)
    document = text_manifest(tmp_path, 3).document()
    document["spec"]["data"] = {
        "mixture": [
            {"name": "text", "uri": str(tmp_path / "a.txt"), "weight": 1},
            {"name": "ids", "uri": str(nano), "format": "Tokens", "weight": 1},
        ],
        "vocabularySize": 304,
        "sequenceLength": 16,
    }
    spec = TrainingRun.model_validate(document).spec
    engine = Engine(spec, "u", tmp_path / "run", placement(spec))
    assert engine.named["transformer.wte.weight"].shape[0] == 304
    assert np.isfinite([one_step(engine).loss for _ in range(3)]).all()
    assert json.loads(dump(card_of(engine.tokens.files[1])))["count"] == 1800
