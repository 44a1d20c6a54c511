"""Values that many tests need whole and care little about: a step's statistics, a trigger, a manifest of a
tiny run. A test names what it is about.
"""

from __future__ import annotations

from typing import Any

from forkcast.records import StepStats, Trigger, TriggerRule


def step_stats(step: int, **changes: Any) -> StepStats:
    """The statistics of a step of rank 0 of run ``u``."""
    values: dict[str, Any] = {
        "run_uid": "u",
        "epoch": 0,
        "attempt": 0,
        "rank": 0,
        "loss": 1.0,
        "grad_norm": 1.0,
        "grad_norm_clipped": 1.0,
        "learning_rate": 1e-3,
        "tokens": step,
    }
    return StepStats(step=step, **{**values, **changes})


def trigger(**changes: Any) -> Trigger:
    """A trigger of run ``u`` at step 100."""
    values: dict[str, Any] = {
        "run_uid": "u",
        "epoch": 0,
        "step": 100,
        "onset_step": 98,
        "rule": TriggerRule.SINGLE,
        "z": 4.0,
        "index": 2.0,
        "components": {},
        "thresholds": {},
    }
    return Trigger(**{**values, **changes})


def tiny_run(name: str, **spec: Any) -> dict[str, Any]:
    """The manifest of a run that takes a thousand steps in a moment: one layer, 16 wide, on the CPU.
    spec: its other sections.
    """
    model = {
        "architecture": "gpt2-tiny",
        "size": {"layers": 1, "width": 16, "heads": 2},
        "dtype": "Float32",
        "device": "Cpu",
    }
    return {
        "apiVersion": "forkcast.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {"model": model, **spec},
    }


def little_text(sequence_length: int, **validation: int) -> dict[str, Any]:
    """The section `data` of a run on 100 kB of the standard library's sources."""
    return {
        "train": {"uri": "python-stdlib:", "maxBytes": 100000},
        "validation": validation,
        "sequenceLength": sequence_length,
    }
