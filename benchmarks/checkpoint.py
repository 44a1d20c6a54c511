"""Checkpoints beside their peers, one table: `python benchmarks/checkpoint.py [--model gpt2] [--json F]`.

All take the state of one model in training, on the CPU or on a GPU: ours as it is shipped (Full and Int8,
and the ring's raw frames), torch.save, torch.distributed.checkpoint's async_save with its stager (pinned
if there is a GPU), safetensors, ZipNN. Of each: bytes; wall time and CPU of a save and of a load, file in
memory, the state already on the CPU; and what a save adds to the training that goes on beside it,
over the steps until it is done, p50 and p95 of the rounds. `again` is torch.save a second time, and of
the added time nothing at all: what differs between equals.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine

machine.pin_threads()

import structlog  # noqa: E402
import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
import trained  # noqa: E402
from figures import median, quantile  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions  # noqa: E402

from forkcast.records import StateKind  # noqa: E402
from forkcast_trainer.container import default_threads, read_container, write_container  # noqa: E402
from forkcast_trainer.saver import Saver  # noqa: E402
from forkcast_trainer.state import snapshot  # noqa: E402
from forkcast_trainer.step import Engine  # noqa: E402
from forkcast_trainer.table import Snapshot  # noqa: E402
from forkcast_wire.manifest import Checkpoint  # noqa: E402
from forkcast_wire.store import FolderStore  # noqa: E402

Tensors = Mapping[str, Tensor]
BASE, NOTHING = "torch.save", "nothing (A/A)"


@dataclass
class Side:
    """write, read: a whole state, to a path and back. begin: a save while training goes on; returns
    what waits for its end.
    """

    write: Callable[[Snapshot, Path], object] | None = None
    read: Callable[[Path], Tensors] | None = None
    begin: Callable[[Engine, Path], Callable[[], object]] | None = None
    near: bool = False
    why: str = ""
    size: int = 0
    saves: list[tuple[float, float]] = field(default_factory=list)  # wall and CPU, seconds
    loads: list[tuple[float, float]] = field(default_factory=list)
    added: list[float] = field(default_factory=list)


def live(engine: Engine) -> dict[str, Tensor]:
    """The tensors of model and optimizer where they are."""
    found = {f"model.{name}": one.detach() for name, one in engine.named.items()}
    for name, parameter in engine.named.items():
        for slot, value in engine.optimizer.state[parameter].items():
            found[f"optimizer.{name}.{slot}"] = value
    return found


def blocking(write: Callable[[dict[str, Tensor], Path], object]) -> Side:
    """A library whose save is over when it returns."""

    def begin(engine: Engine, path: Path) -> Callable[[], object]:
        write({name: t.cpu() for name, t in live(engine).items()}, path)
        return lambda: None

    return Side(lambda saved, path: write(dict(saved.tensors), path), begin=begin)


def ours(level: int, *, int8: bool, kind: StateKind = StateKind.CHECKPOINT) -> Side:
    """The container, and the trainer's own saver."""
    rules = Checkpoint(compression_level=level, optimizer_state="Int8" if int8 else "Full")

    def begin(engine: Engine, path: Path) -> Callable[[], object]:
        folder = path.with_name(path.name + ".store")
        saver = Saver(FolderStore(folder), folder / "work", rules)
        saver.save(snapshot(engine), kind)

        def wait() -> None:
            saver.close()  # it would keep the copy
            _remove(folder)
            if saver.error:
                raise RuntimeError(saver.error)

        return wait

    return Side(
        lambda saved, path: write_container(saved, path, level, int8=int8),
        lambda path: read_container(path).tensors,
        begin,
        near=int8,
    )


def distributed() -> Side:
    """async_save, staged into memory that is taken once."""
    cuda = torch.cuda.is_available()
    options = StagingOptions(
        use_pinned_memory=cuda,
        use_shared_memory=cuda,
        use_async_staging=cuda,
        use_non_blocking_copy=cuda,
    )
    stager: list[DefaultStager] = []

    def begin(engine: Engine, path: Path) -> Callable[[], object]:
        if not stager:
            stager.append(DefaultStager(options))
        done: Any = dcp.async_save(
            live(engine), checkpoint_id=path, async_stager=stager[0], no_dist=True
        )
        staged = getattr(done, "staging_completion", None)
        if staged is not None:  # the optimizer must not step before it
            staged.result()
        return getattr(done, "upload_completion", done).result  # type: ignore[no-any-return]

    def read(path: Path) -> Tensors:
        card = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        empty = {
            name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in card.items()
        }
        dcp.load(empty, checkpoint_id=path, no_dist=True)
        return empty

    return Side(
        lambda saved, path: dcp.save(dict(saved.tensors), checkpoint_id=path, no_dist=True),
        read,
        begin,
    )


