"""Attaching and detaching, in this process: what is left behind, and what bad settings say."""

from __future__ import annotations

import copy
import json
import os
import threading

import psutil
import pytest
import torch
from torch import nn

import forkcast
from forkcast_watch import WatchError
from forkcast_watch.events import event_in
from forkcast_watch.trackers.base import Held
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.statistics import read_history
from tests.watch.toys import Toy, batch


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy()


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model, optimizer, watch, steps=4):
    for step in range(steps):
        loss = model.loss(batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.step(loss)


def hooks_of(model, optimizer):
    found = list(optimizer._optimizer_step_pre_hooks) + list(optimizer._optimizer_step_post_hooks)
    for module in model.modules():
        found += [*module._forward_hooks, *module._forward_pre_hooks]
    for p in model.parameters():
        found += list(p._post_accumulate_grad_hooks or ())
    return found


def children():
    return {one.pid for one in psutil.Process().children() if one.status() != "zombie"}


def threads():
    return {one.name for one in threading.enumerate()}


@pytest.fixture
def nothing_is_left(toy):
    before = children(), threads()
    yield
    assert not children() - before[0]
    assert not threads() - before[1]


def test_after_close_no_hook_thread_or_process_is_left(toy, tmp_path, nothing_is_left):
    optimizer = adam(toy)
    watch = forkcast.watch(toy, optimizer, folder=tmp_path / "run")
    train(toy, optimizer, watch)
    assert hooks_of(toy, optimizer)
    sockets = watch._sink.process._sockets
    watch.close()
    watch.close()
    assert not hooks_of(toy, optimizer)
    assert not sockets.exists()
    assert len(read_history(tmp_path / "run" / "statistics")) == 4
    train(toy, optimizer, watch, steps=1)  # a loop that has not noticed
    assert len(read_history(tmp_path / "run" / "statistics")) == 4


def test_an_exception_in_a_with_block_detaches(toy, tmp_path, nothing_is_left):
    optimizer = adam(toy)

    def breaks():
        with forkcast.watch(toy, optimizer, folder=tmp_path / "run") as watch:
            train(toy, optimizer, watch)
            toy(torch.full((1, 3), 1000))

    with pytest.raises(IndexError):
        breaks()
    assert not hooks_of(toy, optimizer)


def test_an_exception_in_a_step_of_the_trainer_detaches(tmp_path, nothing_is_left):
    pytest.importorskip("accelerate", reason="accelerate is not installed; it is in the extra dev")
    from transformers import Trainer, TrainingArguments

    from tests.watch.loops import gpt2

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=5,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        per_device_train_batch_size=4,
        disable_tqdm=True,
    )
    good = [{"input_ids": ids, "labels": ids} for ids in batch(0)]
    bad = [{"input_ids": ids + 1000, "labels": ids} for ids in batch(0)]

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(gpt2(), arguments, train_dataset=good + bad)
    forkcast.watch(trainer)
    with pytest.raises(IndexError):
        trainer.train()
    assert "training_step" not in trainer.__dict__
    assert not hooks_of(trainer.model, trainer.optimizer.optimizer)
    assert len(read_history(tmp_path / "forkcast" / "statistics")) == 1


