"""`python -m tests.watch.loops ADAPTER FOLDER`: a training as its users write it, alone in its process, with
or without Forkcast; prints one JSON line: the losses that the loop itself saw, each rank's, and the
state of torch's generator at the end.

The same toy, batches and seed everywhere. What a loop is told it does at a step: a NaN in the loss, a
stopped or killed monitor.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import forkcast
from tests.waiting import until
from tests.watch.toys import BATCH, LENGTH, Toy, batch

CLIP = 0.05
RULES = {"window": 16, "warmupSteps": 10}


class Monitor:
    """What befalls the monitor of a watched run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given

    def befall(self, step: int, watch: Any) -> None:
        if step != self.given.at or self.given.monitor == "well" or watch is None:
            return
        process = watch._sink.process.process
        until(lambda: watch._sink._reporter.reached(0.0), "the monitor's first answer")
        number = {"killed": signal.SIGKILL, "stalled": signal.SIGSTOP}[self.given.monitor]
        os.kill(process.pid, number)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "folder": given.folder,
        "uncertainty": RULES,
        "sample_every": 2,
        "inside_every": 3,
        "start_step": given.start,
    }


def bad(given: argparse.Namespace, step: int) -> float:
    """What the loss of a step is multiplied by."""
    return float("nan") if step == given.nan else 1.0


def plain(given: argparse.Namespace) -> list[float]:
    """A loop of one's own: accumulation, clipping, bf16."""
    from torch.nn.parallel import DistributedDataParallel

    model: Any = Toy()
    rank = given.rank
    called = DistributedDataParallel(model) if given.world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = None
    if given.watched:
        watch = forkcast.watch(called, optimizer, **settings(given))
    losses, monitor = [], Monitor(given)
    with watch or nullcontext():
        for step in range(given.start, given.start + given.steps):
            total = 0.0
            for micro in range(given.accumulate):
                ids = batch(step * given.accumulate + micro, rank)
                with torch.autocast("cpu", torch.bfloat16, enabled=given.bf16):
                    logits = called(ids[:, :-1]).float().flatten(0, 1)
                    loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
                loss = loss * bad(given, step)
                (loss / given.accumulate).backward()
                if watch is not None:
                    watch.micro_batch(loss)
                total += loss.item() / given.accumulate
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
            if watch is not None:
                watch.step()
            monitor.befall(step, watch)
            if step == given.dies and rank == given.world - 1:
                os._exit(9)
            if step % 5 == 4:
                evaluate(model)
    return losses


