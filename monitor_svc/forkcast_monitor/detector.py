"""One run folded: statistics in; index, events and triggers out. A pure function of the ordered stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from forkcast.departures import NON_FINITE, TOGETHER
from forkcast.level import Level
from forkcast.records import Event, Index, StepStats, Tier, Trigger, TriggerRule
from forkcast.trigger import EVENT_RATE, VALIDATION, Fired, TriggerMachine
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.rarity import how_rare
from forkcast_monitor.signals.base import MOST

#: Rows that may be missing, or come again, beside the distances of the last few.
_FORGIVEN_ROWS: Final = 16
_DISTANCES: Final = 4
#: Rows running whose gradient norm is no number while the loss is: a step that overflowed in fp16 is
#: skipped, and the scale of the loss is halved; that is how it finds its scale.
_OVERFLOW_ROWS: Final = 3
#: Fields of the last index and the last event, as a state lists them.
_INDEX: Final = tuple(field.name for field in fields(Index))
_EVENT: Final = tuple(field.name for field in fields(Event) if field.name != "run_uid")
#: A member is looked up in its class by a slow path, and this one is wanted at nearly every row.
_CALM: Final = Tier.CALM
_OF_THE_BASE: Final = "; the base of this epoch had it already"
_CAUSES: Final = {
    VALIDATION: "the validation loss stands above its trend",
    EVENT_RATE: "events have become more frequent than in the 10,000 steps before",
    "forced": "the manifest forces a trigger at this step",
    "calm": "no departure for long enough to try the learning rate of before a cut",
    NON_FINITE: "the loss, or the gradient norm of three steps running, is not finite",
}


@dataclass(slots=True)
class Reading:
    """What the detector makes of one row. event: if a departure begins, or rises, at it; trigger: if it
    asks for a branch.
    """

    index: Index
    event: Event | None
    trigger: Trigger | None


class Detector:
    """Folds the steps of one lineage in order. `state` and `restore` are bit-equal."""

    def __init__(self, config: DetectorConfig, run_uid: str) -> None:
        self.config, self.run_uid = config, run_uid
        weights = config.weights
        largest = max(weights.values())
        self._signals = {
            name: make(config.signals)
            for name, make in config.preset.signals.items()
            if weights[name]
        }
        # name, fold, weight, and weight over the largest
        self._folds = [
            (name, signal.update, weights[name], weights[name] / largest)
            for name, signal in self._signals.items()
        ]
        self._warmup = config.trigger.warmup_steps
        self._level = Level(config.signals.ema_decay)
        self.triggers = TriggerMachine(config.trigger)
        self.last: Index | None = None
        #: Departures so far, and the last of them.
        self.events = 0
        self.last_event: Event | None = None
        self._rows = 0
        self._overflows = 0  # rows running whose norm is no number
        self._step = self._epoch = -1
        self._apart: deque[int] = deque(maxlen=_DISTANCES)  # steps between the last rows
        self._every_step = False  # whether the last rows were all one step apart
        # since the last collapse: signals of no patience that have not said yet that the base is sound
        self._unproven: list[str] = []

    def fold(self, stats: StepStats) -> Reading:
        """Fold one row."""
        step, epoch = stats.step, stats.epoch
        if step - self._step == 1 and epoch == self._epoch and self._every_step:
            self._step = step
        else:
            self._place(step, epoch)
        level, triggers = self._level, self.triggers
        level.fold(stats)
        rows = self._rows = self._rows + 1
        components: dict[str, float] = {}
        most = together = weighted = total = 0.0
        for name, update, weight, share in self._folds:
            u = update(stats, level)
            if u is None:
                continue
            components[name] = u
            total += weight
            if u > 0:
                weighted += weight * u
                together += share * u
                if u > most:
                    most = u
        ready = rows > self._warmup and not level.warm
        z = (together if together > most else most) if ready else 0.0
        self._overflows = 0 if level.norm_finite else self._overflows + 1
        finite = level.finite and self._overflows < _OVERFLOW_ROWS
        fired, base = None, ""
        validation = stats.validation_loss
        heard = validation is not None or self._unproven
        departures = triggers.departures
        if z > departures.least or epoch or heard or not finite or not triggers.idle:
            fired = triggers.fold(
                step,
                epoch,
                components,
                self._signals,
                z,
                judged=ready,
                finite=finite,
                validation_loss=validation,
            )
            if ready and self._unproven:
                fired, base = self._beside_the_base(fired, components)
            tier = departures.tier(z)
        else:
            departures.note(step, components, z)
            tier = departures.tier(z) if z else _CALM
        mean = weighted / total if weighted else 0.0
        index = self.last = Index(step, epoch, components, mean, z, ready, tier)
        if fired is None:
            return Reading(index, None, None)
        return self._reading(index, fired, base)

    def _beside_the_base(
        self, fired: Fired | None, us: Mapping[str, float]
    ) -> tuple[Fired | None, str]:
        """After a collapse: what fired, no branch if the base had it already; and the words for it."""
        limit = self.config.trigger.tiers.z
        self._unproven = [name for name in self._unproven if us.get(name, MOST) > limit]
        if fired is None or fired.name not in self._unproven:
            return fired, ""
        self._unproven.remove(fired.name)
        if fired.tier < Tier.BRANCH:
            return fired, _OF_THE_BASE
        # another branch from there would have it, too
        self.triggers.departures.mute(fired.name)
        return replace(fired, tier=Tier.EVENT), f"{_OF_THE_BASE}: it is damaged"

    def _place(self, step: int, epoch: int) -> None:
        """Where this row stands beside the last: next to it, or after a gap or a collapse."""
        before, self._step = self._step, step
        self._every_step = False
        if epoch != self._epoch:
            spliced = self._epoch >= 0
            self._epoch = epoch
            if spliced:
                self._splice()
                self._unproven = [
                    name for name, one in self._signals.items() if one.rule is not None
                ]
            return
        apart = step - before
        if before < 0 or not apart:
            return
        if not -_FORGIVEN_ROWS <= apart <= _FORGIVEN_ROWS + 1 and self._apart:
            usual = max(self._apart)
            if apart > usual * (_FORGIVEN_ROWS + 1):
                self.triggers.missed(before + 1, step - 1)
                self._splice()
            elif apart < -usual * _FORGIVEN_ROWS:  # a log that was resumed from an earlier state
                self._splice()
        if apart > 0:
            self._apart.append(apart)
            self._every_step = self._apart.count(1) == _DISTANCES

    def _splice(self) -> None:
        self._level.splice()
        for signal in self._signals.values():
            signal.splice()
        self.triggers.departures.splice()

    def _reading(self, index: Index, fired: Fired, base: str) -> Reading:
        shown = fired.beside or fired
        event = None
        if shown.rule not in (TriggerRule.CALM, TriggerRule.FORCED):
            event = Event(
                run_uid=self.run_uid,
                epoch=index.epoch,
                step=index.step,
                onset_step=shown.onset,
                tier=shown.tier,
                component=shown.name,
                cause=self._cause(index, shown) + shown.note + base,
            )
            self._count(event)
        if fired.tier < Tier.BRANCH:
            return Reading(index, event, None)
        trigger = Trigger(
            run_uid=self.run_uid,
            epoch=index.epoch,
            step=index.step,
            onset_step=fired.onset,
            rule=fired.rule,
            z=index.z,
            index=index.index,
            components=dict(index.components),
            thresholds=self.config.trigger.thresholds(),
            cause=self._cause(index, fired) + fired.note,
            severe=fired.severe,
        )
        return Reading(index, event, trigger)

    def _count(self, event: Event) -> None:
        """One that rises, comes back or asks again is the same departure."""
        before = self.last_event
        key = (event.component, event.onset_step, event.epoch)
        if before is None or (before.component, before.onset_step, before.epoch) != key:
            self.events += 1
        self.last_event = event

    def _cause(self, index: Index, fired: Fired) -> str:
        since = f" since step {fired.onset:,}" if fired.onset < index.step else ""
        if fired.name in _CAUSES:
            return _CAUSES[fired.name] + since
        if fired.name == TOGETHER:
            parts = sorted(index.components.items(), key=lambda item: -item[1])
            said = ", ".join(f"{name} {u:.1f}" for name, u in parts if u > 0)
            return f"{said}: none alone, {index.z:.1f} together{since}"
        u, signal = index.components[fired.name], self._signals[fired.name]
        # the table is of summed rows: of levels, and of another's rule, nobody knows how rare they are
        rare = f" ({how_rare(u)})" if signal.patient and signal.rule is None else ""
        return f"{fired.name} {u:.1f}{rare}{since}: {signal.cause()}"

    @property
    def over_threshold(self) -> bool:
        """Whether the run has departed from its course and not healed, as of the last row."""
        return self.last is not None and self.triggers.over(self.last.z)

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        last, event = self.last, self.last_event
        return {
            "signals": {name: dict(signal.state()) for name, signal in self._signals.items()},
            "level": self._level.state(),
            "triggers": self.triggers.state(),
            "place": [self._rows, self._step, self._epoch, list(self._apart), self._unproven],
            "overflows": self._overflows,
            "last": None if last is None else [getattr(last, name) for name in _INDEX],
            "events": [self.events, event and [getattr(event, name) for name in _EVENT]],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        for name, signal in self._signals.items():
            signal.restore(state["signals"][name])
        self._level.restore(state["level"])
        self.triggers.restore(state["triggers"])
        self._rows, self._step, self._epoch, apart, unproven = state["place"]
        self._overflows = state["overflows"]
        self._apart = deque(apart, maxlen=_DISTANCES)
        self._every_step = False  # the next row finds out
        self._unproven = list(unproven)
        self.last = self.last_event = None
        if state["last"] is not None:
            last = dict(zip(_INDEX, state["last"], strict=True))
            self.last = Index(**{**last, "tier": Tier(last["tier"])})
        self.events, event = state["events"]
        if event is not None:
            last = dict(zip(_EVENT, event, strict=True))
            self.last_event = Event(**{**last, "tier": Tier(last["tier"]), "run_uid": self.run_uid})
