"""A gateway before a real S3 server that fails, lies, is slow or silent, and counts requests."""

from __future__ import annotations

import hashlib
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.waiting import HANG_SECONDS

_CONDITIONS = {"if-match", "if-none-match"}
#: Answers by name: (status, content type, body).
REFUSALS = {
    name: (
        status,
        "application/xml",
        f"<Error><Code>{code}</Code><Message>{said}</Message></Error>".encode(),
    )
    for name, status, code, said in (
        ("slow-down", 503, "SlowDown", "Please reduce your request rate."),
        ("skew", 403, "RequestTimeTooSkewed", "The clocks differ by too much."),
        ("denied", 403, "AccessDenied", "A policy wants encryption."),
        ("no-key", 403, "InvalidAccessKeyId", "The key does not exist."),
        ("not-implemented", 501, "NotImplemented", "A header is not implemented."),
        ("bad-request", 400, "InvalidRequest", "Content-MD5 or a checksum is needed."),
    )
}
REFUSALS["page"] = (200, "text/html", b"<!DOCTYPE html><html><body>Console</body></html>")


def _altered(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:] if body else b"1"


class Gateway(ThreadingHTTPServer):
    """Passes requests on. ``faults``: what befalls the next requests, one each, "" for nothing;
    ``always``: what befalls all of them. A fault is

    - a status, answered without passing on, or a name of REFUSALS;
    - "lose": passed on, and the answer is dropped; "close": dropped before it is passed on;
    - "alter", "cut": a PUT is passed on with one bit flipped, or without its second half; "swallow": it is
      answered as if it had been stored;
    - "silent": accepted and never answered; "drip": the answer comes byte by byte, without end.

    ``only_key``: the one access key that is known; "" for all. ``wants_digest``: as a bucket with
    object lock, it takes no PUT without Content-MD5 or a checksum.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, upstream: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[str] = []
        self.always = ""
        self.only_key = ""
        self.wants_digest = False
        self.ignore_conditions = False
        self.corrupt = False
        self.torn_reads = 0
        #: (method, path) of every request, also of those that failed.
        self.requests: list[tuple[str, str]] = []
        self.over = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def seen(self) -> list[str]:
        """The methods of all requests."""
        return [method for method, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        gateway = self.server
        gateway.requests.append((self.command, self.path))
        fault = gateway.always or (gateway.faults.pop(0) if gateway.faults else "")
        if fault in ("silent", "drip", "close"):
            self._break(fault)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._lacks_digest():
            fault = "bad-request"
        signed = self.headers.get("Authorization", "") + self.path
        if gateway.only_key and f"{gateway.only_key}/" not in signed.replace("%2F", "/"):
            fault = "no-key"
        if fault.isdigit():
            self._answer(int(fault), [], b"")
        elif fault in REFUSALS:
            status, kind, data = REFUSALS[fault]
            self._answer(status, [("Content-Type", kind)], data)
        elif fault == "swallow" and self.command == "PUT":
            etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            self._answer(200, [("ETag", f'"{etag}"')], b"")
        else:
            if fault in ("alter", "cut") and self.command == "PUT":
                body = body[: len(body) // 2] if fault == "cut" else _altered(body)
            self._forward(body, fault)

    def _forward(self, body: bytes, fault: str) -> None:
        gateway = self.server
        connection = http.client.HTTPConnection(gateway.upstream, timeout=HANG_SECONDS)
        headers = dict(self.headers.items())
        if gateway.ignore_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() not in _CONDITIONS}
        path = self.path
        if path.startswith("http://"):  # asked as a forward proxy: whatever the name, one upstream
            path = "/" + path.removeprefix("http://").partition("/")[2]
            headers["Host"] = gateway.upstream
        if "Content-Length" in headers:
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if fault == "lose":
            self.close_connection = True
            return
        if gateway.corrupt and self.command == "GET" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        answer = response.getheaders()
        if gateway.torn_reads and self.command == "GET":
            gateway.torn_reads -= 1
            answer = [(k, f'"{"0" * 32}"' if k.lower() == "etag" else v) for k, v in answer]
        self._answer(response.status, answer, data)

    def _break(self, how: str) -> None:
        self.close_connection = True
        if how == "close":
            return
        if how == "drip":
            self.send_response_only(200)
            self.send_header("Content-Length", str(1 << 20))
            self.end_headers()
        while not self.server.over.wait(0.2):
            if how == "drip":
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return
            elif self.server.always != "silent":
                return  # who still waits is told by the end of the connection

    def _lacks_digest(self) -> bool:
        if not self.server.wants_digest or self.command != "PUT":
            return False
        names = {name.lower() for name in self.headers}
        return not any(n == "content-md5" or n.startswith("x-amz-checksum-") for n in names)

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


@contextmanager
def gateway_to(upstream: str, port: int = 0) -> Iterator[Gateway]:
    """A running gateway; afterwards its port refuses connections."""
    server = Gateway(upstream, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
