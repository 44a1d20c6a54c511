"""From what the signals say of each row to tiers: watch, event, branch.

Each signal has a departure of its own, so that a slow one that lasts for thousands of steps hides no
spike. A departure

- *begins* as an event, at the first row whose u is over `single_z`, or over `z` for `consecutive_steps`
  rows running. Its onset is where u left 0.
- asks for a *branch* at once if its signal is not one that waits, or calls the row severe; else after
  `patience_rows`, unless it has healed before: most spikes heal by themselves within ten rows, and the
  base of a branch is an older state anyway.
- asks *again*, if it lasts, after `cooldown_steps`, and twice as many each time: the first trigger may
  have met an open branch or a spent budget; and once when it becomes severe after it had asked.
- is told of *again* as an event, if u had fallen to a half of it and comes back.
- *ends*, and the signal is armed again, when u has fallen to a fifth of an event. No time is waited out:
  a second departure right after the first is a second event.

The combined index has a departure of its own for rows that no single signal answers for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from forkcast.records import Tier, TriggerRule

#: The name of the departure that no single signal answers for.
TOGETHER: Final = "index"
#: A departure of losses or norms that are no numbers.
NON_FINITE: Final = "nonFinite"
#: Part of `single_z`: watched from a half, armed again at a fifth.
_WATCH: Final = 0.5
_ARMED: Final = 0.2
#: So many rows running that are not finite leave nothing to train.
STOP_ROWS: Final = 50
_MOST_DOUBLINGS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRules:
    """z for ``consecutive_steps`` rows running, or ``single_z`` once, make an event. patience_rows: how long
    a departure may take to heal. cooldown_steps: after which one that lasts asks for a branch again,
    0 = never. quiet_steps: no event of any signal for so long after a branch was asked for.
    """

    z: float = 2.5
    consecutive_steps: int = 3
    single_z: float = 3.2
    patience_rows: int = 10
    cooldown_steps: int = 200
    quiet_steps: int = 0


class Said(Protocol):
    """What a signal says of its last row beside u; see `forkcast.ports.Signal`."""

    @property
    def rule(self) -> TriggerRule | None:
        """The rule of its triggers; None: as u is over one threshold or the other."""

    @property
    def patient(self) -> bool:
        """Whether a departure may heal by itself."""

    @property
    def severe(self) -> bool:
        """Whether the last row asks for a branch at once."""

    @property
    def healed(self) -> bool:
        """Whether what departed is back."""


class _Bare:
    """What asks for a branch at once, or waits, and heals by its u alone. It has no rows running: that
    several signals say a little for long is nothing unusual.
    """

    rule: TriggerRule | None = TriggerRule.SINGLE

    def __init__(self, *, patient: bool, healed: bool) -> None:
        self.patient, self.severe, self.healed = patient, False, healed


class Departure:
    """One signal's. tier: what it has come to, CALM between two."""

    __slots__ = ("again", "asked", "dipped", "muted", "onset", "over", "rows", "severe", "tier")

    def __init__(self) -> None:
        self.tier = Tier.CALM
        self.onset: int | None = None
        self.over = 0  # rows running over z
        self.rows = 0  # since the event began
        self.dipped = False  # whether u has been down to what is only watched since its last event
        self.muted = False  # whether it asks for nothing more while it lasts
        self.severe = False  # whether it has asked as a severe one
        # step of the last request for a branch, and how many there were
        self.asked = self.again = 0

    def fold(
        self, step: int, u: float, said: Said, rules: TierRules, *, judged: bool
    ) -> Tier | None:
        """Fold one row; the tier that the departure rises to at this row, or asks for again; EVENT again
        if it had been nearly over; else None.
        """
        if u <= 0:
            self.onset = None
        elif self.onset is None:
            self.onset = step
        self.over = self.over + 1 if u > rules.z else 0
        # what has a rule of its own is a level, and lasts: rows running say no more than one
        running = self.over >= rules.consecutive_steps and said.rule is None
        hit = u > rules.single_z or running
        if self.tier is Tier.CALM:
            return self._begin(step, said, rules) if judged and hit else None
        risen = self._go_on(step, u, said, rules)
        if risen is None and judged and hit and self.dipped:
            risen = Tier.EVENT
        self.dipped = not hit and (self.dipped or u <= _WATCH * rules.single_z)
        return None if self.muted else risen

    def _begin(self, step: int, said: Said, rules: TierRules) -> Tier:
        self.rows, self.again, self.dipped, self.severe = 0, 0, False, False
        self.tier = Tier.EVENT
        at_once = said.severe or not said.patient or not rules.patience_rows
        return self._ask(step, said) if at_once else Tier.EVENT

    def _go_on(self, step: int, u: float, said: Said, rules: TierRules) -> Tier | None:
        self.rows += 1
        if u < _ARMED * rules.single_z:
            self.tier, self.over, self.onset = Tier.CALM, 0, None
            self.dipped = self.muted = False
            return None
        if self.muted or self.tier is Tier.STOP:
            return None
        if self.tier is Tier.EVENT:
            if said.severe:
                return self._ask(step, said)
            if said.healed and self.rows <= rules.patience_rows:
                self.tier = Tier.WATCH  # over, but not armed yet
                return None
            # one that has faded is left alone until it rises again, or is over
            lasts = self.rows >= rules.patience_rows and u > _WATCH * rules.single_z
            return self._ask(step, said) if lasts else None
        if self.tier is Tier.WATCH:
            if not said.healed:  # it was not over after all
                self.tier, self.rows = Tier.EVENT, 0
            return self._ask(step, said) if said.severe else None
        if said.severe and not self.severe:
            return self._ask(step, said)
        wait = rules.cooldown_steps << min(self.again - 1, _MOST_DOUBLINGS)
        if rules.cooldown_steps and not said.healed and step - self.asked >= wait:
            return self._ask(step, said)
        return None

    def _ask(self, step: int, said: Said) -> Tier:
        self.tier, self.asked, self.again = Tier.BRANCH, step, self.again + 1
        self.severe |= said.severe
        return Tier.BRANCH

    @property
    def open(self) -> bool:
        """Whether it has departed and is not known to have healed."""
        return self.tier in (Tier.EVENT, Tier.BRANCH)

    def state(self) -> list[int | None]:
        """JSON-ready."""
        return [getattr(self, name) for name in self._STATE]

    def restore(self, state: Sequence[int | None]) -> None:
        """Become what `state` was taken from."""
        for name, value in zip(self._STATE, state, strict=True):
            setattr(self, name, value)
        self.tier = Tier(self.tier)

    _STATE = ("tier", "onset", "over", "rows", "asked", "again", "dipped", "muted", "severe")