def evaluate(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        loss = model.loss(batch(10_000))
    model.train()
    return loss.item()


def accelerated(given: argparse.Namespace) -> list[float]:
    """The same with Accelerate, which decides when a step ends."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=given.accumulate)
    model: Any = Toy()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    watch = forkcast.watch(model, optimizer, **settings(given)) if given.watched else None
    losses, part, monitor = [], [], Monitor(given)
    for number in range(given.steps * given.accumulate):
        step = number // given.accumulate
        with accelerator.accumulate(model):
            loss = model.loss(batch(number)) * bad(given, step)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            if watch is not None:
                watch.step(loss)
        part.append(loss.item())
        if len(part) == given.accumulate:
            losses.append(sum(part) / len(part))
            part = []
            monitor.befall(step, watch)
    if watch is not None:
        watch.close()
    return losses


class Data(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of the micro-batches, in order."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.rows = given.steps * given.accumulate * BATCH

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        ids = batch(row // BATCH)[row % BATCH]
        return {"input_ids": ids, "labels": ids, "row": torch.tensor(row)}


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=32,
        n_positions=LENGTH + 1,
        n_embd=16,
        n_layer=2,
        n_head=2,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def hugging(given: argparse.Namespace, *, told: bool) -> list[float]:
    """Trainer. told: the callback is given the trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    losses: list[float] = []
    monitor = Monitor(given)
    seen: list[Any] = []

    class Recorded(Trainer):  # type: ignore[misc, valid-type]
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            step = int(inputs.pop("row")[0]) // BATCH // given.accumulate
            if step == given.nan:
                for parameter in model.parameters():
                    parameter.data.mul_(float("nan"))
            return super().compute_loss(model, inputs, *more, **named)

        def training_step(self, *given_: Any, **named: Any) -> Any:
            loss = super().training_step(*given_, **named)
            part.append(loss.item())
            return loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Steps(TrainerCallback):  # type: ignore[misc, valid-type]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            losses.append(sum(part))
            part.clear()
            monitor.befall(state.global_step - 1, seen[0].watch if seen else None)

    part: list[float] = []
    arguments = TrainingArguments(
        output_dir=str(Path(given.folder) / "out"),
        max_steps=given.steps,
        report_to=[],
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=given.accumulate,
        max_grad_norm=CLIP,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=given.bf16,
        seed=0,
        logging_steps=5,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=5,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=given.workers,
    )
    data = Data(given)
    evaluation = torch.utils.data.Subset(data, range(BATCH))
    torch.manual_seed(0)
    trainer = Recorded(gpt2(), arguments, train_dataset=data, eval_dataset=evaluation)
    if given.watched and told:
        seen.append(forkcast.watch(trainer, **settings(given)))
    elif given.watched:
        from forkcast_watch.adapters.huggingface import WatchCallback

        seen.append(WatchCallback(**settings(given)))
        trainer.add_callback(seen[0])
    trainer.add_callback(Steps())
    trainer.train()
    assert "training_step" not in trainer.__dict__
    return losses


def lightning(given: argparse.Namespace) -> list[float]:
    """Lightning, with automatic optimization."""
    import logging
    import warnings

    from lightning.pytorch import Callback, LightningModule, Trainer

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    losses: list[float] = []
    part: list[float] = []
    monitor, seen = Monitor(given), []

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.toy = Toy()

        def training_step(self, ids: Tensor, number: int) -> Tensor:
            step = self.global_step
            loss = self.toy.loss(ids) * bad(given, step)
            part.append(loss.item())
            return loss

        def validation_step(self, ids: Tensor, number: int) -> None:
            self.log("val_loss", self.toy.loss(ids))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Steps(Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if len(part) == given.accumulate:
                losses.append(sum(part) / len(part))
                part.clear()
                monitor.befall(trainer.global_step - 1, seen[0].watch if seen else None)

    def loader(count: int) -> Any:
        rows = [batch(number) for number in range(count)]
        return torch.utils.data.DataLoader(rows, batch_size=None)

    torch.manual_seed(0)
    trainer = Trainer(
        max_steps=given.steps,
        accumulate_grad_batches=given.accumulate,
        gradient_clip_val=CLIP,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=5 * given.accumulate,
        num_sanity_val_steps=0,
        default_root_dir=given.folder,
        precision="bf16-mixed" if given.bf16 else "32-true",
    )
    if given.watched:
        seen.append(forkcast.watch(trainer, **settings(given)))
    trainer.callbacks.append(Steps())
    count = given.steps * given.accumulate
    trainer.fit(Module(), loader(count), loader(1))
    return losses


LOOPS: dict[str, Callable[[argparse.Namespace], list[float]]] = {
    "plain": plain,
    "accelerate": accelerated,
    "trainer": lambda given: hugging(given, told=True),
    "callback": lambda given: hugging(given, told=False),
    "lightning": lightning,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter", choices=LOOPS)
    parser.add_argument("folder")
    parser.add_argument("--watched", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--nan", type=int, default=-1)
    parser.add_argument("--monitor", choices=["well", "killed", "stalled"], default="well")
    parser.add_argument("--at", type=int, default=8)
    parser.add_argument("--dies", type=int, default=-1)
    given = parser.parse_args()
    given.rank, given.world = (
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
    )
    if given.world > 1:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    losses = LOOPS[given.adapter](given)
    state = torch.get_rng_state().to(torch.int64).sum().item()
    print(json.dumps({"losses": losses, "rng": state}), flush=True)
    if given.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
