"""An S3 server that fails, lies or loses its answers: a real one behind a proxy that can."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkcast.ports import Store
from forkcast_wire.manifest import Storage
from forkcast_wire.store import (
    AlreadyExists,
    Conflict,
    FolderStore,
    Remembered,
    StoreError,
    StoreMisconfigured,
    StoreRefused,
    StoreUnavailable,
    deadline,
    open_store,
    remembered,
    s3,
    wait_for,
)
from forkcast_wire.store.s3 import S3Store
from tests.s3_gateway import Gateway, gateway_to

MakeStorage = Callable[..., Storage]


@pytest.fixture
def proxy(moto_endpoint: str) -> Iterator[Gateway]:
    with gateway_to(moto_endpoint) as gateway:
        yield gateway


@pytest.fixture
def storage(proxy: Gateway, make_storage: MakeStorage) -> Storage:
    return make_storage(proxy.endpoint)


@pytest.fixture
def store(storage: Storage) -> S3Store:
    return S3Store.connect(storage)


@pytest.mark.parametrize("fault", ["500", "503", "429", "lose"])
def test_passing_faults_are_waited_out(store: S3Store, proxy: Gateway, fault: str) -> None:
    for number, use in enumerate(
        (
            lambda: store.put("a", b"1"),
            lambda: store.get("a"),
            lambda: store.head("a"),
            lambda: list(store.list("a")),
            lambda: store.put("b", b"2", create=True),
            lambda: store.delete("a"),
        )
    ):
        proxy.faults = [fault, fault]
        use()
        assert proxy.faults == [], number
    assert store.get("b")[0] == b"2"
    assert store.head("a") is None


def test_a_create_whose_answer_was_lost_is_not_somebody_elses(
    store: S3Store, proxy: Gateway
) -> None:
    proxy.faults = ["lose"]
    etag = store.put("lineage/1.json", b"ours", create=True)
    assert store.get("lineage/1.json") == (b"ours", etag)
    with pytest.raises(AlreadyExists):
        store.put("lineage/1.json", b"ours", create=True)


def test_a_swap_whose_answer_was_lost_is_not_a_conflict(store: S3Store, proxy: Gateway) -> None:
    old = store.put("catalogue.json", b"1")
    proxy.faults = ["lose"]
    new = store.put("catalogue.json", b"2", match=old)
    assert store.get("catalogue.json") == (b"2", new)
    with pytest.raises(Conflict):
        store.put("catalogue.json", b"3", match=old)


def test_after_a_fault_a_create_that_lost_the_race_still_loses(
    store: S3Store, proxy: Gateway
) -> None:
    store.put("lineage/1.json", b"theirs", create=True)
    proxy.faults = ["503"]
    with pytest.raises(AlreadyExists):
        store.put("lineage/1.json", b"ours", create=True)
    assert store.get("lineage/1.json")[0] == b"theirs"


def test_a_lasting_fault_ends_as_unavailable(store: S3Store, proxy: Gateway) -> None:
    proxy.always = "503"
    proxy.requests.clear()
    with pytest.raises(StoreUnavailable):
        store.put("a", b"1")
    assert len(proxy.seen) == 5


def test_a_refusal_is_not_repeated(store: S3Store, proxy: Gateway) -> None:
    proxy.always = "403"
    proxy.requests.clear()
    with pytest.raises(StoreUnavailable):
        store.put("a", b"1", create=True)
    assert len(proxy.seen) == 1


def test_a_file_that_changed_on_the_way_is_refused(
    store: S3Store, proxy: Gateway, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"state")
    store.put_file("ring/cp_1.ptz", source)
    proxy.corrupt = True
    with pytest.raises(StoreUnavailable, match="sha256"):
        store.get_file("ring/cp_1.ptz", target)
    assert not target.exists()
    proxy.corrupt = False
    store.get_file("ring/cp_1.ptz", target)
    assert target.read_bytes() == b"state"


def test_a_body_that_changed_on_the_way_is_sent_again(
    versitygw_endpoint: str,
    make_storage: MakeStorage,
    tmp_path: Path,
) -> None:
    """Every PUT carries its digest, which the server checks: of a small object, of one that must be new
    and of each part of a large one.
    """
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 24 * 4096)
    with gateway_to(versitygw_endpoint) as gateway:
        store = S3Store.connect(make_storage(gateway.endpoint))
        gateway.wants_digest = True
        for use in (
            lambda: store.put("a", b"first"),
            lambda: store.put("b", b"second", create=True),
            lambda: store.put_file("checkpoints/cp_1.ptz", large),
        ):
            gateway.faults = ["alter"]
            use()
            assert gateway.faults == []
        assert store.get("a")[0] == b"first"
        assert store.get("b")[0] == b"second"
        store.get_file("checkpoints/cp_1.ptz", tmp_path / "read")
        assert (tmp_path / "read").read_bytes() == large.read_bytes()


def test_bytes_of_one_version_with_the_etag_of_another_are_read_again(
    store: S3Store, proxy: Gateway
) -> None:
    etag = store.put("catalogue.json", b"1")
    proxy.torn_reads = 3
    assert store.get("catalogue.json") == (b"1", etag)
    assert proxy.torn_reads == 0


@pytest.mark.parametrize("how", ["ignores", "501"])
def test_a_server_without_conditional_writes(
    proxy: Gateway, storage: Storage, tmp_path: Path, how: str
) -> None:
    def refuse_or_ignore() -> None:
        proxy.ignore_conditions = how == "ignores"
        proxy.faults = [] if how == "ignores" else ["", "501"]  # "": the look at the bucket

    refuse_or_ignore()
    with pytest.raises(StoreMisconfigured, match="conditionalWrites"):
        open_store(storage.model_copy(update={"conditional_writes": "Required"}), tmp_path)
    refuse_or_ignore()
    store = S3Store.connect(storage)
    assert not store.conditional
    etag = store.put("a", b"1", create=True)
    with pytest.raises(AlreadyExists):
        store.put("a", b"2", create=True)
    with pytest.raises(Conflict):
        store.put("a", b"2", match="0" * 32)
    store.put("a", b"2", match=etag)
    assert store.get("a")[0] == b"2"


def test_off_asks_nothing_of_the_server(proxy: Gateway, storage: Storage) -> None:
    proxy.requests.clear()
    store = S3Store.connect(storage.model_copy(update={"conditional_writes": "Off"}))
    assert not store.conditional
    assert "PUT" not in proxy.seen


def test_the_probe_leaves_nothing_behind(store: S3Store) -> None:
    assert store.conditional
    assert list(store.list("")) == []


def test_what_is_wrong_with_the_storage_is_said(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{bound.getsockname()[1]}"
    for change, said in (
        ({"endpoint": nobody}, "spec.storage.endpoint"),
        ({"bucket": "no-such-bucket"}, "spec.storage.bucket"),
        ({"credentials_dir": str(tmp_path / "nowhere")}, "credentialsDir"),
    ):
        with pytest.raises(StoreUnavailable, match=said):
            open_store(storage.model_copy(update=change), tmp_path)
    with pytest.raises(StoreMisconfigured, match=r"spec\.storage\.endpoint: has no host"):
        open_store(storage.model_copy(update={"endpoint": "http://"}), tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    without = storage.model_copy(update={"credentials_dir": None})
    with pytest.raises(StoreUnavailable, match="AWS_ACCESS_KEY_ID"):
        open_store(without, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "forkcast")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "forkcast-secret")
    open_store(without, tmp_path).put("a", b"1")


def test_wrong_credentials_are_refused_at_once(
    versitygw_endpoint: str, make_storage: MakeStorage, credentials: Path, tmp_path: Path
) -> None:
    storage = make_storage(versitygw_endpoint)
    (credentials / "secretAccessKey").write_text("wrong")
    with pytest.raises(StoreUnavailable, match="credentials"):
        open_store(storage, tmp_path)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable):
        FolderStore(tmp_path / "file")


def test_a_folder_store_may_stand_in_a_hidden_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / ".forkcast" / "run")
    store.put("lineage/1.json", b"1", create=True)
    assert [info.key for info in store.list("lineage/")] == ["lineage/1.json"]


@pytest.mark.parametrize("fault", ["silent", "drip"])
def test_a_caller_gives_the_store_a_deadline(store: S3Store, proxy: Gateway, fault: str) -> None:
    proxy.always = fault
    with deadline(0.3), pytest.raises(StoreUnavailable, match="in time"):
        store.get("a")
    proxy.always = ""
    store.put("a", b"1")


def test_time_that_is_over_asks_nothing(store: S3Store, proxy: Gateway) -> None:
    proxy.requests.clear()
    with deadline(0), pytest.raises(StoreUnavailable, match="in time"):
        store.put("a", b"1", create=True)
    assert proxy.requests == []


def test_an_outage_uses_up_the_retries(
    store: S3Store, proxy: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_pause", lambda _: 0.0)
    proxy.always = "503"
    proxy.requests.clear()
    for _ in range(12):
        with pytest.raises(StoreUnavailable):
            store.put("a", b"1")
    assert len(proxy.requests) < 2 * 12 + 20  # 60 without a budget
    proxy.always = ""
    for _ in range(20):  # each success gives a retry back
        store.put("a", b"1")
    proxy.faults = ["503", "503"]
    store.put("a", b"1")


def test_refusals_and_outages_are_different_errors(storage: Storage, proxy: Gateway) -> None:
    for fault, kind, said in (
        ("denied", StoreRefused, "AccessDenied: A policy wants encryption."),
        ("page", StoreRefused, "no S3 API answers here"),
        ("bad-request", StoreRefused, "InvalidRequest: Content-MD5"),
        ("skew", StoreUnavailable, "RequestTimeTooSkewed"),
        ("slow-down", StoreUnavailable, "SlowDown"),
        ("close", StoreUnavailable, "closed"),
    ):
        proxy.always = fault
        with pytest.raises(kind, match=said) as raised:
            S3Store.connect(storage)
        assert isinstance(raised.value, StoreRefused) is (kind is StoreRefused), fault
        assert str(raised.value).count("spec.storage") == 1, fault


@pytest.mark.parametrize("fault", ["503", "close", "skew", "denied", "no-key", "page", "drip"])
def test_who_may_wait_outlasts_every_outage(
    storage: Storage, proxy: Gateway, tmp_path: Path, fault: str
) -> None:
    proxy.always = fault
    heard: list[StoreUnavailable] = []

    def tell(error: StoreUnavailable) -> None:
        heard.append(error)
        proxy.always = ""

    def attempt() -> Store:
        with deadline(2.0):
            return open_store(storage, tmp_path)

    store = wait_for(attempt, threading.Event(), tell=tell)
    store.put("a", b"1", create=True)
    assert heard


def test_who_waits_leaves_when_told(proxy: Gateway, storage: Storage, tmp_path: Path) -> None:
    proxy.always = "denied"
    stop = threading.Event()
    with pytest.raises(StoreUnavailable):
        wait_for(lambda: open_store(storage, tmp_path), stop, tell=lambda _: stop.set())


def test_a_new_name_is_on_disk_with_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut takes the name although the bytes are there."""
    store = FolderStore(tmp_path / "store")
    flushed: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    store.put("lineage/new/1.json", b"1", create=True)
    assert {str(store.root / "lineage/new"), str(store.root / "lineage"), str(store.root)} <= {
        *flushed
    }
    flushed.clear()
    store.put("lineage/new/1.json", b"2")
    assert str(store.root / "lineage/new") in flushed
    assert str(store.root) not in flushed


def test_reading_makes_nothing_in_a_folder(tmp_path: Path) -> None:
    storage = Storage()
    store = open_store(storage, tmp_path / "run", write=False)
    assert list(store.list("")) == []
    assert store.head("a") is None
    assert not (tmp_path / "run").exists()


def test_a_list_goes_on_no_further_than_a_pass_allows(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        store.put(f"many/{name}", b"x")
    monkeypatch.setattr(remembered, "MOST_KEYS", 3)
    counted = Remembered(store, seconds=60.0)
    assert len(list(counted.list("many/"))) == 3
    store.put("many/d", b"x")
    counted.refresh()
    with pytest.raises(StoreError, match="more than 3 objects"):
        counted.list("many/")
    assert len(list(store.list("many/"))) == 4  # whoever deletes them sees them all
