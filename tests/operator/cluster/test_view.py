"""What the operator takes for the cluster, whatever the watches drop, repeat or bring late."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast_operator.kubernetes.view import View
from forkcast_wire.resources import LABEL_RUN

RUN = ("team", "gpt")
NAMES = ("a", "b", "c")


def job(name, version, uid="u"):
    return {
        "metadata": {
            "namespace": RUN[0],
            "name": name,
            "uid": f"{name}-{uid}",
            "resourceVersion": str(version),
            "labels": {LABEL_RUN: RUN[1]},
        }
    }


def history(moves):
    """What the API server goes through: (version, kind, body), and its state after each version."""
    now, events, states = {}, [], [{}]
    for version, (name, gone) in enumerate(moves, start=1):
        if gone and name in now:
            events.append((version, "DELETED", now.pop(name)))
        elif not gone:
            before = now.get(name)
            now[name] = job(name, version)
            born = before["metadata"]["uid"] if before else f"{name}-{version}"
            now[name]["metadata"]["uid"] = born
            events.append((version, "MODIFIED", now[name]))
        states.append(dict(now))
    return events, states


def told(view, event):
    _, kind, body = event
    meta = body["metadata"]
    if kind == "DELETED":
        view.drop("Job", (RUN[0], meta["name"]), meta["uid"])
    else:
        view.put("Job", body)


def seen(view):
    return {body["metadata"]["name"]: body for body in view.of_run("Job", RUN)}


MOVES = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=25)


@settings(max_examples=300)
@given(MOVES, st.data())
def test_after_a_list_the_view_is_the_cluster_whatever_events_were_lost(moves, data):
    events, states = history(moves)
    kept = [event for event in events if data.draw(st.booleans())]
    view = View()
    for event in kept:
        told(view, event)
    view.settle("Job", RUN, states[-1].values(), str(len(moves)))
    assert seen(view) == states[-1]


@settings(max_examples=300)
@given(MOVES, st.data())
def test_a_list_from_the_past_takes_nothing_away_that_came_after_it(moves, data):
    """A cache served it, or a watch or our own write overtook it."""
    events, states = history(moves)
    at = data.draw(st.integers(0, len(moves)))
    view = View()
    for event in events:
        told(view, event)
    assert seen(view) == states[-1]
    view.settle("Job", RUN, states[at].values(), str(at))
    after = seen(view)
    for name, body in states[-1].items():
        assert after[name] == body, name


def test_a_list_that_says_no_version_is_taken_as_of_now():
    view = View()
    view.put("Job", job("a", 5))
    view.settle("Job", RUN, [])
    assert seen(view) == {}


def test_another_runs_objects_are_left_alone():
    view = View()
    other = job("x", 3)
    other["metadata"]["labels"] = {LABEL_RUN: "other"}
    view.put("Job", other)
    view.settle("Job", RUN, [], "9")
    assert view.all("Job") == [other]


def test_an_older_version_never_replaces_a_newer_one():
    view = View()
    assert view.put("Job", job("a", 7))
    assert not view.put("Job", job("a", 6))
    assert view.get("Job", (RUN[0], "a")) == job("a", 7)
