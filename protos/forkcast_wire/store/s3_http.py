"""HTTP to an S3 API: limits on every wait, a proxy where the environment names one, a digest on
every body, and refusals with the server's own code and words.

The `minio` client is given a pool of these connections in place of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import os
import re
import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from xml.etree import ElementTree as ET

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from forkcast_wire.store import limits
from forkcast_wire.store.errors import StoreMisconfigured

_CONNECT_SECONDS = 4.0
_CHUNK = 256 << 10
_POOL = 32
_MOST_ERROR = 64 << 10


class AnsweredError(Exception):
    """The server answered, and not with success.

    code, message: S3's own, '' where it gave none. html: a web page came in place of an S3 answer.
    """

    def __init__(self, status: int, code: str, message: str, *, html: bool) -> None:
        self.status, self.code, self.message, self.html = status, code, message, html
        super().__init__(self.said)

    @property
    def said(self) -> str:
        """In words, for people."""
        if self.html and self.status < 500:
            return f"no S3 API answers here (HTTP {self.status}, a web page)"
        named = ": ".join(part for part in (self.code, self.message.rstrip(".")) if part)
        return named or f"HTTP {self.status}"


class OtherBytesError(urllib3.exceptions.HTTPError):
    """The server's digest of what it has stored is not that of what was sent."""


