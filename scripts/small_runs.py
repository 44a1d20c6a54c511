"""Small runs of many kinds, drawn by seed: the population the proxy's records come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forkcast_wire.fields import API_VERSION
from forkcast_wire.manifest import TrainingRun, TrainingRunSpec

_HEALTHY_RATE = 3e-3


def draw_run(rng: np.random.Generator, index: int) -> tuple[str, TrainingRunSpec]:
    """(regime, spec) of run ``index``: about half of them healthy."""
    regime = str(rng.choice(["healthy", "fast", "stressed"], p=[0.45, 0.25, 0.3]))
    healthy = regime == "healthy"
    low, high = (5e-4, _HEALTHY_RATE) if healthy else (2e-3, 1.5e-2)
    layers, width = int(rng.integers(2, 5)), int(rng.choice([48, 64, 96, 128]))
    accumulated = bool(rng.random() < 0.15)
    document = {
        "apiVersion": API_VERSION,
        "kind": "TrainingRun",
        "metadata": {"name": f"run-{index}"},
        "spec": {
            "model": {
                "architecture": "gpt2-tiny",
                "size": {"layers": layers, "width": width, "heads": 4},
                "dtype": "Float32",
                "device": "Cpu",
            },
            "data": {**data_of(), "shuffleSeed": int(rng.integers(1 << 30))},
            "stressors": [] if healthy else _stressors(rng, regime),
            "optimizer": {
                "learningRate": f"{math.exp(rng.uniform(math.log(low), math.log(high))):.6g}",
                "schedule": {
                    "type": str(rng.choice(["Cosine", "Constant"])),
                    "warmupSteps": int(rng.choice([20, 50, 100])),
                },
                "clipping": {"policy": str(rng.choice(["Norm", "Norm", "Norm", "None", "ZClip"]))},
            },
            "training": {
                "totalSteps": int(rng.integers(350, 701)),
                "microBatchSize": 2 if accumulated else int(rng.choice([4, 4, 4, 8])),
                "gradientAccumulationSteps": 3 if accumulated else 1,
                "seed": int(rng.integers(1 << 30)),
            },
            "statistics": {"internalsEverySteps": int(rng.choice([5, 10]))},
            "uncertainty": {
                "window": 64,
                "emaDecay": "0.9",
                "warmupSteps": 60,
                "cooldownSteps": 150,
                "forecastHorizonSteps": 20,
            },
        },
    }
    return regime, TrainingRun.model_validate(document).spec


def data_of() -> dict[str, Any]:
    """The text of all runs, and a validation of about 4,000 tokens."""
    return {
        "train": {"uri": "python-stdlib:", "maxBytes": 16_000_000},
        "validation": {"maxBatches": 16, "fraction": "0.02"},
        "tokenizer": "bytes",
        "sequenceLength": 64,
    }


def _stressors(rng: np.random.Generator, regime: str) -> list[dict[str, Any]]:
    if regime == "fast" and rng.random() < 0.5:
        return []
    if regime == "fast":
        return [{"type": "AggressiveWarmup", "magnitude": f"{rng.uniform(2, 6):.3g}"}]
    kinds = ["RareTokenBurst", "LongSequence", "TextArtifacts", "BlockShuffle"]
    chosen = rng.choice(kinds, size=int(rng.integers(1, 4)), replace=False)
    return [
        {
            "type": str(kind),
            "probability": f"{rng.uniform(0.005, 0.04):.4g}",
            "fromStep": int(rng.integers(0, 200)),
            "seed": int(rng.integers(1 << 30)),
        }
        for kind in chosen
    ]
