"""All that must survive a restart, in one list: engine to snapshot, snapshot to engine.

Model, optimizer (moments and step counters), schedule (its step and the actions' factors), loss
scaler, every random generator, sampler, clipping state, step, data epoch, lineage epoch, tokens,
and the per-layer mean, sd and entropy last seen. Restoring gives the saved bits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkcast_trainer.checkpoint import CheckpointError, Snapshot
from forkcast_trainer.data.sampler import SamplerState
from forkcast_trainer.engine import ActionState, Engine
from forkcast_trainer.internals import Internals

_SLOTS = ("exp_avg", "exp_avg_sq", "step")


def snapshot(engine: Engine) -> Snapshot:
    """A copy of the whole state on the CPU."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in engine.named.items():
        tensors[f"model.{name}"] = _copy(parameter)
        state = engine.optimizer.state.get(parameter, {})
        for slot in _SLOTS:
            if slot in state:
                tensors[f"optimizer.{name}.{slot}"] = _copy(state[slot])
    for name, buffer in engine.module.named_buffers():
        tensors[f"buffer.{name}"] = _copy(buffer)
    tensors["rng.torch"] = torch.get_rng_state().clone()
    if engine.place.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(engine.place.device).clone()
    version, words, extra = random.getstate()
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    position = engine.position
    meta: dict[str, Any] = {
        "run_uid": engine.run_uid,
        "step": position.step,
        "epoch": position.epoch,
        "attempt": position.attempt,
        "tokens": position.tokens,
        "loss": position.loss,
        "internals": asdict(position.internals) if position.internals else None,
        "sampler": asdict(engine.sampler.state),
        "actions": asdict(engine.actions),
        "clipping": engine.clipping.state_dict(),
        "scaler": engine.scaler.state_dict(),
        "rng.python": [version, list(words), extra],
        "rng.numpy": [kind, np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)],
        "world": engine.place.world,
    }
    return Snapshot(meta, tensors)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def restore(engine: Engine, saved: Snapshot) -> None:
    """Become the saved state. Raises CheckpointError where it is of another model."""
    meta, tensors = saved.meta, saved.tensors
    wanted = {f"model.{name}" for name in engine.named}
    if missing := sorted(wanted - set(tensors)):
        raise CheckpointError(f"the state is of another model: it lacks {missing[0]}")
    _restore_tensors(engine, tensors)
    engine.actions = ActionState(**meta["actions"])
    engine.clipping = engine.make_clipping(engine.actions.clipping)
    engine.clipping.load_state_dict(meta["clipping"])
    if meta["scaler"]:
        engine.scaler.load_state_dict(meta["scaler"])
    engine.sampler.state = SamplerState(**meta["sampler"])
    position = engine.position
    position.step, position.epoch = int(meta["step"]), int(meta["epoch"])
    position.tokens, position.loss = int(meta["tokens"]), meta["loss"]
    inside = meta["internals"]
    position.internals = (
        Internals(
            attention_entropy=tuple(inside["attention_entropy"]),
            attention_logit_max=inside["attention_logit_max"],
            activation_mean=tuple(inside["activation_mean"]),
            activation_sd=tuple(inside["activation_sd"]),
        )
        if inside
        else None
    )
    version, words, extra = meta["rng.python"]
    random.setstate((version, tuple(words), extra))
    kind, keys, place, has_gauss, gauss = meta["rng.numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and engine.place.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], engine.place.device)
    engine.forget_update()


@torch.no_grad()
def _restore_tensors(engine: Engine, tensors: Mapping[str, Tensor]) -> None:
    engine.optimizer.state.clear()
    for name, parameter in engine.named.items():
        saved = tensors[f"model.{name}"]
        if saved.shape != parameter.shape:
            raise CheckpointError(
                f"{name}: shape {tuple(saved.shape)} is not {tuple(parameter.shape)}"
            )
        parameter.copy_(saved)
        slots = {
            slot: tensors[f"optimizer.{name}.{slot}"]
            for slot in _SLOTS
            if f"optimizer.{name}.{slot}" in tensors
        }
        if slots:
            fused = engine.place.device.type == "cuda"
            engine.optimizer.state[parameter] = {
                slot: value.clone().to(engine.place.device if fused or slot != "step" else "cpu")
                for slot, value in slots.items()
            }
    for name, buffer in engine.module.named_buffers():
        if f"buffer.{name}" in tensors:
            buffer.copy_(tensors[f"buffer.{name}"])
