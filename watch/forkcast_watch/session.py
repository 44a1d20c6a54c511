"""One watched training: hooks on it, and what becomes of what they see."""

from __future__ import annotations

import atexit
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from forkcast.parameter_groups import GROUPS
from forkcast.records import Event, StepStats
from forkcast_trainer.measure.inside import layers
from forkcast_trainer.measure.late import LateReader, Value, kept
from forkcast_watch.feed import Feed, Sink
from forkcast_watch.gradients import Gradients, clip_factor, shards
from forkcast_watch.inside import PIECE as INSIDE
from forkcast_watch.inside import Inside, compiled
from forkcast_watch.ranks import PIECE as RANKS
from forkcast_watch.ranks import RankLosses, open_store, place
from forkcast_watch.run_folder import RunFolder, open_folder
from forkcast_watch.settings import Settings
from forkcast_watch.tolerance import Tolerance, log


@dataclass
class _Step:
    """What is known of a step before its values are."""

    number: int
    tokens: int
    skipped: bool
    seconds: float
    learning_rate: float
    validation_loss: float | None = None


class Watch:
    """Watches until it is closed, by `close`, the end of a `with` block, or the end of the process.

    A step of the training ends with `step`; nothing else is needed. Nothing here raises once it is made,
    and nothing of the training is changed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        *,
        called: bool = True,
    ) -> None:
        """called: the model itself is called in each step; otherwise `forward_begins` and
        `forward_ends` say when it computes. Raises WatchError if the folder cannot be used.
        """
        self._tolerance = Tolerance()
        self.rank, world = place()
        self._optimizer = _innermost(optimizer)
        self._accelerated = optimizer if optimizer is not self._optimizer else None
        scaler = settings.scaler
        if scaler is None:
            scaler = getattr(optimizer, "scaler", None)  # of Accelerate's optimizer
        self._settings = settings
        self._number, self._tokens = settings.start_step, 0
        self._losses: list[Value] = []
        self._given: dict[str, Value] = {}
        self._late: LateReader[_Step] = LateReader()
        self._gradients: Gradients | None = None
        self._inside: Inside | None = None
        folder = open_folder(settings) if self.rank == 0 else None
        self._folder: RunFolder | None = folder
        self._closed, self._process = (
            False,
            os.getpid(),
        )  # a forked child ends nothing of its parent's
        self._take = self._tolerance.shield("the record of steps", self._end_of_step)
        try:
            if folder is not None:
                self._hook(model, scaler, called=called)
            self._feed = self._opened(folder, world, model)
        except BaseException:
            self._unhook()
            if folder is not None:
                folder.close()
            raise
        self._last_end = time.perf_counter()
        atexit.register(self.close)
        if folder is not None:
            log.info("watching; forkcast status %s", folder.path)

    def _hook(self, model: nn.Module, scaler: Any, *, called: bool) -> None:
        if sharded := shards(list(model.parameters())):
            self._tolerance.leave_out("gradient norms", f"the parameters are sharded by {sharded}")
        else:
            named: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
            make = self._tolerance.shield("gradient norms", Gradients)
            self._gradients = make(
                named, self._optimizer, scaler, self._tolerance, behind=self._late.send
            )
        if self._settings.inside_every == 0:
            return
        if sharded or compiled(model):
            why = f"the model is {'sharded' if sharded else 'compiled'}"
            self._tolerance.leave_out(INSIDE, why)
        else:
            self._inside = Inside(model, self._tolerance, called=called)
        self._announce()

    def _opened(self, folder: RunFolder | None, world: int, model: nn.Module) -> Feed:
        ranks = None
        if world > 1:
            try:
                ranks = RankLosses(self.rank, world, open_store(), self._tolerance)
            except (RuntimeError, ValueError, AttributeError) as error:
                self._tolerance.leave_out(RANKS, error)
        sink = None
        if folder is not None:
            first = next(iter(model.parameters()), None)
            told = {
                "total_steps": self._settings.total_steps or 0,
                "device": "cpu" if first is None else str(first.device),
                "parameters": sum(p.numel() for p in model.parameters()),
                "ranks": world,
            }
            sink = Sink(
                folder,
                monitor=self._settings.monitor,
                start_step=self._settings.start_step,
                trackers=self._settings.trackers,
                tolerance=self._tolerance,
                told=told,
            )
        self._sink = sink
        return Feed(sink, ranks, self._tolerance)

    # ------------------------------------------------------------------------- for the user's loop

    def micro_batch(self, loss: Tensor | float) -> None:
        """The loss of one micro-batch, nats/token, where a step accumulates several; `step` takes their
        mean.
        """
        self._losses.append(kept(loss))

    def step(
        self,
        loss: Tensor | float | None = None,
        *,
        grad_norm: Tensor | float | None = None,
        tokens: int | None = None,
    ) -> None:
        """An optimizer step has ended, or was left out by GradScaler.

        loss: nats/token, of this rank; None for the mean of `micro_batch`'s. grad_norm: before clipping,
        where the loop knows it, e.g. from clip_grad_norm_; measured otherwise. tokens: of this step, all
        ranks. Under Accelerate it may be called after every micro-batch.
        """
        if self._closed:
            return
        if self._accelerated is not None and loss is not None:
            self.micro_batch(loss)
            loss = None
        if self._accelerated is not None and not _syncs(self._accelerated):
            return
        given = None if loss is None else kept(loss)
        self._take(given, None if grad_norm is None else kept(grad_norm), tokens)

    def ended(self, loss: Tensor | None, tokens: int | None) -> None:
        """`step`, for a loop that hands over a loss that nobody changes in place."""
        if not self._closed:
            self._take(loss, None, tokens)

    def clipped(self, total: Tensor, largest: float) -> None:
        """The loop has clipped the gradients of all parameters by their norm, which was ``total`` [0-d], to
        at most ``largest``: the norms need not be measured again.
        """
        if self._gradients is not None and not self._closed:
            self._gradients.clipped(total, largest)

    def forward_begins(self) -> None:
        """The model computes from here on, on a batch to be trained on; see `called`."""
        if self._inside is not None and not self._closed:
            self._inside.begin()

    def forward_ends(self) -> None:
        """The forward pass is over."""
        if self._inside is not None:
            self._inside.end()

    def validation(self, loss: float) -> None:
        """A validation loss, nats/token, of the weights after the last step."""
        newest = self._late.newest()
        if newest is not None and math.isfinite(loss):
            newest.validation_loss = float(loss)

    @property
    def folder(self) -> Path | None:
        """The run's folder; None on ranks other than 0."""
        return None if self._folder is None else self._folder.path

    @property
    def events(self) -> list[Event]:
        """What the monitor has found in this attempt so far, the last 4,096."""
        return [] if self._sink is None else list(self._sink.events)

    @property
    def not_measured(self) -> Mapping[str, str]:
        """What is left out, and why."""
        return dict(self._tolerance.failed)

    def close(self) -> None:
        """Take all hooks off, send what is left, end the monitor that was started. Idempotent."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._gradients is not None:
            self._late.add(self._gradients.last())
        self._unhook()
        self._tolerance.shield("the last steps", self._drain)(everything=True)
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------- inside

    def _unhook(self) -> None:
        for one in (self._gradients, self._inside):
            if one is not None:
                one.remove()

    def _announce(self) -> None:
        """What the step that begins now is sampled for."""
        if self._gradients is not None:
            self._gradients.sampled = self._number % self._settings.sample_every == 0
        if self._inside is not None:
            self._inside.sampled = self._number % self._settings.inside_every == 0

    def _end_of_step(
        self, loss: Tensor | float | None, grad_norm: Tensor | float | None, tokens: int | None
    ) -> None:
        values: dict[str, Value] = {}
        stepped = True
        if self._gradients is not None:
            taken = self._gradients.taken()
            values, stepped = taken.values, taken.stepped
            if taken.of_last:
                self._late.add(taken.of_last)
        if self._inside is not None:
            values |= self._inside.taken()
        if grad_norm is not None:
            values["grad_norm"] = grad_norm
        losses = self._losses if loss is None else [loss]
        values |= {f"loss:{number}": value for number, value in enumerate(losses)}
        self._losses = []
        rate = values.pop("learning_rate", self._optimizer.param_groups[0]["lr"])
        if isinstance(rate, Tensor):
            values["learning_rate"] = rate
        self._tokens += tokens if tokens is not None else self._settings.tokens_per_step or 0
        before, now = self._last_end, time.perf_counter()
        self._last_end = now
        self._drain()
        known = float(rate) if not isinstance(rate, Tensor) else math.nan
        told = _Step(self._number, self._tokens, not stepped, now - before, known)
        self._late.put(told, values)
        self._number += 1
        self._announce()

    def _drain(self, *, everything: bool = False) -> None:
        """Hand on what has come from the device. It is called before a step is put: the newest one waits
        until the next ends, for a validation may belong to it.
        """
        for step, values in self._late.take(everything=everything):
            self._feed.put(self._record(step, values))

    def _record(self, step: _Step, values: Mapping[str, float]) -> StepStats:
        losses = [value for name, value in values.items() if name.startswith("loss:")]
        if (largest := values.get("clip_at")) is not None:
            factor = clip_factor(values["grad_norm"], largest)
            values = {**values, "grad_norm_clipped": values["grad_norm"] * factor}
        norm, clipped = values.get("grad_norm", math.nan), values.get("grad_norm_clipped", math.nan)
        overflow = values.get("overflow", 0.0) > 0
        start = self._settings.start_step
        per_step = self._settings.tokens_per_step or 0
        return StepStats(
            run_uid=self._folder.run_uid if self._folder is not None else "",
            epoch=0,
            attempt=self._folder.attempt if self._folder is not None else 0,
            rank=self.rank,
            step=step.number,
            loss=sum(losses) / len(losses) if losses else math.nan,
            grad_norm=_measured(norm, known="grad_norm" in values),
            grad_norm_clipped=_measured(clipped, known="grad_norm_clipped" in values),
            learning_rate=values.get("learning_rate", step.learning_rate),
            tokens=step.tokens + start * per_step,
            update_ratio=values.get("update_ratio"),
            rms_max=values.get("rms_max"),
            attention_entropy=layers(values, "attention_entropy") or None,
            attention_logit_max=values.get("attention_logit_max"),
            activation_mean=layers(values, "activation_mean") or None,
            activation_sd=layers(values, "activation_sd") or None,
            group_grad_norms={
                name: values[f"norm:{name}"] for name in GROUPS if f"norm:{name}" in values
            },
            validation_loss=step.validation_loss,
            skipped=step.skipped or overflow,
            step_seconds=step.seconds,
        )


def _measured(norm: float, *, known: bool) -> float:
    """NaN stands for a norm that is not known; a gradient that holds one has no finite norm."""
    return math.inf if known and math.isnan(norm) else norm


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that steps: of Accelerate's and Lightning's wrappers the one inside."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    found: torch.optim.Optimizer = optimizer
    return found


def _syncs(accelerated: Any) -> bool:
    """Whether Accelerate takes this micro-batch as the last of a step."""
    state = getattr(accelerated, "gradient_state", None)
    return bool(getattr(state, "sync_gradients", True))
