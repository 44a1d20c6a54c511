"""Small files are replaced whole or not at all."""

import os
import subprocess
import sys

import pytest

from forkcast_wire.files import replace_bytes, replaced, sweep


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole(tmp_path, durable):
    path = tmp_path / "a.json"
    replace_bytes(path, b"one", durable=durable)
    replace_bytes(path, b"two", durable=durable)
    assert path.read_bytes() == b"two"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_the_old_bytes_are_there_until_the_new_ones_are_complete(tmp_path):
    path = tmp_path / "a.json"
    replace_bytes(path, b"one")
    with replaced(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"


def test_what_fails_on_the_way_changes_nothing_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    replace_bytes(path, b"one")

    def fail():
        with replaced(path) as file:
            file.write(b"tw")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "monitor/triggers").mkdir(parents=True)
    left = [
        tmp_path / f"{name}.{dead.pid}.part" for name in ("run.json", "monitor/triggers/1.json")
    ]
    kept = [tmp_path / f"run.json.{os.getpid()}.part", tmp_path / "notes.part", tmp_path / "a.json"]
    for path in (*left, *kept):
        path.write_bytes(b"x")
    sweep(tmp_path)
    assert [path.exists() for path in (*left, *kept)] == [False] * 2 + [True] * 3
