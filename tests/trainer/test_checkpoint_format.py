"""docs/checkpoint-format.md is enough to read a state, and says what the shipped schema says."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch

from forkcast.records import StateKind
from forkcast_trainer import checkpoint, schema, state
from forkcast_wire import keys
from forkcast_wire.store import FolderStore

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint-format.md").read_text()
LETTERS = {"float32": "f", "float64": "d", "int64": "q", "int32": "i", "uint8": "B", "bool": "?"}


@pytest.fixture
def read():
    """The reader that the page gives: struct, json, hashlib and zstandard, nothing of the project."""
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
    assert manifest["format_version"] == 1
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


def test_the_table_of_dtypes_is_the_codes():
    said = re.search(r"\| `dtype` \| string \| (.*) \|", PAGE).group(1)
    assert set(re.findall(r"`(\w+)`", said)) == set(checkpoint._DTYPES)
    magic = bytes.fromhex(re.search(r"magic: `([0-9A-F ]+)`", PAGE).group(1))
    assert magic == checkpoint.MAGIC


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
    rows = re.findall(r"^\| `([\w.<>]+)` \|", PAGE.split("## The state")[1], re.MULTILINE)
    assert set(rows) == {*loaded["meta"], *loaded["tensors"]}
