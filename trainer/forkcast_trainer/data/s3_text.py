"""Text in a bucket: `s3://bucket/prefix`. Its objects are found once, and read in parts as they are needed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, TypeVar

from forkcast.ports import ObjectInfo
from forkcast_trainer.errors import DataError
from forkcast_wire import beats
from forkcast_wire.manifest import DataStorage, Storage
from forkcast_wire.store import (
    Conflict,
    KeyMissing,
    StoreMisconfigured,
    StoreRefused,
    wait_for,
)

if TYPE_CHECKING:
    from forkcast_wire.store.s3_objects import S3Objects

T = TypeVar("T")
SCHEME: Final = "s3://"
#: Bytes of a request.
_PART: Final = 4 << 20


@dataclass(frozen=True)
class Bucket:
    """A bucket with text. access: the field that endpoint and keys stand in."""

    name: str
    objects: S3Objects
    access: str
    field: str

    def below(self, prefix: str) -> Sequence[ObjectInfo]:
        """The object of this name, or all below the folder. Raises DataError."""
        found = self._asked(lambda: self.objects.objects(prefix))
        if (one := next((info for info in found if info.key == prefix), None)) is not None:
            return [one] if prefix and not prefix.endswith("/") else []
        folder = f"{prefix.removesuffix('/')}/" if prefix else ""
        return [info for info in found if info.key.startswith(folder)]

    def read(self, info: ObjectInfo, first: int, size: int) -> bytes:
        """Raises DataError."""
        return self._asked(lambda: self.objects.part(info.key, info.etag, first, size), info.key)

    def _asked(self, call: Callable[[], T], key: str = "") -> T:
        """The server's answer, however long it is away. Raises DataError if it refuses."""
        place = f"{SCHEME}{self.name}/{key}"

        def asked() -> T:
            try:
                return call()
            except StoreRefused as error:
                if "NoSuchBucket" in error.why:
                    rule, remedy = f"no bucket {self.name}", "create it, or correct the name"
                else:
                    own = error.why.replace("spec.storage", self.access)
                    rule, remedy = f"{place}: {own}", f"check the keys and rights of {self.access}"
                raise DataError(f"{self.field}.uri", rule, remedy) from error

        try:
            return wait_for(asked, None)
        except (Conflict, KeyMissing):
            rule = f"{place} has changed since the run looked at it"
            remedy = "start again, and write text to new names"
            raise DataError(f"{self.field}.uri", rule, remedy) from None


@dataclass(frozen=True)
class S3File:
    """An object as a file of text."""

    bucket: Bucket
    info: ObjectInfo

    @property
    def path(self) -> PurePosixPath:
        """Its name, for its suffix and for people."""
        return PurePosixPath(f"{self.bucket.name}/{self.info.key}")

    @property
    def size(self) -> int:
        """Bytes."""
        return self.info.size

    @property
    def seen(self) -> tuple[str, int, str]:
        """What tells it from another version."""
        return f"{SCHEME}{self.path}", self.info.size, self.info.etag

    def open(self) -> io.BufferedReader:
        """Its bytes; reading raises DataError if it has changed meanwhile."""
        return io.BufferedReader(_Raw(self), _PART)


class _Raw(io.RawIOBase):
    """Each read is a request of its own."""

    def __init__(self, file: S3File) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._file.size - self._at)
        if size <= 0:
            return 0
        beats.beat()
        found = self._file.bucket.read(self._file.info, self._at, size)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def bucket_of(
    uri: str, field: str, access: DataStorage | None, storage: Storage | None
) -> tuple[Bucket, str]:
    """(bucket, prefix) of a uri. access: of the data; None: the run's own store's. Raises DataError."""
    from forkcast_wire.store.s3_objects import S3Objects  # the client is slow to import

    name, _, prefix = uri.removeprefix(SCHEME).partition("/")
    if access is not None:
        where = "spec.data.s3"
        given = Storage(
            endpoint=access.endpoint,
            bucket=name,
            region=access.region,
            credentials_dir=access.credentials_dir,
            ca_file=access.ca_file,
        )
    elif storage is not None and storage.bucket is not None:
        where = "spec.storage"
        given = storage.model_copy(update={"bucket": name, "prefix": ""})
    else:
        raise DataError("spec.data.s3", "is not set, and the run's store is a folder", "set it")
    try:
        objects = S3Objects(given)
    except StoreMisconfigured as error:
        field_of, _, rest = str(error).replace("spec.storage", where).partition(": ")
        rule, _, remedy = rest.rpartition("; ")
        raise DataError(field_of, rule, remedy) from error
    return Bucket(name, objects, where, field), prefix
