"""Any S3 API as a store, through the `minio` client.

The client's 7.x line has no conditional writes; they go as presigned PUT requests that carry
If-None-Match or If-Match. Whether the server honours them is probed once by each process that
writes: an endpoint that ignores them would let two operators both "create" a lineage record.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar, cast
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import structlog
import urllib3
from minio import Minio
from minio.error import MinioException, S3Error, ServerError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from forkcast.ports import ObjectInfo
from forkcast_wire.endpoint import check
from forkcast_wire.files import replaced
from forkcast_wire.manifest import Storage
from forkcast_wire.store import limits
from forkcast_wire.store.errors import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    StoreError,
    StoreMisconfigured,
    StoreRefused,
    StoreUnavailable,
    check_key,
    check_prefix,
)
from forkcast_wire.store.s3_credentials import keys_for
from forkcast_wire.store.s3_http import AnsweredError, network_words, pool_for

P = ParamSpec("P")
T = TypeVar("T")
_PART = 64 << 20
_CHUNK = 1 << 20
_READS = 20
_PROBES = "probe/"
_MISSING = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
#: What passes by itself although its HTTP status says otherwise.
_PASSING = {
    *("RequestTimeTooSkewed", "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"),
    *("TooManyRequests", "OperationAborted", "ConditionalRequestConflict", "InternalError"),
    *("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"),  # changed on the way
}
_SHA256 = "x-amz-meta-sha256"
_ATTEMPTS = 5
_log = structlog.get_logger()


class _TransientError(StoreUnavailable):
    """The next attempt may succeed: network, 5xx, throttling, a concurrent write."""


class _UnsupportedError(StoreRefused):
    """The server refuses conditional headers as such."""


class _RetryBudget:
    """Retries that are left: an outage must not multiply its requests. Each success gives
    a retry back.
    """

    MOST = 20

    def __init__(self) -> None:
        self._left, self._lock = self.MOST, threading.Lock()

    def take(self) -> bool:
        with self._lock:
            self._left -= self._left > 0
            return self._left > 0

    def give(self) -> None:
        with self._lock:
            self._left = min(self.MOST, self._left + 1)


def _pause(state: RetryCallState) -> float:
    wait = wait_random_exponential(multiplier=0.2, max=5)(state)
    return max(0.0, min(wait, limits.left()))


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """A method of S3Store that is tried again after passing errors."""

    @functools.wraps(call)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        store = cast("S3Store", args[0])
        return store._tried(lambda: call(*args, **kwargs))

    return tried


def _brief(call: Callable[P, T]) -> Callable[P, T]:
    """An operation on a small object: it ends in DOCUMENT_SECONDS, retries included."""

    @functools.wraps(call)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        with limits.limited(limits.of_document()):
            return call(*args, **kwargs)

    return bounded


def steady(call: Callable[P, T]) -> Callable[P, T]:
    """An operation on a file: it goes on while bytes move."""

    @functools.wraps(call)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
        with limits.limited(limits.of_file()):
            return call(*args, **kwargs)

    return bounded


class S3Store:
    """Objects of one bucket below one prefix; safe for use from several threads, and in the
    children of a fork: each process has its own connections.

    Every operation ends: on documents within DOCUMENT_SECONDS, on files while bytes move (see
    `limits`). Raises StoreRefused where the server refuses, StoreUnavailable where it does not
    answer, after up to five attempts.
    """

    def __init__(self, storage: Storage) -> None:
        """Nothing is asked of the server yet: enough for who only reads. Raises StoreMisconfigured."""
        if storage.endpoint is None or storage.bucket is None:
            raise StoreMisconfigured("spec.storage: endpoint and bucket are not set; set both")
        try:
            check(storage.endpoint)
        except ValueError as error:
            raise StoreMisconfigured(f"spec.storage.endpoint: {error}") from None
        self._storage = storage
        self._bucket = storage.bucket
        self._prefix = storage.prefix
        self._pid = 0
        self._budget = _RetryBudget()
        self._md5_etags = False
        self._dial()
        self.conditional = storage.conditional_writes != "Off"

    @classmethod
    def connect(cls, storage: Storage) -> S3Store:
        """For who writes: looks into the bucket, and probes conditional writes.

        Raises StoreUnavailable where the endpoint does not answer; StoreRefused where it refuses
        the credentials or has no such bucket; StoreMisconfigured where it ignores conditional
        writes while the manifest requires them. All name the field.
        """
        store = cls(storage)
        try:
            store._look_into_bucket()
            if store.conditional:
                store.conditional = store._honours_conditions()
        except StoreRefused as error:
            if "NoSuchBucket" in error.why:
                raise StoreRefused(
                    f"spec.storage.bucket: no bucket {storage.bucket}; create it"
                ) from None
            said = str(error)
            if not said.startswith("spec.storage"):
                said = f"spec.storage.endpoint: {storage.endpoint}: {error.why}; check address, "
                said += "credentials and rights"
            raise StoreRefused(said, why=error.why) from error
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"spec.storage.endpoint: {storage.endpoint}: {error.why}; check the address",
                why=error.why,
            ) from error
        if not store.conditional and storage.conditional_writes == "Required":
            raise StoreMisconfigured(
                "spec.storage.conditionalWrites: the server ignores If-None-Match or If-Match; "
                "use another server, or set Off and run a single operator"
            )
        if not store.conditional and storage.conditional_writes != "Off":
            _log.warning("store.no_conditional_writes", bucket=store._bucket)
        return store

    def _dial(self) -> None:
        url = urlsplit(self._storage.endpoint or "")
        self._http = pool_for(self._storage.endpoint or "", self._storage.ca_file)
        self._http.md5_etags = self._md5_etags
        self._keys = keys_for(self._storage.credentials_dir, self._http)
        try:
            self._minio = Minio(
                url.netloc,
                secure=url.scheme == "https",
                region=self._storage.region,
                http_client=self._http,
                credentials=self._keys,
            )
        except ValueError as error:
            raise StoreMisconfigured(f"spec.storage: {error}; correct it") from error
        self._pid = os.getpid()

    @property
    def _client(self) -> Minio:
        if self._pid != os.getpid():  # sockets shared with a forked sibling would mix answers
            self._dial()
        return self._minio

    @_brief
    @patient
    def _look_into_bucket(self) -> None:
        """A list, not HEAD: its refusal has a body that says why."""
        start = f"{self._prefix}{_PROBES}"
        found = self._client.list_objects(self._bucket, prefix=start, recursive=True)
        self._call(self._bucket, lambda: next(iter(found), None))

    def _honours_conditions(self) -> bool:
        key = f"{_PROBES}{secrets.token_hex(8)}"
        try:
            etag = self.put(key, b"1", create=True)
            self._md5_etags = self._http.md5_etags = etag == _md5(b"1")
            with suppress(AlreadyExists):
                self.put(key, b"2", create=True)
                return False
            with suppress(Conflict):
                self.put(key, b"3", match="0" * 32)
                return False
        except _UnsupportedError:
            return False
        finally:
            with suppress(StoreError):
                self.delete(key)
        return True

    def _tried(self, call: Callable[[], T]) -> T:
        """Again after passing errors, as far as limits and the retry budget allow."""

        def give_up(state: RetryCallState) -> bool:
            if limits.left() <= 0 or state.attempt_number >= _ATTEMPTS:
                return True
            return not self._budget.take()

        passing = retry_if_exception_type(_TransientError)
        result = Retrying(retry=passing, wait=_pause, stop=give_up, reraise=True)(call)
        self._budget.give()
        return result

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except AnsweredError as error:
            if error.code in _MISSING:
                raise KeyMissing(key) from None
            raise self._refusal(error.status, error.code, key, error.said) from error
        except S3Error as error:  # of a HEAD, made by the client from the status alone
            if error.code in _MISSING:
                raise KeyMissing(key) from None
            status = error.response.status
            said = f"HTTP {status} ({error.code}: {error.message})"
            raise self._refusal(status, error.code or "", key, said) from error
        except ServerError as error:
            status = error.status_code
            raise self._refusal(status, "", key, f"HTTP {status}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            why = network_words(error)
            raise _TransientError(f"{key}: {why}", why=why) from error
        except ParseError as error:
            why = f"no S3 API answers here ({error})"
            raise StoreRefused(f"{key}: {why}", why=why) from error
        except (MinioException, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise StoreRefused(f"{key}: {why}", why=why) from error

    def _refusal(self, status: int, code: str, key: str, why: str) -> StoreUnavailable:
        passing = status >= 500 and status != 501
        if passing or status in (408, 409, 429) or code in _PASSING:
            return _TransientError(f"{key}: {why}", why=why)
        if status in (400, 401, 403) and self._keys.renewed():
            return _TransientError(f"{key}: {why}", why=why)  # rotated meanwhile
        return StoreRefused(f"{key}: {why}", why=why)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _read(self, key: str, write: Callable[[bytes], object]) -> tuple[str, str | None]:
        """Feed the object's bytes to ``write``; returns the etag and the recorded sha256."""
        name = self._name(key)
        response = self._call(key, lambda: self._client.get_object(self._bucket, name))
        try:
            chunks = response.stream(_CHUNK)
            while chunk := self._call(key, lambda: next(chunks, b"")):
                write(chunk)
            etag = str(response.headers.get("ETag", "")).strip('"')
            return etag, response.headers.get(_SHA256)
        finally:
            response.close()
            response.release_conn()

    @_brief
    @patient
    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing; StoreError for what is too long to be read as a whole."""
        return self._get(key)

    def _get(self, key: str) -> tuple[bytes, str]:
        """Versitygw may answer with one version's bytes and another's etag while the object is being
        replaced; a swap on such a pair would undo somebody's write unseen. Where etags are MD5
        sums, which the probe has found out, a pair that does not match is read again.
        """
        for _ in range(_READS):
            data = io.BytesIO()
            etag, _ = self._read(key, functools.partial(_append, key, data))
            if not self._md5_etags or "-" in etag or etag == _md5(data.getvalue()):
                return data.getvalue(), etag
            time.sleep(secrets.randbelow(50) / 1e3)
        raise _TransientError(f"{key}: read {_READS} times, never whole")

    @steady
    @patient
    def get_file(self, key: str, path: Path) -> None:
        """Download to ``path`` and verify the sha256 that `put_file` recorded. Raises KeyMissing.

        Only files are verified. They are written once; a document that is swapped by a presigned
        request, which cannot carry metadata, may keep its predecessor's (seen on versitygw with
        sidecar metadata).
        """
        seen = hashlib.sha256()
        with replaced(path, durable=False) as file:

            def write(chunk: bytes) -> None:
                seen.update(chunk)
                file.write(chunk)

            _, promised = self._read(key, write)
            if promised not in (None, seen.hexdigest()):
                raise _TransientError(f"{key}: the bytes differ from their recorded sha256")

    @_brief
    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write and return the etag; see `forkcast.ports.Store`. On a server without conditional
        writes the check and the write are two steps, which only a single writer may rely on.
        """
        return self._put(key, data, create=create, match=match)

    def _put(self, key: str, data: bytes, *, create: bool, match: str | None) -> str:
        if (create or match is not None) and self.conditional:
            return self._put_conditional(key, data, match=match)
        if create and self.head(key) is not None:
            raise AlreadyExists(key)
        if match is not None and ((info := self.head(key)) is None or info.etag != match):
            raise Conflict(key)
        return self._put_plain(key, data)

    @patient
    def _put_plain(self, key: str, data: bytes) -> str:
        name, digest = self._name(key), hashlib.sha256(data).hexdigest()
        result = self._call(
            key,
            lambda: self._client.put_object(
                self._bucket, name, io.BytesIO(data), len(data), metadata={"sha256": digest}
            ),
        )
        return (result.etag or "").strip('"')

    def _put_conditional(self, key: str, data: bytes, *, match: str | None) -> str:
        """Create (``match`` None) or swap. An attempt whose answer was lost may have been carried
        out: a refusal after it counts as success where our own bytes stand there.
        """
        name = self._name(key)
        headers = {"If-None-Match": "*"} if match is None else {"If-Match": f'"{match}"'}
        in_doubt = False

        def attempt() -> str:
            nonlocal in_doubt
            url = self._call(
                key,
                lambda: self._client.presigned_put_object(self._bucket, name, timedelta(minutes=5)),
            )
            try:
                return self._send(key, url, data, headers)
            except (AlreadyExists, Conflict):
                if in_doubt and (mine := self._standing(key, data)) is not None:
                    return mine
                raise
            except _TransientError:
                in_doubt = True
                raise

        return self._tried(attempt)

    def _send(self, key: str, url: str, data: bytes, headers: dict[str, str]) -> str:
        create = "If-None-Match" in headers

        def send() -> urllib3.BaseHTTPResponse:
            try:
                return self._http.request("PUT", url, body=data, headers=headers)
            except AnsweredError as error:
                if error.status == 412:
                    raise AlreadyExists(key) if create else Conflict(key) from None
                if error.status == 404 and not create and error.code != "NoSuchBucket":
                    raise Conflict(key) from None
                unsupported = error.status == 501 and not error.code
                if unsupported or error.code == "NotImplemented":
                    raise _UnsupportedError(f"{key}: {error.said} to a conditional write") from None
                raise

        response = self._call(key, send)
        return str(response.headers.get("ETag", "")).strip('"')

    def _standing(self, key: str, data: bytes) -> str | None:
        with suppress(KeyMissing):
            there, etag = self._get(key)
            return etag if there == data else None
        return None

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """Upload a file, in parts where it is large; its sha256 goes with it. ``create`` above
        64 MiB: the check and the upload are two steps, the client has no conditional multipart
        upload; such keys carry the attempt that writes them.
        """
        if create and path.stat().st_size <= _PART:
            return self._put_small_file(key, path)
        if create and self.head(key) is not None:
            raise AlreadyExists(key)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return self._put_parts(key, path, digest)

    @steady
    def _put_small_file(self, key: str, path: Path) -> str:
        return self._put(key, path.read_bytes(), create=True, match=None)

    @patient
    def _put_parts(self, key: str, path: Path, digest: str) -> str:
        name = self._name(key)
        result = self._call(
            key,
            lambda: self._client.fput_object(
                self._bucket, name, str(path), part_size=_PART, metadata={"sha256": digest}
            ),
        )
        return (result.etag or "").strip('"')

    @_brief
    @patient
    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None where it does not exist."""
        name = self._name(key)
        try:
            stat = self._call(key, lambda: self._client.stat_object(self._bucket, name))
        except KeyMissing:
            return None
        return ObjectInfo(key, stat.size or 0, (stat.etag or "").strip('"'))

    @_brief
    @patient
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""
        start = self._prefix + check_prefix(prefix)
        found = self._call(
            prefix,
            lambda: limits.bounded(
                self._client.list_objects(self._bucket, prefix=start, recursive=True)
            ),
        )
        infos = [
            ObjectInfo(
                (item.object_name or "").removeprefix(self._prefix),
                item.size or 0,
                (item.etag or "").strip('"'),
                item.last_modified.timestamp() if item.last_modified else None,
            )
            for item in found
        ]
        return iter(sorted(infos, key=lambda info: info.key))

    @_brief
    @patient
    def delete(self, key: str) -> None:
        """Delete; a missing key is success."""
        name = self._name(key)
        with suppress(KeyMissing):
            self._call(key, lambda: self._client.remove_object(self._bucket, name))


def _append(key: str, data: io.BytesIO, chunk: bytes) -> None:
    limits.check_length(key, data.tell() + len(chunk))
    data.write(chunk)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
