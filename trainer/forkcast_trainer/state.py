"""All that must survive a restart, in one list: engine to snapshot, snapshot to engine.

Model, optimizer (moments and step counters), schedule (its step and the actions' factors), loss
scaler, every random generator of every rank, sampler, clipping state, step, data epoch, lineage
epoch, tokens, the per-layer mean, sd and entropy last seen, and the windows against which a spike is
measured, so that every rollout of a branch has the same past. Restoring gives the saved bits.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import structlog
import torch
import torch.distributed as dist
from torch import Tensor

from forkcast.robust import usable
from forkcast.spikes import SpikeScore
from forkcast_trainer import moments, optimizers, randomness, schema
from forkcast_trainer.checkpoint import CheckpointError, Shaped, Snapshot
from forkcast_trainer.clipping import ClippingPolicy
from forkcast_trainer.data import identity
from forkcast_trainer.data.mixture import Mixture, MixtureState
from forkcast_trainer.data.sampler import Sampler, SamplerState
from forkcast_trainer.errors import DataError
from forkcast_trainer.internals import Internals
from forkcast_trainer.randomness import Randomness
from forkcast_trainer.staging import on_the_host
from forkcast_trainer.step import ActionState, Engine
from forkcast_wire import beats
from forkcast_wire.documents import TextIdentity, load

_log = structlog.get_logger()
T = TypeVar("T")
#: The optimizer of a state that does not name it.
_ADAMW = "AdamW"


def randomness_of_all(engine: Engine) -> list[Randomness]:
    """Every rank's generators, by rank. All ranks call it at one step boundary."""
    mine = randomness.taken(engine.place.device)
    if engine.place.world == 1:
        return [mine, *engine.generators.others]
    gathered: list[Any] = [None] * engine.place.world
    with beats.during(beats.Phase.MEET):
        dist.all_gather_object(gathered, mine)
    return gathered


def snapshot(
    engine: Engine,
    ranks: Sequence[Randomness] = (),
    copied: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = on_the_host,
) -> Snapshot:
    """A copy of the whole state on the CPU. ``ranks``: every rank's generators, where other
    processes hold some of them. copied: how the copy is made.
    """
    engine.settle()
    tensors: dict[str, Tensor] = {}
    layouts = optimizers.layouts(engine.optimizer)
    for name, parameter in engine.named.items():
        tensors[f"model.{name}"] = parameter.detach()
        state = engine.optimizer.state.get(parameter, {})
        for slot, kept in layouts[parameter].saved(state).items():
            tensors[f"optimizer.{name}.{slot}"] = kept
    for name, buffer in engine.module.named_buffers():
        tensors[f"buffer.{name}"] = buffer
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
        "text": asdict(engine.text),
    }
    if engine.spec.optimizer.name != _ADAMW:  # older versions read AdamW's states, which name none
        meta["optimizer"] = engine.spec.optimizer.name
    if others:
        meta["rng.ranks"] = [{"python": one.python, "numpy": one.numpy} for one in others]
    if engine.learner.facts:
        meta["model"] = dict(engine.learner.facts)
    if position.int8_restores:
        meta["int8_restores"] = position.int8_restores
    coded = moments.roles(engine.module, layouts)
    roles = {f"optimizer.{name}.{slot}": role for name, slot, role in coded}
    return Snapshot(meta, copied(tensors), roles)


def restore(engine: Engine, saved: Snapshot) -> None:
    """Become the saved state, whole. Raises CheckpointError if it is of another model or version, or
    holds what no state can; then the engine stays as it was.
    """
    parts = _checked(engine, saved)
    engine.settle()
    engine.told()  # of the lineage that is left here
    meta = saved.meta
    _restore_tensors(engine, saved.tensors)
    position = engine.position
    position.int8_restores = int(meta.get("int8_restores", 0))
    if saved.coded:
        position.int8_restores += 1
        _restore_coded(engine, saved)
    engine.actions, engine.clipping = parts.actions, parts.clipping
    engine.sampler = parts.sampler
    engine.scaler, engine.spikes = parts.scaler, parts.spikes
    position.step, position.epoch = int(meta["step"]), int(meta["epoch"])
    position.tokens, position.loss = int(meta["tokens"]), meta["loss"]
    position.internals = parts.internals
    randomness.put(engine.place.device, parts.own)
    engine.generators = randomness.Shards(engine.place.device, parts.others)


def check(engine: Engine, saved: Snapshot) -> None:
    """Raises CheckpointError exactly if `restore` would; changes nothing."""
    _checked(engine, saved)


