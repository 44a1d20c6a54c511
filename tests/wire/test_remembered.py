"""A store as its lists show it, over one that counts what it is asked."""

from __future__ import annotations

from collections import Counter

import pytest

from forkcast_wire.store import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    PassTooLong,
    Remembered,
    StoreError,
    StoreUnavailable,
)
from forkcast_wire.store import remembered as module
from tests.wire.memory_store import MemoryStore

PASS_SECONDS = 12.0


class Tagged(MemoryStore):
    """One whose lists carry tags, as those of S3 do."""

    def list(self, prefix):
        return iter([self.head(info.key) for info in super().list(prefix)])


def begin(store) -> None:
    """A pass that lists everything at once, as the operator's does."""
    store.refresh()
    list(store.list(""))


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
def store(below):
    return Remembered(below, seconds=PASS_SECONDS)


def test_a_pass_costs_one_list_and_only_what_has_changed_is_read(below, store) -> None:
    for key in ("a/1", "a/2", "b"):
        below.put(key, key.encode())
    for _ in range(5):
        begin(store)
        assert [info.key for info in store.list("a/")] == ["a/1", "a/2"]
        assert store.get("a/1")[0] == b"a/1"
        assert store.head("b").size == 1
        assert store.head("c") is None
        with pytest.raises(KeyMissing):
            store.get("c")
    assert below.asked == {"put": 3, "list": 5, "get": 1}
    below.put("a/1", b"other")
    assert store.get("a/1")[0] == b"a/1"  # as the pass began
    begin(store)
    assert store.get("a/1")[0] == b"other"
    assert below.asked["get"] == 2


def test_its_own_writes_show_at_once_and_cost_no_read(below, store) -> None:
    begin(store)
    store.put("x", b"1", create=True)
    assert store.get("x")[0] == b"1"
    assert [info.key for info in store.list("")] == ["x"]
    with pytest.raises(AlreadyExists):
        store.put("x", b"1", create=True)
    assert below.asked == {"list": 1, "put": 1}
    etag = store.get("x")[1]
    store.put("x", b"2", match=etag)
    begin(store)
    assert store.get("x")[0] == b"2"
    assert below.asked["get"] == 0
    store.delete("x")
    assert store.head("x") is None


def test_a_write_that_somebody_was_before_shows_theirs(below, store) -> None:
    begin(store)
    below.put("new", b"theirs")
    with pytest.raises(AlreadyExists):
        store.put("new", b"mine", create=True)
    assert store.get("new")[0] == b"theirs"
    etag = store.get("new")[1]
    below.put("new", b"theirs again")
    with pytest.raises(Conflict):
        store.put("new", b"mine", match=etag)
    assert store.get("new")[0] == b"theirs again"


def test_an_object_that_went_since_the_list_is_missing(below, store) -> None:
    below.put("x", b"1")
    begin(store)
    below.delete("x")
    with pytest.raises(KeyMissing):
        store.get("x")
    assert store.head("x") is None


def test_an_object_too_large_for_a_record_is_not_read(below, store) -> None:
    below.put("x", bytes(17 << 20))
    begin(store)
    with pytest.raises(StoreError, match="too many"):
        store.get("x")
    assert below.asked["get"] == 0


def test_a_pass_that_has_taken_its_time_ends(below) -> None:
    now = 0.0

    def clock():
        nonlocal now
        now += PASS_SECONDS / 8  # between the beginning and the end of a request
        return now

    store = Remembered(below, seconds=PASS_SECONDS, clock=clock)
    for key in "abcdefghij":
        below.put(key, b"x")
    begin(store)
    read = []

    def read_all():
        for key in "abcdefghij":
            store.get(key)
            read.append(key)

    with pytest.raises(PassTooLong, match="takes more than"):
        read_all()
    assert 5 < len(read) < 9
    begin(store)  # the next pass goes on with what is missing
    for key in read:
        store.get(key)
    assert below.asked["get"] == len(read)


