"""One run folded: statistics in; index, events and triggers out. A pure function of the ordered stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from forkcast.departures import NON_FINITE, TOGETHER
from forkcast.level import Level
from forkcast.records import Event, Index, StepStats, Tier, Trigger, TriggerRule
from forkcast.trigger import EVENT_RATE, VALIDATION, Fired, TriggerMachine
from forkcast_monitor.config import DetectorConfig
from forkcast_monitor.rarity import how_rare

#: Rows that are missing beside the usual distance of two rows: more are a gap.
_FORGIVEN_ROWS: Final = 16
#: So many rows after a splice, what stands inside the model is the base's own.
_OF_THE_BASE_ROWS: Final = 64
_CAUSES: Final = {
    VALIDATION: "the validation loss came out above its trend twice in a row",
    EVENT_RATE: "events have become more frequent than in the 10,000 steps before",
    "forced": "the manifest forces a trigger at this step",
    "calm": "no departure for long enough to try the learning rate of before a cut",
    NON_FINITE: "the loss or the gradient norm is not finite",
}


class Reading(NamedTuple):
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
            name: make(config.signals) for name, make in config.preset.signals.items() if weights[name]
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
        self._rows = 0
        self._step = self._stride = self._epoch = -1
        self._since_splice = -1  # rows; -1 = never spliced

    def fold(self, stats: StepStats) -> Reading:
        """Fold one row."""
        step, epoch = stats.step, stats.epoch
        self._place(step, epoch)
        level, triggers = self._level, self.triggers
        level.fold(stats)
        self._rows += 1
        components: dict[str, float] = {}
        most = together = weighted = total = 0.0
        for name, update, weight, share in self._folds:
            u = update(stats, level)
            if u is None:
                continue
            components[name] = u
            total += weight
            if u:
                weighted += weight * u
                together += share * u
                if u > most:
                    most = u
        ready = not level.warm and self._rows > self._warmup
        z = (together if together > most else most) if ready else 0.0
        finite = level.finite and level.norm_finite
        fired = triggers.fold(
            step,
            epoch,
            components,
            self._signals,
            z,
            judged=ready,
            finite=finite,
            validation_loss=stats.validation_loss,
        )
        index = self.last = Index(
            step,
            epoch,
            components,
            weighted / total if total else 0.0,
            z,
            ready,
            triggers.departures.tier(z),
        )
        return Reading(index, None, None) if fired is None else self._reading(index, fired)

    def _place(self, step: int, epoch: int) -> None:
        """Where this row stands beside the last: next to it, or after a gap or a collapse."""
        before, self._step = self._step, step
        if epoch != self._epoch:
            spliced = self._epoch >= 0
            self._epoch = epoch
            if spliced:
                self._splice()
            return
        apart = step - before
        if before < 0 or apart <= 0:
            return
        if self._stride < 0 or apart < self._stride:
            self._stride = apart
        elif apart > self._stride * (_FORGIVEN_ROWS + 1):
            self.triggers.missed(before + 1, step - 1)
            self._splice()
        if self._since_splice >= 0:
            self._since_splice += 1

    def _splice(self) -> None:
        self._level.splice()
        for signal in self._signals.values():
            signal.splice()
        self.triggers.departures.splice()
        self._since_splice = 0

    def _reading(self, index: Index, fired: Fired) -> Reading:
        tier, cause = fired.tier, self._cause(index, fired)
        signal = self._signals.get(fired.name)
        if (
            signal is not None
            and signal.rule is not None
            and tier is Tier.BRANCH
            and 0 <= self._since_splice < _OF_THE_BASE_ROWS
        ):
            # what a collapse went back to had it already: another branch from there would, too
            self.triggers.departures.mute(fired.name)
            tier, cause = Tier.EVENT, f"{cause}; the base of this epoch had it already: it is damaged"
        event = Event(
            run_uid=self.run_uid,
            epoch=index.epoch,
            step=index.step,
            onset_step=fired.onset,
            tier=tier,
            component=fired.name,
            cause=cause,
        )
        if tier < Tier.BRANCH:
            return Reading(index, event, None)
        shown = fired.rule not in (TriggerRule.CALM, TriggerRule.FORCED)
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
            cause=cause,
        )
        return Reading(index, event if shown else None, trigger)

    def _cause(self, index: Index, fired: Fired) -> str:
        since = f" since step {fired.onset:,}" if fired.onset < index.step else ""
        if fired.name in _CAUSES:
            return _CAUSES[fired.name] + since
        if fired.name == TOGETHER:
            parts = sorted(index.components.items(), key=lambda item: -item[1])
            said = ", ".join(f"{name} {u:.1f}" for name, u in parts if u > 0)
            return f"{said}: none alone, {index.z:.1f} together{since}"
        u, signal = index.components[fired.name], self._signals[fired.name]
        rare = f" ({how_rare(u)})" if signal.patient else ""
        return f"{fired.name} {u:.1f}{rare}{since}: {signal.cause()}"

    @property
    def over_threshold(self) -> bool:
        """Whether the run has departed from its course and not healed, as of the last row."""
        return self.last is not None and self.triggers.over(self.last.z)

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        last = self.last
        return {
            "signals": {name: dict(signal.state()) for name, signal in self._signals.items()},
            "level": self._level.state(),
            "triggers": self.triggers.state(),
            "place": [self._rows, self._step, self._stride, self._epoch, self._since_splice],
            "last": None if last is None else list(last),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        for name, signal in self._signals.items():
            signal.restore(state["signals"][name])
        self._level.restore(state["level"])
        self.triggers.restore(state["triggers"])
        self._rows, self._step, self._stride, self._epoch, self._since_splice = state["place"]
        last = state["last"]
        self.last = None if last is None else Index(*last[:-1], Tier(last[-1]))
