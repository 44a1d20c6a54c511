"""docs/checkpoint-format.md is enough to read a state, and says what the shipped schema says."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from forkcast.records import StateKind
from forkcast_trainer import checkpoint, container_v2, schema, state
from forkcast_trainer.checkpoint import Snapshot, read_container, write_container
from forkcast_trainer.frame_codecs import CODECS
from forkcast_trainer.table import DTYPES, MAGIC, Role
from forkcast_wire import keys
from forkcast_wire.documents import STATE_FORMAT, read_manifest
from forkcast_wire.store import FolderStore
from tests.trainer import containers

DATA = Path(__file__).parents[1] / "data" / "state_v1"

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint-format.md").read_text()
LETTERS = {"float32": "f", "float64": "d", "int64": "q", "int32": "i", "uint8": "B", "bool": "?"}


@pytest.fixture
def read():
    """The reader that the page gives: struct, json, digests and zstandard, nothing of the project."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "forkcast" not in source
    assert "torch" not in source
    names = {}
    exec(compile(source, "checkpoint-format.md", "exec"), names)
    return names["read"]


@pytest.mark.parametrize("level", [0, 1])
def test_the_pages_reader_decodes_a_real_state(make_engine, read, tmp_path, level):
    one = make_engine(processes=2)
    for _ in range(3):
        one.step()
    saved = state.snapshot(one)
    folder = keys.state(StateKind.CHECKPOINT, 0, 0, 3)
    store = FolderStore(tmp_path / "s")
    ref = checkpoint.publish(store, saved, folder, StateKind.CHECKPOINT, tmp_path / "x", level)
    manifest, meta, tensors = read(tmp_path / "s" / folder)
    assert manifest["format_version"] == 2
    assert (manifest["run_uid"], manifest["lossless"]) == ("u", True)
    assert manifest["state"]["size_bytes"] == ref.size_bytes
    assert meta == json.loads(json.dumps(saved.meta))
    assert tensors.keys() == saved.tensors.keys()
    assert {"rng.torch.rank1", "model.transformer.wte.weight"} <= tensors.keys()
    for name, (dtype, shape, raw) in tensors.items():
        count = len(raw) // struct.calcsize(f"<{LETTERS[dtype]}")
        values = struct.unpack(f"<{count}{LETTERS[dtype]}", raw)
        expected = saved.tensors[name]
        assert list(expected.shape) == shape
        assert torch.equal(torch.tensor(values, dtype=expected.dtype).reshape(shape), expected)


def test_the_pages_reader_puts_planes_and_chunks_together(read, tmp_path):
    """Of every dtype, several chunks a tensor; the engine's own state has only one of each. And of
    every codec: moments over many powers of two, some of them 0.
    """
    state = {
        name: (torch.arange(999) % 2 * 50).to(dtype).reshape(27, 37)
        for name, dtype in DTYPES.items()
    }
    draw = torch.Generator().manual_seed(3)
    first = torch.randn(27, 37, generator=draw) * 2.0 ** torch.arange(-18, 19)
    state |= {"signed": first, "first": first * (first > 0), "second": first.square()}
    state["second"][3:9] = 0
    roles = {"first": Role.FIRST_MOMENT, "second": Role.SECOND_MOMENT}
    meta = {"run_uid": "u", "epoch": 0, "attempt": 0, "step": 7}
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {
                "format_version": 2,
                "state": {
                    "step": 7,
                    "digest": write_container(
                        Snapshot(meta, state, roles),
                        tmp_path / "cp_7.ptz",
                        1,
                        chunk_bytes=1320,
                        int8=True,
                    ),
                },
            }
        )
    )
    _, told, tensors = read(tmp_path)
    assert told == meta
    state |= {name: read_container(tmp_path / "cp_7.ptz").tensors[name] for name in roles}
    for name, tensor in state.items():
        assert tensors[name] == (
            str(tensor.dtype).removeprefix("torch."),
            [27, 37],
            bytes(tensor.reshape(-1).view(torch.uint8).numpy()),
        )
    rows = containers.parts(tmp_path / "cp_7.ptz")[0]["tensors"]
    assert {frame[2] for row in rows for frame in row["frames"]} == set(CODECS)


