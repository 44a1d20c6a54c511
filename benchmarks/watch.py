"""What being watched adds to a step of somebody else's loop.

One training, whose steps are taken in blocks: bare, bare again (the A/A row: what the method itself
sees), watched, in turns. All of a block counts after a warm-up, the sampled steps too: the figure is what
the training pays, not what most of its steps pay. The monitor runs beside it all the time. A step is what
the host waits for: the loop synchronizes once a step, as Trainer does where it looks for a NaN.

`--equal` instead trains twice, bare and watched, with kernels that repeat exactly, and compares the
losses bit by bit.

python benchmarks/watch.py --loop trainer --model gpt2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from figures import Row, median, quantile

import forkcast
from forkcast_watch.monitor_process import MonitorProcess
from forkcast_watch.run_folder import open_folder
from forkcast_watch.settings import Settings

#: Steps of a block that do not count: hooks are set, memory is pinned.
_WARM = 10
_BARE, _AGAIN, _WATCHED = "bare", "bare again", "watched"
_TURN = (_BARE, _AGAIN, _WATCHED)
#: layers, width, heads, positions, vocabulary
_MODELS = {"toy": (2, 64, 2, 64, 256), "gpt2": (12, 768, 12, 1024, 50257)}


@dataclass(frozen=True)
class Setting:
    """What is trained, and how often it is sampled. plan: what each block of ``block`` steps is."""

    model: str
    batch: int
    block: int
    plan: tuple[str, ...]
    device: torch.device
    options: dict[str, Any]

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.block * len(self.plan)


@dataclass
class Turns:
    """Attaches and detaches between the blocks of a training, and keeps the time of each step.

    blocks: seconds of a block's steps after its warm-up. attach: begins to watch; what it returns ends
    that.
    """

    setting: Setting
    attach: Callable[[], Callable[[], None]]
    blocks: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _detach: Callable[[], None] | None = None
    _last: float = 0.0

    def step_begins(self, step: int) -> None:
        """Before the first step, and where another begins."""
        now = time.perf_counter()
        block, place = divmod(step, self.setting.block)
        if place > _WARM:
            self.blocks[-1].append(now - self._last)
        elif not place:
            if self.blocks:
                self.blocks[-1].append(now - self._last)
            self.end()
            if block == len(self.setting.plan):
                return
            self.blocks.append([])
            if self.setting.plan[block] == _WATCHED:
                self._detach = self.attach()
            now = time.perf_counter()
        self._last = now

    def end(self) -> None:
        """Watch no more."""
        if self._detach is not None:
            self._detach()
            self._detach = None


def model_of(setting: Setting) -> Any:
    """A GPT-2 with weights of its own; nothing is downloaded."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, heads, positions, vocabulary = _MODELS[setting.model]
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=positions,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