def test_a_prefix_is_listed_once_a_pass_and_covers_what_is_below_it(below, store) -> None:
    for key in ("a/1", "a/b/2", "c"):
        below.put(key, b"1")
    for _ in range(2):
        store.refresh()
        assert [info.key for info in store.list("a/")] == ["a/1", "a/b/2"]
        assert [info.key for info in store.list("a/b/")] == ["a/b/2"]
        assert store.get("a/b/2")[0] == b"1"
        with pytest.raises(KeyMissing):
            store.get("a/3")
    assert below.asked == {"put": 3, "list": 2, "get": 1}


def test_what_no_list_of_the_pass_covers_is_asked_for_each_time(below, store) -> None:
    below.put("complete", b"1")
    list(store.list("a/"))
    for _ in range(2):
        assert store.get("complete")[0] == b"1"
        assert store.head("complete").size == 1
    below.put("complete", b"2")
    assert store.get("complete")[0] == b"2"
    store.put("complete", b"3")  # an own write is no list
    below.put("complete", b"4")
    assert store.get("complete")[0] == b"4"
    with pytest.raises(AlreadyExists):
        store.put("complete", b"5", create=True)
    assert below.asked == {"put": 5, "list": 1, "get": 4, "head": 3}


def test_what_has_gone_since_the_last_pass_is_gone_and_takes_no_memory(below, store) -> None:
    below.put("a/1", b"1")
    list(store.list("a/"))
    store.get("a/1")
    below.delete("a/1")
    store.refresh()
    assert list(store.list("a/")) == []
    with pytest.raises(KeyMissing):
        store.get("a/1")
    assert store._known == {}


def test_without_tags_everything_is_read() -> None:
    folder = MemoryStore({"a": b"1"})  # lists no tags
    store = Remembered(folder)
    for data in (b"1", b"2"):
        folder.put("a", data)
        list(store.list(""))
        assert store.get("a")[0] == data


def test_what_it_keeps_in_memory_is_bounded_and_what_it_dropped_is_read_again(
    below, store, monkeypatch
) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT_BYTES", 25)
    for name in "abc":
        below.put(name, name.encode() * 10)
    begin(store)
    for name in "abca":
        assert store.get(name)[0] == name.encode() * 10
    assert below.asked["get"] == 4
    assert store.get("c")[0] == b"c" * 10
    assert below.asked["get"] == 4


@pytest.mark.parametrize(("before", "said"), [(0.0, StoreUnavailable), (9.0, PassTooLong)])
def test_a_request_cut_short_is_an_outage_only_if_the_pass_had_time_for_it(
    below, before, said
) -> None:
    now = 0.0

    class Fails(Counted):
        def get(self, key):
            nonlocal now
            if key == "slow":
                now += before
                return b"x", "tag"
            now += PASS_SECONDS - before
            raise StoreUnavailable("no answer")

    store = Remembered(Fails(below), seconds=PASS_SECONDS, clock=lambda: now)
    store.refresh()
    store.get("slow")
    with pytest.raises(StoreUnavailable) as raised:
        store.get("fails")
    assert type(raised.value) is said


def test_a_pass_that_goes_on_after_a_request_without_answer_still_met_an_outage(below) -> None:
    """Its second request has no time left; that is no answer."""
    now = 0.0

    class Silent(Counted):
        def get(self, key):
            nonlocal now
            now += PASS_SECONDS - 2
            raise StoreUnavailable(f"{key}: no answer", why="no answer")

    store = Remembered(Silent(below), seconds=PASS_SECONDS, clock=lambda: now)
    store.refresh()
    for key in "abc":
        with pytest.raises(StoreUnavailable) as raised:
            store.get(key)
        assert type(raised.value) is StoreUnavailable
        assert raised.value.why == "no answer"
    store.begin()  # the next pass has its own time
    now_before = now
    with pytest.raises(StoreUnavailable):
        store.get("a")
    assert now > now_before  # it has asked
