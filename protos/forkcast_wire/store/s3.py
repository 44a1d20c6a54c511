"""Any S3 API as a store, through the `minio` client.

The client's 7.x line has no conditional writes; they go as presigned PUT requests that carry
If-None-Match or If-Match. Whether the server honours them is probed once: an endpoint that ignores
them would let two operators both "create" a lineage record.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from forkcast.ports import ObjectInfo
from forkcast_wire.manifest import Storage
from forkcast_wire.store.errors import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    StoreError,
    StoreUnavailable,
    check_key,
    check_prefix,
)

T = TypeVar("T")
_PART = 64 << 20
_CHUNK = 1 << 20
_READS = 20
_MISSING = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
_SHA256 = "x-amz-meta-sha256"
_log = structlog.get_logger()


class _TransientError(StoreUnavailable):
    """The next attempt may succeed: network, 5xx, throttling, a concurrent write."""


class _UnsupportedError(StoreUnavailable):
    """The server refuses conditional headers as such."""


_patient = retry(
    retry=retry_if_exception_type(_TransientError),
    wait=wait_random_exponential(multiplier=0.2, max=5),
    stop=stop_after_attempt(5),
    reraise=True,
)


class S3Store:
    """Objects of one bucket below one prefix; safe for use from several threads, and in the
    children of a fork: each process has its own connections.

    Raises StoreUnavailable where the server cannot be reached (after five attempts) or refuses.
    """

    def __init__(self, storage: Storage) -> None:
        if storage.endpoint is None or storage.bucket is None:
            raise StoreUnavailable("spec.storage: endpoint and bucket are not set; set both")
        self._storage = storage
        self._bucket = storage.bucket
        self._prefix = storage.prefix
        self._credentials = _credentials(storage)
        self._pid = 0
        self._dial()
        self.conditional = storage.conditional_writes != "Off"
        self._md5_etags = False

    @classmethod
    def connect(cls, storage: Storage) -> S3Store:
        """Open the bucket of a manifest. Raises StoreUnavailable, with the remedy, where the
        endpoint does not answer, refuses the credentials, has no such bucket, or ignores
        conditional writes while the manifest requires them.
        """
        store = cls(storage)
        bucket = store._bucket
        try:
            exists = store._call(bucket, lambda: store._client.bucket_exists(bucket))
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"spec.storage.endpoint: {storage.endpoint}: {error}; check address and credentials"
            ) from error
        if not exists:
            raise StoreUnavailable(f"spec.storage.bucket: no bucket {storage.bucket}; create it")
        if store.conditional:
            store.conditional = store._honours_conditions()
            if not store.conditional and storage.conditional_writes == "Required":
                raise StoreUnavailable(
                    "spec.storage.conditionalWrites: the server ignores If-None-Match or If-Match; "
                    "use another server, or set Off and run a single operator"
                )
            if not store.conditional:
                _log.warning("store.no_conditional_writes", bucket=bucket)
        return store

    def _dial(self) -> None:
        url = urlsplit(self._storage.endpoint or "")
        access, secret, session = self._credentials
        authority = self._storage.ca_file
        if authority is not None and not os.access(authority, os.R_OK):
            raise StoreUnavailable(
                f"spec.storage.caFile: {authority} cannot be read; give a PEM file"
            )
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=60),
            retries=False,
            maxsize=32,
            cert_reqs="CERT_REQUIRED",
            ca_certs=authority,
        )
        try:
            self._minio = Minio(
                url.netloc,
                access_key=access,
                secret_key=secret,
                session_token=session,
                secure=url.scheme == "https",
                region=self._storage.region,
                http_client=self._http,
            )
        except ValueError as error:
            raise StoreUnavailable(f"spec.storage.endpoint: {error}; correct it") from error
        self._pid = os.getpid()

    @property
    def _client(self) -> Minio:
        if self._pid != os.getpid():  # sockets shared with a forked sibling would mix answers
            self._dial()
        return self._minio

    def _honours_conditions(self) -> bool:
        key = f"probe/{secrets.token_hex(8)}"
        try:
            etag = self.put(key, b"1", create=True)
            self._md5_etags = etag == _md5(b"1")
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

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except S3Error as error:
            if error.code in _MISSING:
                raise KeyMissing(key) from None
            raise _refusal(error.response.status, key, f"{error.code}: {error.message}") from error
        except (InvalidResponseError, ServerError) as error:
            status = error.status_code if isinstance(error, ServerError) else error._code
            raise _refusal(status, key, f"HTTP {status}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
            raise _TransientError(f"{key}: {why}", why=why) from error
        except (MinioException, ValueError) as error:
            raise StoreUnavailable(f"{key}: {type(error).__name__}: {error}") from error

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

    @_patient
    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing.

        versitygw may answer with one version's bytes and another's etag while the object is being
        replaced; a swap on such a pair would undo somebody's write unseen. Where etags are MD5
        sums, which the probe has found out, a pair that does not match is read again.
        """
        for _ in range(_READS):
            data = io.BytesIO()
            etag, _ = self._read(key, data.write)
            if not self._md5_etags or "-" in etag or etag == _md5(data.getvalue()):
                return data.getvalue(), etag
            time.sleep(secrets.randbelow(50) / 1e3)
        raise _TransientError(f"{key}: read {_READS} times, never whole")

    @_patient
    def get_file(self, key: str, path: Path) -> None:
        """Download to ``path`` and verify the sha256 that `put_file` recorded. Raises KeyMissing.

        Only files are verified. They are written once; a document that is swapped by a presigned
        request, which cannot carry metadata, may keep its predecessor's (seen on versitygw with
        sidecar metadata).
        """
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        seen = hashlib.sha256()
        try:
            with partial.open("wb") as file:

                def write(chunk: bytes) -> None:
                    seen.update(chunk)
                    file.write(chunk)

                _, promised = self._read(key, write)
            if promised not in (None, seen.hexdigest()):
                raise _TransientError(f"{key}: the bytes differ from their recorded sha256")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write and return the etag; see `forkcast.ports.Store`. On a server without conditional
        writes the check and the write are two steps, which only a single writer may rely on.
        """
        if (create or match is not None) and self.conditional:
            return self._put_conditional(key, data, match=match)
        if create and self.head(key) is not None:
            raise AlreadyExists(key)
        if match is not None and ((info := self.head(key)) is None or info.etag != match):
            raise Conflict(key)
        return self._put_plain(key, data)

    @_patient
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

        @_patient
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

        return attempt()

    def _send(self, key: str, url: str, data: bytes, headers: dict[str, str]) -> str:
        response = self._call(
            key, lambda: self._http.request("PUT", url, body=data, headers=headers)
        )
        create = "If-None-Match" in headers
        if response.status == 412:
            raise AlreadyExists(key) if create else Conflict(key)
        if response.status == 404 and not create and b"NoSuchBucket" not in response.data:
            raise Conflict(key)
        if response.status == 409:
            raise _TransientError(f"{key}: concurrent writes")
        if response.status in (400, 501):
            raise _UnsupportedError(f"{key}: HTTP {response.status} to a conditional write")
        if response.status >= 300:
            raise _refusal(response.status, key, f"HTTP {response.status}")
        return str(response.headers.get("ETag", "")).strip('"')

    def _standing(self, key: str, data: bytes) -> str | None:
        with suppress(KeyMissing):
            there, etag = self.get(key)
            return etag if there == data else None
        return None

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """Upload a file, in parts where it is large; its sha256 goes with it. ``create`` above
        64 MiB: the check and the upload are two steps, the client has no conditional multipart
        upload; such keys carry the attempt that writes them.
        """
        if create and path.stat().st_size <= _PART:
            return self.put(key, path.read_bytes(), create=True)
        if create and self.head(key) is not None:
            raise AlreadyExists(key)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return self._put_parts(key, path, digest)

    @_patient
    def _put_parts(self, key: str, path: Path, digest: str) -> str:
        name = self._name(key)
        result = self._call(
            key,
            lambda: self._client.fput_object(
                self._bucket, name, str(path), part_size=_PART, metadata={"sha256": digest}
            ),
        )
        return (result.etag or "").strip('"')

    @_patient
    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None where it does not exist."""
        name = self._name(key)
        try:
            stat = self._call(key, lambda: self._client.stat_object(self._bucket, name))
        except KeyMissing:
            return None
        return ObjectInfo(key, stat.size or 0, (stat.etag or "").strip('"'))

    @_patient
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""
        start = self._prefix + check_prefix(prefix)
        found = self._call(
            prefix,
            lambda: list(self._client.list_objects(self._bucket, prefix=start, recursive=True)),
        )
        infos = [
            ObjectInfo(
                (item.object_name or "").removeprefix(self._prefix),
                item.size or 0,
                (item.etag or "").strip('"'),
            )
            for item in found
        ]
        return iter(sorted(infos, key=lambda info: info.key))

    @_patient
    def delete(self, key: str) -> None:
        """Delete; a missing key is success."""
        name = self._name(key)
        with suppress(KeyMissing):
            self._call(key, lambda: self._client.remove_object(self._bucket, name))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _refusal(status: int, key: str, why: str) -> StoreUnavailable:
    if status >= 500 or status in (408, 409, 429):
        return _TransientError(f"{key}: {why}", why=why)
    return StoreUnavailable(f"{key}: {why}", why=why)


def _credentials(storage: Storage) -> tuple[str, str, str | None]:
    """(access key, secret key, session token)."""
    if storage.credentials_dir is not None:
        folder = Path(storage.credentials_dir)
        try:
            return (
                (folder / "accessKeyId").read_text().strip(),
                (folder / "secretAccessKey").read_text().strip(),
                None,
            )
        except OSError as error:
            raise StoreUnavailable(
                f"spec.storage.credentialsDir: {error.filename}: {error.strerror}; put the files "
                "accessKeyId and secretAccessKey there"
            ) from error
    try:
        return (
            os.environ["AWS_ACCESS_KEY_ID"],
            os.environ["AWS_SECRET_ACCESS_KEY"],
            os.environ.get("AWS_SESSION_TOKEN"),
        )
    except KeyError as error:
        raise StoreUnavailable(
            f"spec.storage: no credentials; set credentialsDir, or {error.args[0]}"
        ) from error
