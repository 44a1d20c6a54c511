"""Values that many tests need whole and care little about: a step's statistics, a trigger, a saved state,
a lineage record, a manifest of a tiny run. A test names what it is about.
"""

from __future__ import annotations

from typing import Any

from forkcast.actions import Action
from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, StepStats, Trigger, TriggerRule
from forkcast_wire import keys
from forkcast_wire.documents import StateManifest, dump


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


def state_ref(step: int, kind: StateKind = StateKind.RING, **changes: Any) -> StateRef:
    """A saved state of epoch 0 after ``step`` steps; of the main run it has its own key."""
    values: dict[str, Any] = {"epoch": 0, "attempt": 0, "digest": "d", "size_bytes": 1, **changes}
    if "key" not in values:
        values["key"] = f"rollouts/b/c0/end-{step:06d}"
        if kind is not StateKind.ROLLOUT:
            values["key"] = keys.state(kind, values["epoch"], values["attempt"], step)
    return StateRef(kind=kind, step=step, **values)


def saved_state(store: Store, ref: StateRef, run_uid: str = "u") -> StateRef:
    """The state exists, as a saver leaves it: its bytes, then its manifest."""
    manifest = StateManifest(
        format_version=1, run_uid=run_uid, state=ref, lossless=True, loss=3.0, versions={}
    )
    store.put(keys.ptz(ref.key, ref.step), b"x")
    store.put(keys.state_manifest(ref.key), dump(manifest))
    return ref


def lineage_entry(epoch: int = 1, **changes: Any) -> LineageEntry:
    """The record that opens an epoch of run ``u``: adopted after step 150, from a base at step 100."""
    values: dict[str, Any] = {
        "run_uid": "u",
        "branch": "b",
        "decision_digest": "d",
        "action": Action(),
        "base_step": 100,
        "trigger_step": 120,
        **changes,
    }
    if "state" not in values:
        values["state"] = state_ref(150, StateKind.ROLLOUT, epoch=epoch - 1)
    return LineageEntry(epoch=epoch, **values)
