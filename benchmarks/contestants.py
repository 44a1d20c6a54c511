"""One contestant of `trainer.py`, in a process of its own: trains when it is its turn.

It reads turns from its input, a line of JSON each, and answers each with a line on what was its output
at the start; whatever libraries print goes to its errors. Time is the device's own: an event a step on a
GPU. Between turns it holds no memory that it does not need.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from training_setting import BETAS, CLIP, DECAY, ENDLESS, RATE, SEED, VOCABULARY, Rows, Setting

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: nanoGPT's log_interval: so often it reads the loss, and its multiple of a vocabulary.
_LOG_EVERY, _MULTIPLE = 10, 64


class Turns:
    """Between its steps a contestant waits here for its next turn."""

    def __init__(self, device: str, answers: TextIO) -> None:
        self._cuda, self._answers = device == "cuda", answers
        self._warm = self._count = self._taken = 0
        self._marks: list[Any] = []
        #: Of the turn's steps, as the contestant has them; read when the turn is over.
        self.losses: list[Any] = []
        #: What is still under way when the steps are taken, and is not waited for in any of them.
        self.finish: Callable[[], None] = lambda: None

    def begin(self) -> bool:
        """Wait for a turn; False if there is none any more."""
        line = sys.stdin.readline()
        turn = json.loads(line) if line.strip() else None
        if turn is None:
            return False
        self._warm, self._count, self._taken = turn["warm"], turn["steps"], 0
        self._marks, self.losses = [], []
        if not self._warm:
            self._mark()
        return True

    def stepped(self) -> bool:
        """A step has been launched. Answers, and waits for the next turn, if it was the turn's last;
        False if no other is to follow.
        """
        self._taken += 1
        if self._taken >= self._warm:
            self._mark()
        if self._taken < self._warm + self._count:
            return True
        self._answer()
        return self.begin()

    def _mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def _answer(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            spans = zip(self._marks, self._marks[1:], strict=False)
            seconds = [a.elapsed_time(b) / 1e3 for a, b in spans]
        else:
            seconds = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]
        self.finish()
        answer = {
            "seconds": seconds,
            "losses": [float(loss) for loss in self.losses],
            "peak": self._peak(),
        }
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
        if self._cuda:
            torch.cuda.empty_cache()

    def _peak(self) -> int:
        """Bytes: of the GPU's memory what tensors took at most, without one what the process took."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text()
        line = next(one for one in status.splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def _ranks() -> tuple[int, int, int]:
    return tuple(int(os.environ.get(n, d)) for n, d in _PLACE)  # type: ignore[return-value]


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def ours(setting: Setting, turns: Turns, folder: Path, monitor: str) -> None:
    """The trainer as it is shipped, to its own loop: statistics, clipping, states and ring at their
    defaults, a monitor attached. A state that is still written when a turn ends is not of the next's.
    """
    from forkcast.records import StepStats
    from forkcast_trainer import ranks
    from forkcast_trainer.train import TrainingRun

    place, stop = _ranks(), threading.Event()
    leads = place[0] == 0

    class InTurns(TrainingRun):
        def _after(self, step: int) -> None:
            super()._after(step)
            if leads and not turns.stepped():
                stop.set()

    if place[1] > 1:
        ranks.join()
    spec = setting.manifest().spec
    run = InTurns(spec, folder, monitor=monitor, attempt=0, stop=stop, ranks=place)
    report, tell = run.report, run.report.step

    def told(stats: StepStats, validation: float | None) -> None:
        turns.losses.append(stats.loss)
        tell(stats, validation)

    def finish() -> None:
        run.engine.settle()
        run._tell(None)
        if run.saver is not None:
            run.saver.flush()
            if run.saver.error:
                raise RuntimeError(f"a save failed: {run.saver.error}")

    report.step = told  # type: ignore[method-assign]
    turns.finish = finish
    if leads and not turns.begin():
        return
    run.run()
    if place[1] > 1:
        ranks.leave()


def engine(setting: Setting, turns: Turns, folder: Path, *, clipping: str) -> None:
    """Ours, the steps alone: nothing is saved, told or sampled (but norms by group, which are of a
    step).
    """
    from forkcast_trainer.placement import placement
    from forkcast_trainer.step import Engine

    spec = setting.manifest(clipping=clipping, statistics=False).spec
    made = Engine(spec, "benchmark", folder, placement(spec))

    def finish() -> None:
        made.settle()
        turns.losses += [stats.loss for stats in made.told()]

    turns.finish = finish
    more = turns.begin()
    while more:
        made.step()
        turns.losses += [stats.loss for stats in made.told()]
        more = turns.stepped()


def hugging_face(setting: Setting, turns: Turns, folder: Path) -> None:
    """Hugging Face's Trainer, without its look for a NaN at every step, which waits for the GPU."""
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    rows = Rows(setting, folder)

    class Data(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return setting.batch * ENDLESS

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(rows.read(number, 1)[0])
            return {"input_ids": ids[:-1], "targets": ids[1:]}

    class InTurns(TrainerCallback):
        def on_step_end(self, _args: Any, _state: Any, control: Any, **_named: Any) -> None:
            if not turns.stepped():
                control.should_training_stop = True

    class Told(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_rest: Any, **_named: Any) -> Any:
            targets = inputs["targets"]
            found = model(input_ids=inputs["input_ids"], labels=targets, shift_labels=targets)
            turns.losses.append(found.loss.detach())
            return found.loss

    cuda = setting.device == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=ENDLESS,
        per_device_train_batch_size=setting.batch,
        train_sampling_strategy="sequential",
        dataloader_num_workers=2 if cuda else 0,
        remove_unused_columns=False,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        optim="adamw_torch_fused" if cuda else "adamw_torch",
        bf16=setting.dtype == "bfloat16",
        fp16=setting.dtype == "float16",
        torch_compile=setting.compile,
        use_cpu=not cuda,
        logging_steps=_LOG_EVERY,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=SEED,
    )
    model = GPT2LMHeadModel.from_pretrained(
        setting.weights, attn_implementation="sdpa", dtype=torch.float32
    )
    trainer = Told(model, arguments, train_dataset=Data(), callbacks=[InTurns()])
    if turns.begin():
        trainer.train()


def nanogpt(setting: Setting, turns: Turns, folder: Path) -> None:
    """The model and optimizer of nanoGPT's checkout, and a loop that does what its own does in a step."""
    if setting.nanogpt is None:
        raise RuntimeError("--nanogpt is not given")
    theirs = _module(setting.nanogpt / "model.py")
    cuda, dtype = setting.device == "cuda", _DTYPES[setting.dtype]
    if setting.padded:  # its train.py does; curves compare the last bits, and do not
        torch.backends.cuda.matmul.allow_tf32 = True
    rows, device = Rows(setting, folder), torch.device(setting.device)
    torch.manual_seed(SEED)
    shape = setting.shape()
    model = theirs.GPT(
        theirs.GPTConfig(
            block_size=setting.length,
            vocab_size=-(-VOCABULARY // _MULTIPLE) * _MULTIPLE if setting.padded else VOCABULARY,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=True,
        )
    )
    _copy_weights(setting.weights, model)
    model = model.to(device)
    optimizer = model.configure_optimizers(DECAY, RATE, BETAS, setting.device)
    scaler = torch.amp.GradScaler(setting.device, enabled=dtype is torch.float16)
    forward = torch.compile(model) if setting.compile else model
    taken = 0

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(rows.read(taken * setting.batch, setting.batch))
        pair = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        if not cuda:
            return pair
        x, y = (one.pin_memory().to(device, non_blocking=True) for one in pair)
        return x, y

    x, y = batch()
    more = turns.begin()
    while more:
        with torch.autocast(setting.device, dtype, enabled=dtype is not torch.float32):
            _, loss = forward(x, y)
        taken += 1
        x, y = batch()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        turns.losses.append(loss.detach())
        if taken % _LOG_EVERY == 0:
            loss.item()
        more = turns.stepped()


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path}: no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _copy_weights(folder: Path, model: torch.nn.Module) -> None:
    """Names are the same; Hugging Face keeps four matrices of a block transposed. Rows that a padded
    vocabulary has more stay as they are.
    """
    from transformers import GPT2LMHeadModel

    theirs: Mapping[str, torch.Tensor] = GPT2LMHeadModel.from_pretrained(folder).state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = theirs[name]
            if ".c_" in name and source.ndim == 2:
                source = source.t()
            if "wte" in name:
                parameter[: len(source)].copy_(source)
            else:
                parameter.copy_(source)


def main() -> None:
    """Take turns until there are none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["ours", "off", "engine", "hf", "nanogpt"])
    parser.add_argument("--setting", required=True, help="as Setting.written gives it")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--reports-to", default="", help="the monitor's target")
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setting = Setting.read(given.setting)
    turns = Turns(setting.device, answers)
    if given.name == "ours":
        ours(setting, turns, given.folder, given.reports_to)
    elif given.name in ("off", "engine"):
        engine(setting, turns, given.folder, clipping="Norm" if given.name == "engine" else "None")
    else:
        {"hf": hugging_face, "nanogpt": nanogpt}[given.name](setting, turns, given.folder)


if __name__ == "__main__":
    main()
