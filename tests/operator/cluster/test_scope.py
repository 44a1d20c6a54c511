"""Which operator looks after which runs, from the leases there are."""

from __future__ import annotations

import datetime as dt

import pytest

from forkcast_operator.kubernetes.scope import Scope, rival

NOW = dt.datetime(2026, 11, 27, 12, 0, 0, tzinfo=dt.UTC)
OWN = ("two", "fc-operator")


def lease(namespace, scope, *, since=3600, renewed=5, holder="pod", acquired=7200):
    def at(seconds):
        return (NOW - dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    made = {"namespace": namespace, "name": "fc-operator", "creationTimestamp": at(since)}
    return {
        "metadata": {**made, **scope.marks()},
        "spec": {"holderIdentity": holder, "acquireTime": at(acquired), "renewTime": at(renewed)},
    }


ALL, LAB = Scope(), Scope("", ("lab", "b"))
CASES = {
    "nobody": (ALL, [], ""),
    "another installation, all namespaces": (ALL, [lease("one", ALL)], "one/fc-operator"),
    "another, in a namespace of ours": (LAB, [lease("one", Scope("", ("b",)))], "one/fc-operator"),
    "another, in other namespaces": (LAB, [lease("one", Scope("", ("c",)))], ""),
    "all namespaces beside some": (ALL, [lease("one", LAB)], "one/fc-operator"),
    "of another class": (Scope("blue"), [lease("one", ALL)], ""),
    "of the same class": (Scope("blue"), [lease("one", Scope("blue"))], "one/fc-operator"),
    "one that is dead": (ALL, [lease("one", ALL, renewed=60)], ""),
    "one that has left": (ALL, [lease("one", ALL, holder="")], ""),
    "our own": (ALL, [lease("two", ALL)], ""),
    "ours is older": (ALL, [lease("one", ALL, since=10), lease("two", ALL)], ""),
    "theirs is older": (ALL, [lease("one", ALL), lease("two", ALL, since=10)], "one/fc-operator"),
    "both at once: by name": (ALL, [lease("one", ALL), lease("two", ALL)], "one/fc-operator"),
    "ours is older and was taken later": (
        ALL,
        [lease("evil", ALL, since=10, acquired=1e9), lease("two", ALL, acquired=1)],
        "",
    ),
    "ours is older and nobody holds it now": (
        ALL,
        [lease("evil", ALL, since=10), lease("two", ALL, holder="")],
        "",
    ),
    "one that was renewed in the future": (ALL, [lease("one", ALL, renewed=-1e9)], ""),
    "a lease of something else": (ALL, [{"metadata": {"namespace": "x", "name": "y"}}], ""),
}


@pytest.mark.parametrize(("scope", "leases", "expected"), CASES.values(), ids=CASES)
def test_who_gives_way(scope, leases, expected) -> None:
    assert rival(scope, OWN, leases, NOW) == expected


@pytest.mark.parametrize("scope", [ALL, LAB, Scope("blue"), Scope("blue", ("lab",))])
def test_a_lease_says_what_it_is_about(scope) -> None:
    assert Scope.of_lease(lease("one", scope)) == scope


def test_a_run_belongs_to_the_operator_that_it_names(make_run) -> None:
    assert ALL.holds(make_run())
    assert not ALL.holds(make_run(managedBy="blue"))
    assert Scope("blue").holds(make_run(managedBy="blue"))
    assert not Scope("blue").holds(make_run())
