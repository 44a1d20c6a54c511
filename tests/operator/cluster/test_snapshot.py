"""What one LIST shows of a run's store, over a store that counts what it is asked."""

from __future__ import annotations

from collections import Counter

import pytest

from forkcast_operator.kubernetes import snapshot as module
from forkcast_operator.kubernetes.snapshot import PASS_SECONDS, Snapshot
from forkcast_wire.store import AlreadyExists, Conflict, KeyMissing, StoreError, StoreUnavailable
from tests.wire.memory_store import MemoryStore


class Tagged(MemoryStore):
    """One whose lists carry tags, as those of S3 do."""

    def list(self, prefix):
        return iter([self.head(info.key) for info in super().list(prefix)])


class Counted:
    """Passes every call on, and counts it."""

    def __init__(self, store) -> None:
        self._store, self.asked = store, Counter()

    def __getattr__(self, name):
        call = getattr(self._store, name)

        def counted(*arguments, **more):
            self.asked[name] += 1
            return call(*arguments, **more)

        return counted


@pytest.fixture
def below():
    return Counted(Tagged())


@pytest.fixture
def snapshot(below):
    return Snapshot(below)


def test_a_pass_costs_one_list_and_only_what_has_changed_is_read(below, snapshot) -> None:
    for key in ("a/1", "a/2", "b"):
        below.put(key, key.encode())
    for _ in range(5):
        snapshot.refresh()
        assert [info.key for info in snapshot.list("a/")] == ["a/1", "a/2"]
        assert snapshot.get("a/1")[0] == b"a/1"
        assert snapshot.head("b").size == 1
        assert snapshot.head("c") is None
        with pytest.raises(KeyMissing):
            snapshot.get("c")
    assert below.asked == {"put": 3, "list": 5, "get": 1}
    below.put("a/1", b"other")
    assert snapshot.get("a/1")[0] == b"a/1"  # as the pass began
    snapshot.refresh()
    assert snapshot.get("a/1")[0] == b"other"
    assert below.asked["get"] == 2


def test_its_own_writes_show_at_once_and_cost_no_read(below, snapshot) -> None:
    snapshot.refresh()
    snapshot.put("x", b"1", create=True)
    assert snapshot.get("x")[0] == b"1"
    assert [info.key for info in snapshot.list("")] == ["x"]
    with pytest.raises(AlreadyExists):
        snapshot.put("x", b"1", create=True)
    assert below.asked == {"list": 1, "put": 1}
    etag = snapshot.get("x")[1]
    snapshot.put("x", b"2", match=etag)
    snapshot.refresh()
    assert snapshot.get("x")[0] == b"2"
    assert below.asked["get"] == 0
    snapshot.delete("x")
    assert snapshot.head("x") is None


def test_a_write_that_somebody_was_before_shows_theirs(below, snapshot) -> None:
    snapshot.refresh()
    below.put("new", b"theirs")
    with pytest.raises(AlreadyExists):
        snapshot.put("new", b"mine", create=True)
    assert snapshot.get("new")[0] == b"theirs"
    etag = snapshot.get("new")[1]
    below.put("new", b"theirs again")
    with pytest.raises(Conflict):
        snapshot.put("new", b"mine", match=etag)
    assert snapshot.get("new")[0] == b"theirs again"


def test_an_object_that_went_since_the_list_is_missing(below, snapshot) -> None:
    below.put("x", b"1")
    snapshot.refresh()
    below.delete("x")
    with pytest.raises(KeyMissing):
        snapshot.get("x")
    assert snapshot.head("x") is None


def test_an_object_too_large_for_a_record_is_not_read(below, snapshot) -> None:
    below.put("x", bytes(17 << 20))
    snapshot.refresh()
    with pytest.raises(StoreError, match="too many"):
        snapshot.get("x")
    assert below.asked["get"] == 0


def test_a_pass_that_has_taken_its_time_ends(below) -> None:
    now = 0.0

    def clock():
        nonlocal now
        now += PASS_SECONDS / 8  # between the beginning and the end of a request
        return now

    snapshot = Snapshot(below, clock=clock)
    for key in "abcdefghij":
        below.put(key, b"x")
    snapshot.refresh()
    read = []

    def read_all():
        for key in "abcdefghij":
            snapshot.get(key)
            read.append(key)

    with pytest.raises(StoreUnavailable, match="takes more than"):
        read_all()
    assert 5 < len(read) < 9
    snapshot.refresh()  # the next pass goes on with what is missing
    for key in read:
        snapshot.get(key)
    assert below.asked["get"] == len(read)


def test_what_it_keeps_in_memory_is_bounded_and_what_it_dropped_is_read_again(
    below, snapshot, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT_BYTES", 25)
    for name in "abc":
        below.put(name, name.encode() * 10)
    snapshot.refresh()
    for name in "abca":
        assert snapshot.get(name)[0] == name.encode() * 10
    assert below.asked["get"] == 4
    assert snapshot.get("c")[0] == b"c" * 10
    assert below.asked["get"] == 4
