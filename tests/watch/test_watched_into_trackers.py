"""A watched loop into trackers that are named by text, and its folder read back."""

from __future__ import annotations

import json

import pytest
import torch

import forkcast
from forkcast_watch import WatchError
from tests.watch.toys import Toy, batch


def train(steps, folder, *trackers):
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    with forkcast.watch(model, optimizer, folder=folder, trackers=trackers) as watch:
        for step in range(steps):
            loss = model.loss(batch(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss)
            losses.append(loss.item())
    return losses


class Refusing:
    """A tracker of the user's own, that cannot."""

    def step(self, stats, index):
        raise ConnectionError("away")

    def event(self, event):
        raise ConnectionError("away")

    def close(self):
        raise ConnectionError("away")


def test_every_step_is_in_each_tracker_and_in_the_loaded_run(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    losses = train(12, tmp_path / "run", f"jsonl:{path}", Refusing())
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["step"] for one in written] == list(range(12))
    assert [one["loss"] for one in written] == losses
    assert [r.message for r in caplog.records if "tracker" in r.message] == [
        "tracker Refusing: ConnectionError: away; training goes on without it"
    ]
    run = forkcast.load_run(tmp_path / "run")
    assert run.steps()["loss"].to_pylist() == losses
    assert run.run_uid == written[0]["run_uid"]
    assert run.name == "run"


def test_a_tracker_that_does_not_exist_is_one_error_before_anything_is_hooked(tmp_path):
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(WatchError, match="trackers: 'tensorbord:x' names no tracker"):
        forkcast.watch(model, optimizer, folder=tmp_path / "run", trackers=["tensorbord:x"])
    assert not model._forward_hooks
    watch = forkcast.watch(model, optimizer, folder=tmp_path / "run")  # its folder is free again
    watch.close()
