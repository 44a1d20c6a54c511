"""Who polls reads a document again only when a list has shown another version of it."""

from dataclasses import replace

import pytest

from forkcast.ports import ObjectInfo
from forkcast_wire.store import KeyMissing, Remembered
from tests.wire.memory_store import MemoryStore


class Counting(MemoryStore):
    """Lists etags, as S3 does, and counts what is read."""

    def __init__(self):
        super().__init__()
        self.gets = []

    def get(self, key):
        self.gets.append(key)
        return super().get(key)

    def list(self, prefix):
        return (replace(info, etag=self.head(info.key).etag) for info in super().list(prefix))


@pytest.fixture
def inner():
    return Counting()


def test_what_has_not_changed_is_read_once(inner):
    inner.put("branches/a", b"1")
    store = Remembered(inner)
    for _ in range(3):
        list(store.list("branches/"))
        assert store.get("branches/a")[0] == b"1"
    assert inner.gets == ["branches/a"]


def test_another_version_is_read_after_the_list_that_shows_it(inner):
    inner.put("branches/a", b"1")
    store = Remembered(inner)
    list(store.list("branches/"))
    store.get("branches/a")
    inner.put("branches/a", b"2")
    assert store.get("branches/a")[0] == b"1"  # as of the last list
    list(store.list("branches/"))
    assert store.get("branches/a")[0] == b"2"


def test_what_is_gone_is_gone(inner):
    inner.put("branches/a", b"1")
    store = Remembered(inner)
    list(store.list("branches/"))
    store.get("branches/a")
    inner.delete("branches/a")
    assert list(store.list("branches/")) == []
    with pytest.raises(KeyMissing):
        store.get("branches/a")


def test_what_no_list_has_shown_is_read_each_time(inner):
    inner.put("complete.json", b"1")
    store = Remembered(inner)
    list(store.list("branches/"))
    for _ in range(2):
        store.get("complete.json")
    assert inner.gets == ["complete.json"] * 2


def test_without_etags_everything_is_read(inner, monkeypatch):
    inner.put("branches/a", b"1")
    monkeypatch.setattr(inner, "list", lambda _: iter([ObjectInfo("branches/a", 1, "")]))
    store = Remembered(inner)
    for _ in range(2):
        list(store.list("branches/"))
        store.get("branches/a")
    assert inner.gets == ["branches/a"] * 2


def test_own_writes_are_seen_at_once(inner):
    inner.put("branches/a", b"1")
    store = Remembered(inner)
    list(store.list("branches/"))
    store.get("branches/a")
    store.put("branches/a", b"2")
    assert store.get("branches/a")[0] == b"2"