def admit(engine: Engine, meta: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> None:
    """Raises CheckpointError if a container's table is not that of a state of this model: an
    unknown name, a shape that is not the model's. Looks at no bytes, so that the memory that a
    file asks for is bounded by the model before it is read.
    """
    schema.check(meta, tensors)
    _of_this_optimizer(engine, meta)
    _trained_alike(meta.get("model", {}), engine.learner.facts)
    wanted, layouts = _shapes(engine, meta), optimizers.layouts(engine.optimizer)
    for name, tensor in tensors.items():
        if name not in wanted:
            raise CheckpointError(f"the state is of another model: {name} is not in it")
        if tuple(tensor.shape) != wanted[name]:
            raise CheckpointError(f"{name}: shape {tuple(tensor.shape)} is not {wanted[name]}")
    for name, parameter in engine.named.items():
        if f"model.{name}" not in tensors:
            raise CheckpointError(f"the state is of another model: it lacks {name}")
        _of_this_layout(name, layouts[parameter].slots(parameter), tensors)


def _of_this_optimizer(engine: Engine, meta: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the state was trained with another optimizer than the manifest's."""
    own, given = engine.spec.optimizer.name, meta.get("optimizer", _ADAMW)
    if given != own:
        raise CheckpointError(
            f"the state is of another optimizer: {given}, not {own}; set spec.optimizer.name to "
            f"{given}, or start another run"
        )


def _of_this_layout(
    parameter: str, slots: Mapping[str, optimizers.Slot], tensors: Mapping[str, Shaped]
) -> None:
    """Raises CheckpointError unless all that the optimizer keeps of a parameter is there, or nothing."""
    found = {slot: tensors.get(f"optimizer.{parameter}.{slot}") for slot in slots}
    there = [tensor is not None for tensor in found.values()]
    if any(there) and not all(there):
        raise CheckpointError(
            f"{parameter}: some of the optimizer's {', '.join(slots)} are missing"
        )
    for slot, tensor in found.items():
        dtype = str(slots[slot].dtype).removeprefix("torch.")
        if tensor is not None and str(tensor.dtype).removeprefix("torch.") != dtype:
            raise CheckpointError(f"optimizer.{parameter}.{slot}: dtype is not {dtype}")


def _trained_alike(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a state was trained in another way than the manifest's. What is absent
    is off, as it was in versions that had no such thing.
    """
    for name in sorted({*saved, *ours}):
        if saved.get(name, 0) != ours.get(name, 0):
            was, now = (json.dumps(one.get(name, False)) for one in (saved, ours))
            raise CheckpointError(
                f"the state was trained with {name}: {was}, the manifest says {now}; "
                "give the manifest that the state was trained with"
            )


def _shapes(engine: Engine, meta: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor that a state of this model may hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    layouts = optimizers.layouts(engine.optimizer)
    for name, parameter in engine.named.items():
        shape = tuple(parameter.shape)
        shapes[f"model.{name}"] = shape
        for slot, kept in layouts[parameter].slots(parameter).items():
            shapes[f"optimizer.{name}.{slot}"] = kept.shape
    for name, buffer in engine.module.named_buffers():
        shapes[f"buffer.{name}"] = tuple(buffer.shape)
    for rank in range(1 + len(meta.get("rng.ranks", ()))):
        suffix = f".rank{rank}" if rank else ""
        shapes[f"rng.torch{suffix}"] = randomness.TORCH_SHAPE
        shapes[f"rng.cuda{suffix}"] = randomness.CUDA_SHAPE
    return shapes


@dataclass(frozen=True)
class _Parts:
    """A saved state, checked: nothing that is left to do with it can fail."""

    actions: ActionState
    clipping: ClippingPolicy
    sampler: Sampler | Mixture
    internals: Internals | None
    spikes: SpikeScore
    scaler: torch.amp.GradScaler
    own: Randomness
    others: Sequence[Randomness]


def _checked(engine: Engine, saved: Snapshot) -> _Parts:
    admit(engine, saved.meta, saved.tensors)
    meta, place = saved.meta, engine.place
    _of_this_text(engine, meta.get("text"))
    try:
        actions = _exactly(ActionState, meta["actions"])
        _in_range(meta, actions)
        # the generators of this rank, or of all ranks if this process computes for them
        ranks = range(1, engine.shards) if place.world == 1 else ()
        return _Parts(
            actions=actions,
            clipping=_clipping(engine, actions, meta["clipping"]),
            sampler=_sampler(engine, meta["sampler"]),
            internals=None if meta["internals"] is None else _exactly(Internals, meta["internals"]),
            spikes=_spikes(meta["spikes"]),
            scaler=_scaler(engine, meta["scaler"]),
            own=_saved_randomness(engine, saved, place.rank),
            others=[_saved_randomness(engine, saved, rank) for rank in ranks],
        )
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"the state is of another version: {error}") from error


def _in_range(meta: Mapping[str, Any], actions: ActionState) -> None:
    """Raises ValueError for a number that no run reaches."""
    if meta["loss"] is not None and not math.isfinite(meta["loss"]):
        raise ValueError("loss is not finite")
    counts = [meta[name] for name in ("step", "epoch", "attempt", "tokens")]
    if min(*counts, meta.get("int8_restores", 0)) < 0:
        raise ValueError("step, epoch, attempt, tokens and int8_restores are at least 0")
    if not all(map(usable, (actions.learning_rate_factor, actions.weight_decay_factor))):
        raise ValueError("a factor of the actions is not finite")


def _exactly(kind: type[T], saved: Mapping[str, Any]) -> T:
    """The record with exactly these fields, each of its type: a default must not stand in for what
    was saved. Raises ValueError.
    """
    if missing := sorted({one.name for one in fields(kind)} - set(saved)):  # type: ignore[arg-type]
        raise ValueError(f"{kind.__name__} lacks {missing[0]}")
    return load(kind, json.dumps(saved).encode())


def _of_this_text(engine: Engine, saved: Mapping[str, Any] | None) -> None:
    """Raises CheckpointError if the state has seen another text than the run's, unless that was accepted.
    saved: None in a state of a version that did not say.
    """
    if saved is None or engine.spec.training.changed_text == "Accept":
        return
    try:
        identity.agree(_exactly(TextIdentity, saved), engine.text)
    except DataError as error:
        raise CheckpointError(f"the state is of another text: {error.rule}") from None
    except ValueError as error:
        raise CheckpointError(f"the state is of another version: {error}") from error


def _sampler(engine: Engine, saved: Mapping[str, Any]) -> Sampler | Mixture:
    """The run's sampler, in the saved state."""
    sampler = copy.copy(engine.sampler)
    if isinstance(sampler, Sampler):
        sampler.state = _exactly(SamplerState, saved)
        return sampler
    sampler.state = _exactly(MixtureState, saved)
    if len(sampler.state.passes) != len(sampler.windows):
        raise ValueError(f"sampler: {len(sampler.state.passes)} texts, not {len(sampler.windows)}")
    return sampler


def _clipping(engine: Engine, actions: ActionState, saved: Mapping[str, Any]) -> ClippingPolicy:
    """The policy in force, with its memory: what it would save now is what was saved."""
    policy = engine.make_clipping(actions.clipping)
    policy.load_state_dict(saved)
    if policy.state_dict() != saved:
        raise ValueError(f"clipping: not a state of {actions.clipping}")
    return policy


def _spikes(saved: Mapping[str, Any]) -> SpikeScore:
    spikes = SpikeScore()
    spikes.restore(saved)
    if not all(usable(value) for column in spikes.state().values() for value in column):
        raise ValueError("spikes: a value is not finite")
    return spikes


def _scaler(engine: Engine, saved: Mapping[str, Any]) -> torch.amp.GradScaler:
    """A scaler of its own: loading may fail half-way."""
    enabled = engine.scaler.is_enabled()
    scaler = torch.amp.GradScaler(engine.place.device.type, enabled=enabled)
    if saved and enabled:
        numbers = [saved[name] for name in scaler.state_dict()]
        if not all(map(usable, numbers)):
            raise ValueError("scaler: a value is not finite")
        scaler.load_state_dict(dict(saved))
    return scaler


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
    return randomness.checked(
        Randomness(
            python=own["python"] if own else meta["rng.python"],
            numpy=own["numpy"] if own else meta["rng.numpy"],
            torch=tensors[f"rng.torch{suffix}"],
            cuda=tensors.get(f"rng.cuda{suffix}"),
        )
    )


@torch.no_grad()
def _restore_tensors(engine: Engine, tensors: Mapping[str, Tensor]) -> None:
    engine.optimizer.state.clear()
    layouts = optimizers.layouts(engine.optimizer)
    for name, parameter in engine.named.items():
        parameter.copy_(tensors[f"model.{name}"])
        layout = layouts[parameter]
        slots = {slot: f"optimizer.{name}.{slot}" for slot in layout.slots(parameter)}
        if all(key in tensors for key in slots.values()):
            saved = {slot: tensors[key] for slot, key in slots.items()}
            engine.optimizer.state[parameter] = layout.restored(parameter, saved)
    for name, buffer in engine.module.named_buffers():
        if f"buffer.{name}" in tensors:
            buffer.copy_(tensors[f"buffer.{name}"])


def _restore_coded(engine: Engine, saved: Snapshot) -> None:
    """Moments in 8 bits are not the saved ones: of those that no gradients lead to, the next update
    would be beyond all bounds.
    """
    repaired, layouts = 0, optimizers.layouts(engine.optimizer)
    for name, parameter in engine.named.items():
        slots = engine.optimizer.state.get(parameter, {})
        first, second = layouts[parameter].first, layouts[parameter].second
        if f"optimizer.{name}.{first}" in saved.coded and second in slots:
            slots[first], count = moments.bounded(
                slots[first], slots[second], engine.spec.optimizer.betas
            )
            repaired += count
    _log.info("state.int8", step=saved.meta["step"], repaired=repaired)
