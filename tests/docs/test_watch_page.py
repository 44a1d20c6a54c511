"""The snippets of docs/watch.md run as they stand, on trainings that are there already."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import forkcast
from forkcast_watch.session import Watch
from forkcast_watch.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs/watch.md").read_text()
PLAIN, TRAINER, LIGHTNING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_plain_loop_runs_and_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(4, 4)
    names = {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "next_batch": lambda: torch.randn(2, 4),
    }
    exec(compile(PLAIN, "docs/watch.md", "exec"), names)
    assert forkcast.load_run("runs/mine").steps().num_rows == 100


def test_the_trainer_is_watched(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed; it is in the extra dev")
    from transformers import Trainer, TrainingArguments

    from tests.watch.loops import BATCH, gpt2
    from tests.watch.toys import batch

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, use_cpu=True, report_to=[], save_strategy="no"
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in batch(0)] * BATCH
    trainer = Trainer(gpt2(), arguments, train_dataset=rows)
    exec(compile(TRAINER, "docs/watch.md", "exec"), {"forkcast": forkcast, "trainer": trainer})
    assert forkcast.load_run(tmp_path / "forkcast").steps().num_rows == 3


def test_the_settings_of_the_page_exist():
    for name in ("start_step", "scaler", "tokens_per_step", "sample_every", "inside_every"):
        assert f"`{name}" in PAGE or f"{name}=" in PAGE
        assert name in Settings.__dataclass_fields__
    called = set(re.findall(r"watch\.(\w+)\(", PAGE)) - {"watch"}
    assert called == {"step", "micro_batch", "validation", "close"}
    assert [name for name in called if not hasattr(Watch, name)] == []
