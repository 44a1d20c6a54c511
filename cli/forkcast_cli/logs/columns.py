"""Which of a log's own names is the step, the loss, the gradient norm. Pure.

A role keeps its name once rows have been taken by it; one that appears later only fills an empty role.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from forkcast_cli.logs import inside
from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.names import INSIDE, KNOWN, Role, is_known, place
from forkcast_cli.logs.numbers_in_text import as_number

#: Names that are remembered; a log may have another one in each row.
_MOST_NAMES: Final = 4096
#: A name in fewer than one of so many rows of its most frequent rival is passed over.
_SELDOM: Final = 4
#: So many rows of one value are no count of steps.
_STILL_ROWS: Final = 16
#: Roles of which a wrong guess would be a wrong report.
_WEIGHED: Final = (Role.LOSS, Role.GRAD_NORM)


class Columns:
    """The names in use, by role; ``*`` in one of INSIDE stands for a layer's number. given: names that
    are not to be guessed; "" for a role that is to stay empty.

    layers: by role of INSIDE, the layer of each name. rivals: the names among which none was taken.
    others: the names that could be a role's, too, beside the one that was taken.
    """

    def __init__(self, given: Mapping[Role, str] | None = None) -> None:
        self.given = dict(given or {})
        self.found: dict[Role, str] = {role: name for role, name in self.given.items() if name}
        self.layers: dict[Role, dict[str, int]] = {role: {} for role in INSIDE}
        self.rivals: dict[Role, list[str]] = {}
        self.others: dict[Role, list[str]] = {}
        self._seen: set[str] = set()
        self._losses: dict[str, bool] = {}

    def learn(self, names: Collection[str]) -> None:
        """Take notice of a row's names."""
        if self._seen.issuperset(names):
            return
        fresh = [name for name in names if name not in self._seen]
        if len(self._seen) < _MOST_NAMES:
            self._seen.update(fresh)
        for role in KNOWN:
            if role not in self.found and role not in self.given:
                name = self.best(role, fresh)
                if name is not None:
                    self.found[role] = name
        self._learn_inside(fresh)

    def _learn_inside(self, names: Collection[str]) -> None:
        """Take notice of new names of what is measured inside the model."""
        for role, kind in INSIDE.items():
            if role not in self.found and role not in self.given:
                stem, rivals = inside.choose(kind, [*self.rivals.get(role, ()), *names])
                if stem is not None:
                    self.found[role] = stem
                elif rivals:
                    self.rivals[role] = rivals
            stem = self.found.get(role)
            if stem is not None:
                for name in names:
                    number = inside.layer(stem, name)
                    if number is not None and len(self.layers[role]) < _MOST_NAMES:
                        self.layers[role][name] = number

    @staticmethod
    def best(role: Role, names: Iterable[str]) -> str | None:
        """The best name for a role; of equals the first."""
        placed = [
            (position, number, name)
            for number, name in enumerate(names)
            if (position := place(role, name)) is not None
        ]
        return min(placed)[2] if placed else None

    def decide(self, rows: Iterable[Iterable[str]]) -> None:
        """Take notice of the names of the first rows at once: the best of all is taken, not the first.
        A name that stands in few rows does not displace one that stands in most, and a step that stands
        beside the loss is better than one that never does.
        """
        each = [dict.fromkeys(names) for names in rows]  # in their order: of equals the first
        counts = Counter(name for names in each for name in names)
        for role in sorted(KNOWN, key=lambda one: one is not Role.LOSS):
            if role in self.found or role in self.given:
                continue
            often = _often(role, counts)
            if role is Role.STEP and Role.LOSS in self.found:
                loss = self.found[Role.LOSS]
                beside = Counter(name for names in each if loss in names for name in names)
                often = _often(role, beside) or often
            if often:
                self.found[role] = self.best(role, often) or often[0]
        self._learn_inside(counts)
        self._seen.update(counts)

    def weigh(self, rows: Collection[Mapping[str, Any]]) -> None:
        """See by the first rows which other names fit as well. A name with the same values is the same, and
        one whose value stands still is no step.
        """
        self._pass_over_still(rows)
        for role in _WEIGHED:
            chosen = self.found.get(role)
            if chosen is None or role in self.given:
                continue
            counts = Counter(name for values in rows for name in values)
            self.others[role] = [
                name
                for name, count in counts.items()
                if name != chosen
                and count * _SELDOM >= counts[chosen]
                and place(role, name) is not None
                and _differ(chosen, name, rows)
            ]

    def _pass_over_still(self, rows: Collection[Mapping[str, Any]]) -> None:
        chosen, loss = self.found.get(Role.STEP), self.found.get(Role.LOSS)
        if chosen is None or Role.STEP in self.given:
            return
        values: dict[str, list[float | None]] = {chosen: []}
        for row in rows:
            for name, value in row.items() if loss in row else ():
                if name == chosen or place(Role.STEP, name) is not None:
                    values.setdefault(name, []).append(as_number(value))
        if len(values[chosen]) < _STILL_ROWS or len(set(values[chosen])) > 1:
            return
        del self.found[Role.STEP]
        better = self.best(Role.STEP, [name for name, each in values.items() if len(set(each)) > 1])
        if better is not None:
            self.found[Role.STEP] = better

    def unsure(self) -> dict[Role, list[str]]:
        """The roles whose name is a guess, with the other names that fit."""
        return {
            role: self.others.get(role, [])
            for role, name in self.found.items()
            if role not in self.given and (self.others.get(role) or not is_known(role, name))
        }

    def has_loss(self, values: Mapping[str, Any]) -> bool:
        """Whether one of a row's values can be the loss."""
        given = self.given.get(Role.LOSS)
        if given:
            return given in values
        return any(
            self._fits_loss(name) and as_number(value) is not None for name, value in values.items()
        )

    def _fits_loss(self, name: str) -> bool:
        fits = self._losses.get(name)
        if fits is None:
            if len(self._losses) >= _MOST_NAMES:
                self._losses.clear()
            fits = self._losses[name] = place(Role.LOSS, name) is not None
        return fits

    def missing(self) -> list[str]:
        """The given names that no row has had."""
        return [name for role, name in self.given.items() if name and not self._had(role, name)]

    def _had(self, role: Role, name: str) -> bool:
        return bool(self.layers[role]) if role in INSIDE else name in self._seen

    def seen(self) -> list[str]:
        """All names that rows have had, sorted."""
        return sorted(self._seen)


def _often(role: Role, counts: Mapping[str, int]) -> list[str]:
    """The names that fit a role, without those that stand in few of the rows."""
    fitting = {name: n for name, n in counts.items() if place(role, name) is not None}
    most = max(fitting.values(), default=0)
    return [name for name, n in fitting.items() if n * _SELDOM >= most]


def _differ(one: str, other: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    both = [(as_number(v[one]), as_number(v[other])) for v in rows if one in v and other in v]
    return not both or any(a != b for a, b in both)


def given_columns(text: str) -> dict[Role, str]:
    """``step=iter,loss=train loss`` as columns. Raises LogError."""
    roles = ", ".join(role.value for role in Role)
    found: dict[Role, str] = {}
    for part in text.split(",") if text.strip() else ():
        role, equals, name = part.partition("=")
        try:
            at = Role(role.strip())
        except ValueError:
            raise LogError(f"{role.strip()!r} is no role of a column", f"one of {roles}") from None
        if not equals:
            raise LogError(f"{part.strip()!r} names no column", f"write {at.value}=NAME")
        if at in found:
            raise LogError(f"{at.value} is given twice", "give each role once")
        found[at] = name.strip()
    return found
