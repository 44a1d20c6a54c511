"""Validation loss of each optimizer under each schedule, at one learning rate: the quickstart's model and
text, without its stressors. Evidence that they train, no ranking: the rate is AdamW's.

    python benchmarks/optimizers.py [--steps 600] [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from forkcast.schedules import SCHEDULES
from forkcast_trainer.optimizers import OPTIMIZERS
from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import TrainingRunSpec


def spec(optimizer: str, schedule: str, steps: int, seed: int) -> TrainingRunSpec:
    """Of one run."""
    document: dict[str, Any] = {
        "model": {"architecture": "gpt2-tiny", "dtype": "Float32", "device": "Cpu"},
        "data": {
            "train": {"uri": "python-stdlib:", "maxBytes": 16_000_000},
            "validation": {"maxBatches": 24, "fraction": "0.005"},
            "tokenizer": "bytes",
            "sequenceLength": 64,
            "shuffleSeed": seed,
        },
        "optimizer": {
            "name": optimizer,
            "learningRate": "1e-3",
            "schedule": {"type": schedule, "warmupSteps": 50, "minLearningRate": "1e-4"},
        },
        "training": {"totalSteps": steps, "microBatchSize": 4, "seed": seed},
    }
    return TrainingRunSpec.model_validate(document)


def trained(optimizer: str, schedule: str, steps: int, seed: int, folder: Path) -> float:
    """Validation loss after so many steps, nats a token."""
    given = spec(optimizer, schedule, steps, seed)
    engine = Engine(given, "benchmark", folder, placement(given))
    for _ in range(steps):
        engine.step()
    return engine.evaluate()


def main() -> None:
    """A row an optimizer and a schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in OPTIMIZERS:
            for schedule in SCHEDULES:
                losses = [
                    trained(optimizer, schedule, given.steps, seed, Path(folder))
                    for seed in range(1, given.seeds + 1)
                ]
                rows.append({"optimizer": optimizer, "schedule": schedule, "losses": losses})
                if not given.json:
                    each = " ".join(f"{loss:.3f}" for loss in losses)
                    print(
                        f"{optimizer:10} {schedule:9} {statistics.mean(losses):.3f}  ({each})",
                        flush=True,
                    )
    if given.json:
        print(json.dumps({"steps": given.steps, "rows": rows}))


if __name__ == "__main__":
    main()
