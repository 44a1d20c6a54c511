"""Checkpoint bytes and CPU: the container against torch.save, in memory-backed files.

Two states with real moments: the quickstart's model, and a GPT-2 of about 14M parameters. Both
sides get the same snapshot; what each reads back is compared bit by bit in the timed run's files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import machine
import served
import torch
from figures import Row, median, times

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
    writes: list[float] = field(default_factory=list)  # CPU seconds
    reads: list[float] = field(default_factory=list)


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


def _compared(saved: Snapshot, model: str, level: int, rounds: int) -> list[Row]:
    whole = {"meta": dict(saved.meta), "tensors": dict(saved.tensors)}
    sides = {
        "torch.save": _Side(lambda path: torch.save(whole, path), _load),
        "container": _Side(lambda path: write_container(saved, path, level), read_container),
        "container, raw": _Side(lambda path: write_container(saved, path, 0), read_container),
    }
    with tempfile.TemporaryDirectory(dir=machine.memory_folder()) as name:
        for _ in range(rounds + 1):
            for side in sides.values():
                _round(side, saved, Path(name) / "state")
    raw = sum(t.numel() * t.element_size() for t in saved.tensors.values()) / 1e9
    rows = []
    for label, side in sides.items():
        base = sides["torch.save"]
        figures = (
            ("bytes", side.size / 1e6, base.size / 1e6, "MB"),
            ("write", median(side.writes[1:]) / raw, median(base.writes[1:]) / raw, "CPU s/GB"),
            ("read", median(side.reads[1:]) / raw, median(base.reads[1:]) / raw, "CPU s/GB"),
        )
        for what, value, reference, unit in figures:
            whose = label if side is not base else f"torch.{_PEER[what]}"
            row = Row(section="checkpoint", name=f"{model} {what}: {whose}", value=value, unit=unit)
            if side is not base:
                row = replace(row, ratio=value / reference, against=f"torch.{_PEER[what]}")
            rows.append(row)
    return rows


_PEER = {"bytes": "save", "write": "save", "read": "load"}


def _round(side: _Side, saved: Snapshot, path: Path) -> None:
    before = time.process_time()
    side.write(path)
    side.writes.append(time.process_time() - before)
    side.size = path.stat().st_size
    before = time.process_time()
    found = side.read(path)
    side.reads.append(time.process_time() - before)
    path.unlink()
    for name, tensor in saved.tensors.items():
        if not torch.equal(found.tensors[name], tensor):
            raise RuntimeError(f"{name} did not survive the file")
