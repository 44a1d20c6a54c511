"""Whose runs an operator looks after, and whether another installation's operator does the same.

Each operator's Lease says on itself which runs it is about. Two of one installation share their Lease,
so one acts; two of different installations have a Lease each, and would both act on a run that both are
about: the one whose Lease is younger refuses to lead. Who may make Leases in some namespace can write
into one what they like but not when it was made, so that none of theirs stops an operator that has one. Pure.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from forkcast_operator.kubernetes.run import Run
from forkcast_operator.kubernetes.seen import instant

#: Of the Lease: its label, and the annotations that say which runs it is about.
LABEL: Final = {"app.kubernetes.io/part-of": "forkcast", "app.kubernetes.io/component": "operator"}
SELECTOR: Final = ",".join(f"{name}={value}" for name, value in LABEL.items())
_MANAGED_BY: Final = "forkcast.dev/managed-by"
_NAMESPACES: Final = "forkcast.dev/namespaces"
#: A Lease that was renewed so long ago is nobody's; generous, since clocks differ.
_FRESH_SECONDS: Final = 45.0


@dataclass(frozen=True, slots=True)
class Scope:
    """managed_by: runs whose spec.managedBy is this. namespaces: theirs, empty for all."""

    managed_by: str = ""
    namespaces: tuple[str, ...] = ()

    def holds(self, run: Run) -> bool:
        """Whether the run is looked after here; its namespace is seen to by the watches."""
        return str(run.spec.get("managedBy", "")) == self.managed_by

    def overlaps(self, other: Scope) -> bool:
        """Whether a run may be of both."""
        everywhere = not self.namespaces or not other.namespaces
        shared = everywhere or bool({*self.namespaces} & {*other.namespaces})
        return self.managed_by == other.managed_by and shared

    def marks(self) -> dict[str, Any]:
        """Labels and annotations of a Lease of this scope."""
        about = {_MANAGED_BY: self.managed_by, _NAMESPACES: ",".join(self.namespaces)}
        return {"labels": LABEL, "annotations": about}

    @classmethod
    def of_lease(cls, lease: Mapping[str, Any]) -> Scope | None:
        """What a Lease says it is about; None if it says nothing."""
        about = lease["metadata"].get("annotations") or {}
        if _MANAGED_BY not in about:
            return None
        names = [one for one in about.get(_NAMESPACES, "").split(",") if one]
        return cls(about[_MANAGED_BY], tuple(names))


def rival(
    scope: Scope, own: tuple[str, str], leases: Iterable[Mapping[str, Any]], now: dt.datetime
) -> str:
    """The Lease of another installation that holds runs of this scope, as NAMESPACE/NAME, "" if there
    is none. own: namespace and name of this installation's. Whose Lease was made later gives way.
    """
    found = list(leases)
    mine = next((one for one in found if _name(one) == own), None)
    since = _made(mine, now) if mine is not None else now
    for lease in sorted(found, key=_name):
        other = Scope.of_lease(lease)
        if _name(lease) == own or other is None or not scope.overlaps(other):
            continue
        if _held(lease, now) and (_made(lease, now), _name(lease)) < (since, own):
            return "/".join(_name(lease))
    return ""


def _name(lease: Mapping[str, Any]) -> tuple[str, str]:
    return lease["metadata"]["namespace"], lease["metadata"]["name"]


def _held(lease: Mapping[str, Any], now: dt.datetime) -> bool:
    spec = lease.get("spec", {})
    renewed = instant(spec.get("renewTime"))
    fresh = renewed is not None and abs((now - renewed).total_seconds()) < _FRESH_SECONDS
    return fresh and bool(spec.get("holderIdentity"))


def _made(lease: Mapping[str, Any], now: dt.datetime) -> dt.datetime:
    """When the object was made, by the API server's clock; its holder could not say otherwise."""
    return instant(lease["metadata"].get("creationTimestamp")) or now