def zipnn() -> Side:
    """Each tensor by itself, float32 as float32, on the threads that ours take."""
    try:
        from zipnn import ZipNN
    except ImportError as error:
        return Side(why=f"not measured: {error}; pip install zipnn")

    def packer() -> Any:
        return ZipNN(input_format="byte", bytearray_dtype="float32", threads=default_threads())

    def write(tensors: dict[str, Tensor], path: Path) -> None:
        with path.open("wb") as out:
            rows: list[Any] = []
            for name, tensor in tensors.items():
                raw = bytearray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
                small = len(raw) < 4096 or tensor.dtype is not torch.float32
                part = raw if small else packer().compress(raw)
                rows.append([name, list(tensor.shape), str(tensor.dtype)[6:], len(part), small])
                out.write(part)
            out.write(tail := json.dumps(rows).encode())
            out.write(len(tail).to_bytes(8, "little"))

    def read(path: Path) -> Tensors:
        data = memoryview(path.read_bytes())
        length = int.from_bytes(data[-8:], "little")
        found, at = {}, 0
        unpacker = packer()
        for name, shape, dtype, size, small in json.loads(bytes(data[-8 - length : -8])):
            part: Any = bytearray(data[at : at + size])
            if not small:
                part = unpacker.decompress(part)
            at += size
            found[name] = torch.frombuffer(part, dtype=getattr(torch, dtype)).reshape(shape)
        return found

    side = blocking(write)
    side.read = read
    return side


def torch_save() -> Side:
    """The base of all ratios."""
    side = blocking(torch.save)
    side.read = lambda path: torch.load(path, weights_only=True)  # type: ignore[no-any-return]
    return side


def safetensors() -> Side:
    """Loading maps the file: its bytes are read when they are looked at, here by the comparison."""
    side = blocking(save_file)
    side.read = lambda path: {name: t.clone() for name, t in load_file(path).items()}
    return side


def sides() -> dict[str, Side]:
    """All of them, in the table's order."""
    return {
        BASE: torch_save(),
        "torch.save again (A/A)": torch_save(),
        "ours, Full": ours(1, int8=False),
        "ours, Int8": ours(1, int8=True),
        "ours, a ring state (raw)": ours(0, int8=False, kind=StateKind.RING),
        "DCP async_save": distributed(),
        "safetensors": safetensors(),
        "ZipNN": zipnn(),
        NOTHING: Side(begin=lambda _engine, _path: lambda: None),
    }


def files(side: Side, saved: Snapshot, path: Path) -> None:
    """One save and one load, compared bit by bit."""
    if side.write is None or side.read is None:
        return
    started = time.perf_counter(), time.process_time()
    side.write(saved, path)
    side.saves.append(_since(started))
    parts = path.rglob("*") if path.is_dir() else [path]
    side.size = sum(part.stat().st_size for part in parts)
    started = time.perf_counter(), time.process_time()
    found = side.read(path)
    side.loads.append(_since(started))
    for name, tensor in saved.tensors.items():
        if not torch.equal(found[name], tensor) and not (side.near and name in saved.roles):
            raise RuntimeError(f"{name} did not survive the file")
    _remove(path)


def beside(side: Side, engine: Engine, path: Path, steps: int) -> None:
    """Seconds that a save adds to the steps that are taken while it is under way."""
    if side.begin is None:
        return
    plain = _stepped(engine, steps)
    started = time.perf_counter()
    wait = side.begin(engine, path)
    ended = threading.Event()
    waiter = threading.Thread(target=lambda: (wait(), ended.set()))
    waiter.start()
    _stepped(engine, 1)
    taken = 1
    while not ended.is_set() or taken < steps:
        _stepped(engine, 1)
        taken += 1
    waiter.join()
    side.added.append(time.perf_counter() - started - taken * plain / steps)
    _remove(path)


