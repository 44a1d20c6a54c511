"""What every store promises, tried against each."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from forkcast.ports import Store
from forkcast_wire import keys
from forkcast_wire.documents import Catalogue, DocumentError, RolloutUntil
from forkcast_wire.store import (
    AlreadyExists,
    BadKey,
    Conflict,
    KeyMissing,
    StoreError,
    limits,
    put_document,
    read_document,
    update_document,
)
from tests.waiting import HANG_SECONDS

_RACERS = 16
_EMPTY = Catalogue(pins={}, tombstones=())


def race(attempt: Callable[[int], object], loses: type[Exception]) -> list[int]:
    """Run ``attempt`` in 16 threads at once; the numbers of those that did not lose."""
    start = threading.Barrier(_RACERS)

    def run(number: int) -> int | None:
        start.wait(HANG_SECONDS)
        try:
            attempt(number)
        except loses:
            return None
        return number

    with ThreadPoolExecutor(_RACERS) as pool:
        return [n for n in pool.map(run, range(_RACERS)) if n is not None]


def test_what_is_put_is_got_with_the_same_etag(store: Store) -> None:
    etag = store.put("lineage/1.json", b"one")
    assert store.get("lineage/1.json") == (b"one", etag)
    again = store.put("lineage/1.json", b"two")
    assert again != etag
    assert store.get("lineage/1.json") == (b"two", again)
    info = store.head("lineage/1.json")
    assert info is not None
    assert (info.key, info.size, info.etag) == ("lineage/1.json", 3, again)


def test_what_is_too_long_for_a_record_is_not_read_as_a_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a run whose run.json had some hundred MiB used up the memory of whoever read it."""
    monkeypatch.setattr(limits, "MOST_DOCUMENT_BYTES", 1 << 20)
    long, target = tmp_path / "long", tmp_path / "target"
    long.write_bytes(bytes(3 << 20))
    store.put_file("run.json", long)
    with pytest.raises(StoreError, match=r"run\.json: is longer than 1 MiB"):
        store.get("run.json")
    store.get_file("run.json", target)
    assert target.stat().st_size == 3 << 20
    store.put("run.json", b"x" * (1 << 20))
    assert len(store.get("run.json")[0]) == 1 << 20


def test_empty_object(store: Store) -> None:
    store.put("empty", b"", create=True)
    assert store.get("empty")[0] == b""


