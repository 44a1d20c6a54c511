"""Keys that rotate, the places keys are looked for in, forward proxies, digests, words of refusal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forkcast_wire.manifest import Storage
from forkcast_wire.store import StoreRefused, open_store
from forkcast_wire.store.s3 import S3Store
from forkcast_wire.store.s3_http import proxy_for, s3_words
from tests.s3_gateway import Gateway, gateway_to

MakeStorage = Callable[..., Storage]
_AWS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    *("AWS_ENDPOINT_URL_STS", "AWS_REGION", "AWS_DEFAULT_REGION"),
)


@pytest.fixture
def gateway(moto_endpoint: str) -> Iterator[Gateway]:
    with gateway_to(moto_endpoint) as made:
        yield made


@pytest.fixture
def without_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment in which no keys are found; gives the home folder."""
    for name in _AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    return tmp_path


def _keyless(storage: Storage) -> Storage:
    return storage.model_copy(update={"credentials_dir": None})


def test_keys_in_files_are_those_of_now(
    gateway: Gateway, make_storage: MakeStorage, credentials: Path
) -> None:
    store = S3Store.connect(make_storage(gateway.endpoint))
    gateway.only_key = "NEWKEY"
    with pytest.raises(StoreRefused, match="InvalidAccessKeyId"):
        store.put("a", b"1", create=True)
    (credentials / "accessKeyId").write_text("NEWKEY\n")
    (credentials / "secretAccessKey").write_text("other\n")
    store.put("a", b"1", create=True)
    store.put("b", b"2")
    assert store.get("a")[0] == b"1"


def test_keys_that_rotate_during_a_request_are_used_at_once(
    gateway: Gateway, make_storage: MakeStorage, credentials: Path
) -> None:
    store = S3Store.connect(make_storage(gateway.endpoint))
    store._keys.retrieve()
    (credentials / "accessKeyId").write_text("NEWKEY")
    refused = store._refusal(403, "InvalidAccessKeyId", "a", "InvalidAccessKeyId")
    assert not isinstance(refused, StoreRefused)  # tried again, with the new keys


def test_a_session_token_in_a_file_is_sent(
    gateway: Gateway, make_storage: MakeStorage, credentials: Path
) -> None:
    (credentials / "sessionToken").write_text("TOKEN\n")
    store = S3Store.connect(make_storage(gateway.endpoint))
    assert store._keys.retrieve().session_token == "TOKEN"
    store.put("a", b"1", create=True)
    puts = [path for method, path in gateway.requests if method == "PUT" and "runs/one/a" in path]
    assert all("X-Amz-Security-Token=TOKEN" in path for path in puts)


def test_files_that_are_missing_or_empty_are_named(
    gateway: Gateway, make_storage: MakeStorage, credentials: Path, tmp_path: Path
) -> None:
    storage = make_storage(gateway.endpoint)
    (credentials / "accessKeyId").write_text("\n")
    with pytest.raises(StoreRefused, match=r"^spec\.storage\.credentialsDir: .* is empty"):
        open_store(storage, tmp_path)
    (credentials / "accessKeyId").unlink()
    with pytest.raises(StoreRefused, match=r"^spec\.storage\.credentialsDir: .*accessKeyId"):
        open_store(storage, tmp_path)


@pytest.mark.parametrize("where", ["credentials", "config"])
@pytest.mark.parametrize("profile", ["", "work"])
def test_a_profile_is_read(
    gateway: Gateway,
    make_storage: MakeStorage,
    without_keys: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    profile: str,
) -> None:
    section, storage = profile or "default", make_storage(gateway.endpoint)
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
        section = f"profile {profile}" if where == "config" else profile
    text = f"[{section}]\naws_access_key_id = PROFILED\naws_secret_access_key = s\n"
    (without_keys / f"aws-{where}").write_text(text)
    gateway.only_key = "PROFILED"
    S3Store.connect(_keyless(storage)).put("a", b"1", create=True)


def make_storage_at(make_storage: MakeStorage, gateway: Gateway) -> Storage:
    """A bucket made past the gateway, which may know one key only."""
    only, gateway.only_key = gateway.only_key, ""
    storage = make_storage(gateway.endpoint)
    gateway.only_key = only
    return storage


class _Roles(BaseHTTPRequestHandler):
    """AWS's STS and the credentials service of a container."""

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert "WebIdentityToken=JWT" in self.path
        self._answer(
            "<R xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleWithWebIdentityResult>"
            "<Credentials><AccessKeyId>ROLEKEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{until}</Expiration></Credentials>"
            "</AssumeRoleWithWebIdentityResult></R>"
        )

    def do_GET(self) -> None:
        until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {"AccessKeyId": "ROLEKEY", "SecretAccessKey": "s", "Token": "t"}
        self._answer(json.dumps({**keys, "Expiration": until}))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def roles() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Roles)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["web identity", "container"])
