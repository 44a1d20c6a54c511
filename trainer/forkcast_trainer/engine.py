"""One model in training: everything that must survive a restart, and the step that changes it.

`Engine.step` reads from top to bottom. What a checkpoint holds is listed in `state.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from forkcast.actions import KEEP
from forkcast.parameter_groups import group_of
from forkcast.records import StepStats
from forkcast.spikes import SpikeScore
from forkcast_trainer import clipping, internals, models, randomness, stressors
from forkcast_trainer.clipping import ClipContext, ClippingPolicy
from forkcast_trainer.clipping.spam import rewarm_scale
from forkcast_trainer.data.batches import Batches, ValidationBatches
from forkcast_trainer.data.identity import identity_of
from forkcast_trainer.data.sampler import Sampler, SamplerState
from forkcast_trainer.data.tokens import prepare
from forkcast_trainer.errors import TrainerError
from forkcast_trainer.schedule import scheduled_rate
from forkcast_trainer.stressors.long_sequence import LONGER
from forkcast_wire import beats
from forkcast_wire.manifest import Device, Dtype, StressorType, TrainingRunSpec

_REWARM_STEPS = 150
_OPTIMIZERS = {"AdamW": torch.optim.AdamW}


@dataclass
class ActionState:
    """What applied actions have left in force: factors on the scheduled values, the clipping in
    force where it is not the run's own, and the step of the last momentum reset.
    """

    learning_rate_factor: float = 1.0
    weight_decay_factor: float = 1.0
    clipping: str = KEEP
    reset_at: int | None = None


@dataclass
class Position:
    """Where the lineage stands. step: the next step to take. loss: the last finite one."""

    step: int = 0
    epoch: int = 0
    attempt: int = 0
    tokens: int = 0
    loss: float | None = None
    internals: internals.Internals | None = None


@dataclass(frozen=True)
class Placement:
    """Which process this is, and on what it computes."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1


