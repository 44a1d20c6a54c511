"""The trainer beside the loops that people have: `python benchmarks/trainer.py --nanogpt FOLDER [--json F]`.

Ours as it is shipped and with everything off, Hugging Face's Trainer, and nanoGPT's loop (of a checkout of
karpathy/nanoGPT) train one model from the same weights on the same windows, each in a process of its own, in
turns: a block of steps each, several rounds, of which the first warms up. The best of that one has a second
block in each round that follows: the A/A row. A block of 50 steps has one state of ours' ring.
The first step of a process counts from its start, everything compiled anew, and once more with
the compiler's cache of the first.

`--curves STEPS` compares losses instead, step by step, for each of --dtypes. `--processes N` compares ours
on N GPUs (or processes of the CPU) with ours on one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine

if __name__ == "__main__":
    machine.pin_threads()

import served
import torch
from figures import Row, median, quantile
from training_setting import Setting, write_ids, write_weights

from forkcast_wire import keys

OURS, OFF, HF, NANO = "ours, everything on", "ours, all off", "HF Trainer", "nanoGPT's loop"
NAMES = {OURS: "ours", OFF: "off", HF: "hf", NANO: "nanogpt"}
CURVES = {"ours": "engine", HF: "hf", NANO: "nanogpt"}
#: Of a card's name: dense bf16 TFLOP/s of its data sheet.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0}
_SCRIPT = Path(__file__).with_name("contestants.py")


class Contestant:
    """A process of `contestants.py`. first_seconds: from its start to its first finished step; first_loss: of
    that step.
    """

    def __init__(self, name: str, setting: Setting, place: Path, cache: Path) -> None:
        """place: its folder, with the ids' card. cache: the compiler's. Raises RuntimeError."""
        self._monitor = None
        self._errors = place / "errors"
        command = [sys.executable]
        if setting.processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={setting.processes}"]
        command += [str(_SCRIPT), name, "--setting", setting.written(), "--folder", str(place)]
        if name == "ours":
            self._monitor = served.monitor(place / "m", setting.manifest())
            shutil.copy(place / "m" / keys.RUN, place / keys.RUN)
            command += ["--reports-to", self._monitor.target]
        started = time.perf_counter()
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
            )
        try:
            self.first_loss = self.turn(1)["losses"][0]
        except RuntimeError:
            self.close()
            raise
        self.first_seconds = time.perf_counter() - started

    def turn(self, steps: int, warm: int = 0) -> dict[str, Any]:
        """Its answer to a turn: seconds of each step after the warm ones, losses, peak memory in bytes.
        Raises RuntimeError if it has ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        try:
            self._process.stdin.write(json.dumps({"steps": steps, "warm": warm}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said is read below
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            said = self._errors.read_text().strip().splitlines() or ["nothing said"]
            raise RuntimeError(said[-1])
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """No more turns. What does not leave is ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._monitor is not None:
            self._monitor.close()


class Arena:
    """Where contestants start: ids, weights, and a folder and a compiler's cache for each."""

    def __init__(self, setting: Setting, folder: Path, ids: int | None) -> None:
        """ids: how many are made; None: there are some."""
        self._folder, self._number = folder, 0
        if ids is not None:
            write_ids(setting.tokens, ids)
        write_weights(setting, folder / "made")
        self.missing: dict[str, str] = {}

    def start(
        self, name: str, setting: Setting, stack: ExitStack, cache: str = ""
    ) -> Contestant | None:
        """A contestant that ends with the stack; None, and why in ``missing``, if it cannot take part.
        cache: a name that several share.
        """
        kind = NAMES.get(name) or CURVES[name]
        label = f"{name}, {setting.dtype}"
        if kind == "nanogpt" and setting.nanogpt is None:
            self.missing[label] = "no --nanogpt FOLDER"
            return None
        self._number += 1
        place = self._folder / str(self._number)
        shutil.copytree(self._folder / "made", place)
        try:
            made = Contestant(kind, setting, place, self._folder / f"cache-{cache or self._number}")
        except RuntimeError as error:
            self.missing[label] = str(error)
            shutil.rmtree(place)
            return None
        stack.callback(shutil.rmtree, place)  # states of a larger model fill a disk
        stack.callback(made.close)
        said(f"{name}: first step after {made.first_seconds:.1f} s")
        return made


def said(line: str) -> None:
    """What goes on, beside the table."""
    print(line, file=sys.stderr, flush=True)


class Field:
    """Those that are in the race. Who drops out of it has no row, and a line that says why."""

    def __init__(self, live: dict[str, Contestant], missing: dict[str, str]) -> None:
        self.live, self._missing = live, missing

    def turn(self, name: str, steps: int, warm: int) -> dict[str, Any] | None:
        """Its answer; None if it has dropped out."""
        if name not in self.live:
            return None
        try:
            answer = self.live[name].turn(steps, warm)
        except RuntimeError as error:
            self._missing[name] = str(error)
            del self.live[name]
            return None
        said(f"{name}: {steps} steps, {sum(answer['seconds']):.2f} s")
        return answer


def pace(setting: Setting, arena: Arena, given: argparse.Namespace) -> list[Row]:
    """Speed, memory and start of each contestant."""
    began = time.monotonic()
    with ExitStack() as stack:
        found = {name: arena.start(name, setting, stack, name) for name in NAMES}
        live = {name: one for name, one in found.items() if one is not None}
        firsts = dict(live)
        turns = _rounds(Field(live, arena.missing), given, began)
    with ExitStack() as stack:
        warm = arena.start(OURS, setting, stack, OURS)
    rows = [row for name in turns for row in _figures(name, turns, setting, given.peak_tflops)]
    for name, one in firsts.items():
        rows.append(Row(section="first step", name=name, value=one.first_seconds, unit="s"))
    if warm is not None:
        second, note = f"{OURS}, second start", "the compiler's cache is there"
        rows.append(
            Row(section="first step", name=second, value=warm.first_seconds, unit="s", note=note)
        )
    for name, one in firsts.items():
        rows.append(Row(section="first loss", name=name, value=one.first_loss, unit="nats/token"))
    return rows


def _rounds(field: Field, given: argparse.Namespace, began: float) -> dict[str, list[Any]]:
    """The turns of each that is there to the end, and of the best of the warm-up round once more. Raises
    RuntimeError if none is.
    """
    warmed = {name: field.turn(name, given.block, given.warm) for name in list(field.live)}
    times = {name: sum(one["seconds"]) for name, one in warmed.items() if one is not None}
    if not times:
        raise RuntimeError("nobody takes part")
    best = min(times, key=times.__getitem__)
    again = f"{best}, again (A/A)"
    order, turns = [*times, again], dict[str, list[Any]]()
    for number in range(given.rounds):
        if number and given.seconds and time.monotonic() - began > given.seconds:
            said(f"no time for round {number + 1} of {given.rounds}")
            break
        shift = number % len(order)
        for name in order[shift:] + order[:shift]:
            answer = field.turn(best if name == again else name, given.block, given.warm)
            turns.setdefault(name, []).append(answer)
    return {name: turns[name] for name in order if None not in turns[name]}


def _figures(
    name: str, turns: Mapping[str, Sequence[dict[str, Any]]], setting: Setting, peak: float | None
) -> list[Row]:
    """Of one contestant: ratios are of the blocks of the same round."""
    tokens = setting.batch * setting.length * setting.processes
    rates = {n: [tokens * len(t["seconds"]) / sum(t["seconds"]) for t in turns[n]] for n in turns}
    mine, steps = rates[name], [one for turn in turns[name] for one in turn["seconds"]]
    row = Row(section="tokens/s", name=name, value=median(mine), unit="tokens/s")
    base = NANO if NANO in rates else HF
    if base in rates:
        ratios = [a / b for a, b in zip(mine, rates[base], strict=True)]
        note = f"rounds x{min(ratios):.3f} to x{max(ratios):.3f}"
        row = dataclasses.replace(row, ratio=median(ratios), against=base, note=note)
    rows = [row]
    for label, value in (("p50", median(steps)), ("p95", quantile(steps, 0.95))):
        rows.append(Row(section=f"step {label}", name=name, value=1e3 * value, unit="ms"))
    if peak is not None:
        used = 100 * median(mine) * setting.flops_a_token() / (1e12 * peak * setting.processes)
        rows.append(
            Row(section="MFU", name=name, value=used, unit="%", note=f"of {peak:g} TFLOP/s")
        )
    memory = max(turn["peak"] for turn in turns[name]) / 1e9
    note = "tensors on the GPU" if setting.device == "cuda" else "the process"
    rows.append(Row(section="peak memory", name=name, value=memory, unit="GB", note=note))
    return rows


def curves(setting: Setting, arena: Arena, given: argparse.Namespace) -> list[Row]:
    """How far losses lie apart, beside what a second run of the same loop differs by."""
    rows = []
    for dtype in given.dtypes.split(","):
        here = dataclasses.replace(setting, dtype=dtype, padded=False)
        losses: dict[str, list[float]] = {}
        plan = [(name, name) for name in CURVES] + [(f"{name}, again", name) for name in CURVES]
        for label, name in plan:
            with ExitStack() as stack:
                one = arena.start(name, here, stack, f"{dtype}-{CURVES[name]}")
                if one is None:
                    continue
                losses[label] = [one.first_loss]
                if given.curves > 1:
                    try:
                        losses[label] += one.turn(given.curves - 1)["losses"]
                    except RuntimeError as error:
                        arena.missing[f"{name}, {dtype}"] = str(error)
                        del losses[label]
        rows += _apart(f"losses, {dtype}", losses)
    return rows


def _apart(section: str, losses: Mapping[str, Sequence[float]]) -> list[Row]:
    """Each pair of contestants, and each with itself."""
    names = list(losses)
    pairs = [
        (a, b)
        for n, a in enumerate(names)
        for b in names[n + 1 :]
        if b == f"{a}, again" or not (a.endswith("again") or b.endswith("again"))
    ]
    rows = []
    for a, b in pairs:
        steps = len(losses[a])
        both = [abs(x - y) for x, y in zip(losses[a], losses[b], strict=True)]
        apart = [one for one in both if math.isfinite(one)] or [math.nan]
        note = (
            f"mean {sum(apart) / len(apart):.2e}; {len(apart)} of {steps} steps finite; "
            f"last losses {losses[a][-1]:.4f}, {losses[b][-1]:.4f}"
        )
        name = f"{a} to {b}"
        rows.append(Row(section=section, name=name, value=max(apart), unit="nats/token", note=note))
    return rows


def spread(setting: Setting, arena: Arena, given: argparse.Namespace) -> list[Row]:
    """Tokens/s of ours on several processes and on one, in turns."""
    several = f"ours, {setting.processes} processes"
    one = "ours, 1 process"
    settings = {one: dataclasses.replace(setting, processes=1), several: setting}
    turns: dict[str, list[dict[str, Any]]] = {one: [], several: []}
    with ExitStack() as stack:
        live = {name: arena.start(OURS, s, stack, name) for name, s in settings.items()}
        for name, contestant in live.items():
            if contestant is None:
                raise RuntimeError(f"{name}: {next(iter(arena.missing.values()))}")
            contestant.turn(given.block, given.warm)
        for _ in range(given.rounds):
            for name, contestant in live.items():
                if contestant is not None:
                    turns[name].append(contestant.turn(given.block, given.warm))
    rates = {
        name: [
            s.processes * s.batch * s.length * len(t["seconds"]) / sum(t["seconds"])
            for t in turns[name]
        ]
        for name, s in settings.items()
    }
    rows = []
    for name, mine in rates.items():
        ratios = [a / b for a, b in zip(mine, rates[one], strict=True)]
        note = f"rounds x{min(ratios):.3f} to x{max(ratios):.3f}"
        rows.append(
            Row(
                section="tokens/s",
                name=name,
                value=median(mine),
                unit="tokens/s",
                ratio=median(ratios),
                against=one,
                note=note,
            )
        )
    return rows


def shown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = ["| | | | ratio | |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"x{row.ratio:.3f} of {row.against}"
        lines.append(
            f"| {row.section} | {row.name} | {row.value:,.6g} {row.unit} | {ratio} | {row.note} |"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cuda = torch.cuda.is_available()
    models = ["gpt2", "gpt2-medium", "gpt2-tiny"]
    parser.add_argument("--model", choices=models, default="gpt2" if cuda else "gpt2-tiny")
    parser.add_argument("--batch", type=int, default=32 if cuda else 2, help="windows a step")
    parser.add_argument("--length", type=int, default=1024 if cuda else 64, help="tokens of one")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="bfloat16" if cuda else "float32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--tokens", type=Path, help="ids as nanoGPT writes them; else made")
    parser.add_argument("--block", type=int, default=50, help="steps of a turn that count")
    parser.add_argument("--warm", type=int, default=5, help="steps of a turn before them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="no round begins later than that")
    parser.add_argument("--peak-tflops", type=float, help="of the card; default by its name")
    parser.add_argument("--processes", type=int, default=1, help="ours on so many against one")
    parser.add_argument("--curves", type=int, metavar="STEPS", help="compare losses instead")
    parser.add_argument("--dtypes", default=",".join(dtypes), help="of --curves")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.nanogpt is not None and not (given.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt: {given.nanogpt} has no model.py; give a checkout of nanoGPT")
    if given.tokens is not None and not given.tokens.is_file():
        parser.error(f"--tokens: {given.tokens} is not there; leave it out for made ones")
    if unknown := set(given.dtypes.split(",")) - set(dtypes):
        parser.error(f"--dtypes: {min(unknown)} is not one of {', '.join(dtypes)}")
    for name in ("batch", "length", "block", "rounds", "processes"):
        if getattr(given, name) < 1:
            parser.error(f"--{name}: {getattr(given, name)} is below 1")
    return given


def main() -> int:
    """0; 1 if nothing could be measured. Prints the table."""
    given = _arguments()
    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if cuda else "no GPU"
    if given.peak_tflops is None:
        given.peak_tflops = next((p for name, p in PEAKS.items() if name in card), None)
    loads = [machine.load_average()]
    with served.folder() as folder:
        setting = Setting(
            model=given.model,
            batch=given.batch,
            length=given.length,
            dtype=given.dtype,
            device="cuda" if cuda else "cpu",
            compile=given.compile,
            tokens=given.tokens.resolve() if given.tokens else folder / "train.bin",
            weights=folder / "weights",
            nanogpt=given.nanogpt.resolve() if given.nanogpt else None,
            processes=given.processes,
        )
        ids = max(4_000_000 if cuda else 400_000, 1000 * given.length)
        arena = Arena(setting, folder, None if given.tokens else ids)
        try:
            if given.curves:
                rows = curves(setting, arena, given)
            elif given.processes > 1:
                rows = spread(setting, arena, given)
            else:
                rows = pace(setting, arena, given)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    loads.append(machine.load_average())
    facts = machine.described()
    compiled = "compiled" if given.compile else "not compiled"
    print(
        f"{given.model}, batch {given.batch} x {given.length}, {given.dtype}, {compiled}; {card}, "
        f"{facts['cpu']}, {facts['cores']} cores, load {loads[0]:.1f} to {loads[1]:.1f}"
    )
    print(shown(rows))
    for name, why in arena.missing.items():
        print(f"not measured: {name}: {why}")
    if given.json:
        document = {
            "machine": {**facts, "device": card},
            "load_average": loads,
            "setting": {n: v for n, v in vars(given).items() if n != "json"},
            "not_measured": arena.missing,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(document, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
