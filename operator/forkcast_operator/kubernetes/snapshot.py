"""A run's store as one LIST shows it: what is known by its entity tag is not read again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from forkcast.ports import ObjectInfo, Store
from forkcast_wire.store import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    StoreError,
    StoreUnavailable,
    deadline,
)

T = TypeVar("T")
#: Store time of one pass, seconds.
PASS_SECONDS: Final = 12.0
#: The records that an operator reads are some KiB; one beyond this is not the work of Forkcast.
_MOST_BYTES: Final = 8 << 20
#: All records of one run that are kept in memory; tens of KiB a branch.
_MOST_KEPT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class _Known:
    """An object's bytes. listed: its tag in the list at the time it was read."""

    listed: str
    data: bytes
    etag: str


class Snapshot:
    """`Store` over another one, for the passes over one run's records; of one thread at a time.

    `refresh` lists the prefix once. Until the next one `list`, `head` and missing keys cost no
    request, and an object is read only if its tag has changed since it was read last; this object's
    own writes show at once. What another process writes meanwhile shows at the next `refresh`, so
    steps that must see it (pins, and whether a pinned state is still there) go to ``direct``.

    A pass whose requests have taken `PASS_SECONDS` ends with StoreUnavailable.
    """

    def __init__(self, direct: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.direct, self._clock = direct, clock
        self._listed: dict[str, ObjectInfo] | None = None
        self._known: dict[str, _Known] = {}
        self._kept = 0
        self._spent = 0.0

    def refresh(self) -> None:
        """Begin a pass: list the prefix."""
        self._spent = 0.0
        found = self._timed(lambda: list(self.direct.list("")))
        self._listed = {info.key: info for info in found}
        for key in self._known.keys() - self._listed.keys():
            self._drop(key)

    def forget(self, prefix: str) -> None:
        """Drop the bytes of objects that nobody is going to read again."""
        for key in [key for key in self._known if key.startswith(prefix)]:
            self._drop(key)

    def _timed(self, call: Callable[[], T]) -> T:
        left = PASS_SECONDS - self._spent
        if left <= 0:
            why = f"a pass over the run's records takes more than {PASS_SECONDS:g} s"
            raise StoreUnavailable(why)
        started = self._clock()
        try:
            with deadline(left):
                return call()
        finally:
            self._spent += self._clock() - started

    def _index(self) -> dict[str, ObjectInfo]:
        if self._listed is None:
            self.refresh()
        assert self._listed is not None
        return self._listed

    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing; StoreError for an object that is no record."""
        info = self._index().get(key)
        if info is None:
            raise KeyMissing(key)
        if info.size > _MOST_BYTES:
            raise StoreError(f"{key}: {info.size} bytes are too many for a record")
        known = self._known.get(key)
        if known is not None and info.etag and known.listed == info.etag:
            return known.data, known.etag
        try:
            data, etag = self._timed(lambda: self.direct.get(key))
        except KeyMissing:
            self._forget(key)
            raise
        self._keep(key, _Known(info.etag, data, etag))
        return data, etag

    def _keep(self, key: str, known: _Known) -> None:
        """Remember what was read; beyond `_MOST_KEPT_BYTES` what was read first is read again."""
        self._drop(key)
        self._known[key] = known
        self._kept += len(known.data)
        while self._kept > _MOST_KEPT_BYTES:
            self._drop(next(iter(self._known)))

    def _drop(self, key: str) -> None:
        known = self._known.pop(key, None)
        self._kept -= len(known.data) if known is not None else 0

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """See `forkcast.ports.Store`."""
        if create and key in self._index():
            raise AlreadyExists(key)
        try:
            etag = self._timed(lambda: self.direct.put(key, data, create=create, match=match))
        except (AlreadyExists, Conflict):
            self._forget(key)
            self._look_up(key)
            raise
        self._index()[key] = ObjectInfo(key, len(data), etag)
        self._keep(key, _Known(etag, data, etag))
        return etag

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """See `forkcast.ports.Store`."""
        etag = self._timed(lambda: self.direct.put_file(key, path, create=create))
        self._drop(key)
        self._index()[key] = ObjectInfo(key, path.stat().st_size, etag)
        return etag

    def get_file(self, key: str, path: Path) -> None:
        """See `forkcast.ports.Store`."""
        self._timed(lambda: self.direct.get_file(key, path))

    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts as listed, None if it does not exist."""
        return self._index().get(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""
        index = self._index()
        return iter([index[key] for key in sorted(index) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        """Delete; a missing key is success."""
        self._timed(lambda: self.direct.delete(key))
        self._forget(key)

    def _forget(self, key: str) -> None:
        self._drop(key)
        self._index().pop(key, None)

    def _look_up(self, key: str) -> None:
        """Somebody else has written the key since the list."""
        info = self._timed(lambda: self.direct.head(key))
        if info is not None:
            self._index()[key] = info