class _LimitedReads(io.RawIOBase):
    """The reading half of a socket: each wait ends by the limit in force."""

    def __init__(self, raw: io.RawIOBase, arm: Any) -> None:
        self._raw, self._arm = raw, arm

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._arm()
        count: int | None = self._raw.readinto(buffer)
        limits.count(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _LimitedSocket:
    """A connected socket, plain or TLS, whose every wait ends by the limit in force."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner, self._timeout = inner, inner.gettimeout()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def _arm(self) -> None:
        wait = limits.wait()
        self._inner.settimeout(wait if self._timeout is None else min(wait, self._timeout))

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _CHUNK):
            self._arm()
            chunk = view[start : start + _CHUNK]
            self._inner.sendall(chunk)
            limits.count(len(chunk))

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        raw = self._inner.makefile("rb", buffering=0)
        return io.BufferedReader(_LimitedReads(raw, self._arm))


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock = _LimitedSocket(self.sock)


class _Secure(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock = _LimitedSocket(self.sock)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class _Requests:
    """What each request of either pool gets, and what becomes of its answer.

    md5_etags: whether this server's entity tags are known to be MD5 sums. Then what it says of each
    body, a part of an upload included, is compared with what was sent.
    """

    md5_etags = False

    def urlopen(self, method: str, url: str, **more: Any) -> urllib3.BaseHTTPResponse:
        """As urllib3's, without redirects. Raises AnsweredError for every answer with a body that is no
        success, OtherBytesError.
        """
        if limits.current() is None:  # a thread of the client's own
            with limits.limited(limits.of_file()):
                return self.urlopen(method, url, **more)
        body, headers = more.get("body"), urllib3.HTTPHeaderDict(more.pop("headers", None) or {})
        md5 = b""
        if method in ("PUT", "POST") and isinstance(body, bytes) and "Content-MD5" not in headers:
            # a bucket with object lock takes no body without a digest
            md5 = hashlib.md5(body, usedforsecurity=False).digest()
            headers["Content-MD5"] = base64.b64encode(md5).decode()
        more["timeout"] = urllib3.Timeout(
            connect=min(_CONNECT_SECONDS, limits.wait()), read=limits.FILE_SILENCE
        )
        pool: Any = super()
        response: urllib3.BaseHTTPResponse = pool.urlopen(
            method, url, headers=headers, **{**more, "redirect": False}
        )
        whole, fine = more.get("preload_content", True), response.status < 300
        if method == "HEAD" or (fine and not (whole and _is_page(response.data))):
            if fine and method == "PUT" and md5:
                self._compare(response, md5)
            return response  # of a HEAD, too: the client knows what its status means
        data = response.data if whole else response.read(_MOST_ERROR)
        if len(data) < _MOST_ERROR:
            response.release_conn()
        else:
            response.close()
        code, message = s3_words(data)
        raise AnsweredError(response.status, code, message, html=_is_page(data))

    def _compare(self, response: urllib3.BaseHTTPResponse, md5: bytes) -> None:
        etag = str(response.headers.get("ETag", "")).strip('"')
        if self.md5_etags and etag and "-" not in etag and etag.lower() != md5.hex():
            raise OtherBytesError("the store says that it holds other bytes than were sent")


class _Direct(_Requests, urllib3.PoolManager):  # type: ignore[misc]  # **more holds redirect
    pass


class _Proxied(_Requests, urllib3.ProxyManager):  # type: ignore[misc]  # as above
    pass


def _is_page(data: bytes) -> bool:
    """Whether this is HTML. The header does not say: moto labels its empty answers so."""
    return data[:1024].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def s3_words(data: bytes) -> tuple[str, str]:
    """(code, message) of an S3 error document, ('', '') of anything else."""
    if b"<!" in data[:_MOST_ERROR]:  # S3 sends no document type; entities may be bombs
        return "", ""
    try:
        root = ET.fromstring(data[:_MOST_ERROR])  # noqa: S314  no declarations, see above
    except ET.ParseError:
        return "", ""
    found = {node.tag.rpartition("}")[2]: (node.text or "").strip() for node in root.iter()}
    return found.get("Code", ""), found.get("Message", "")


def pool_for(endpoint: str, ca_file: str | None) -> _Direct | _Proxied:
    """The connections to an endpoint, through HTTP(S)_PROXY unless NO_PROXY exempts it.

    Raises StoreMisconfigured for a CA file that cannot be read, or a proxy that is no http URL.
    """
    if ca_file is not None and not os.access(ca_file, os.R_OK):
        raise StoreMisconfigured(f"spec.storage.caFile: {ca_file} cannot be read; give a PEM file")
    given: dict[str, Any] = {
        "retries": False,
        "maxsize": _POOL,
        "cert_reqs": "CERT_REQUIRED",
        "ca_certs": ca_file,
    }
    proxy = proxy_for(endpoint)
    pool: _Direct | _Proxied
    if proxy is None:
        pool = _Direct(**given)
    else:
        url = urlsplit(proxy)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise StoreMisconfigured(
                f"{urlsplit(endpoint).scheme.upper()}_PROXY: must be an http or https URL; correct "
                "it, or exempt the endpoint in NO_PROXY"
            )
        if url.username is not None:
            login = f"{url.username}:{url.password or ''}"
            given["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
        bare = url._replace(netloc=url.netloc.rpartition("@")[2])
        pool = _Proxied(bare.geturl(), **given)
    pool.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    return pool


def proxy_for(endpoint: str) -> str | None:
    """The proxy that the environment names for this endpoint; None for a direct connection.

    The usual variables in lower or upper case; NO_PROXY may hold names, domains, addresses and
    networks (10.0.0.0/8).
    """
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or url.hostname is None or proxy_bypass(url.netloc.rpartition("@")[2]):
        return None
    if _in_networks(url.hostname, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _in_networks(host: str, exempt: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for part in exempt.split(","):
        try:
            if address in ipaddress.ip_network(part.strip(), strict=False):
                return True
        except ValueError:  # a name
            continue
    return False


def network_words(error: BaseException) -> str:
    """A failure below HTTP in words that are the same for the same cause."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"the proxy fails: {network_words(error.original_error)}"
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "the endpoint's name cannot be resolved"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        cause = error.__cause__
        words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        return f"no connection: {words}"
    if isinstance(error, OtherBytesError):
        return str(error)
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
        return "no whole answer in time"
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", f"{type(error).__name__}: {error}")