def test_the_pages_reader_reads_version_1(read, tmp_path):
    store = FolderStore(DATA)
    for kind in (StateKind.RING, StateKind.CHECKPOINT):
        folder = keys.state(kind, 0, 0, 7)
        manifest, meta, tensors = read(DATA / folder)
        ref = read_manifest(store, folder).state
        saved = checkpoint.fetch(store, ref, tmp_path / "x", "u")
        assert (manifest["format_version"], meta) == (1, saved.meta)
        assert {name: raw for name, (_, _, raw) in tensors.items()} == {
            name: bytes(t.reshape(-1).view(torch.uint8).numpy()) if t.numel() else b""
            for name, t in saved.tensors.items()
        }


def test_what_the_page_says_of_the_container_is_the_codes():
    said = re.search(r"\| `dtype` \| string \| (.*) \|", PAGE).group(1)
    assert re.findall(r"`(\w+)`", said) == list(DTYPES)
    magic = bytes.fromhex(re.search(r"magic: `([0-9A-F ]+)`", PAGE).group(1))
    assert magic == MAGIC + bytes([STATE_FORMAT])
    table = PAGE.split("| codec | the frame |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(CODECS)
    unit, most, taken = re.search(
        r"a multiple of (\d+), up to (\d+); a writer takes (\d+)", PAGE
    ).groups()
    limits = (container_v2._CHUNK_UNIT, container_v2._MOST_CHUNK, container_v2.CHUNK_BYTES)
    assert (int(unit), int(most), int(taken)) == limits


def test_the_head_that_the_page_draws_is_the_files(tmp_path):
    """Its table row by row: offset, length and meaning."""
    drawn = PAGE.split("## The container\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\S+) \| (\S[^|]*) \| (.*) \|$", drawn, re.MULTILINE)[1:]
    path = tmp_path / "x.ptz"
    digest = write_container(Snapshot({"a": 1}, {"t": torch.ones(3)}), path, 0)
    data = path.read_bytes()
    place, length = container_v2._HEAD.unpack(data[:64])[1:3]
    values = {"I": place, "I - 64": place - 64, "L": length}
    spans = [(values.get(at) or int(at), values.get(n) or int(n), what) for at, n, what in rows]
    assert [at for at, *_ in spans][1:] == [at + n for at, n, _ in spans][:-1]
    assert sum(spans[-1][:2]) == len(data)
    pieces = {what.split(",")[0].split(":")[0]: data[at : at + n] for at, n, what in spans}
    assert list(pieces)[3:] == ["sha256 of the index's bytes", "zeros", "the frames", "the index"]
    assert pieces["I"] + pieces["L"] == struct.pack("<QQ", place, length)
    assert pieces["sha256 of the index's bytes"].hex() == digest
    assert pieces["zeros"] == bytes(8)
    assert pieces["the frames"] == struct.pack("<3f", 1, 1, 1)
    assert json.loads(pieces["the index"]) == {
        "chunk_bytes": container_v2.CHUNK_BYTES,
        "meta": {"a": 1},
        "tensors": [
            {
                "name": "t",
                "dtype": "float32",
                "shape": [3],
                "frames": [[64, 12, "raw", blake3(pieces["the frames"]).hexdigest()]],
            }
        ],
    }


def test_its_tables_of_the_state_are_the_shipped_schema():
    loaded = schema.schema()
    for name, rule in loaded["meta"].items():
        kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        absent = "" if rule.get("required", True) else ", may be absent"
        assert f"| `{name}` | {' or '.join(kinds)}{absent} | {rule['about']} |\n" in PAGE
    for name, rule in loaded["tensors"].items():
        kinds = "any" if rule["dtype"] == "any" else ", ".join(rule["dtype"])
        absent = "" if rule.get("required", True) else ", may be absent"
        assert f"| `{name}` | {kinds}{absent} | {rule['about']} |\n" in PAGE
    tables = PAGE.split("## The state")[1].split("## Format version 1")[0]
    rows = re.findall(r"^\| `([\w.<>]+)` \|", tables, re.MULTILINE)
    assert set(rows) == {*loaded["meta"], *loaded["tensors"]}