def placement(spec: TrainingRunSpec, rank: int = 0, world: int = 1, local: int = 0) -> Placement:
    """Resolve Auto: the GPU where there is one, bf16 where it has it. The GPU becomes the process's
    own, so that nothing of it ends up on another rank's.

    Raises TrainerError if a GPU is asked for that is not there.
    """
    wish, count = spec.model.device, torch.cuda.device_count()
    cuda = wish is Device.CUDA or (wish is Device.AUTO and count > 0)
    if cuda and local >= count:
        raise TrainerError(
            "spec.model.device",
            f"process {local} of this machine finds {count} GPUs",
            "lower parallelism.processesPerNode, or use Cpu",
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    bf16 = cuda and torch.cuda.is_bf16_supported()
    dtypes = {
        Dtype.AUTO: torch.bfloat16 if bf16 else torch.float32,
        Dtype.BFLOAT16: torch.bfloat16,
        Dtype.FLOAT16: torch.float16,
        Dtype.FLOAT32: torch.float32,
    }
    return Placement(device, dtypes[spec.model.dtype], rank, world)


@dataclass
class _Moments:
    """What a step keeps for its own statistics."""

    update: list[Tensor] | None = None
    totals: dict[str, Tensor] = field(default_factory=dict)


class Engine:
    """Model, optimizer, clipping, sampler and position of one lineage on one process."""

    def __init__(
        self, spec: TrainingRunSpec, run_uid: str, workdir: Path, place: Placement
    ) -> None:
        """Raises TrainerError if data, model or clipping cannot be set up."""
        torch.set_num_threads(spec.training.threads)
        self.spec, self.run_uid, self.place = spec, run_uid, place
        # a rollout is one process: it takes the micro-batches of all ranks, in their order and
        # with their generators, so that it computes what the run would compute
        alone = place.world == 1
        self.shards = spec.parallelism.processes if alone else place.world
        train, held = prepare(spec.data, workdir / "tokens", progress=place.rank == 0)
        self.text = identity_of(train, held)
        on_data, self._on_rate = stressors.make(spec.stressors, spec.data.tokenizer)
        length = spec.data.sequence_length
        self._schedule = spec.learning_rate()
        self.batches = Batches(train, length, on_data)
        self.validation = ValidationBatches(
            held, length, spec.training.micro_batch_size, spec.data.validation.max_batches
        )
        self.full_validation = ValidationBatches(
            held, length, spec.training.micro_batch_size, 1 << 30
        )
        self.sampler = Sampler(self.batches.windows, SamplerState(spec.data.shuffle_seed))
        longer = any(one.type is StressorType.LONG_SEQUENCE for one in spec.stressors)
        seed = spec.training.seed + place.rank
        randomness.seed_all(seed)
        others = range(seed + 1, seed + self.shards) if alone else ()
        self.generators = randomness.Shards(
            place.device, [randomness.seeded(one, place.device) for one in others]
        )
        module = models.build(
            spec.model,
            train.file.vocabulary_size,
            length * (LONGER if longer else 1),
            spec.training.seed,
        )
        if spec.model.gradient_checkpointing:
            module.gradient_checkpointing_enable()  # type: ignore[operator]
        self.module = module.to(place.device)
        self.module.train()
        self.named = dict(self.module.named_parameters())
        self.parameters = list(self.named.values())
        self.groups = [group_of(name) for name in self.named]
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype is torch.float16)
        self.forward: Callable[..., Any] = self.module
        if spec.model.compile:
            self.forward = torch.compile(self.module)
        self.actions = ActionState()
        self.position = Position()
        self.spikes = SpikeScore()
        self.clipping = self.make_clipping(KEEP)
        self._update: list[Tensor] | None = None

    # ------------------------------------------------------------------------------------ set-up

    def _make_optimizer(self) -> torch.optim.Optimizer:
        o = self.spec.optimizer
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]
        return _OPTIMIZERS[o.name](
            [{"params": decayed, "decays": True}, {"params": plain, "decays": False}],
            lr=o.learning_rate,
            betas=o.betas,
            eps=o.epsilon,
            weight_decay=0.0,
            fused=self.place.device.type == "cuda",
        )

    def make_clipping(self, name: str) -> ClippingPolicy:
        """A fresh policy of that name; Keep: the run's own, with the run's parameters."""
        own = self.spec.optimizer.clipping
        count = self.spec.training.gradient_accumulation_steps * self.shards
        if name == KEEP:
            return clipping.make(own.policy, own.params, micro_batches=count)
        return clipping.make(name, {}, micro_batches=count)

    # -------------------------------------------------------------------------------------- step

    def step(self) -> StepStats:
        """Take one optimizer step; returns what it looked like."""
        started = time.perf_counter()
        step, training = self.position.step, self.spec.training
        sampled = step % self.spec.statistics.update_every_steps == 0
        rate, decay = self.rates(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss, micro, first = self._gradients(step)
        self.scaler.unscale_(self.optimizer)
        overflow = self._overflow()
        result = self.clipping.clip(self.parameters, ClipContext(step, self.optimizer, micro))
        skip = result.skip or overflow or not math.isfinite(float(result.norm))
        # only rank 0 reports: a copy of the weights on the others would be thrown away
        extra = self._before_update() if sampled and not skip and self.place.rank == 0 else None
        if not skip:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
                group["weight_decay"] = decay if group["decays"] else 0.0
            self.scaler.step(self.optimizer)
        self.scaler.update()
        measured = self._after_update(extra) if extra is not None else {}
        inside = self._internals(step, first)
        count = training.micro_batch_size * training.gradient_accumulation_steps
        self.position.tokens += count * self.spec.data.sequence_length * self.shards
        self.position.step = step + 1
        self.position.loss = loss if math.isfinite(loss) else self.position.loss
        self.spikes.fold(step, loss, float(result.norm))
        return StepStats(
            run_uid=self.run_uid,
            epoch=self.position.epoch,
            attempt=self.position.attempt,
            rank=self.place.rank,
            step=step,
            loss=loss,
            grad_norm=float(result.norm),
            grad_norm_clipped=float(result.clipped_norm),
            learning_rate=rate,
            tokens=self.position.tokens,
            update_ratio=measured.get("update_ratio"),
            rms_max=measured.get("rms_max"),
            update_cosine=measured.get("update_cosine"),
            attention_entropy=inside.attention_entropy if inside else None,
            attention_logit_max=inside.attention_logit_max if inside else None,
            activation_mean=inside.activation_mean if inside else None,
            activation_sd=inside.activation_sd if inside else None,
            group_grad_norms={k[5:]: v for k, v in measured.items() if k.startswith("norm:")},
            skipped=skip,
            step_seconds=time.perf_counter() - started,
        )

    def rates(self, step: int) -> tuple[float, float]:
        """(learning rate, weight decay) of a step, everything that scales them included."""
        spec, actions = self.spec, self.actions
        rate = scheduled_rate(step, self._schedule, self._on_rate)
        rate *= actions.learning_rate_factor * self.clipping.rate_scale(step)
        if actions.reset_at is not None:
            rate *= rewarm_scale(step - actions.reset_at, _REWARM_STEPS)
        return rate, spec.optimizer.weight_decay * actions.weight_decay_factor

    def _gradients(self, step: int) -> tuple[float, list[list[Tensor]], Tensor]:
        """Accumulate the step's gradient; (loss over all ranks, micro-batch gradients where the
        policy wants them, the first sequence).
        """
        training, world = self.spec.training, self.place.world
        count = training.gradient_accumulation_steps * self.shards
        total = torch.zeros((), device=self.place.device)
        micro: list[list[Tensor]] = []
        first: Tensor | None = None
        for number in range(count):  # every rank draws all ranks' windows: one sampler state
            beats.beat()
            ids = self.batches.batch(step, self.sampler, training.micro_batch_size)
            if world > 1 and number % world != self.place.rank:
                continue
            batch = torch.from_numpy(ids).to(self.place.device, non_blocking=True)
            first = batch[0, :-1] if first is None else first
            if world == 1:
                self.generators.turn_to(number % self.shards)
            with self.autocast():
                loss = self.loss_of(batch)
            if self.clipping.needs_micro_gradients:
                micro.append(self._own_gradient(loss, count))
            else:
                self.scaler.scale(loss / count).backward()
            total += loss.detach().float() / count
        self.generators.turn_to(0)
        if world > 1:
            with beats.during(beats.Phase.MEET):
                self._sum_over_ranks(total)
        if first is None:
            raise RuntimeError("a step without a micro-batch")
        return float(total), micro, first

    def _sum_over_ranks(self, total: Tensor) -> None:
        """The step's loss, and its gradient if that is not the clipping's to sum."""
        dist.all_reduce(total)
        if self.clipping.needs_micro_gradients:
            return
        for parameter in self.parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def _overflow(self) -> bool:
        """Whether loss scaling found an infinity, on any rank: then all of them skip the step and
        lower their scale together.
        """
        if not self.scaler.is_enabled():
            return False
        state = self.scaler._per_optimizer_states[id(self.optimizer)]
        found = list(state["found_inf_per_device"].values())
        if self.place.world > 1:
            with beats.during(beats.Phase.MEET):
                for one in found:
                    dist.all_reduce(one, op=dist.ReduceOp.MAX)
        return any(bool(one.item()) for one in found)

    def _own_gradient(self, loss: Tensor, count: int) -> list[Tensor]:
        """Add a micro-batch's gradient to the sum; returns it alone, rescaled to a mean. It is never
        got by subtraction: one that is not finite must not spoil those after it.
        """
        sums = [p.grad for p in self.parameters]
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss / count).backward()
        scale = count / (self.scaler.get_scale() if self.scaler.is_enabled() else 1.0)
        own = [p.grad.detach() * scale for p in self.parameters if p.grad is not None]
        for parameter, total in zip(self.parameters, sums, strict=True):
            if total is not None:
                parameter.grad = total if parameter.grad is None else total.add_(parameter.grad)
        return own

    def autocast(self) -> AbstractContextManager[object]:
        """The forward pass's precision."""
        if self.place.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.place.device.type, dtype=self.place.dtype)

    def loss_of(self, batch: Tensor, *, model: nn.Module | None = None) -> Tensor:
        """Mean cross-entropy of a [count, length + 1] batch, nats/token, 0-d float32."""
        logits = (model if model is not None else self.forward)(batch[:, :-1]).logits
        return nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1)
        )

    # -------------------------------------------------------------------------------- statistics

    def forget_update(self) -> None:
        """After a restore the last update is not the state's: the cosine starts anew."""
        self._update = None

    @torch.no_grad()
    def _before_update(self) -> _Moments:
        """What must be read before the optimizer changes weights and moments."""
        kept = _Moments()
        grads = [p.grad for p in self.parameters]
        present = [g for g in grads if g is not None]
        norms = torch.stack(torch._foreach_norm(present)).float()
        squares: dict[str, list[Tensor]] = {}
        for group, norm in zip(
            (g for g, grad in zip(self.groups, grads, strict=True) if grad is not None),
            norms,
            strict=True,
        ):
            squares.setdefault(group, []).append(norm**2)
        kept.totals = {f"norm:{k}": torch.stack(v).sum().sqrt() for k, v in squares.items()}
        if (largest := self._rms_max()) is not None:
            kept.totals["rms_max"] = largest
        if self._update is not None:
            last = [u for g, u in zip(grads, self._update, strict=True) if g is not None]
            dots = [torch.dot(g.flatten(), u.flatten()) for g, u in zip(present, last, strict=True)]
            sizes = torch.stack(torch._foreach_norm(self._update)).norm() * norms.norm()
            kept.totals["update_cosine"] = torch.stack(dots).sum() / (sizes + 1e-30)
        kept.update = [p.detach().clone() for p in self.parameters]
        return kept

    def _rms_max(self) -> Tensor | None:
        """Largest sqrt(mean(g^2 / max(v, eps^2))) over the tensors (arXiv 2304.13013, section 3),
        as the norm of g / sqrt(max(v, eps^2)) over the root of the tensor's size.
        """
        state = self.optimizer.state
        present = [p for p in self.parameters if p.grad is not None and "exp_avg_sq" in state[p]]
        if not present:
            return None
        floor = self.spec.optimizer.epsilon**2
        scaled = torch._foreach_clamp_min([state[p]["exp_avg_sq"] for p in present], floor)
        torch._foreach_sqrt_(scaled)
        ratios = torch._foreach_div([p.grad for p in present if p.grad is not None], scaled)
        sizes = [p.numel() ** 0.5 for p in present]
        return torch.stack(torch._foreach_div(torch._foreach_norm(ratios), sizes)).max()

    @torch.no_grad()
    def _after_update(self, kept: _Moments) -> dict[str, float]:
        """The sampled statistics as numbers, read in one transfer."""
        if kept.update is None:
            return {}
        before = torch.stack(torch._foreach_norm(kept.update)).norm()
        torch._foreach_sub_(kept.update, list[Tensor](self.parameters))
        torch._foreach_neg_(kept.update)
        self._update = kept.update
        moved = torch.stack(torch._foreach_norm(kept.update)).norm()
        totals = {**kept.totals, "update_ratio": moved / (before + 1e-30)}
        values = torch.stack([value.float().reshape(()) for value in totals.values()]).tolist()
        return dict(zip(totals, values, strict=True))

    def _internals(self, step: int, sequence: Tensor) -> internals.Internals | None:
        if step % self.spec.statistics.internals_every_steps or self.place.rank:
            return None
        if not hasattr(self.module, "transformer"):
            return None
        with self.autocast():
            seen = internals.sample(self.module, sequence)
        self.position.internals = seen
        return seen

    # -------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, *, full: bool = False) -> float:
        """Validation loss, nats/token, over the fixed batches (or all held-out text). Changes
        nothing: dropout is off, no generator is drawn from.
        """
        self.module.eval()
        total, tokens = 0.0, 0
        try:
            for ids in self.full_validation if full else self.validation:
                beats.beat()
                batch = torch.from_numpy(ids).to(self.place.device)
                with self.autocast():
                    loss = self.loss_of(batch, model=self.module)
                count = batch.shape[0] * (batch.shape[1] - 1)
                total, tokens = total + float(loss) * count, tokens + count
        finally:
            self.module.train()
        return total / tokens
