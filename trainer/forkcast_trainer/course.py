"""From a base to a rung: the losses of a lineage, whether it diverges, and what its weights validate at,
alone and as the mean of the recent ones. Rollouts and the collector of branches measure alike.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from forkcast.records import StepStats
from forkcast_trainer.step import Engine
from forkcast_wire import crash

#: Weights of so many last steps are averaged for the loss that is compared.
MEAN_WEIGHTS: Final = 25
#: Diverged: this many nats above the base's loss at this many steps in a row, or not finite.
DIVERGED_NATS: Final = 3.0
DIVERGED_STEPS: Final = 5


class Course:
    """What the engine trains from the state it is in. rows: of the steps since, up to a divergence,
    those with a finite loss. spikes: the engine's, of this lineage.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.settle()
        engine.told()  # of the steps before
        self._base_loss, self.first_step = engine.position.loss, engine.position.step
        self.rows: list[StepStats] = []
        self.spikes = engine.spikes
        self.diverged = False
        self._high = 0
        self._means: dict[int, _Mean] = {}

    def run_to(self, target: int) -> None:
        """Step until the lineage stands at ``target``, or has diverged; then it can be validated."""
        self.expect(target)
        while self._engine.position.step < target and not self.diverged:
            self.step()
        self.settle()

    def step(self) -> list[StepStats]:
        """One step; returns those whose statistics have come."""
        self._means.pop(self._engine.position.step, None)  # it has not been validated there
        self._engine.step()
        crash.reach("step")
        for mean in self._means.values():
            mean.add(self._engine)
        return self._hear()

    def settle(self) -> list[StepStats]:
        """Wait for the statistics of the steps taken; returns those that have come."""
        self._engine.settle()
        return self._hear()

    def _hear(self) -> list[StepStats]:
        told = self._engine.told()
        for stats in told:
            if not self.diverged:
                self._follow(stats)
        return told

    def _follow(self, stats: StepStats) -> None:
        if not math.isfinite(stats.loss):
            self._diverge()
            return
        self.rows.append(stats)
        over = self._base_loss is not None and stats.loss > self._base_loss + DIVERGED_NATS
        self._high = self._high + 1 if over else 0
        if self._high >= DIVERGED_STEPS:
            self._diverge()

    def _diverge(self) -> None:
        self.diverged = True
        self._means.clear()

    def expect(self, target: int) -> None:
        """The lineage is to be validated at ``target``: from now on its weights are summed for it when
        it comes to the last min(25, half the steps) before it.
        """
        if not self.diverged:
            count = max(1, min(MEAN_WEIGHTS, (target - self.first_step) // 2))
            self._means.setdefault(target, _Mean(range(target - count + 1, target + 1)))

    @property
    def expected(self) -> bool:
        """Whether it is to be validated at the step it stands at; once it goes on, it no longer is."""
        return self._engine.position.step in self._means

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Validation loss, nats/token: with the weights at a step that was expected, and with the mean
        of the recent ones (checkpoint averaging; it takes out most of what merely anneals). NaN if the
        lineage has diverged.
        """
        if self.diverged:
            return math.nan, math.nan
        engine, raw = self._engine, self._engine.evaluate()
        mean = self._means.pop(engine.position.step)
        kept = [p.detach().clone() for p in engine.parameters]
        for parameter, total in zip(engine.parameters, mean.total, strict=True):
            parameter.copy_(total / mean.count)
        del mean
        try:
            return raw, engine.evaluate()
        finally:
            for parameter, weight in zip(engine.parameters, kept, strict=True):
                parameter.copy_(weight)


class _Mean:
    """The sum of the weights at ``steps``; one copy, whatever the count."""

    def __init__(self, steps: range) -> None:
        self._steps = steps
        self.total: list[Tensor] = []
        self.count = 0

    @torch.no_grad()
    def add(self, engine: Engine) -> None:
        """The present weights, if they are among those meant."""
        if engine.position.step not in self._steps:
            return
        if not self.count:
            self.total = [p.detach().clone() for p in engine.parameters]
        else:
            torch._foreach_add_(self.total, [p.detach() for p in engine.parameters])
        self.count += 1
