"""An S3 server that fails, lies or loses its answers: a real one behind a proxy that can."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from forkcast_wire.manifest import Storage
from forkcast_wire.store import AlreadyExists, Conflict, FolderStore, StoreUnavailable, open_store
from forkcast_wire.store.s3 import S3Store

MakeStorage = Callable[..., Storage]
_CONDITIONS = {"if-match", "if-none-match"}


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on. ``faults``: what befalls the next requests, one each, "" for nothing:
    a status answered without passing on, or "lose": passed on, and the answer is dropped.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[str] = []
        self.always = ""
        self.ignore_conditions = False
        self.corrupt = False
        self.torn_reads = 0
        self.seen: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server
        proxy.seen.append(self.command)
        fault = proxy.always or (proxy.faults.pop(0) if proxy.faults else "")
        if fault.isdigit():
            self._answer(int(fault), [], b"")
            return
        connection = http.client.HTTPConnection(proxy.upstream, timeout=30)
        headers = dict(self.headers.items())
        if proxy.ignore_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() not in _CONDITIONS}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if fault == "lose":
            self.close_connection = True
            return
        if proxy.corrupt and self.command == "GET" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        answer = response.getheaders()
        if proxy.torn_reads and self.command == "GET":
            proxy.torn_reads -= 1
            answer = [(k, f'"{"0" * 32}"' if k.lower() == "etag" else v) for k, v in answer]
        self._answer(response.status, answer, data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass  # noqa: N815


@pytest.fixture
def proxy(moto_endpoint: str) -> Iterator[FaultyProxy]:
    server = FaultyProxy(moto_endpoint)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def storage(proxy: FaultyProxy, make_storage: MakeStorage) -> Storage:
    return make_storage(proxy.endpoint)


@pytest.fixture
def store(storage: Storage) -> S3Store:
    return S3Store.connect(storage)


@pytest.mark.parametrize("fault", ["500", "503", "429", "lose"])
def test_passing_faults_are_waited_out(store: S3Store, proxy: FaultyProxy, fault: str) -> None:
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
    store: S3Store, proxy: FaultyProxy
) -> None:
    proxy.faults = ["lose"]
    etag = store.put("lineage/1.json", b"ours", create=True)
    assert store.get("lineage/1.json") == (b"ours", etag)
    with pytest.raises(AlreadyExists):
        store.put("lineage/1.json", b"ours", create=True)


def test_a_swap_whose_answer_was_lost_is_not_a_conflict(store: S3Store, proxy: FaultyProxy) -> None:
    old = store.put("catalogue.json", b"1")
    proxy.faults = ["lose"]
    new = store.put("catalogue.json", b"2", match=old)
    assert store.get("catalogue.json") == (b"2", new)
    with pytest.raises(Conflict):
        store.put("catalogue.json", b"3", match=old)


def test_after_a_fault_a_create_that_lost_the_race_still_loses(
    store: S3Store, proxy: FaultyProxy
) -> None:
    store.put("lineage/1.json", b"theirs", create=True)
    proxy.faults = ["503"]
    with pytest.raises(AlreadyExists):
        store.put("lineage/1.json", b"ours", create=True)
    assert store.get("lineage/1.json")[0] == b"theirs"


def test_a_lasting_fault_ends_as_unavailable(store: S3Store, proxy: FaultyProxy) -> None:
    proxy.always = "503"
    proxy.seen.clear()
    with pytest.raises(StoreUnavailable):
        store.put("a", b"1")
    assert len(proxy.seen) == 5


def test_a_refusal_is_not_repeated(store: S3Store, proxy: FaultyProxy) -> None:
    proxy.always = "403"
    proxy.seen.clear()
    with pytest.raises(StoreUnavailable):
        store.put("a", b"1", create=True)
    assert len(proxy.seen) == 1


def test_a_file_that_changed_on_the_way_is_refused(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path
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


def test_bytes_of_one_version_with_the_etag_of_another_are_read_again(
    store: S3Store, proxy: FaultyProxy
) -> None:
    etag = store.put("catalogue.json", b"1")
    proxy.torn_reads = 3
    assert store.get("catalogue.json") == (b"1", etag)
    assert proxy.torn_reads == 0


@pytest.mark.parametrize("how", ["ignores", "501"])
def test_a_server_without_conditional_writes(
    proxy: FaultyProxy, storage: Storage, tmp_path: Path, how: str
) -> None:
    def refuse_or_ignore() -> None:
        proxy.ignore_conditions = how == "ignores"
        proxy.faults = [] if how == "ignores" else ["", "501"]  # "": the look at the bucket

    refuse_or_ignore()
    with pytest.raises(StoreUnavailable, match="conditionalWrites"):
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


def test_off_asks_nothing_of_the_server(proxy: FaultyProxy, storage: Storage) -> None:
    proxy.seen.clear()
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
        ({"endpoint": "http://"}, "spec.storage.endpoint"),
        ({"bucket": "no-such-bucket"}, "spec.storage.bucket"),
        ({"credentials_dir": str(tmp_path / "nowhere")}, "credentialsDir"),
    ):
        with pytest.raises(StoreUnavailable, match=said):
            open_store(storage.model_copy(update=change), tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
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