def test_missing_keys(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        store.get("no/such")
    with pytest.raises(KeyMissing):
        store.get_file("no/such", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert store.head("no/such") is None
    store.delete("no/such")
    with pytest.raises(Conflict):
        store.put("no/such", b"x", match="0" * 32)
    assert store.head("no/such") is None
    assert list(store.list("no/")) == []


def test_create_only(store: Store, tmp_path: Path) -> None:
    store.put("a", b"first", create=True)
    with pytest.raises(AlreadyExists):
        store.put("a", b"second", create=True)
    source = tmp_path / "source"
    source.write_bytes(b"third")
    with pytest.raises(AlreadyExists):
        store.put_file("a", source, create=True)
    assert store.get("a")[0] == b"first"
    store.delete("a")
    store.put_file("a", source, create=True)
    assert store.get("a")[0] == b"third"


def test_swap_needs_the_present_version(store: Store) -> None:
    old = store.put("a", b"1")
    new = store.put("a", b"2", match=old)
    with pytest.raises(Conflict):
        store.put("a", b"3", match=old)
    assert store.get("a") == (b"2", new)


def test_of_racing_creates_exactly_one_wins(store: Store) -> None:
    for round_ in range(3):
        key = f"lineage/{round_}.json"
        won = race(lambda n, key=key: store.put(key, b"%d" % n, create=True), AlreadyExists)
        assert len(won) == 1
        assert store.get(key)[0] == b"%d" % won[0]


def test_of_racing_swaps_exactly_one_wins(store: Store) -> None:
    etag = store.put("catalogue.json", b"start")
    for round_ in range(3):  # all bytes differ: an etag names a content

        def swap(number: int, etag: str = etag, round_: int = round_) -> None:
            store.put("catalogue.json", b"swap %d by %d" % (round_, number), match=etag)

        won = race(swap, Conflict)
        assert len(won) == 1
        data, etag = store.get("catalogue.json")
        assert data == b"swap %d by %d" % (round_, won[0])


def test_list_is_in_key_order_and_within_the_prefix(store: Store) -> None:
    names = ["a/2", "a/10", "a/1/x", "a-b", "a.json", "ab/1", "b/1"]
    for name in names:
        store.put(name, name.encode())
    assert [i.key for i in store.list("")] == sorted(names)
    assert [i.key for i in store.list("a/")] == ["a/1/x", "a/10", "a/2"]
    assert [i.key for i in store.list("a/1")] == ["a/1/x", "a/10"]
    assert [i.size for i in store.list("a/")] == [5, 4, 3]
    store.delete("a/10")
    assert [i.key for i in store.list("a/1")] == ["a/1/x"]


@pytest.mark.parametrize(
    "key",
    [
        *("", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a\\b", "a\0b", "%2e%2e/x", "a/"),
        *(".x", "a b", "a\nb", "ä", "a" * 513),
    ],
)
def test_bad_keys_are_refused_everywhere(store: Store, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for use in (
        lambda: store.get(key),
        lambda: store.put(key, b""),
        lambda: store.put(key, b"", create=True),
        lambda: store.put(key, b"", match="x"),
        lambda: store.put_file(key, tmp_path / "file"),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.head(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(BadKey):
            use()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "/etc/", "%2e", "a//"])
def test_bad_prefixes_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(BadKey):
        list(store.list(prefix))


def test_big_file_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(70 << 20))  # more than one part
    digest = hashlib.sha256(source.read_bytes()).digest()
    etag = store.put_file("checkpoints/e0/a0/000000000100/cp_100.ptz", source)
    info = store.head("checkpoints/e0/a0/000000000100/cp_100.ptz")
    assert info is not None
    assert (info.size, info.etag) == (70 << 20, etag)
    source.unlink()
    target.write_bytes(b"what stood here before")
    store.get_file("checkpoints/e0/a0/000000000100/cp_100.ptz", target)
    assert hashlib.sha256(target.read_bytes()).digest() == digest
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"target"}


def test_documents(store: Store) -> None:
    key = keys.rollout_until("e0-t1", "c000")
    assert read_document(store, RolloutUntil, key) is None
    assert put_document(store, key, RolloutUntil(until=10))
    assert not put_document(store, key, RolloutUntil(until=10))
    with pytest.raises(AlreadyExists):
        put_document(store, key, RolloutUntil(until=25))
    assert read_document(store, RolloutUntil, key) == RolloutUntil(until=10)
    with pytest.raises(DocumentError):
        read_document(store, Catalogue, key)


def test_no_update_of_a_document_is_lost(store: Store) -> None:
    def pin(number: int) -> None:
        update_document(
            store,
            Catalogue,
            keys.CATALOGUE,
            _EMPTY,
            lambda before: replace(before, pins={**before.pins, f"p{number}": ("a",)}),
        )

    assert len(race(pin, KeyError)) == _RACERS
    catalogue = read_document(store, Catalogue, keys.CATALOGUE)
    assert catalogue is not None
    assert set(catalogue.pins) == {f"p{n}" for n in range(_RACERS)}


def test_a_forked_child_uses_the_store_beside_its_parent(store: Store) -> None:
    """The rollout server opens the store once and forks: their answers must not mix."""
    for name in ("parent", "child"):
        store.put(name, name.encode() * 1000)
    pid = os.fork()
    name = "parent" if pid else "child"
    right = False
    try:
        right = all(store.get(name)[0] == name.encode() * 1000 for _ in range(100))
    finally:
        if pid == 0:
            os._exit(0 if right else 1)
    assert right
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
