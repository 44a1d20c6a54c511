"""Rows of a log as points: one a step, in the order of the log. Pure.

Values of one step may stand in several rows (sparse tables, one tag at a time); a point is complete when
a row of another step follows. What a row lacks or garbles is left out and counted, never fatal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from forkcast_cli.logs.base import Row, Values
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.names import Role
from forkcast_cli.logs.numbers_in_text import as_number
from forkcast_wire.fields import MOST_STEPS

_SHOWN: Final = 40


class Point(NamedTuple):
    """A step as a log has it. loss: NaN or infinite if the log says so. grad_norm: NaN if there is none,
    infinite if the log says that it was not finite. validation: a loss on held-out data, if one was
    taken since the point before. attention_entropy: by layer, or a single value of all; of its most, in
    [0, 1], or in nats. attention_logit_max: of the step.
    """

    step: int
    loss: float
    grad_norm: float = math.nan
    learning_rate: float = 0.0
    validation: float | None = None
    attention_entropy: tuple[float, ...] | None = None
    attention_logit_max: float | None = None


@dataclass(slots=True)
class _Pending:
    step: int
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    validation: float | None = None
    entropies: dict[int, float] = field(default_factory=dict)
    logit: float | None = None

    def add(self, later: _Pending) -> None:
        """Take what a later one has."""
        self.step, self.loss = later.step, later.loss
        self.grad_norm, self.learning_rate = later.grad_norm, later.learning_rate
        self.validation = self.validation if later.validation is None else later.validation
        self.entropies = later.entropies or self.entropies
        self.logit = self.logit if later.logit is None else later.logit

    def point(self) -> Point | None:
        if self.loss is None:
            return None
        norm = math.nan if self.grad_norm is None else self.grad_norm
        return Point(
            self.step,
            self.loss,
            norm,
            self.learning_rate or 0.0,
            self.validation,
            _by_layer(self.entropies),
            self.logit,
        )


@dataclass(slots=True)
class _Epochs:
    """Steps that are counted anew in each epoch, counted on: by epoch, what is added to its steps."""

    epoch: int | None = None
    added: dict[int, int] = field(default_factory=dict)
    first: int | None = None
    last: int = 0
    stride: int = 0

    def on(self, step: int, *, has_loss: bool) -> int:
        """The step of the run for a step of the epoch that is current."""
        epoch = self.epoch
        if epoch is None:
            return step
        if epoch not in self.added and has_loss:
            before = max(self.added, default=None)
            added = 0 if before is None else self.added[before]
            if before is not None and epoch > before and self._is_first(step):
                added = self.last + max(self.stride, 1) - step
            self.added[epoch] = added
        total = self.added.get(epoch, 0) + step
        if has_loss:
            if self.first is None:
                self.first = step
            elif not self.stride:
                self.stride = max(step - self.first, 0)
            self.last = total
        return total

    def _is_first(self, step: int) -> bool:
        return self.first is not None and step <= self.first < self.last

    @property
    def counted_on(self) -> bool:
        return any(self.added.values())


class Assembler:
    """Takes rows, gives (run, point). counts: what was left out, by reason. examples: by column, a value
    that was none. entropy_most: the highest attention entropy so far.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.counted_steps = False
        self.without_step = 0  # losses left out because their step is no whole number
        self._pending: dict[str, _Pending] = {}
        self._left: dict[str, _Pending] = {}
        self._rank: float | None = None
        self._epochs: dict[str, _Epochs] = {}
        self.entropy_most = 0.0

    def take(self, row: Row) -> Iterator[tuple[str, Point]]:
        """The point that this row completes, if it does."""
        values, run = row
        run = run or self._run(values)
        columns = self.columns
        columns.learn(values)
        found = columns.found
        if self._of_another_rank(values):
            self.counts["of other ranks"] += 1
            return
        loss = self._number(values, found.get(Role.LOSS))
        pending = self._pending.get(run)
        step = self._step(values, pending, has_loss=loss is not None)
        if step is None:
            return
        if Role.STEP in found:
            step = self._epochs_of(run, values).on(step, has_loss=loss is not None)
        if pending is None or pending.step != step:
            yield from self._complete(run)
            pending = self._pending[run] = _Pending(step)
        elif loss is not None and pending.loss is not None:
            self.counts["repeated a step: the last of each was taken"] += 1
        if loss is not None:
            pending.loss = loss
        self._take_others(pending, values)

    def _take_others(self, pending: _Pending, values: Values) -> None:
        found = self.columns.found
        norm = self._number(values, found.get(Role.GRAD_NORM))
        if norm is not None and not norm < 0:  # some write -1 for "not known"
            pending.grad_norm = norm if math.isfinite(norm) else math.inf
        rate = self._number(values, found.get(Role.LEARNING_RATE))
        if rate is not None and math.isfinite(rate):
            pending.learning_rate = rate
        validation = self._number(values, found.get(Role.VALIDATION))
        if validation is not None:
            pending.validation = validation
        if self.columns.layers[Role.ATTENTION_ENTROPY]:
            for layer, entropy in self._inside(values, Role.ATTENTION_ENTROPY):
                if entropy < 0:
                    self._garbled(Role.ATTENTION_ENTROPY.value, entropy)
                elif entropy or self.entropy_most:  # zeros before any other are no measurement
                    self.entropy_most = max(self.entropy_most, entropy)
                    pending.entropies[layer] = entropy
        if self.columns.layers[Role.ATTENTION_LOGIT]:
            logits = [abs(logit) for _, logit in self._inside(values, Role.ATTENTION_LOGIT)]
            if logits:
                pending.logit = max(logits if pending.logit is None else [*logits, pending.logit])

    def _inside(self, values: Values, role: Role) -> Iterator[tuple[int, float]]:
        """(layer, value) of what was measured; a list has one value a layer."""
        for name, layer in self.columns.layers[role].items():
            value = values.get(name)
            for number, one in enumerate(value if isinstance(value, list) else [value], layer):
                measured = self._figure(role.value, one)
                if measured is not None and math.isfinite(measured):
                    yield number, measured

    def flush(self) -> Iterator[tuple[str, Point]]:
        """What is pending, as if another step followed: at the end, and while a source is silent."""
        for run, pending in list(self._pending.items()):
            if pending.loss is not None:
                yield from self._complete(run)

    def _complete(self, run: str) -> Iterator[tuple[str, Point]]:
        pending = self._pending.get(run)
        if pending is None:
            return
        point = pending.point()
        if (
            point is None
        ):  # e.g. an evaluation at a step that has no row of its own: of the next point
            self._left.setdefault(run, _Pending(pending.step)).add(pending)
            return
        left = self._left.pop(run, None)
        if left is not None:
            left.add(pending)
            point = left.point() or point
        self._pending[run] = _Pending(pending.step, None, pending.grad_norm, pending.learning_rate)
        yield run, point

    def _run(self, values: Values) -> str:
        """The run that a row names; a number is no name, but the count of something."""
        name = self.columns.found.get(Role.RUN)
        run = None if name is None else values.get(name)
        return run[:_SHOWN] if isinstance(run, str) and as_number(run) is None else ""

    @property
    def counted_on(self) -> bool:
        """Whether steps were counted anew in each epoch."""
        return any(one.counted_on for one in self._epochs.values())

    def _epochs_of(self, run: str, values: Values) -> _Epochs:
        epochs = self._epochs.setdefault(run, _Epochs())
        name = self.columns.found.get(Role.EPOCH)
        number = None if name is None else as_number(values.get(name))
        if number is not None and 0 <= number <= MOST_STEPS:
            epochs.epoch = int(number)
        return epochs

    def _of_another_rank(self, values: Values) -> bool:
        name = self.columns.found.get(Role.RANK)
        rank = None if name is None else as_number(values.get(name))
        if rank is None:
            return False
        self._rank = rank if self._rank is None else self._rank
        return rank != self._rank

    def _step(self, values: Values, pending: _Pending | None, *, has_loss: bool) -> int | None:
        """The row's step. A log without steps is counted; a row without one is of the step before."""
        name = self.columns.found.get(Role.STEP)
        last = -1 if pending is None else pending.step
        if name is None:
            self.counted_steps = self.counted_steps or has_loss
            return last + 1 if has_loss else max(last, 0)
        value = values.get(name)
        if value is None or value == "":
            if has_loss:
                self.counts["without a step: left out"] += 1
                return None
            return max(last, 0)
        if isinstance(value, str):  # `250/1000`, of how many
            value = value.partition("/")[0]
        number = as_number(value)
        if number is None or not 0 <= number <= MOST_STEPS or number != int(number):
            if has_loss:
                self._garbled(Role.STEP.value, value)
                self.without_step += 1
            return None
        return int(number)

    def _garbled(self, name: str, value: object) -> None:
        self.counts[f"whose {name} is no such number: left out"] += 1
        self.examples.setdefault(name, _shown(value))

    def _number(self, values: Values, name: str | None) -> float | None:
        return None if name is None else self._figure(name, values.get(name))

    def _figure(self, name: str, value: object) -> float | None:
        if value is None or value == "":
            return None
        number = as_number(value)
        if number is None:
            self._garbled(name, value)
        return number


def _by_layer(found: Mapping[int, float]) -> tuple[float, ...] | None:
    """By layer from 0; the lowest alone if the log has not all of them, or counts from 1."""
    if not found:
        return None
    layers = sorted(found)
    if layers == list(range(len(layers))):
        return tuple(found[layer] for layer in layers)
    return (min(found.values()),)


def _shown(value: object) -> str:
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text[:_SHOWN]
