"""What being watched adds to a step of somebody else's loop.

One training a round, in turns: bare, bare again (the A/A row: what the method itself sees), watched. Of
each training the median step counts, after a warm-up; of each contestant the median over the rounds. The
losses of all must be equal, bit by bit. A step is what the host waits for: the loop synchronizes once a
step, as Trainer does where it looks for a NaN.

python benchmarks/watch.py --loop trainer --model gpt2 --steps 120 --rounds 5
"""

from __future__ import annotations

import argparse
import gc
import json
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

_WARM = 20
_BARE, _AGAIN, _WATCHED = "bare", "bare again", "watched"
#: layers, width, heads, positions, vocabulary
_MODELS = {"toy": (2, 64, 2, 64, 256), "gpt2": (12, 768, 12, 1024, 50257)}


@dataclass(frozen=True)
class Setting:
    """What is trained, and how often it is sampled."""

    model: str
    batch: int
    steps: int
    device: torch.device
    options: dict[str, int]


@dataclass
class Contestant:
    """steps: seconds a step, the median of each round. losses: of its first training."""

    name: str
    medians: list[float] = field(default_factory=list)
    slow: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    equal: bool = True

    def take(self, seconds: list[float], losses: list[float]) -> None:
        """One training's step times and losses."""
        self.medians.append(median(seconds[_WARM:]))
        self.slow.append(quantile(seconds[_WARM:], 0.95))
        self.equal &= not self.losses or self.losses == losses
        self.losses = self.losses or losses


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


def plain(setting: Setting, folder: Path, *, watched: bool) -> tuple[list[float], list[float]]:
    """A loop of one's own: AdamW, clipping, bf16 on a GPU."""
    model, data = model_of(setting).to(setting.device), Ids(setting)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    watch = None
    if watched:
        watch = forkcast.watch(model, optimizer, folder=folder, **setting.options)
    seconds, losses = [], []
    half = setting.device.type == "cuda"
    before = time.perf_counter()
    for step in range(setting.steps):
        rows = [data[step * setting.batch + n]["input_ids"] for n in range(setting.batch)]
        ids = torch.stack(rows).to(setting.device, non_blocking=True)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=half):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch.step(loss)
        losses.append(loss.item())
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    if watch is not None:
        _whole(watch, setting.steps)
    return seconds, losses


def trainer(setting: Setting, folder: Path, *, watched: bool) -> tuple[list[float], list[float]]:
    """Hugging Face Trainer with its defaults, bf16 on a GPU."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seconds: list[float] = []
    losses: list[float] = []
    last = [time.perf_counter()]

    class Timed(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - last[0])
            last[0] = now

    class Kept(Trainer):
        def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
            loss = super().training_step(*given, **named)
            losses.append(float(loss))
            return loss

    cuda = setting.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=setting.steps,
        per_device_train_batch_size=setting.batch,
        learning_rate=1e-4,
        bf16=cuda,
        use_cpu=not cuda,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    torch.manual_seed(0)
    made = Kept(model_of(setting), arguments, train_dataset=Ids(setting), callbacks=[Timed()])
    callback = None
    if watched:
        callback = forkcast.watch(made, folder=folder, **setting.options)
    made.train()
    if callback is not None:
        _whole(callback.watch, setting.steps)
    return seconds, losses


def _whole(watch: Any, steps: int) -> None:
    """A watch that has left something out would measure less than it does. Raises RuntimeError."""
    watch.close()
    if watch.not_measured:
        raise RuntimeError(f"not measured: {dict(watch.not_measured)}")
    rows = forkcast.load_run(watch.folder).steps().num_rows
    if rows != steps:
        raise RuntimeError(f"{rows} of {steps} steps are on record")


LOOPS: dict[str, Callable[..., tuple[list[float], list[float]]]] = {
    "plain": plain,
    "trainer": trainer,
}


def measure(loop: str, setting: Setting, rounds: int) -> list[Row]:
    """The table. Raises RuntimeError if a contestant's losses are not the bare ones."""
    contestants = [Contestant(name) for name in (_BARE, _AGAIN, _WATCHED)]
    for number in range(rounds):
        turn = number % len(contestants)
        for one in contestants[turn:] + contestants[:turn]:
            with tempfile.TemporaryDirectory() as folder:
                found = LOOPS[loop](setting, Path(folder), watched=one.name == _WATCHED)
            one.take(*found)
            gc.collect()
    bare = contestants[0]
    for one in contestants:
        if not one.equal or one.losses != bare.losses:
            raise RuntimeError(f"{one.name}: its losses are not those of the bare loop")
    section = f"{loop}, {setting.model}, batch {setting.batch}, {setting.device.type}"
    return [row for one in contestants for row in _rows(section, one, bare)]


def _rows(section: str, one: Contestant, bare: Contestant) -> list[Row]:
    ratios = [a / b for a, b in zip(one.medians, bare.medians, strict=True)]
    return [
        Row(
            section=section,
            name=one.name,
            value=1e3 * median(one.medians),
            unit="ms/step",
            ratio=median(ratios),
            against=_BARE,
            note=f"ratios of the rounds {min(ratios):.4f} to {max(ratios):.4f}; "
            f"p95 of the steps {1e3 * median(one.slow):.2f} ms",
        )
    ]


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=LOOPS, default="plain")
    parser.add_argument("--model", choices=_MODELS, default="toy")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample-every", type=int, default=10)
    parser.add_argument("--inside-every", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.steps <= _WARM:
        parser.error(f"--steps: more than the {_WARM} of the warm-up")
    options = {"sample_every": given.sample_every, "inside_every": given.inside_every}
    device = torch.device(given.device)
    setting = Setting(given.model, given.batch, given.steps, device, options)
    rows = measure(given.loop, setting, given.rounds)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(f"{machine}, torch {torch.__version__}, {given.rounds} rounds of {given.steps} steps")
    print("| loop | | ms/step | against bare | |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.section} | {row.name} | {row.value:.3f} | {row.ratio:.4f} | {row.note} |")
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
