"""The statistics history as its readers see it."""

from __future__ import annotations

import json

import pytest

from forkcast_wire.statistics import newest_steps, read_history, write_chunk


def row(epoch: int, step: int) -> dict:
    return {"epoch": epoch, "attempt": 0, "rank": 0, "step": step, "group_grad_norms": {}}


@pytest.mark.parametrize("first_steps", [None, {0: 0, 1: 0}])
def test_before_the_first_chunk_there_is_nothing(tmp_path, first_steps) -> None:
    assert read_history(tmp_path, first_steps) == []
    assert newest_steps(tmp_path) == {}


def test_the_newest_step_of_each_epoch(tmp_path) -> None:
    write_chunk([row(0, step) for step in range(5)], tmp_path)
    write_chunk([row(1, step) for step in (3, 4)], tmp_path)
    last = {**row(1, 7), "run_uid": "u", "tokens": 0}
    (tmp_path.parent / f"{tmp_path.name}.tail.jsonl").write_text(json.dumps(last) + "\n")
    assert newest_steps(tmp_path) == {0: 4, 1: 7}
