"""All that must survive a restart, in one list: engine to snapshot, snapshot to engine.

Model, optimizer (moments and step counters), schedule (its step and the actions' factors), loss
scaler, every random generator of every rank, sampler, clipping state, step, data epoch, lineage
epoch, tokens, the per-layer mean, sd and entropy last seen, and the windows against which a spike is
measured, so that every rollout of a branch has the same past. Restoring gives the saved bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from forkcast.spikes import SpikeScore
from forkcast_trainer import randomness, schema
from forkcast_trainer.checkpoint import CheckpointError, Snapshot
from forkcast_trainer.data.sampler import SamplerState
from forkcast_trainer.engine import ActionState, Engine
from forkcast_trainer.internals import Internals
from forkcast_trainer.randomness import Randomness

T = TypeVar("T")
_SLOTS = ("exp_avg", "exp_avg_sq", "step")


def randomness_of_all(engine: Engine) -> list[Randomness]:
    """Every rank's generators, by rank. All ranks call it at one step boundary."""
    mine = randomness.taken(engine.place.device)
    if engine.place.world == 1:
        return [mine, *engine.generators.others]
    gathered: list[Any] = [None] * engine.place.world
    dist.all_gather_object(gathered, mine)
    return gathered


def snapshot(engine: Engine, ranks: Sequence[Randomness] = ()) -> Snapshot:
    """A copy of the whole state on the CPU. ``ranks``: every rank's generators, where other
    processes hold some of them.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in engine.named.items():
        tensors[f"model.{name}"] = _copy(parameter)
        state = engine.optimizer.state.get(parameter, {})
        for slot in _SLOTS:
            if slot in state:
                tensors[f"optimizer.{name}.{slot}"] = _copy(state[slot])
    for name, buffer in engine.module.named_buffers():
        tensors[f"buffer.{name}"] = _copy(buffer)
    mine = randomness.taken(engine.place.device)
    first, *others = ranks or [mine, *engine.generators.others]
    for rank, one in enumerate((first, *others)):
        suffix = f".rank{rank}" if rank else ""
        tensors[f"rng.torch{suffix}"] = one.torch
        if one.cuda is not None:
            tensors[f"rng.cuda{suffix}"] = one.cuda
    position = engine.position
    meta: dict[str, Any] = {
        "run_uid": engine.run_uid,
        "step": position.step,
        "epoch": position.epoch,
        "attempt": position.attempt,
        "tokens": position.tokens,
        "loss": position.loss,
        "internals": asdict(position.internals) if position.internals else None,
        "spikes": engine.spikes.state(),
        "sampler": asdict(engine.sampler.state),
        "actions": asdict(engine.actions),
        "clipping": engine.clipping.state_dict(),
        "scaler": engine.scaler.state_dict(),
        "rng.python": first.python,
        "rng.numpy": first.numpy,
        "world": engine.shards,
    }
    if others:
        meta["rng.ranks"] = [{"python": one.python, "numpy": one.numpy} for one in others]
    return Snapshot(meta, tensors)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def restore(engine: Engine, saved: Snapshot) -> None:
    """Become the saved state. Raises CheckpointError where it is of another model or format, and
    leaves the engine as it was then.
    """
    check(engine, saved)
    meta, tensors = saved.meta, saved.tensors
    try:
        actions = _exactly(ActionState, meta["actions"])
        clipping = engine.make_clipping(actions.clipping)
        clipping.load_state_dict(meta["clipping"])
        sampler = _exactly(SamplerState, meta["sampler"])
        inside = _internals(meta["internals"])
        spikes = SpikeScore()
        spikes.restore(meta["spikes"])
        if bool(meta["scaler"]) and engine.scaler.is_enabled():
            engine.scaler.load_state_dict(meta["scaler"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the state is of another version: {error}") from error
    _restore_tensors(engine, tensors)
    engine.actions, engine.clipping, engine.sampler.state = actions, clipping, sampler
    position = engine.position
    position.step, position.epoch = int(meta["step"]), int(meta["epoch"])
    position.tokens, position.loss = int(meta["tokens"]), meta["loss"]
    position.internals, engine.spikes = inside, spikes
    _restore_randomness(engine, saved)
    engine.forget_update()


def _exactly(kind: type[T], saved: Mapping[str, Any]) -> T:
    """The record with exactly these fields: a default must not stand in for what was saved."""
    if missing := sorted({one.name for one in fields(kind)} - set(saved)):  # type: ignore[arg-type]
        raise KeyError(f"{kind.__name__} lacks {missing[0]}")
    return kind(**saved)


def _internals(saved: Mapping[str, Any] | None) -> Internals | None:
    if saved is None:
        return None
    return Internals(
        attention_entropy=tuple(saved["attention_entropy"]),
        attention_logit_max=saved["attention_logit_max"],
        activation_mean=tuple(saved["activation_mean"]),
        activation_sd=tuple(saved["activation_sd"]),
    )


def _restore_randomness(engine: Engine, saved: Snapshot) -> None:
    """The generators of this rank, or of all ranks where this process computes for them."""
    device, place = engine.place.device, engine.place
    randomness.put(device, _saved_randomness(engine, saved, place.rank))
    others = range(1, engine.shards) if place.world == 1 else ()
    engine.generators = randomness.Shards(
        device, [_saved_randomness(engine, saved, rank) for rank in others]
    )


def _saved_randomness(engine: Engine, saved: Snapshot, rank: int) -> Randomness:
    """One rank's generators. A rank that the saved run did not have gets its own, seeded by the
    state's place, so that two ranks never drop the same activations.
    """
    meta, tensors = saved.meta, saved.tensors
    suffix = f".rank{rank}" if rank else ""
    if f"rng.torch{suffix}" not in tensors:
        text = f"{engine.spec.training.seed}:{meta['epoch']}:{meta['step']}:{rank}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        return randomness.seeded(seed, engine.place.device)
    own = meta["rng.ranks"][rank - 1] if rank else None
    return Randomness(
        python=own["python"] if own else meta["rng.python"],
        numpy=own["numpy"] if own else meta["rng.numpy"],
        torch=tensors[f"rng.torch{suffix}"],
        cuda=tensors.get(f"rng.cuda{suffix}"),
    )


def check(engine: Engine, saved: Snapshot) -> None:
    """Raises CheckpointError where the state breaks the schema or is of another model."""
    schema.check(saved)
    tensors = saved.tensors
    for name, parameter in engine.named.items():
        weight = tensors.get(f"model.{name}")
        if weight is None:
            raise CheckpointError(f"the state is of another model: it lacks {name}")
        if weight.shape != parameter.shape:
            raise CheckpointError(
                f"{name}: shape {tuple(weight.shape)} is not {tuple(parameter.shape)}"
            )
    names = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    if surplus := sorted(names - set(engine.named)):
        raise CheckpointError(f"the state is of another model: {surplus[0]} is not in it")


@torch.no_grad()
def _restore_tensors(engine: Engine, tensors: Mapping[str, Tensor]) -> None:
    engine.optimizer.state.clear()
    for name, parameter in engine.named.items():
        parameter.copy_(tensors[f"model.{name}"])
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
