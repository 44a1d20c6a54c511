"""What a save adds to the steps around it: by the saver's thread, by its other process, and none at all.

    python -m benchmarks.saves [--layers 17] [--rounds 8] [--steps 6] [--launches] [--json]

A GPT-2 of about 124M parameters trains on one thread. Rounds alternate: steps without a save (twice: A and
A'), steps after a save that the thread encodes in the trainer's process, steps after a save that the other
process encodes out of shared memory. Each save is a checkpoint of level 1 into a folder; before the next
part of a round it is waited for. `call` is what taking the copy costs the training's thread; `added` is a
step's time over the median of the steps without a save, the copy included in the first. --launches: the
steps are what a step on a device looks like from its host, 60 times half a millisecond of Python and a
millisecond's wait, so that what shows is what the saver takes from the training's thread.
"""

from __future__ import annotations

from benchmarks.machine import described, pin_threads

pin_threads()

import argparse  # noqa: E402  after the threads are pinned
import json  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks.figures import median, quantile  # noqa: E402
from forkcast.records import StateKind  # noqa: E402
from forkcast_trainer import state  # noqa: E402
from forkcast_trainer.placement import placement  # noqa: E402
from forkcast_trainer.saver import Saver  # noqa: E402
from forkcast_trainer.staging import Staging  # noqa: E402
from forkcast_trainer.step import Engine  # noqa: E402
from forkcast_wire.manifest import Storage, TrainingRunSpec  # noqa: E402
from forkcast_wire.store import FolderStore  # noqa: E402

_WARM_UP = 2


def engine(folder: Path, layers: int) -> Engine:
    """Of about 7.1M parameters a layer."""
    spec = TrainingRunSpec.model_validate(
        {
            "model": {"architecture": "gpt2", "size": {"layers": layers}, "device": "Cpu"},
            "data": {"train": {"uri": "python-stdlib:"}, "sequenceLength": 64},
            "training": {"totalSteps": 10**6, "microBatchSize": 1},
            "checkpoint": {"keepLast": 1},
        }
    )
    return Engine(spec, "u", folder, placement(spec, 0, 1, 0))


def launches() -> None:
    """A step on a device as its host sees it."""
    for _ in range(60):
        end = time.perf_counter() + 0.0005
        while time.perf_counter() < end:
            pass
        time.sleep(0.001)


class Part:
    """One way to save, None for none; its own saver and folder."""

    def __init__(
        self, made: Engine, folder: Path, way: str | None, step: Callable[[], object]
    ) -> None:
        self._engine, self._step, self.way = made, step, way
        self.calls: list[float] = []
        self.steps: list[float] = []
        self.saves: list[float] = []
        self.saver: Saver | None = None
        if way is not None:
            store, aside = folder / way / "store", way == "process"
            rules = made.spec.checkpoint
            staging = Staging(made.place.device) if aside else None
            storage = Storage(path=str(store)) if aside else None
            self.saver = Saver(
                FolderStore(store), folder / way, rules, staging=staging, storage=storage
            )

    def run(self, steps: int, *, counted: bool) -> None:
        """One save, so many steps, and the save's end."""
        begun = time.perf_counter()
        calls, times = [], []
        for number in range(steps):
            started = time.perf_counter()
            if number == 0 and self.saver is not None:
                copied = state.snapshot(self._engine, copied=self.saver.copied)
                self.saver.save(copied, StateKind.CHECKPOINT)
                calls.append(time.perf_counter() - started)
            self._step()
            times.append(time.perf_counter() - started)
        if self.saver is not None:
            self.saver.flush()
        if counted:
            self.calls += calls
            self.steps += times
            self.saves.append(time.perf_counter() - begun)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--launches", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="saves-"))
    try:
        made = engine(folder, given.layers)
        parameters = sum(one.numel() for one in made.parameters)
        made.step()  # the moments are part of the state
        step = launches if given.launches else made.step
        parts = {
            name: Part(made, folder, way, step)
            for name, way in (
                ("A", None),
                ("thread", "thread"),
                ("A'", None),
                ("process", "process"),
            )
        }
        for number in range(given.rounds + _WARM_UP):
            for part in parts.values():
                part.run(given.steps, counted=number >= _WARM_UP)
        base = median(parts["A"].steps)
        rows = {
            name: {
                "added_p50_ms": 1e3 * (quantile(part.steps, 0.5) - base),
                "added_p95_ms": 1e3 * (quantile(part.steps, 0.95) - base),
                "added_mean_ms": 1e3 * (sum(part.steps) / len(part.steps) - base),
                "call_p50_ms": 1e3 * quantile(part.calls, 0.5) if part.calls else 0.0,
                "call_p95_ms": 1e3 * quantile(part.calls, 0.95) if part.calls else 0.0,
                "save_p50_s": quantile(part.saves, 0.5) if part.saver else 0.0,
            }
            for name, part in parts.items()
        }
        for part in parts.values():
            if part.saver is not None:
                part.saver.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    document = {
        "machine": described(),
        "parameters": parameters,
        "step_ms": 1e3 * base,
        "rows": rows,
    }
    if given.json:
        print(json.dumps(document, indent=1))
        return 0
    print(f"{parameters:,} parameters, a step without a save {1e3 * base:.0f} ms (median)")
    for name, row in rows.items():
        print(name, *(f"{what} {value:.1f}" for what, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
