"""An https endpoint is trusted by the manifest's authority, and by no other."""

from __future__ import annotations

import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from forkcast_wire.manifest import Storage
from forkcast_wire.store import StoreMisconfigured, StoreRefused, StoreUnavailable
from forkcast_wire.store.s3 import S3Store


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        empty = b"<ListBucketResult><Name>some</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(empty)))
        self.end_headers()
        self.wfile.write(empty)

    def log_message(self, *_):
        pass


@pytest.fixture
def authority(tmp_path):
    """A self-signed certificate for 127.0.0.1, and its key."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=store", "-keyout", "tls.key", "-out", "ca.crt"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return tmp_path / "ca.crt"


@pytest.fixture
def endpoint(authority):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_name("tls.key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _storage(endpoint, credentials, **more):
    given = {"endpoint": endpoint, "bucket": "some", "credentialsDir": str(credentials)}
    return Storage.model_validate({**given, "conditionalWrites": "Off", **more})


def test_the_given_authority_is_trusted(endpoint, credentials, authority):
    S3Store.connect(_storage(endpoint, credentials, caFile=str(authority)))


def test_another_is_not(endpoint, credentials):
    with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED") as away:
        S3Store.connect(_storage(endpoint, credentials))
    assert not isinstance(away.value, StoreRefused)  # as one that expired: waited for, not final


def test_a_missing_file_is_named(endpoint, credentials, tmp_path):
    storage = _storage(endpoint, credentials, caFile=str(tmp_path / "gone"))
    with pytest.raises(StoreMisconfigured, match=r"spec\.storage\.caFile"):
        S3Store.connect(storage)
