"""One optimizer step, read from top to bottom in `Engine.step`, and the model in training that it
changes. What of it survives a restart is listed in `state.py`; what a step looked like is read by
`observe.py`.

Nothing on the step's path waits for the device: whether an update is made is decided there, and losses
and norms are read when the next step has been launched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from forkcast.actions import KEEP
from forkcast.records import StepStats
from forkcast.spikes import SpikeScore
from forkcast_trainer import clipping, internals, learner, optimizers, randomness, stressors
from forkcast_trainer.clipping import ClipContext, ClippingPolicy
from forkcast_trainer.clipping.spam import rewarm_scale
from forkcast_trainer.data.batches import Batches, ValidationBatches, Windows
from forkcast_trainer.data.feed import Feed
from forkcast_trainer.data.identity import identity_of
from forkcast_trainer.data.mixture import sampler_of
from forkcast_trainer.data.sources import locate
from forkcast_trainer.data.tokens import RunTokens, prepare
from forkcast_trainer.data_parallel import DataParallel
from forkcast_trainer.internals import Internals
from forkcast_trainer.measure.late import LateReader, Value
from forkcast_trainer.objectives import Loss
from forkcast_trainer.observe import Observer
from forkcast_trainer.placement import Placement, refusing
from forkcast_trainer.schedule import scheduled_rate
from forkcast_wire import beats
from forkcast_wire.manifest import TrainingRunSpec

_REWARM_STEPS = 150


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
    """Where the lineage stands. step: the next step to take. loss: the last finite one. int8_restores:
    how often it went on from moments in 8 bits, which is near an unbroken run, not equal to it.
    """

    step: int = 0
    epoch: int = 0
    attempt: int = 0
    tokens: int = 0
    loss: float | None = None
    internals: Internals | None = None
    int8_restores: int = 0


@dataclass(frozen=True)
class _Taken:
    """A step whose statistics are on their way. tokens: of the lineage, its own included."""

    step: int
    rate: float
    tokens: int
    seconds: float


def _skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it reads `found_inf` as GradScaler leaves it there for fused optimizers."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


class Engine:
    """Model, optimizer, clipping, sampler and position of one lineage on one process."""

    def __init__(
        self,
        spec: TrainingRunSpec,
        run_uid: str,
        workdir: Path,
        place: Placement,
        tokens: RunTokens | None = None,
    ) -> None:
        """tokens: None: prepared here. Raises TrainerError if data, model or clipping cannot be set up."""
        torch.set_num_threads(spec.training.threads)
        self.spec, self.run_uid, self.place = spec, run_uid, place
        # a rollout is one process: it takes the micro-batches of all ranks, in their order and
        # with their generators, so that it computes what the run would compute
        alone = place.world == 1
        self.shards = spec.parallelism.processes if alone else place.world
        if tokens is None:
            folder, texts = workdir / "tokens", locate(spec.data, spec.storage)
            tokens = prepare(spec.data, folder, progress=place.rank == 0, texts=texts)
        self.tokens, self.text = tokens, identity_of(tokens)
        on_data, self._on_rate = stressors.make(spec.stressors, spec.data.tokenizer)
        length = spec.data.sequence_length
        self._schedule = spec.learning_rate()
        staged = [*on_data, *learner.stages(spec)]
        self.batches = Batches(Windows(tokens.train, length), staged)
        held = Windows(tokens.held, length)
        self.validation = ValidationBatches(
            held, spec.training.micro_batch_size, spec.data.validation.max_batches
        )
        self.full_validation = ValidationBatches(held, spec.training.micro_batch_size, 1 << 30)
        text = self.batches.text
        self.sampler = sampler_of(text.counts, text.weights, spec.data.shuffle_seed)
        numbers = range(spec.training.gradient_accumulation_steps * self.shards)
        self.feed = Feed(
            self.batches,
            spec.training.micro_batch_size,
            [alone or number % place.world == place.rank for number in numbers],
            pin=place.device.type == "cuda",
        )
        seed = spec.training.seed + place.rank
        randomness.seed_all(seed)
        others = range(seed + 1, seed + self.shards) if alone else ()
        self.generators = randomness.Shards(
            place.device, [randomness.seeded(one, place.device) for one in others]
        )
        made = learner.make(spec, tokens.vocabulary_size, compiled=place.compiled)
        self.learner = made.to(place.device)
        self.module = self.learner.module
        self._spread = DataParallel(self.learner, place.world)
        self.named = dict(self.module.named_parameters())
        self.parameters = list(self.named.values())
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype is torch.float16)
        #: Called before weights or moments change: a copy of them may be under way on the device.
        self.before_update: Callable[[], None] = lambda: None
        self.actions = ActionState()
        self.position = Position()
        self.spikes = SpikeScore()
        self.clipping = self.make_clipping(KEEP)
        self.observer = Observer(
            self.module,
            self.optimizer,
            spec.statistics,
            autocast=self.autocast,
            look=partial(internals.sample, self.learner),
        )
        #: The host launches work on a device, and does not wait for it.
        self._runs_ahead = place.device.type != "cpu"
        self._late = LateReader[_Taken]()
        self._told: list[StepStats] = []

    # ------------------------------------------------------------------------------------ set-up

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return optimizers.make(self.module, self.learner.family, self.spec.optimizer)

    def make_clipping(self, name: str) -> ClippingPolicy:
        """A fresh policy of that name; Keep: the run's own, with the run's parameters."""
        own = self.spec.optimizer.clipping
        count = self.spec.training.gradient_accumulation_steps * self.shards
        if name == KEEP:
            return clipping.make(own.policy, own.params, micro_batches=count)
        return clipping.make(name, {}, micro_batches=count)

    # -------------------------------------------------------------------------------------- step

    def step(self) -> None:
        """Take one optimizer step. Its statistics come by `told`: on a GPU once the next is launched,
        so that the device never waits for the host.
        """
        started = time.perf_counter()
        step = self.position.step
        rate, decay = self.rates(step)
        self.optimizer.zero_grad(set_to_none=True)
        with refusing():
            loss, micro, first = self._gradients(step)
        self.before_update()
        self.scaler.unscale_(self.optimizer)
        clipped = self.clipping.clip(self.parameters, ClipContext(step, self.optimizer, micro))
        skip = self._refused(clipped.skip)
        values: dict[str, Value] = {
            "loss": loss,
            "grad_norm": clipped.norm,
            "grad_norm_clipped": clipped.clipped_norm,
            "skipped": skip,
        }
        # only rank 0 reports: what the others would measure is thrown away
        reports = self.place.rank == 0
        values |= self.observer.before(step, clipped.each) if reports else {}
        self._update(rate, decay, skip)
        self.scaler.update()
        values |= self.observer.after(step, first) if reports else {}
        self._advance()
        self.settle()  # of the step before: the host is never further ahead
        taken = _Taken(step, rate, self.position.tokens, time.perf_counter() - started)
        self._late.put(taken, values)
        self._late.send()
        if not self._runs_ahead:
            self.settle()

    def told(self) -> list[StepStats]:
        """The steps taken whose statistics are there, oldest first; each is given once."""
        told, self._told = self._told, []
        return told

    def settle(self) -> None:
        """Wait for the statistics of all steps taken: only then is the position whole."""
        for taken, numbers in self._late.take(everything=True):
            self._told.append(self._read(taken, numbers))

    def _read(self, taken: _Taken, numbers: Mapping[str, float]) -> StepStats:
        """What a step looked like; loss and norm become part of the position."""
        loss, norm, skipped = numbers["loss"], numbers["grad_norm"], bool(numbers["skipped"])
        measured = self.observer.read(numbers, skipped=skipped)
        position, inside = self.position, measured.internals
        self.spikes.fold(taken.step, loss, norm)
        position.loss = loss if math.isfinite(loss) else position.loss
        position.internals = inside or position.internals
        return StepStats(
            run_uid=self.run_uid,
            epoch=position.epoch,
            attempt=position.attempt,
            rank=self.place.rank,
            step=taken.step,
            loss=loss,
            grad_norm=norm,
            grad_norm_clipped=numbers["grad_norm_clipped"],
            learning_rate=taken.rate,
            tokens=taken.tokens,
            update_ratio=measured.update_ratio,
            rms_max=measured.rms_max,
            update_cosine=measured.update_cosine,
            attention_entropy=inside.attention_entropy if inside else None,
            attention_logit_max=inside.attention_logit_max if inside else None,
            activation_mean=inside.activation_mean if inside else None,
            activation_sd=inside.activation_sd if inside else None,
            group_grad_norms=measured.group_grad_norms,
            skipped=skipped,
            step_seconds=taken.seconds,
        )

    def rates(self, step: int) -> tuple[float, float]:
        """(learning rate, weight decay) of a step, everything that scales them included."""
        spec, actions = self.spec, self.actions
        rate = scheduled_rate(step, self._schedule, self._on_rate)
        rate *= actions.learning_rate_factor * self.clipping.rate_scale(step)
        if actions.reset_at is not None:
            rate *= rewarm_scale(step - actions.reset_at, _REWARM_STEPS)
        return rate, spec.optimizer.weight_decay * actions.weight_decay_factor

    def _gradients(self, step: int) -> tuple[Tensor, list[list[Tensor]], Tensor]:
        """Accumulate the step's gradient; (loss over all ranks, 0-d, micro-batch gradients where the
        policy wants them, the first sequence).
        """
        training, world = self.spec.training, self.place.world
        count = training.gradient_accumulation_steps * self.shards
        total = torch.zeros((), device=self.place.device)
        micro: list[list[Tensor]] = []
        first: Tensor | None = None
        for number, tokens in self.feed.step(step, self.sampler):
            beats.beat()
            batch = tokens.to(self.place.device, non_blocking=True)
            first = batch[0, :-1] if first is None else first
            if world == 1:
                self.generators.turn_to(number % self.shards)
            last, apart = number + world >= count, self.clipping.needs_micro_gradients
            with self._spread.micro_batch(averages=last and not apart):
                with self.autocast():
                    loss = self.loss_of(batch)
                if apart:
                    micro.append(self._own_gradient(loss, count))
                else:
                    self.scaler.scale(loss / (count // world)).backward()
            total += loss.detach().float() / count
        self.generators.turn_to(0)
        if world > 1:
            with beats.during(beats.Phase.MEET):
                dist.all_reduce(total)
        if first is None:
            raise RuntimeError("a step without a micro-batch")
        return total, micro, first

    def _refused(self, skip: Tensor) -> Tensor:
        """Whether no update is made, 0-d float32: the clipping refuses it, or loss scaling found an
        infinity, on any rank; then all of them skip the step and lower their scale together.
        """
        refused = skip.float()
        if not self.scaler.is_enabled():
            return refused
        state = self.scaler._per_optimizer_states[id(self.optimizer)]
        for found in state["found_inf_per_device"].values():
            if self.place.world > 1:
                with beats.during(beats.Phase.MEET):
                    dist.all_reduce(found, op=dist.ReduceOp.MAX)
            refused = torch.maximum(refused, found.reshape(()))
        return refused

    def _own_gradient(self, loss: Tensor, count: int) -> list[Tensor]:
        """Add a micro-batch's gradient to the sum; returns it alone, rescaled to a mean. It is never
        got by subtraction: one that is not finite must not spoil those after it.
        """
        sums = [p.grad for p in self.parameters]
        self.optimizer.zero_grad(set_to_none=True)
        one = torch.ones((), device=self.place.device)
        self.scaler.scale(loss / count).backward()
        scale = count / self.scaler.scale(one)
        own = [p.grad.detach() * scale for p in self.parameters if p.grad is not None]
        for parameter, total in zip(self.parameters, sums, strict=True):
            if total is not None:
                parameter.grad = total if parameter.grad is None else total.add_(parameter.grad)
        return own

    def _update(self, rate: float, decay: float, skip: Tensor) -> None:
        """Unless it is refused. A fused optimizer leaves it out on the device, as it does under loss
        scaling; for any other the host has to know.
        """
        optimizers.set_rates(self.optimizer, rate, decay)
        if not (self._runs_ahead and _skips_on_device(self.optimizer)):
            if not bool(skip):
                self.optimizer.step()
            return
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]

    def _advance(self) -> None:
        """To the next step; what only the device knows of it follows in `_read`."""
        position, training = self.position, self.spec.training
        windows = training.micro_batch_size * training.gradient_accumulation_steps * self.shards
        position.tokens += windows * self.spec.data.sequence_length
        position.step += 1

    def passes(self) -> dict[str, float]:
        """How often each text has been seen, by its name."""
        names = [text.label for text in self.tokens.train]
        return dict(zip(names, self.sampler.passes(), strict=True))

    def autocast(self) -> AbstractContextManager[object]:
        """The forward pass's precision."""
        if self.place.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.place.device.type, dtype=self.place.dtype)

    def loss_of(self, batch: Tensor, *, eager: bool = False) -> Tensor:
        """The objective at a [count, length + 1] batch: its value is the mean cross-entropy,
        nats/token, 0-d float32. eager: not compiled.
        """
        found: Loss = self.learner(batch, eager=True) if eager else self._spread(batch)
        return found.value

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
                    loss = self.loss_of(batch, eager=True)
                count = batch.shape[0] * (batch.shape[1] - 1)
                total, tokens = total + float(loss) * count, tokens + count
        finally:
            self.module.train()
        return total / tokens
