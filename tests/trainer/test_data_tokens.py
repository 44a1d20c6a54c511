"""Text from every kind of source becomes the same ids for everybody, once."""

import json
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast_trainer.data import tokens
from forkcast_trainer.data.batches import Batches, ValidationBatches, Windows, window_count
from forkcast_trainer.data.files import source_files
from forkcast_trainer.data.sampler import Sampler, SamplerState
from forkcast_trainer.data.text import pieces
from forkcast_trainer.data.token_file import TokenFile
from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.data.tokens import Tokens
from forkcast_trainer.errors import DataError
from forkcast_trainer.stressors.block_shuffle import BlockShuffle
from forkcast_wire.manifest import Data, Stressor, TextSource, Validation
from tests.trainer.prepared import POEM, alone, bpe_folder, prepare
from tests.waiting import HANG_SECONDS

FIELD = "spec.data.train"


def read(uri, **more):
    found, parts = [], []
    for text, ends in pieces(TextSource(uri=str(uri), **more), FIELD):
        parts.append(text)
        if ends:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def data(uri, length=8, **more):
    return Data(train=TextSource(uri=str(uri)), sequence_length=length, **more)


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = open_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert bytes(ids.astype(np.uint8)).decode() == text
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text) == (257, 256)


def test_a_folder_is_read_whole_sorted_and_only_its_text(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert read(tmp_path) == ["first", "second"]


def test_parquet_alone_and_beside_text(tmp_path):
    pq.write_table(pa.table({"body": ["one", None, "", "two"]}), tmp_path / "p.parquet")
    (tmp_path / "z.txt").write_text("three")
    assert read(tmp_path / "p.parquet", text_column="body") == ["one", "two"]
    assert read(tmp_path, text_column="body") == ["one", "two", "three"]
    assert read(tmp_path, format="Parquet", text_column="body") == ["one", "two"]
    assert read(tmp_path, format="Text") == ["three"]


def test_a_data_set_folder_gives_the_split_that_was_asked_for(tmp_path):
    for split in ("train", "validation"):
        table = pa.table({"text": [f"{split} {n}" for n in range(2)]})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    for split in ("train", "validation"):
        assert read(tmp_path, format="Dataset", split=split) == [f"{split} 0", f"{split} 1"]


WIKI = ["", " = A title = \n", " Some wikitext , as WikiText has it . \n", "", " Größe \n"] * 40


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """A data set in the layout and with the column of WikiText: one Parquet file a split."""
    folder = tmp_path_factory.mktemp("wikitext")
    for split, rows in (("train", WIKI), ("validation", WIKI[:10]), ("test", WIKI[:5])):
        table = pa.table({"text": rows})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_data_set_like_wikitext_is_read_whole_without_its_empty_rows(wiki):
    assert read(wiki, format="Dataset") == [row for row in WIKI if row]
    assert read(wiki, format="Dataset", split="validation") == [row for row in WIKI[:10] if row]


@pytest.mark.parametrize("most", [1, 30, 57, 500, 10**9])
def test_max_bytes_cuts_a_data_set_too(wiki, most):
    whole = "".join(WIKI).encode()
    got = "".join(read(wiki, format="Dataset", max_bytes=most)).encode()
    assert whole.startswith(got)
    assert min(most, len(whole)) - 1 <= len(got) <= most


def test_a_data_set_trains_with_splits_of_its_own(wiki, tmp_path):
    train = TextSource(uri=str(wiki), format="Dataset", max_bytes=1000)
    held = TextSource(uri=str(wiki), format="Dataset", split="validation")
    wanted = Data(train=train, sequence_length=8, validation=Validation(source=held))
    ours, theirs = prepare(wanted, tmp_path / "t", progress=False)
    count = len(read(wiki, format="Dataset", max_bytes=1000))
    assert ours.count == 1000 + count
    assert bytes(theirs.array[theirs.array < 256].astype(np.uint8)).decode() == "".join(WIKI[:10])


def test_the_standard_library_is_its_own_text():
    first = read("python-stdlib:", max_bytes=20_000)
    assert first == read("python-stdlib:", max_bytes=20_000)
    files = source_files(TextSource(uri="python-stdlib:"), FIELD)
    assert files == sorted(files)
    root = Path(sysconfig.get_paths()["stdlib"])
    assert all(f.suffix == ".py" and root in f.parents for f in files)
    assert not any("site-packages" in f.parts for f in files)


@given(st.integers(1, 60))
def test_max_bytes_is_a_limit_and_cuts_no_character(most):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "poem.txt"
        source.write_text(POEM, encoding="utf-8")
        text = "".join(read(source, max_bytes=most))
    assert POEM.startswith(text)
    assert most - 3 < len(text.encode()) + max(0, most - len(POEM.encode())) <= most


@pytest.mark.parametrize(
    ("make", "source", "field", "words"),
    [
        (None, {"uri": "/no/such/file"}, "spec.data.train.uri", "does not exist"),
        ("empty", {}, "spec.data.train.uri", "holds no text; give more text"),
        ("no-files", {}, "spec.data.train.uri", "holds no .jsonl, .md"),
        ("short", {}, "spec.data.train", "fewer than one window of 9"),
        ("bad.parquet", {}, "spec.data.train.uri", "Parquet magic bytes"),
        ("columns.parquet", {}, "spec.data.train.textColumn", "no column text; one of: a, b"),
        ("twice.parquet", {}, "spec.data.train.textColumn", "has 2 columns text; rename"),
        ("other-split", {"format": "Dataset", "split": "test"}, "spec.data.train.uri", "test"),
        (
            "other-split",
            {"format": "Dataset", "text_column": "t"},
            "spec.data.train.textColumn",
            "",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_field_and_remedy(tmp_path, make, source, field, words):
    path = tmp_path / (make or "none")
    if make in {"empty", "short"}:
        path.write_text("" if make == "empty" else "abc")
    elif make == "no-files":
        path.mkdir()
    elif make == "bad.parquet":
        path.write_text("nonsense")
    elif make == "columns.parquet":
        pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), path)
    elif make == "twice.parquet":
        pq.write_table(pa.Table.from_arrays([["x"], ["y"]], names=["text", "text"]), path)
    elif make == "other-split":
        path.mkdir()
        pq.write_table(pa.table({"text": ["x"]}), path / "train-00000-of-00001.parquet")
    wanted = Data(train=TextSource(**{"uri": str(path), **source}), sequence_length=8)
    with pytest.raises(DataError) as caught:
        prepare(wanted, tmp_path / "tokens", progress=False)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    left = tmp_path / "tokens"
    assert not left.exists() or not list(left.glob("*.part"))


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name} " + POEM * 20)
    return folder


def test_documents_are_separated_and_the_end_is_held_out(text, tmp_path):
    wanted = data(text, validation=Validation(fraction="0.25"))
    train, held = prepare(wanted, tmp_path / "t", progress=False)
    assert (train.file.dtype, train.file.vocabulary_size) == ("uint16", 257)
    assert isinstance(train.file.array, np.memmap)
    whole = train.file.array
    assert train.count + held.count == len(whole)
    assert held.count == pytest.approx(len(whole) / 4, abs=1)
    assert np.array_equal(np.concatenate([train.array, held.array]), whole)
    parts = np.split(whole, np.flatnonzero(whole == 256) + 1)[:-1]
    assert [bytes(p[:-1].astype(np.uint8)).decode() for p in parts] == read(text)


def test_validation_may_have_text_of_its_own(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else altogether")
    wanted = data(text, validation=Validation(source=TextSource(uri=str(other))))
    train, held = prepare(wanted, tmp_path / "t", progress=False)
    assert train.count == train.file.count
    assert bytes(held.array[:-1].astype(np.uint8)).decode() == other.read_text()


def test_text_is_tokenised_once(text, tmp_path):
    first, _ = prepare(data(text), tmp_path / "t", progress=False)
    written = first.file.path.stat().st_mtime_ns
    again, _ = prepare(data(text), tmp_path / "t", progress=False)
    assert (again.file, again.file.path.stat().st_mtime_ns) == (first.file, written)
    names = {p.suffix for p in (tmp_path / "t").iterdir()}
    assert names == {".bin", ".json"}


def test_ranks_that_start_together_tokenise_once(text, tmp_path, monkeypatch):
    seen, both = [], Barrier(2)

    def noted(source, field, counts, files):
        seen.append(field)
        yield from pieces(source, field, counts, files)

    monkeypatch.setattr(tokens, "pieces", noted)

    def rank(_):
        both.wait(HANG_SECONDS)
        return prepare(data(text), tmp_path / "t", progress=False)[0].file

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(rank, range(2))
    assert one == two
    assert len(seen) == 1


def test_changed_text_is_tokenised_anew(text, tmp_path):
    first, _ = prepare(data(text), tmp_path / "t", progress=False)
    (text / "a.txt").write_text("changed " * 50)
    second, _ = prepare(data(text), tmp_path / "t", progress=False)
    assert second.file.path != first.file.path
    assert bytes(second.array[:7].astype(np.uint8)) == b"changed"


@pytest.mark.parametrize("damage", ["truncated", "gone", "card"])
def test_a_damaged_token_file_is_made_again(text, tmp_path, damage):
    first, _ = prepare(data(text), tmp_path / "t", progress=False)
    whole = first.file.path.read_bytes()
    if damage == "truncated":
        first.file.path.write_bytes(whole[:100])
    elif damage == "gone":
        first.file.path.unlink()
    else:
        first.file.path.with_suffix(".json").write_text('{"dtype": ')
    second, _ = prepare(data(text), tmp_path / "t", progress=False)
    assert second.file.path.read_bytes() == whole


def test_a_folder_with_vocab_and_merges_is_gpt2s_tokenizer(tmp_path):
    folder = bpe_folder(tmp_path / "gpt2", 270)
    tokenizer = open_tokenizer(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert tokenizer.vocabulary_size == max(vocabulary.values()) + 1
    assert tokenizer.end_of_text == vocabulary["<|endoftext|>"]
    assert len(tokenizer.encode(POEM)) < len(POEM.encode())


def test_a_tokenizer_without_an_end_of_text_gets_an_id_of_its_own(tmp_path):
    tokenizer = open_tokenizer(str(bpe_folder(tmp_path / "gpt2", 270, special=())))
    ids = tokenizer.encode(POEM)
    assert tokenizer.end_of_text == tokenizer.vocabulary_size - 1
    assert ids.max() < tokenizer.end_of_text


def test_a_hugging_face_folder_round_trips(tmp_path, text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([POEM * 10], trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    hf.save_pretrained(tmp_path / "hf")
    tokenizer = open_tokenizer(str(tmp_path / "hf"))
    assert (tokenizer.vocabulary_size, tokenizer.end_of_text) == (len(hf), hf.eos_token_id)
    assert raw.decode(tokenizer.encode(POEM).tolist()) == POEM
    train, _ = prepare(data(text, tokenizer=str(tmp_path / "hf")), tmp_path / "t", progress=False)
    assert int(train.array.max()) < train.file.vocabulary_size


def test_a_changed_tokenizer_tokenises_anew(tmp_path, text):
    sizes = []
    for size in (262, 275):
        folder = bpe_folder(tmp_path / "bpe", size)
        train, _ = prepare(data(text, tokenizer=str(folder)), tmp_path / "t", progress=False)
        sizes.append(train.file.vocabulary_size)
    assert sizes == [262, 275]


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path, text):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{n}": n for n in range(70_000)} | {"[UNK]": 70_000, "</s>": 70_001}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>").save_pretrained(tmp_path / "w")
    (text / "a.txt").write_text("w69999 w1 " * 20)
    train, _ = prepare(data(text, tokenizer=str(tmp_path / "w")), tmp_path / "t", progress=False)
    assert train.file.dtype == "uint32"
    assert train.array[:2].tolist() == [69_999, 1]


@pytest.mark.parametrize("broken", ["missing", "no-vocabulary"])
def test_a_tokenizer_that_cannot_be_opened_is_refused(tmp_path, broken):
    folder = tmp_path / "tok"
    if broken == "no-vocabulary":
        bpe_folder(folder, 262)
        (folder / "vocab.json").unlink()
    with pytest.raises(DataError, match=r"spec\.data\.tokenizer"):
        open_tokenizer(str(folder))


@pytest.mark.parametrize("uri", ["/no/such/bpe", "./bpe", ".tmp/bpe", "a/b/bpe"])
def test_a_path_to_no_tokenizer_is_no_hub_id(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_tokenizer(uri)
    assert caught.value.rule == f"no such folder: {Path(uri).absolute()}"


def test_windows_cover_the_text_and_share_one_id(text, tmp_path):
    train, _ = prepare(data(text), tmp_path / "t", progress=False)
    windows = Windows(alone(train), 8)
    rows = windows.read(np.arange(windows.windows), 8)
    assert rows.shape == (window_count(train, 8), 9)
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])
    assert np.array_equal(rows[:, :-1].ravel(), train.array[: rows[:, :-1].size])


def test_a_batch_is_named_by_the_samplers_state(text, tmp_path):
    train, _ = prepare(data(text), tmp_path / "t", progress=False)
    windows = Windows(alone(train), 8)
    batches, others = Batches(windows, ()), Batches(Windows(alone(train), 8), ())
    one, two = (Sampler(windows.windows, SamplerState(3)) for _ in range(2))
    for step in range(30):
        mine = batches.read(step, batches.draw(step, one, 5))
        assert mine.shape == (5, 9)
        assert np.array_equal(mine, others.read(step, others.draw(step, two, 5)))


def test_what_is_drawn_does_not_hang_on_what_is_read(text, tmp_path):
    train, _ = prepare(data(text), tmp_path / "t", progress=False)
    batches = Batches(Windows(alone(train), 8), [BlockShuffle(Stressor(type="BlockShuffle"))])
    one, two = (Sampler(batches.text.windows, SamplerState(3)) for _ in range(2))
    for step in range(30):
        mine = batches.draw(step, one, 5)
        if step % 2:
            batches.read(step, mine)
        assert np.array_equal(mine, batches.draw(step, two, 5))
        assert one.state == two.state


def test_the_windows_of_several_texts_are_numbered_through_and_none_lies_in_two(tmp_path):
    ids = np.arange(100, dtype=np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    facts = {"dtype": "uint16", "count": 100, "vocabulary_size": 100, "end_of_text": 99}
    file = TokenFile(path=tmp_path / "ids.bin", name="ids", sha256="", **facts)
    parts = [file.part(0, 30), file.part(30, 43), file.part(43, 100)]
    windows = Windows([Tokens("a", 1, parts[:2]), Tokens("b", 1, parts[2:])], 8)
    assert windows.counts == [4, 7]
    rows = windows.read(np.arange(11), 8)
    assert rows[:, 0].tolist() == [0, 8, 16, 30, 43, 51, 59, 67, 75, 83, 91]
    assert all(np.array_equal(row, np.arange(row[0], row[0] + 9)) for row in rows)
    longer = windows.read(np.array([2, 10]), 16)
    assert longer[:, 0].tolist() == [13, 83]  # shifted back, each within its own text
    assert windows.read(np.array([0, 3]), 16).shape == (2, 13)  # the second text has no more


@pytest.mark.parametrize(("micro", "most"), [(4, 3), (1, 1), (7, 1000)])
def test_validation_batches_are_fixed_and_never_repeat_a_window(text, tmp_path, micro, most):
    train, _ = prepare(data(text), tmp_path / "t", progress=False)
    chosen = list(ValidationBatches(Windows(alone(train), 8), micro, most))
    again = list(ValidationBatches(Windows(alone(train), 8), micro, most))
    assert all(np.array_equal(a, b) for a, b in zip(chosen, again, strict=True))
    assert all(1 <= len(batch) <= micro for batch in chosen)
    assert sum(map(len, chosen)) == min(window_count(train, 8), micro * most)