def test_the_keys_of_a_role_are_asked_for(
    gateway: Gateway,
    make_storage: MakeStorage,
    without_keys: Path,
    roles: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    if kind == "container":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{roles}/keys")
    else:
        (without_keys / "jwt").write_text("JWT")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(without_keys / "jwt"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", roles)
    gateway.only_key = "ROLEKEY"
    storage = _keyless(make_storage_at(make_storage, gateway))
    S3Store.connect(storage).put("a", b"1", create=True)


def test_no_keys_anywhere_is_one_clear_line(
    gateway: Gateway, make_storage: MakeStorage, without_keys: Path
) -> None:
    storage = _keyless(make_storage(gateway.endpoint))
    with pytest.raises(StoreRefused, match=r"^spec\.storage: no credentials; set credentialsDir"):
        S3Store.connect(storage)
    (without_keys / "aws-config").write_text("[default]\nrole_arn = x\nsource_profile = y\n")
    with pytest.raises(StoreRefused, match="uses role_arn, which is not read"):
        S3Store.connect(storage)


def test_a_forward_proxy_carries_the_requests(
    gateway: Gateway, make_storage: MakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint's name cannot be resolved here: only the proxy knows the way."""
    storage = make_storage(gateway.endpoint)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", gateway.endpoint)
    away = storage.model_copy(update={"endpoint": "http://s3.corp.invalid:9000"})
    gateway.requests.clear()
    S3Store.connect(away).put("a", b"1", create=True)
    assert all(path.startswith("http://s3.corp.invalid:9000/") for _, path in gateway.requests)


@pytest.mark.parametrize(
    ("exempt", "endpoint", "direct"),
    [
        ("", "http://s3.corp.example", False),
        ("corp.example", "http://s3.corp.example", True),
        (".corp.example", "http://s3.corp.example:9000", True),
        ("10.0.0.0/8", "http://10.1.2.3:9000", True),
        ("10.0.0.0/8", "http://11.1.2.3:9000", False),
        ("*", "http://s3.corp.example", True),
        ("fd00::/8", "http://[fd00::1]:9000", True),
        (".svc,.cluster.local", "http://minio.storage.svc:9000", True),
    ],
)
def test_no_proxy_exempts(
    monkeypatch: pytest.MonkeyPatch, exempt: str, endpoint: str, *, direct: bool
) -> None:
    for name in ("http_proxy", "no_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert proxy_for(endpoint) == (None if direct else "http://proxy:3128")


def test_a_bucket_with_object_lock_takes_every_write(
    gateway: Gateway, make_storage: MakeStorage, tmp_path: Path
) -> None:
    gateway.wants_digest = True
    store = S3Store.connect(make_storage_without(gateway, make_storage))
    assert store.conditional
    store.put("a", b"1")
    store.put("c", b"2", match=store.put("c", b"1", create=True))
    (tmp_path / "small").write_bytes(b"state")
    store.put_file("small", tmp_path / "small", create=True)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 << 20)  # two parts
    store.put_file("large", tmp_path / "large")
    head = store.head("large")
    assert head is not None
    assert head.size == 65 << 20


def make_storage_without(gateway: Gateway, make_storage: MakeStorage) -> Storage:
    """The bucket is made by a client that sends no digest."""
    gateway.wants_digest = False
    storage = make_storage(gateway.endpoint)
    gateway.wants_digest = True
    return storage


@pytest.mark.parametrize("fault", ["bad-request", "denied"])
def test_a_refusal_is_no_lack_of_conditional_writes(
    gateway: Gateway, make_storage: MakeStorage, fault: str
) -> None:
    storage = make_storage(gateway.endpoint)
    gateway.faults = ["", fault]  # "": the look into the bucket
    with pytest.raises(StoreRefused, match=r"InvalidRequest|AccessDenied: A policy wants"):
        S3Store.connect(storage)


def test_not_implemented_is(gateway: Gateway, make_storage: MakeStorage) -> None:
    storage = make_storage(gateway.endpoint)
    gateway.faults = ["", "not-implemented"]
    assert not S3Store.connect(storage).conditional


def test_words_are_read_from_error_documents_only() -> None:
    assert s3_words(b"<Error><Code>C</Code><Message> m </Message></Error>") == ("C", "m")
    assert s3_words(b"<E xmlns='x'><Code>C</Code></E>") == ("C", "")
    bomb = b'<!DOCTYPE e [<!ENTITY a "x">]><Error><Code>&a;</Code></Error>'
    for other in (b"", b"<html>", b"plain", b'{"Code": "C"}', bomb):
        assert s3_words(other) == ("", "")