@dataclass(frozen=True, slots=True)
class Risen:
    """A departure that has risen to ``tier`` at this row: its signal, and its onset."""

    name: str
    tier: Tier
    onset: int


class Departures:
    """The departures of a run's signals. Its state restores bit-equal."""

    def __init__(self, rules: TierRules) -> None:
        self.rules = rules
        self._watched = _WATCH * rules.single_z
        #: No u up to it is more than an onset.
        self.least = min(rules.z, rules.single_z)
        self._each: dict[str, Departure] = {}
        #: Since when the u of others is over 0, while it never was over z.
        self._onsets: dict[str, int] = {}
        self._quiet_until = 0
        self._not_finite = 0

    def fold(
        self,
        step: int,
        us: Mapping[str, float],
        signals: Mapping[str, Said],
        together: float,
        *,
        judged: bool,
        finite: bool,
    ) -> Risen | None:
        """Fold one row; the departure that rises highest at it, or None.

        us: by signal; those with nothing to say are absent. together: u of all of them. judged:
        whether the level is known; until then nothing begins but what is not finite.
        """
        if not finite:
            return self._fold_not_finite(step)
        each = self._each
        if self._not_finite:
            self._not_finite = 0
            each.pop(NON_FINITE, None)
        if not each and together <= self.least:
            self.note(step, us, together)
            return None
        judged = judged and step >= self._quiet_until
        risen: Risen | None = None
        most = 0.0
        for name, u in us.items():
            if u > most:
                most = u
            departure = each.get(name) or self._begun(name, step, u)
            if departure is None:
                continue
            tier = departure.fold(step, u, signals[name], self.rules, judged=judged)
            if tier is not None and (risen is None or tier > risen.tier):
                risen = Risen(name, tier, _onset(departure, step))
            if departure.onset is None and departure.tier is Tier.CALM:
                del each[name]
        if together > most or TOGETHER in each or TOGETHER in self._onsets:
            risen = self._fold_together(step, together, signals, judged=judged) or risen
        return self._counted(step, risen)

    def note(self, step: int, us: Mapping[str, float], together: float) -> None:
        """A row at which nothing begins while nothing has departed: most rows are. together: <= least."""
        if not together:
            self._onsets.clear()
            return
        most = 0.0
        for name, u in us.items():
            self._note_onset(name, step, u)
            if u > most:
                most = u
        if together > most:
            self._note_onset(TOGETHER, step, together)

    def _note_onset(self, name: str, step: int, u: float) -> None:
        if u <= 0:
            self._onsets.pop(name, None)
        else:
            self._onsets.setdefault(name, step)

    def _begun(self, name: str, step: int, u: float) -> Departure | None:
        """A departure that u makes one; None if u is not over z: most rows are, and their onset is
        all that counts of them.
        """
        if u <= self.least:
            self._note_onset(name, step, u)
            return None
        departure = self._each[name] = Departure()
        departure.onset = self._onsets.pop(name, None)
        return departure

    def _fold_together(
        self, step: int, u: float, signals: Mapping[str, Said], *, judged: bool
    ) -> Risen | None:
        each = self._each
        if any(one.tier is not Tier.CALM for name, one in each.items() if name != TOGETHER):
            each.pop(TOGETHER, None)  # a signal answers for it, and what stands is known
            self._onsets.pop(TOGETHER, None)
            return None
        departure = each.get(TOGETHER) or self._begun(TOGETHER, step, u)
        if departure is None:
            return None
        said = _Bare(patient=True, healed=all(one.healed for one in signals.values()))
        tier = departure.fold(step, u, said, self.rules, judged=judged)
        if departure.onset is None and departure.tier is Tier.CALM:
            del each[TOGETHER]
        return None if tier is None else Risen(TOGETHER, tier, _onset(departure, step))

    def _fold_not_finite(self, step: int) -> Risen | None:
        self._not_finite += 1
        departure = self._each.setdefault(NON_FINITE, Departure())
        said = _Bare(patient=False, healed=False)
        tier = departure.fold(step, 8.0, said, self.rules, judged=True)
        if self._not_finite == STOP_ROWS:
            departure.tier = tier = Tier.STOP
        risen = None if tier is None else Risen(NON_FINITE, tier, _onset(departure, step))
        return self._counted(step, risen)

    def _counted(self, step: int, risen: Risen | None) -> Risen | None:
        if risen is not None and risen.tier >= Tier.BRANCH and self.rules.quiet_steps:
            self._quiet_until = step + self.rules.quiet_steps
            # rows that are not finite are one departure, however many there are
            self._each = {name: one for name, one in self._each.items() if name == NON_FINITE}
            self._onsets.clear()
        return risen

    def tier(self, z: float) -> Tier:
        """What a row asks for whose index is z."""
        tier = Tier.WATCH if z > self._watched else Tier.CALM
        if not self._each:
            return tier
        for departure in self._each.values():
            if departure.tier > tier:
                tier = departure.tier
        return tier

    def mute(self, name: str) -> None:
        """What this signal says is known: an event, that asks for nothing more while it lasts."""
        if name in self._each:
            self._each[name].muted, self._each[name].tier = True, Tier.EVENT

    @property
    def none(self) -> bool:
        """Whether nothing has departed."""
        return not self._each

    @property
    def open(self) -> bool:
        """Whether any departure has not healed."""
        return any(one.open for one in self._each.values())

    def quiet(self, until_step: int) -> None:
        """Nothing begins before that step; what is open ends."""
        self._quiet_until = max(self._quiet_until, until_step)
        self.splice()

    def splice(self) -> None:
        """What comes next does not follow what came."""
        self._each.clear()
        self._onsets.clear()
        self._not_finite = 0

    def state(self) -> dict[str, Any]:
        """All that a restart needs, JSON-ready."""
        return {
            "each": {name: one.state() for name, one in self._each.items()},
            "onsets": dict(self._onsets),
            "quiet_until": self._quiet_until,
            "not_finite": self._not_finite,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` was taken from."""
        self._each = {}
        for name, one in state["each"].items():
            self._each[name] = Departure()
            self._each[name].restore(one)
        self._onsets = {name: int(step) for name, step in state["onsets"].items()}
        self._quiet_until = int(state["quiet_until"])
        self._not_finite = int(state["not_finite"])


def _onset(departure: Departure, step: int) -> int:
    return step if departure.onset is None else min(departure.onset, step)
