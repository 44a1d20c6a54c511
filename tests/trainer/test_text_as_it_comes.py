"""Text that is not what it seems is read as a user would expect, or refused by name."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import itertools
import json
import lzma
import os
import sysconfig
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from forkcast_trainer.data.batches import ValidationBatches, Windows
from forkcast_trainer.data.decode import Counts, cut
from forkcast_trainer.data.files import source_files
from forkcast_trainer.data.text import pieces
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import Data, TextSource
from tests.trainer.prepared import alone, prepare

FIELD = "spec.data.train"
GERMAN = "Größe, naïve Straße and plain words.\n" * 100


def read(uri, counts=None, **more):
    """The documents of a source."""
    found, parts = [], []
    for text, ends in pieces(TextSource(uri=str(uri), **more), FIELD, counts):
        parts.append(text)
        if ends:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def refused(uri, **more):
    with pytest.raises(DataError) as caught:
        read(uri, **more)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def _zstd(data: bytes) -> bytes:
    pack = zstandard.ZstdCompressor().compress
    return pack(data[:1000]) + pack(data[1000:])  # two frames


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": _zstd}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["a.txt{}", "a{}", "a.txt"])
def test_compressed_text_is_unpacked_whatever_its_name(tmp_path, suffix, name):
    path = tmp_path / name.format(suffix)
    path.write_bytes(PACKERS[suffix](GERMAN.encode()))
    assert read(path) == [GERMAN]
    if name != "a{}":
        assert read(tmp_path) == [GERMAN]


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_text_that_is_cut_short_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](os.urandom(5000).hex().encode())[:-900])
    if suffix == ".zst":  # the library tells no end of a stream within a frame
        assert len(read(path)[0]) < 10_000
    else:
        assert "a.txt" in refused(path).rule


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(GERMAN.encode())
        archive.addfile(member, io.BytesIO(GERMAN.encode()))
    return made.getvalue()


def _zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a.txt", GERMAN)
    return made.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (_zip(), "zip archive"),
        (_tar(), "tar archive"),
        (b"PAR1" + b"x" * 100, "Parquet"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x89PNG\r\n", "image"),
        (b"\x04\x22\x4d\x18abc", "lz4"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_text_is_refused_by_its_first_bytes(tmp_path, data, what):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    error = refused(path)
    assert what in error.rule
    assert "a.txt" in error.rule


def test_json_lines_are_read_by_their_column(tmp_path):
    rows = [{"text": GERMAN, "url": "x"}, {"text": ""}, {"text": None}, {"text": "b\r\n"}]
    lines = "\n".join(json.dumps(one) for one in rows) + "\n\n"
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "d.jsonl").write_bytes(codecs.BOM_UTF8 + lines.encode())
    (tmp_path / "dataset_info.json").write_text("{}")  # a description: no text
    counts = Counts()
    assert read(tmp_path, counts) == [GERMAN, "b\r\n"] * 2
    assert (counts.files, counts.documents, counts.empty) == (2, 4, 4)
    assert read(tmp_path / "d.jsonl", text_column="url", max_bytes=1) == ["x"]
    assert read(tmp_path / "d.jsonl", format="Text")[0].startswith('{"text"')


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('{"body": "a"}\n', "textColumn", "line 1 has no column text; one of: body"),
        ('{"text": "a"}\n{"text": [1]}\n', "textColumn", "line 2: 'text' holds list, not text"),
        ('[{"text": "a"}]\n', "uri", "line 1 is not a JSON object; write one object a line"),
        ('{\n "text": "a"\n}\n', "uri", "line 1 is not a JSON object"),
        ('{"text": "a"}\n{"text": "b', "uri", "line 2 is not a JSON object"),
        ("[" * 100_000, "uri", "line 1 is not a JSON object"),
    ],
)
def test_json_that_is_no_table_of_texts_is_refused_with_its_line(tmp_path, text, field, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    error = refused(path)
    assert error.field == f"{FIELD}.{field}"
    assert words in str(error)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.int64(), pa.binary()])
def test_a_column_that_holds_no_text_is_refused(tmp_path, kind):
    values = {"list": [[1, 2]], "int64": [1], "binary": [b"abc"]}[str(kind).split("<")[0]]
    pq.write_table(pa.table({"text": pa.array(values, kind)}), tmp_path / "a.parquet")
    error = refused(tmp_path)
    assert error.field == f"{FIELD}.textColumn"
    assert "a.parquet: column text holds" in error.rule


def test_a_column_of_categories_is_text(tmp_path):
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path) == ["a", "b", "a"]


# ----------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_is_followed_and_no_text(tmp_path, mark, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + GERMAN.encode(encoding))
    counts = Counts()
    assert read(path, counts) == [GERMAN]
    assert counts.not_text == 0


def test_line_ends_become_line_feeds(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\nd\r")
    assert read(path) == ["a\nb\nc\nd\n"]


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("latin-1", ["11 % of it is not UTF-8", "iconv"]),
        ("utf-16-le", ["50 % of it is NUL bytes", "UTF-16"]),
    ],
)
def test_another_encoding_is_refused_with_the_share(tmp_path, encoding, words):
    path = tmp_path / "a.txt"
    path.write_bytes(GERMAN.encode(encoding))
    error = refused(tmp_path)
    for word in ["a.txt", *words]:
        assert word in str(error), str(error)


def test_a_few_bad_bytes_in_much_text_are_counted(tmp_path):
    path = tmp_path / "a.txt"
    good = "\ufffd and plain words\n" * 200_000  # its own replacement characters are text
    path.write_bytes(good.encode() + b"caf\xe9\n\xff")
    counts = Counts()
    assert read(path, counts) == [good + "caf\ufffd\n\ufffd"]
    assert counts.not_text == 2


def test_the_standard_librarys_text_is_what_it_was():
    """Recorded runs and the quickstart depend on it to the byte."""
    found = read("python-stdlib:", max_bytes=4_000_000)
    root = Path(sysconfig.get_paths()["stdlib"])
    files = source_files(TextSource(uri="python-stdlib:"), FIELD)
    assert all(root in one.parents for one in files)
    expected = [one.read_text(encoding="utf-8", errors="replace") for one in files[: len(found)]]
    assert found[:-1] == expected[:-1]
    assert expected[-1].startswith(found[-1])


# ------------------------------------------------------------------------------------------ folders


def test_a_mounted_config_map_is_read_once(tmp_path):
    data = tmp_path / "..2026_11_27"
    data.mkdir()
    (data / "a.txt").write_text("one")
    (tmp_path / "..data").symlink_to(data.name)
    (tmp_path / "a.txt").symlink_to("..data/a.txt")
    assert read(tmp_path) == ["one"]


def test_hidden_files_and_what_editors_leave_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\26\7")
    (tmp_path / "._train-00000.parquet").write_bytes(b"\0\5\26\7")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.txt").write_text("again")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("again")
    assert read(tmp_path) == ["one"]


def test_links_are_followed_and_loops_end(tmp_path):
    inner = tmp_path / "data" / "in"
    inner.mkdir(parents=True)
    (inner / "a.txt").write_text("one")
    (inner / "up").symlink_to("..")
    (tmp_path / "data" / "linked").symlink_to("in")
    (tmp_path / "data" / "b.txt").symlink_to("in/a.txt")
    assert read(tmp_path / "data") == ["one"]


def test_a_hidden_folder_that_is_named_is_read(tmp_path):
    (tmp_path / ".text").mkdir()
    (tmp_path / ".text" / "a.txt").write_text("one")
    assert read(tmp_path / ".text") == ["one"]


def test_names_that_are_no_utf_8_are_read(tmp_path):
    (tmp_path / os.fsdecode(b"\xdcbung.txt")).write_text("one")
    assert read(tmp_path) == ["one"]
    data = Data(train=TextSource(uri=str(tmp_path)), sequence_length=8)
    with pytest.raises(DataError, match="fewer than one window"):
        prepare(data, tmp_path / "t", progress=False)


# ------------------------------------------------------------------------------------------- memory


@given(st.text("ab \n.", max_size=90), st.integers(2, 9), st.integers(1, 30))
def test_pieces_are_the_text_and_cut_behind_a_word(text, size, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forkcast_trainer.data.decode.PIECE", size)
        patch.setattr("forkcast_trainer.data.decode.LONGEST", size + more)
        found = list(cut(text))
    assert "".join(found) == text
    assert all(0 < len(one) <= size + more for one in found) or not text
    for left, right in itertools.pairwise(found):
        assert (left[-1] in "ab" and right[0] in " \n.") or len(left) == size + more


def test_memory_does_not_grow_with_the_text(tmp_path):
    path = tmp_path / "big.txt"
    with path.open("w") as file:
        for _ in range(60):
            file.write("some words of a text.\n" * 50_000)  # 1.1 MB each
    source = TextSource(uri=str(path))
    tracemalloc.start()
    try:
        train, held = prepare(
            Data(train=source, sequence_length=64), tmp_path / "t", progress=False
        )
        batches = ValidationBatches(Windows(alone(held), 64), 8, 1 << 30)
        rows = sum(len(one) for one in batches)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == (held.count - 1) // 64
    assert train.count + held.count == path.stat().st_size + 1
    assert most < path.stat().st_size / 2


def test_max_bytes_reads_no_further(tmp_path):
    path = tmp_path / "big.txt.gz"
    data = gzip.compress(b"some words of a text.\n" * 500_000)
    path.write_bytes(data[: len(data) // 2] + b"damaged" * 100)
    text = read(path, max_bytes=1_000_000)
    assert len(text[0]) == 1_000_000


# ------------------------------------------------------------------------------- end-of-text marks


def test_a_literal_end_of_text_mark_is_text_in_both_layouts(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["a line"] * 9, vocab_size=270, special_tokens=["<|endoftext|>"])
    for name in ("bpe", "hf"):
        (tmp_path / name).mkdir()
    trained.save_model(str(tmp_path / "bpe"))
    trained.save(str(tmp_path / "hf" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_text("a line<|endoftext|>\n" * 40)
    found = []
    for name in ("bpe", "hf"):
        data = Data(
            train=TextSource(uri=str(tmp_path / "text.txt")),
            tokenizer=str(tmp_path / name),
            sequence_length=8,
        )
        train, _ = prepare(data, tmp_path / "t", progress=False)
        ids = train.file.array
        found.append(ids.tolist())
        assert int((ids == train.file.end_of_text).sum()) == 1  # the one behind the document
    assert found[0] == found[1]