class Ids(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of ids that are the same in every training."""

    def __init__(self, setting: Setting) -> None:
        _, _, _, positions, vocabulary = _MODELS[setting.model]
        chosen = torch.Generator().manual_seed(1)
        self.ids = torch.randint(vocabulary, (setting.batch * 64, positions), generator=chosen)
        self.length = setting.steps * setting.batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        ids = self.ids[row % len(self.ids)]
        return {"input_ids": ids, "labels": ids}


def plain(setting: Setting, folder: Path, monitor: str) -> Turns:
    """A loop of one's own: AdamW, clipping, bf16 on a GPU."""
    model, data = model_of(setting).to(setting.device), Ids(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    watches: list[Any] = []

    def attach() -> Callable[[], None]:
        watch = forkcast.watch(model, optimizer, folder=folder, monitor=monitor, **setting.options)
        watches.append(watch)
        return lambda: _closed(watch)

    turns = Turns(setting, attach)
    half = setting.device.type == "cuda"
    for step in range(setting.steps):
        turns.step_begins(step)
        rows = [data[step * setting.batch + n]["input_ids"] for n in range(setting.batch)]
        ids = torch.stack(rows).to(setting.device, non_blocking=True)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=half):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if setting.plan[step // setting.block] == _WATCHED:
            watches[-1].step(loss)
        turns.losses.append(loss.item())
    turns.step_begins(setting.steps)
    return turns


def trainer(setting: Setting, folder: Path, monitor: str) -> Turns:
    """Hugging Face Trainer with its defaults, bf16 on a GPU."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from forkcast_watch.adapters.huggingface import WatchCallback

    callback = WatchCallback(folder=folder, monitor=monitor, **setting.options)
    begun: dict[str, Any] = {}

    def attach() -> Callable[[], None]:
        callback.on_train_begin(**begun)
        return lambda: _closed(callback.watch, callback.close)

    turns = Turns(setting, attach)

    class InTurns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            begun.update(args=args, state=state, control=control, **named)
            turns.step_begins(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if setting.plan[(state.global_step - 1) // setting.block] == _WATCHED:
                callback.on_step_end(args, state, control, **named)
            turns.step_begins(state.global_step)

    class Kept(Trainer):
        def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
            loss = super().training_step(*given, **named)
            turns.losses.append(float(loss))
            return loss

    cuda = setting.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=setting.steps,
        per_device_train_batch_size=setting.batch,
        learning_rate=1e-4,
        bf16=cuda,
        use_cpu=not cuda,
        logging_steps=500,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    torch.manual_seed(0)
    made = Kept(model_of(setting), arguments, train_dataset=Ids(setting), callbacks=[InTurns()])
    callback.set_trainer(made)
    made.train()
    return turns


def _closed(watch: Any, close: Callable[[], None] | None = None) -> None:
    """A watch that has left something out would measure less than it does. Raises RuntimeError."""
    (close or watch.close)()
    if watch.not_measured:
        raise RuntimeError(f"not measured: {dict(watch.not_measured)}")


LOOPS: dict[str, Callable[[Setting, Path, str], Turns]] = {"plain": plain, "trainer": trainer}


def trained(loop: str, setting: Setting) -> Turns:
    """One training, a monitor beside it."""
    with tempfile.TemporaryDirectory() as folder:
        beside = open_folder(Settings(folder=Path(folder) / "monitor", total_steps=setting.steps))
        process = MonitorProcess(beside.path)
        try:
            process.look()
            return LOOPS[loop](setting, Path(folder) / "watched", process.target)
        finally:
            process.close()
            beside.close()


def measure(loop: str, setting: Setting) -> list[Row]:
    """The table: each contestant beside the bare block of the same round."""
    blocks = trained(loop, setting).blocks
    seconds: dict[str, list[list[float]]] = {name: [] for name in _TURN}
    for name, block in zip(setting.plan, blocks, strict=True):
        seconds[name].append(block)
    section = f"{loop}, {setting.model}, batch {setting.batch}, {setting.device.type}"
    means = {name: [sum(one) / len(one) for one in found] for name, found in seconds.items()}
    rows = []
    for name in _TURN:
        ratios = [a / b for a, b in zip(means[name], means[_BARE], strict=True)]
        every = [one for block in seconds[name] for one in block]
        note = (
            f"of the rounds {min(ratios):.4f} to {max(ratios):.4f}; step p50 "
            f"{1e3 * median(every):.2f}, p95 {1e3 * quantile(every, 0.95):.2f} ms"
        )
        rows.append(
            Row(
                section=section,
                name=name,
                value=1e3 * sum(means[name]) / len(means[name]),
                unit="ms/step",
                ratio=sum(means[name]) / sum(means[_BARE]),
                against=_BARE,
                note=note,
            )
        )
    return rows


def equal(loop: str, setting: Setting) -> bool:
    """Whether a watched training has the losses of a bare one."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    bare, watched = (
        trained(
            loop,
            Setting(
                setting.model,
                setting.batch,
                setting.block,
                (name,),
                setting.device,
                setting.options,
            ),
        )
        for name in (_BARE, _WATCHED)
    )
    return bare.losses == watched.losses and len(bare.losses) == setting.block


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=LOOPS, default="plain")
    parser.add_argument("--model", choices=_MODELS, default="toy")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--block", type=int, default=50, help="steps that count, of each block")
    parser.add_argument("--rounds", type=int, default=12, help="of three blocks")
    parser.add_argument("--sample-every", type=int, default=10)
    parser.add_argument("--inside-every", type=int, default=50)
    parser.add_argument("--equal", action="store_true", help="compare losses, measure nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    options = {"sample_every": given.sample_every, "inside_every": given.inside_every}
    device = torch.device(given.device)
    plan = tuple(name for n in range(given.rounds) for name in _TURN[n % 3 :] + _TURN[: n % 3])
    setting = Setting(given.model, given.batch, _WARM + given.block, plan, device, options)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{machine}, torch {torch.__version__}")
    if given.equal:
        same = equal(given.loop, setting)
        print(
            f"{given.loop}: {setting.block} losses {'equal' if same else 'NOT equal'}, bit by bit"
        )
        raise SystemExit(0 if same else 1)
    rows = measure(given.loop, setting)
    print(f"{given.rounds} rounds; of each block {given.block} steps count")
    print("| loop | | ms/step | against bare | |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.section} | {row.name} | {row.value:.3f} | {row.ratio:.4f} | {row.note} |")
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
