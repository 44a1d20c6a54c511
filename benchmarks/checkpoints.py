"""Checkpoint bytes, speed and CPU: the container, of both versions of its format, against torch.save
and safetensors, in memory-backed files.

Two states with real moments: the quickstart's model, and a GPT-2 of about 14M parameters. All sides
get the same snapshot, in turns; what each reads back is compared bit by bit in the timed run's files.
`again` is torch.save a second time: what differs between equals.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import first_format
import machine
import served
import torch
from figures import Row, median, times
from safetensors.torch import load_file, save_file

from forkcast_trainer.checkpoint import Snapshot, read_container, write_container
from forkcast_trainer.placement import placement
from forkcast_trainer.state import snapshot
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import ModelSize, TrainingRunSpec

_ROUNDS = 5
_TINY_STEPS, _LARGER_STEPS = 60, 20
_LARGER = ModelSize(layers=8, width=384, heads=6)


@dataclass
class _Side:
    write: Callable[[Path], object]
    read: Callable[[Path], Snapshot]
    size: int = 0
    writes: list[tuple[float, float]] = field(default_factory=list)  # wall and CPU, seconds
    reads: list[tuple[float, float]] = field(default_factory=list)


def measure(scale: float) -> list[Row]:
    """Both states, all writers and readers in turns."""
    spec = served.quickstart().spec
    larger = spec.model_copy(update={"model": spec.model.model_copy(update={"size": _LARGER})})
    rows = []
    with served.folder() as folder:
        for each, steps in ((spec, _TINY_STEPS), (larger, _LARGER_STEPS)):
            saved, parameters = _trained(each, folder, times(steps, scale, 2))
            level = spec.checkpoint.compression_level
            rows += _compared(saved, f"{parameters / 1e6:.3g}M", level, times(_ROUNDS, scale, 1))
    return rows


def _trained(spec: TrainingRunSpec, folder: Path, steps: int) -> tuple[Snapshot, int]:
    engine = Engine(spec, served.UID, folder, placement(spec))
    for _ in range(steps):
        engine.step()
    return snapshot(engine), sum(p.numel() for p in engine.parameters)


def _load(path: Path) -> Snapshot:
    found = torch.load(path, weights_only=True)
    return Snapshot(found["meta"], found["tensors"])


def _sides(saved: Snapshot, level: int) -> dict[str, _Side]:
    whole = {"meta": dict(saved.meta), "tensors": dict(saved.tensors)}

    def saving(path: Path) -> None:
        torch.save(whole, path)

    def ours(level: int, threads: int) -> _Side:
        return _Side(
            lambda path: write_container(saved, path, level, threads=threads),
            lambda path: read_container(path, threads=threads),
        )

    return {
        _BASE: _Side(saving, _load),
        "again": _Side(saving, _load),
        "safetensors": _Side(
            lambda path: save_file(dict(saved.tensors), path),
            lambda path: Snapshot(saved.meta, load_file(path)),
        ),
        "version 1": _Side(lambda path: first_format.write(saved, path, level), read_container),
        "version 1, raw": _Side(lambda path: first_format.write(saved, path, 0), read_container),
        "high8, 1 thread": ours(level, 1),
        "high8, 2 threads": ours(level, 2),
        "raw, 1 thread": ours(0, 1),
        "raw, 2 threads": ours(0, 2),
    }


def _compared(saved: Snapshot, model: str, level: int, rounds: int) -> list[Row]:
    sides = _sides(saved, level)
    with tempfile.TemporaryDirectory(dir=machine.memory_folder()) as name:
        for _ in range(rounds + 1):
            for side in sides.values():
                _round(side, saved, Path(name) / "state")
    raw = sum(t.numel() * t.element_size() for t in saved.tensors.values()) / 1e6
    rows, base = [], _figures(sides[_BASE], raw)
    for label, side in sides.items():
        for (what, unit), value in _figures(side, raw).items():
            row = Row(section="checkpoint", name=f"{model} {what}: {label}", value=value, unit=unit)
            if label != _BASE:
                row = replace(row, ratio=value / base[what, unit], against=_BASE)
            rows.append(row)
    return rows


_BASE = "torch.save"


def _figures(side: _Side, megabytes: float) -> dict[tuple[str, str], float]:
    """By what and unit; medians of the rounds but the first, which warms up. Rates are of the state's
    bytes, whatever became of them in the file.
    """
    found = {("bytes", "MB"): side.size / 1e6}
    for what, rounds in (("save", side.writes), ("load", side.reads)):
        wall, cpu = (median(list(column)) for column in zip(*rounds[1:], strict=True))
        found[what, "MB/s"] = megabytes / wall
        found[f"{what} CPU", "CPU s/GB"] = 1e3 * cpu / megabytes
    return found


def _round(side: _Side, saved: Snapshot, path: Path) -> None:
    started = time.perf_counter(), time.process_time()
    side.write(path)
    side.writes.append(_since(started))
    side.size = path.stat().st_size
    started = time.perf_counter(), time.process_time()
    found = side.read(path)
    side.reads.append(_since(started))
    path.unlink()
    for name, tensor in saved.tensors.items():
        if not torch.equal(found.tensors[name], tensor):
            raise RuntimeError(f"{name} did not survive the file")


def _since(started: tuple[float, float]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    return time.perf_counter() - started[0], time.process_time() - started[1]