def test_a_compiled_model_is_watched_without_its_attention(toy, tmp_path):
    compiled = torch.compile(toy, backend="aot_eager")
    optimizer = adam(toy)

    def losses(watch):
        torch.manual_seed(0)
        found = []
        for step in range(4):
            logits = compiled(batch(step)[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch(step)[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if watch is not None:
                watch.step(loss)
            found.append(loss.item())
        return found

    start = {name: value.clone() for name, value in toy.state_dict().items()}
    bare = losses(None)
    toy.load_state_dict(start)
    optimizer = adam(toy)
    with forkcast.watch(compiled, optimizer, folder=tmp_path / "run") as watch:
        assert losses(watch) == bare
    assert "compiled" in watch.not_measured["attention and activations"]
    rows = read_history(tmp_path / "run" / "statistics")
    assert all(row["grad_norm"] > 0 for row in rows)


def test_trackers_get_each_step_and_event_and_may_fail(toy, tmp_path):
    class Kept:
        steps, events = [], []

        def held(self):
            return Held()

        def step(self, stats, index):
            self.steps.append(stats.step)

        def event(self, event):
            self.events.append((event.step, event.tier))

        def close(self):
            self.steps.append("closed")

    class Broken(Kept):
        def step(self, stats, index):
            raise OSError("no place")

    optimizer = adam(toy)
    lines = tmp_path / "steps.jsonl"
    with forkcast.watch(
        toy, optimizer, folder=tmp_path / "run", trackers=[Kept(), Broken(), f"jsonl:{lines}"]
    ) as watch:
        train(toy, optimizer, watch)
        watch.step(float("nan"))
    assert Kept.steps[:5] == [0, 1, 2, 3, 4]
    assert "closed" in Kept.steps
    assert Kept.events
    assert Kept.events[0][0] == 4
    assert [json.loads(line).get("step") for line in lines.read_text().splitlines()][:4] == [
        0,
        1,
        2,
        3,
    ]


def test_what_is_no_step_of_the_training_is_not_sampled(toy, tmp_path):
    optimizer = adam(toy)
    with forkcast.watch(toy, optimizer, folder=tmp_path / "run", inside_every=1) as watch:
        train(toy, optimizer, watch, steps=2)
        toy.eval()
        with torch.no_grad():
            watch.validation(float(toy.loss(batch(9))))
        toy.train()
        train(toy, optimizer, watch, steps=1)
    rows = read_history(tmp_path / "run" / "statistics")
    assert [row["validation_loss"] is not None for row in rows] == [False, True, False]


def test_a_copy_or_a_pickle_of_a_watched_model_has_no_hook_of_ours(toy, tmp_path):
    optimizer = adam(toy)
    with forkcast.watch(toy, optimizer, folder=tmp_path / "run", inside_every=1) as watch:
        copied = copy.deepcopy(toy)
        torch.save(toy, tmp_path / "whole.pt")
        assert b"forkcast" not in (tmp_path / "whole.pt").read_bytes()
        saved = torch.load(tmp_path / "whole.pt", weights_only=False)
        for other in (copied, saved):
            other.train()
            other.loss(batch(0)).backward()  # samples nothing of the watched one
        train(toy, optimizer, watch, steps=2)
    assert not watch.not_measured
    assert all(row["attention_entropy"] for row in read_history(tmp_path / "run" / "statistics"))


def test_a_forked_child_ends_nothing_of_its_parents(toy, tmp_path):
    optimizer = adam(toy)
    with forkcast.watch(toy, optimizer, folder=tmp_path / "run") as watch:
        train(toy, optimizer, watch, steps=1)
        child = os.fork()
        if child == 0:
            watch.close()  # as at the child's exit
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert watch._sink.process.process.poll() is None
        train(toy, optimizer, watch, steps=1)
    assert len(read_history(tmp_path / "run" / "statistics")) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "No Name"}, "name: 'No Name' is not lower-case letters"),
        ({"start_step": -1}, "start_step: -1 is not an integer of at least 0"),
        ({"sample_every": 0}, "sample_every: 0 is not an integer of at least 1"),
        ({"total_steps": True}, "total_steps: True is not an integer"),
        ({"uncertainty": {"windows": 3}}, "uncertainty.windows: Extra inputs"),
        ({"uncertainty": {"window": -3}}, "uncertainty.window"),
        (
            {"trackers": ["tensorbord:x"]},
            "trackers: 'tensorbord:x' names no tracker; begin it with",
        ),
        ({"trackers": "jsonl:x"}, r"trackers: 'jsonl:x' is a text, .* write \['jsonl:x'\]"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_hooked_or_made(
    toy, settings, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    optimizer = adam(toy)
    with pytest.raises(WatchError, match=said):
        forkcast.watch(toy, optimizer, **settings)
    assert not hooks_of(toy, optimizer)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_watched_is_told(toy, tmp_path):
    with pytest.raises(
        WatchError, match=r"a dict cannot be watched.* of transformers or .* of lightning"
    ):
        forkcast.watch({}, adam(toy))
    with pytest.raises(WatchError, match="optimizer: a NoneType is no"):
        forkcast.watch(toy)
    (tmp_path / "file").write_text("")
    with pytest.raises(WatchError, match=r"folder: .*not a directory"):
        forkcast.watch(toy, adam(toy), folder=tmp_path / "file" / "run")


def test_a_folder_in_use_is_refused_and_is_free_again_after_close(toy, tmp_path):
    optimizer = adam(toy)
    with (
        forkcast.watch(toy, optimizer, folder=tmp_path / "run"),
        pytest.raises(WatchError, match="is in use"),
    ):
        forkcast.watch(toy, optimizer, folder=tmp_path / "run")
    forkcast.watch(toy, optimizer, folder=tmp_path / "run").close()


def test_a_run_that_is_begun_again_in_its_folder_is_told(toy, tmp_path, caplog):
    """Regression: the steps of the run before were replaced without a word."""
    optimizer = adam(toy)
    for start, told in ((0, False), (4, False), (0, True)):
        caplog.clear()
        with forkcast.watch(toy, optimizer, folder=tmp_path / "run", start_step=start) as watch:
            train(toy, optimizer, watch)
        assert ("holds a run of" in caplog.text) == told, start


def test_importing_forkcast_imports_neither_torch_nor_a_framework():
    import subprocess
    import sys

    code = (
        "import forkcast, sys; sys.exit(any(n in sys.modules for n in ('torch', 'numpy', 'grpc')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_event_of_a_summary_has_its_onset_and_of_an_earlier_monitor_its_step():
    told = pb.RunSummary(run_uid="u", last_event_step=9, last_event="Rose", last_event_onset_step=0)
    assert event_in(told).onset_step == 0
    told.ClearField("last_event_onset_step")
    assert event_in(told).onset_step == 9
