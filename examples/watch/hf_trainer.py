"""Hugging Face Trainer, watched: one line.

python examples/watch/hf_trainer.py --unstable
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import forkcast

TEXT = b"the quick brown fox jumps over the lazy dog. " * 400
LENGTH = 32


class Bytes(Dataset[dict[str, torch.Tensor]]):
    """Windows of the text, as ids of bytes."""

    def __len__(self) -> int:
        return len(TEXT) - LENGTH

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor(list(TEXT[place : place + LENGTH]))
        return {"input_ids": ids, "labels": ids}


class TooHigh(TrainerCallback):
    """The learning rate 300 times too high from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, _: Any, state: Any, __: Any, **given: Any) -> None:
        """Before each step: the scheduler has written the rate."""
        if state.global_step >= self.step:
            for group in given["optimizer"].param_groups:
                group["lr"] *= 300


def main() -> None:
    """Train; with --unstable the learning rate is too high from the last fifth on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", default="runs/hf-trainer")
    parser.add_argument("--unstable", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    arguments = TrainingArguments(
        output_dir=given.folder,
        max_steps=given.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Bytes())
    if given.unstable:
        trainer.add_callback(TooHigh(given.steps * 4 // 5))
    callback = forkcast.watch(trainer)  # the line
    trainer.train()
    print(f"{len(callback.watch.events)} events; forkcast status {callback.watch.folder}")


if __name__ == "__main__":
    main()
