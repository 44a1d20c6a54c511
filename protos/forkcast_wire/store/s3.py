"""Any S3 API as a store, through the `minio` client.

The client's 7.x line has no conditional writes; they go as presigned PUT requests that carry
If-None-Match or If-Match. Whether the server honours them is probed once: an endpoint that ignores
them would let two operators both "create" a lineage record.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
import urllib3
from minio import Minio
from minio.error import S3Error
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from forkcast.ports import ObjectInfo
from forkcast_wire.manifest import Storage
from forkcast_wire.store.errors import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    StoreUnavailable,
    check_key,
)

T = TypeVar("T")
_PART = 64 << 20
_MISSING = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
_log = structlog.get_logger()

_patient = retry(
    retry=retry_if_exception_type(StoreUnavailable),
    wait=wait_random_exponential(multiplier=0.2, max=5),
    stop=stop_after_attempt(5),
    reraise=True,
)


class S3Store:
    """Objects of one bucket below one prefix; safe for use from several threads."""

    def __init__(self, client: Minio, http: urllib3.PoolManager, bucket: str, prefix: str) -> None:
        self._client = client
        self._http = http
        self._bucket = bucket
        self._prefix = prefix
        self.conditional = True

    @classmethod
    def connect(cls, storage: Storage) -> S3Store:
        """Open the bucket of a manifest. Raises StoreUnavailable, with the remedy, where the
        endpoint does not answer, refuses the credentials, has no such bucket, or ignores
        conditional writes while the manifest requires them.
        """
        if storage.endpoint is None or storage.bucket is None:
            raise StoreUnavailable("spec.storage: endpoint and bucket are not set; set both")
        access, secret = _credentials(storage)
        url = urlsplit(storage.endpoint)
        http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=60), retries=False, maxsize=8
        )
        client = Minio(
            url.netloc,
            access_key=access,
            secret_key=secret,
            secure=url.scheme == "https",
            region=storage.region,
            http_client=http,
        )
        bucket = storage.bucket
        store = cls(client, http, bucket, storage.prefix)
        if not store._call(lambda: client.bucket_exists(bucket)):
            raise StoreUnavailable(f"spec.storage.bucket: no bucket {storage.bucket}; create it")
        store._probe(storage.conditional_writes)
        return store

    def _probe(self, wish: str) -> None:
        if wish == "Off":
            self.conditional = False
            return
        key = f"probe/{secrets.token_hex(8)}"
        try:
            self.put(key, b"1", create=True)
            try:
                self.put(key, b"2", create=True)
                self.conditional = False
            except AlreadyExists:
                pass
        finally:
            self.delete(key)
        if not self.conditional:
            if wish == "Required":
                raise StoreUnavailable(
                    "spec.storage.conditionalWrites: the server ignores If-None-Match; use another "
                    "server, or set Off and run a single operator"
                )
            _log.warning("store.no_conditional_writes", bucket=self._bucket)

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except S3Error as error:
            if error.code in _MISSING:
                raise KeyMissing(error.object_name or "") from None
            raise StoreUnavailable(f"{error.code}: {error.message}") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @_patient
    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing."""

        def read() -> tuple[bytes, str]:
            response = self._client.get_object(self._bucket, self._name(key))
            try:
                return response.read(), response.headers.get("ETag", "").strip('"')
            finally:
                response.close()
                response.release_conn()

        return self._call(read)

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write and return the etag; see `forkcast.ports.Store`."""
        if (create or match is not None) and self.conditional:
            return self._put_conditional(key, data, create=create, match=match)
        if create and self.head(key) is not None:
            raise AlreadyExists(key)
        if match is not None and ((info := self.head(key)) is None or info.etag != match):
            raise Conflict(key)
        return self._put_plain(key, data)

    @_patient
    def _put_plain(self, key: str, data: bytes) -> str:
        result = self._call(
            lambda: self._client.put_object(
                self._bucket, self._name(key), io.BytesIO(data), len(data)
            )
        )
        return (result.etag or "").strip('"')

    @_patient
    def _put_conditional(self, key: str, data: bytes, *, create: bool, match: str | None) -> str:
        url = self._call(
            lambda: self._client.presigned_put_object(
                self._bucket, self._name(key), timedelta(minutes=5)
            )
        )
        headers = {"If-None-Match": "*"} if create else {"If-Match": f'"{match}"'}
        response = self._call(lambda: self._http.request("PUT", url, body=data, headers=headers))
        if response.status in (409, 412, 404):
            if response.status == 409:
                raise StoreUnavailable(f"{key}: concurrent write")
            raise AlreadyExists(key) if create else Conflict(key)
        if response.status >= 300:
            raise StoreUnavailable(f"{key}: HTTP {response.status}")
        return str(response.headers.get("ETag", "")).strip('"')

    @_patient
    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """Upload a file, in parts where it is large."""
        if create and path.stat().st_size <= _PART:
            return self.put(key, path.read_bytes(), create=True)
        if create and self.head(key) is not None:
            raise AlreadyExists(key)
        result = self._call(
            lambda: self._client.fput_object(
                self._bucket, self._name(key), str(path), part_size=_PART
            )
        )
        return (result.etag or "").strip('"')

    @_patient
    def get_file(self, key: str, path: Path) -> None:
        """Download to ``path``. Raises KeyMissing."""
        self._call(lambda: self._client.fget_object(self._bucket, self._name(key), str(path)))

    @_patient
    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None where it does not exist."""
        try:
            stat = self._call(lambda: self._client.stat_object(self._bucket, self._name(key)))
        except KeyMissing:
            return None
        return ObjectInfo(key, stat.size or 0, (stat.etag or "").strip('"'))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""
        found = self._call(
            lambda: list(
                self._client.list_objects(
                    self._bucket, prefix=self._prefix + prefix, recursive=True
                )
            )
        )
        for item in sorted(found, key=lambda one: one.object_name or ""):
            key = (item.object_name or "").removeprefix(self._prefix)
            yield ObjectInfo(key, item.size or 0, (item.etag or "").strip('"'))

    @_patient
    def delete(self, key: str) -> None:
        """Delete; a missing key is success."""
        try:
            self._call(lambda: self._client.remove_object(self._bucket, self._name(key)))
        except KeyMissing:
            return


def _credentials(storage: Storage) -> tuple[str, str]:
    if storage.credentials_dir is not None:
        folder = Path(storage.credentials_dir)
        try:
            return (
                (folder / "accessKeyId").read_text().strip(),
                (folder / "secretAccessKey").read_text().strip(),
            )
        except OSError as error:
            raise StoreUnavailable(
                f"spec.storage.credentialsDir: {error.filename}: {error.strerror}; put the files "
                "accessKeyId and secretAccessKey there"
            ) from error
    try:
        return os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    except KeyError as error:
        raise StoreUnavailable(
            f"spec.storage: no credentials; set credentialsDir, or {error.args[0]}"
        ) from error