def _stepped(engine: Engine, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        engine.step()
    engine.settle()
    engine.told()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _since(started: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - started[0], time.process_time() - started[1]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def rows(measured: Mapping[str, Side], size: int, step: float) -> list[dict[str, Any]]:
    """JSON-ready; ratios are against torch.save. The first round warms up and is left out if there
    are more.
    """
    found = []
    for name, side in measured.items():
        row: dict[str, Any] = {"name": name, "note": side.why}
        if side.saves:
            row["bytes"] = side.size
            for what, rounds in (("save", side.saves), ("load", side.loads)):
                wall, cpu = (median(list(c)) for c in zip(*(rounds[1:] or rounds), strict=True))
                row |= {f"{what}_seconds": wall, f"{what}_cpu_seconds_per_gb": 1e9 * cpu / size}
        if side.added:
            added = side.added[1:] or side.added
            row["added_seconds_p50"], row["added_seconds_p95"] = (
                median(added),
                quantile(added, 0.95),
            )
            row["added_steps_p50"], row["added_steps_p95"] = (
                row[f"added_seconds_{p}"] / step for p in ("p50", "p95")
            )
        found.append(row)
    base = found[0]
    for row in found:
        if "bytes" in row:
            row["times_smaller"] = base["bytes"] / row["bytes"]
            for what in ("save", "load"):
                row[f"{what}_times_torch"] = row[f"{what}_seconds"] / base[f"{what}_seconds"]
    return found


def shown(found: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    columns = {
        "times_smaller": "{:.3f}",
        "save_seconds": "{:.2f}",
        "save_times_torch": "x{:.2f}",
        "save_cpu_seconds_per_gb": "{:.2f}",
        "load_seconds": "{:.2f}",
        "load_times_torch": "x{:.2f}",
        "load_cpu_seconds_per_gb": "{:.2f}",
        "added_seconds_p50": "{:+.2f}",
        "added_seconds_p95": "{:+.2f}",
        "added_steps_p50": "{:+.2f}",
        "added_steps_p95": "{:+.2f}",
    }
    lines = ["| | " + " | ".join(c.replace("_", " ") for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in found:
        cells = [form.format(row[c]) if c in row else "" for c, form in columns.items()]
        name = f"{row['name']}: {row['note']}" if row["note"] else row["name"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """0; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="gpt2", help="gpt2-tiny, gpt2, gpt2-medium, ...")
    parser.add_argument(
        "--tokens", type=Path, help="nanoGPT's file of ids; else the words of Python"
    )
    parser.add_argument("--rounds", type=int, default=6, help="the first one warms up")
    parser.add_argument("--beside-rounds", type=int, help="of the added time; as --rounds")
    parser.add_argument("--warm-up-steps", type=int, default=20, help="trained before all")
    parser.add_argument("--steps", type=int, default=2, help="at least so many beside a save")
    parser.add_argument("--batch", type=int, default=32, help="sequences a step, but of gpt2-tiny")
    parser.add_argument("--length", type=int, default=1024, help="tokens of one, but of gpt2-tiny")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    measured, loads = sides(), [machine.load_average()]
    with tempfile.TemporaryDirectory(dir=machine.memory_folder()) as name:
        folder = Path(name)
        engine = trained.engine(
            given.model,
            folder,
            batch=given.batch,
            length=given.length,
            steps=1_000_000,
            tokens=given.tokens,
        )
        _stepped(engine, given.warm_up_steps)
        whole = snapshot(engine)
        names = set(live(engine))
        saved = Snapshot({}, {n: t for n, t in whole.tensors.items() if n in names}, whole.roles)
        size = sum(t.numel() * t.element_size() for t in saved.tensors.values())
        for number in range(given.rounds):
            for label, side in measured.items():
                files(side, saved, folder / "state")
                print(f"round {number}, files: {label}", file=sys.stderr, flush=True)
        del saved, whole
        step = _stepped(engine, given.steps) / given.steps
        for number in range(given.rounds if given.beside_rounds is None else given.beside_rounds):
            for place, (label, side) in enumerate(measured.items()):
                beside(side, engine, folder / f"beside-{place}", given.steps)
                print(f"round {number}, beside: {label}", file=sys.stderr, flush=True)
        step = min(step, _stepped(engine, given.steps) / given.steps)
    loads.append(machine.load_average())
    found = rows(measured, size, step)
    facts = machine.described()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"{given.model}, {size / 1e6:,.0f} MB; step {step:.3f} s; {facts['cpu']}, {facts['cores']} "
        f"cores, {device}, load {loads[0]:.1f} to {loads[1]:.1f}"
    )
    print(shown(found))
    if given.json:
        versions = {n: _version(n) for n in ("torch", "safetensors", "zipnn")}
        document = {
            "machine": {**facts, "device": device, "versions": {**facts["versions"], **versions}},  # type: ignore[dict-item]
            "load_average": loads,
            "model": given.model,
            "state_bytes": size,
            "step_seconds": step,
            "rows": found,
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())
