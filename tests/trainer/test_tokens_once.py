"""Tokens are those of the whole text, wherever it is cut and with any number of processes, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from forkcast_trainer.data import encoding, text, tokens
from forkcast_trainer.data.batch import Batch, pack, read_frame, unpack, write_frame
from forkcast_trainer.data.decode import cut
from forkcast_trainer.data.encoding import batches, encoded
from forkcast_trainer.data.text import Piece, pieces
from forkcast_trainer.data.tokenizer import open_tokenizer
from forkcast_trainer.errors import DataError
from forkcast_wire.cores import quota, usable_cores
from forkcast_wire.manifest import Data, TextSource
from tests.trainer.prepared import prepare

FIELD = "spec.data.train"
WORDS = "Größe  and\n\nplain words, 東京's 1234 end. \t don't stop;\n\tcafe\u0301 x² naïve\u00a0pad"
GPT2 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gpt2-bpe"
#: The patterns by which GPT-2, and Llama 3 and Qwen, part a text.
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _fast(kind, folder):
    """A small trained tokenizer of a kind, in a folder."""
    from tokenizers import ByteLevelBPETokenizer, Regex, Tokenizer, models, normalizers, trainers
    from tokenizers import pre_tokenizers as before

    texts = [WORDS] * 20
    if kind == "gpt2":
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(texts, vocab_size=330, special_tokens=["<|endoftext|>"])
        bpe.save_model(str(folder))
        return
    if kind == "llama3":
        made = Tokenizer(models.BPE())
        split = before.Split(Regex(LLAMA), behavior="isolated")
        made.pre_tokenizer = before.Sequence([split, before.ByteLevel(False, use_regex=False)])  # noqa: FBT003
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            initial_alphabet=before.ByteLevel.alphabet(),
            special_tokens=["</s>"],
            show_progress=False,
        )
    elif kind == "t5":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = before.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )
    else:  # Llama 2: a space before every text
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=80, special_tokens=["</s>", "<unk>"], show_progress=False
        )
        texts = [word for one in texts for word in one.split(" ")]  # no token of two words
    made.train_from_iterator(texts, trainer)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """kind -> an opened tokenizer."""
    found = {"bytes": open_tokenizer("bytes")}
    for kind in ("gpt2", "llama3", "t5", "llama2"):
        folder = tmp_path_factory.mktemp(kind)
        _fast(kind, folder)
        found[kind] = open_tokenizer(str(folder))
    return found


def _in_pieces(tokenizer, whole):
    parts = list(cut(whole))
    ids = [tokenizer.encode(one, goes_on=number > 0) for number, one in enumerate(parts)]
    return np.concatenate(ids).tolist(), len(parts)


@pytest.mark.parametrize("kind", ["bytes", "gpt2", "llama3", "t5", "llama2"])
def test_pieces_tokenise_as_the_whole(tokenizers, kind, monkeypatch):
    monkeypatch.setattr("forkcast_trainer.data.decode.PIECE", 40)
    whole = "the " + WORDS * 50
    ids, parts = _in_pieces(tokenizers[kind], whole)
    assert parts > 30
    assert ids == tokenizers[kind].encode(whole).tolist()


_ALPHABET = "ab1 \n\t\r.,;'\u2019sé東京 \u0301\u00a0\u3000。<|>²\u200b🙂"


@settings(max_examples=300)
@given(whole=st.text(_ALPHABET, max_size=120) | st.text(max_size=60), size=st.integers(1, 9))
@pytest.mark.parametrize("kind", ["bytes", "gpt2", "llama3"])
def test_any_text_in_pieces_tokenises_as_the_whole(tokenizers, kind, size, whole):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forkcast_trainer.data.decode.PIECE", size)
        ids, _ = _in_pieces(tokenizers[kind], whole)
        assert ids == tokenizers[kind].encode(whole).tolist()
        patch.setattr("forkcast_trainer.data.decode.LONGEST", 121)  # the second choice of seams
        ids, _ = _in_pieces(tokenizers[kind], whole + "." * 121)
        assert ids == tokenizers[kind].encode(whole + "." * 121).tolist()


def test_a_file_is_cut_through_no_character(tokenizers, tmp_path, monkeypatch):
    """Reads end within characters of two, three and four bytes."""
    whole = "Größe 東京 🙂 plain, " * 400
    path = tmp_path / "a.txt"
    path.write_text(whole, encoding="utf-8")
    monkeypatch.setattr("forkcast_trainer.data.decode.PIECE", 50)
    expected = [*tokenizers["gpt2"].encode(whole).tolist(), tokenizers["gpt2"].end_of_text]
    for chunk in (1, 7, 64, 1001):
        monkeypatch.setattr("forkcast_trainer.data.decode._CHUNK", chunk)
        found = encoded(batches(pieces(TextSource(uri=str(path)), FIELD)), tokenizers["gpt2"], 1)
        ids = np.frombuffer(b"".join(part for _, part in found), dtype="uint16")
        assert ids.tolist() == expected


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's vocabulary is not beside the checkout")
def test_gpt2s_own_vocabulary_gives_the_tokens_of_the_whole():
    tokenizer = open_tokenizer(str(GPT2))
    source = TextSource(uri="python-stdlib:", max_bytes=600_000)
    whole = "".join(text for text, _ in pieces(source, FIELD)) + "Größe 東京 🙂, don't\n\n " * 2000
    ids, parts = _in_pieces(tokenizer, whole)
    assert parts > 30
    assert ids == tokenizer.encode(whole).tolist()


# ------------------------------------------------------------------------------------------ reading


class _Counted(io.RawIOBase):
    """A file that counts what was read of it."""

    def __init__(self, path):
        self.inner, self.read_bytes = path.open("rb", buffering=0), 0

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self.inner.readinto(buffer)
        self.read_bytes += count
        return count


_BUFFER = io.DEFAULT_BUFFER_SIZE


@pytest.mark.parametrize("most", [1, 1000, 100_000, 3_000_000])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_max_bytes_reads_no_further(tmp_path, monkeypatch, name, most):
    line = "some words of a text, ü"
    rows = line + "\n" if name == "a.txt" else json.dumps({"text": line}) + "\n"
    (tmp_path / name).write_text(rows * 200_000, encoding="utf-8")
    counted = _Counted(tmp_path / name)
    monkeypatch.setattr(text, "opened", lambda *_: io.BufferedReader(counted))
    found = "".join(one for one, _ in pieces(TextSource(uri=str(tmp_path), max_bytes=most), FIELD))
    assert most - 2 < len(found.encode()) <= most
    raw = most if name == "a.txt" else most * len(rows) / len(line.encode())
    assert counted.read_bytes <= raw + 2 * _BUFFER


def test_a_file_behind_max_bytes_is_not_opened(tmp_path):
    (tmp_path / "a.txt").write_text("enough words")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"x")[:5] + b"damaged")
    assert [*pieces(TextSource(uri=str(tmp_path), max_bytes=6), FIELD)] == [Piece("enough", True)]  # noqa: FBT003


def test_latin_1_is_refused_also_within_max_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("größer und größer\n".encode("latin-1") * 1000)
    with pytest.raises(DataError, match="not UTF-8"):
        list(pieces(TextSource(uri=str(tmp_path), max_bytes=9000), FIELD))


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_LONGEST_LINE", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "b " * (1 << 20))
    with pytest.raises(DataError, match="line 2 is longer than 1 MiB; write one object a line"):
        list(pieces(TextSource(uri=str(tmp_path)), FIELD))


def test_a_table_is_read_a_page_at_a_time(tmp_path):
    rows = [random.Random(n).randbytes(500).hex() for n in range(40_000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", compression="none")
    found = pieces(TextSource(uri=str(tmp_path)), FIELD)
    before = pa.total_allocated_bytes()
    assert next(found).text == rows[0]
    assert pa.total_allocated_bytes() - before < (tmp_path / "a.parquet").stat().st_size / 4
    assert sum(1 for _ in found) == len(rows) - 1


# ---------------------------------------------------------------------------------------- processes


def test_a_frame_carries_a_batch():
    batch = Batch(["", "Größe", "x" * 70_000], [False, True, False], [True, False, True])
    file = io.BytesIO()
    write_frame(file, pack(batch))
    file.seek(0)
    assert unpack(read_frame(file)) == batch
    for size in (0, 5, 20, len(file.getvalue()) - 1):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(file.getvalue()[:size]))


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Text of several batches in a folder of three documents, and GPT-2's kind of tokenizer."""
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 2000)
    monkeypatch.setattr("forkcast_trainer.data.decode.PIECE", 200)
    folder, tokenizer = tmp_path / "text", tmp_path / "gpt2"
    folder.mkdir()
    tokenizer.mkdir()
    _fast("gpt2", tokenizer)
    for name in "abc":
        (folder / f"{name}.txt").write_text(name + WORDS * 200, encoding="utf-8")
    return Data(train=TextSource(uri=str(folder)), tokenizer=str(tokenizer), sequence_length=8)


