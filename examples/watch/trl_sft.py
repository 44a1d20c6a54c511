"""TRL's SFTTrainer, watched: one line. The model and its tokenizer are made here, at toy size.

python examples/watch/trl_sft.py --unstable
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import forkcast

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "and",
    "runs",
    "away",
    "from",
    "a",
    "very",
    "small",
    "cat",
]
LENGTH = 24


def texts(count: int) -> list[str]:
    """Sentences that are easy to learn: each word is followed by the same one."""
    return [" ".join(WORDS[(n + i) % len(WORDS)] for i in range(LENGTH)) for n in range(count)]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    known = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def main() -> None:
    """Train; with --unstable the learning rate is too high from the last fifth on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", default="runs/trl-sft")
    parser.add_argument("--unstable", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    words = tokenizer()
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    arguments = SFTConfig(
        output_dir=given.folder,
        max_steps=given.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        max_length=LENGTH,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=1,
    )
    trainer = SFTTrainer(
        GPT2LMHeadModel(config),
        arguments,
        train_dataset=Dataset.from_dict({"text": texts(512)}),
        processing_class=words,
    )
    if given.unstable:
        spoil(trainer, given.steps * 4 // 5)
    callback = forkcast.watch(trainer)  # the line
    trainer.train()
    print(f"{len(callback.watch.events)} events; forkcast status {callback.watch.folder}")


def spoil(trainer: SFTTrainer, start: int) -> None:
    """From a step on the rate is 300 times the scheduled one."""
    make = trainer.create_scheduler

    def create_scheduler(*given: Any, **named: Any) -> Any:
        made = make(*given, **named)
        shape = made.lr_lambdas[0]
        made.lr_lambdas[0] = lambda step: shape(step) * (300 if step >= start else 1)
        return made

    trainer.create_scheduler = create_scheduler


if __name__ == "__main__":
    main()