def test_the_tokens_do_not_depend_on_the_number_of_workers(many, tmp_path):
    found = [
        prepare(many, tmp_path / f"t{count}", progress=False, workers=count)[0].file
        for count in (1, 2, 3)
    ]
    assert len({(one.sha256, one.count, one.path.name) for one in found}) == 1
    assert len({one.path.read_bytes() for one in found}) == 1


def test_the_workers_end_with_the_text(many, tmp_path, monkeypatch):
    started = []

    def noted(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(encoding.subprocess, "Popen", noted)
    prepare(many, tmp_path / "t", progress=False, workers=2)
    assert len(started) == 2
    found = encoded(batches(pieces(many.train, FIELD)), open_tokenizer(many.tokenizer), 2)
    for _ in range(9):
        next(found)
    found.close()  # an interrupt, or a full disk
    assert len(started) == 4
    assert all(one.poll() is not None for one in started)


def test_what_a_dead_worker_leaves_is_done_here(many, tmp_path, monkeypatch):
    whole = prepare(many, tmp_path / "t1", progress=False, workers=1)[0].file
    popen, started = subprocess.Popen, []

    def doomed(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        os.kill(started[-1].pid, signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(encoding.subprocess, "Popen", doomed)
    again = prepare(many, tmp_path / "t2", progress=False, workers=2)[0].file
    assert len(started) == 2
    assert again.sha256 == whole.sha256


def test_a_worker_ends_when_its_input_does(tokenizers):
    command = [sys.executable, "-m", "forkcast_trainer.data.encode_worker"]
    facts = [tokenizers["gpt2"].described.encode(), b"0", b"uint16"]
    file = io.BytesIO()
    write_frame(file, facts)
    write_frame(file, pack(Batch(["plain words"], [False], [True])))
    ended = subprocess.run(command, input=file.getvalue(), capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    (ids,) = read_frame(io.BytesIO(ended.stdout))
    expected = [*tokenizers["gpt2"].encode("plain words").tolist(), 0]
    assert np.frombuffer(ids, dtype="uint16").tolist() == expected


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_the_cores_is_kept_to(tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert quota(tmp_path) == (cores or sys.maxsize)
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


_CHILD = """
import re, sys
from pathlib import Path
from forkcast_trainer.data.tokens import prepare
from forkcast_wire.manifest import Data, TextSource
data = Data(train=TextSource(uri=sys.argv[1]), tokenizer=sys.argv[2], sequence_length=64)
found = prepare(data, Path(sys.argv[3]), progress=False, workers=1)
status = Path("/proc/self/status").read_text()  # ru_maxrss also counts the process that forked this one
print(sum(text.count for text in (*found.train, *found.held)), re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


def test_the_memory_of_the_process_does_not_grow_with_the_text(tmp_path):
    peaks = []
    for megabytes in (4, 64):
        path = tmp_path / f"{megabytes}.txt"
        path.write_text("some words of a text, and more.\n" * (megabytes << 15))
        command = [sys.executable, "-c", _CHILD, path, "bytes", tmp_path / "t"]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        count, peak = map(int, ended.stdout.splitlines()[-1].split())
        assert count == path.stat().st_size + 1
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 24 << 10  # KiB


def test_the_log_tells_every_ten_seconds_how_far_it_is():
    now = [100.0]
    with capture_logs() as lines:
        told = tokens._Lines(FIELD, lambda: now[0])
        for _ in range(25):
            now[0] += 1
            told.add(500_000)
    assert [(one["event"], one["millions"], one["per_second"]) for one in lines] == [
        ("data.tokenising", 5.0, 500_000),
        ("data.tokenising", 10.0, 500_000),
    ]
