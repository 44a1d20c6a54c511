"""A store as its lists show it: a document is read again only if its entity tag has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from forkcast.ports import ObjectInfo, Store
from forkcast_wire.store.errors import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    PassTooLong,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from forkcast_wire.store.limits import MOST_KEYS, deadline, keys_at_most

T = TypeVar("T")
#: Records are some KiB; a larger object is not the work of Forkcast.
_MOST_BYTES: Final = 8 << 20
#: Bytes that are kept in memory: all records of one run are tens of KiB a branch.
_MOST_KEPT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class _Known:
    """An object's bytes. listed: its tag in the list at the time it was read."""

    listed: str
    data: bytes
    etag: str


class Remembered:
    """`Store` over another one, for passes over the same records again and again; of one thread.

    `refresh` begins a pass. In it a prefix is listed once; after that `list`, `head` and missing keys
    below the prefix cost no request, and an object there is read only if its tag has changed since it
    was read last. Own writes show at once. What another process writes meanwhile shows in the next
    pass, so steps that must see it (pins, and whether a pinned state is still there) go to
    ``direct``; so does every key that no list of the pass covers. Folders list no tags: there every
    object is read.
    """

    def __init__(
        self,
        direct: Store,
        *,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """seconds: a pass whose requests have taken so long ends with PassTooLong, and one that
        lists more than `MOST_KEYS` with StoreError.
        """
        self.direct, self._seconds, self._clock = direct, seconds, clock
        self._covered: set[str] = set()
        self._listed: dict[str, ObjectInfo] = {}
        self._known: dict[str, _Known] = {}
        self._kept = 0
        # seconds of this pass, by whether the requests were answered; why not
        self._answered, self._silent, self._why = 0.0, 0.0, ""

    def begin(self) -> None:
        """Begin a pass: its time counts from now. What the last one's lists showed still holds."""
        self._answered, self._silent = 0.0, 0.0

    def refresh(self) -> None:
        """Begin a pass; what the lists showed is asked for again, when it is needed."""
        self.begin()
        self._covered.clear()

    def forget(self, prefix: str) -> None:
        """Drop the bytes of objects that nobody is going to read again."""
        for key in [key for key in self._known if key.startswith(prefix)]:
            self._drop(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""
        if not self._covers(prefix):
            found = {info.key: info for info in self._timed(lambda: list(self.direct.list(prefix)))}
            kept = {k: info for k, info in self._listed.items() if not k.startswith(prefix)}
            self._listed = {**kept, **found}
            self._covered.add(prefix)
            for key in [key for key in self._known if key.startswith(prefix) and key not in found]:
                self._drop(key)
        return iter([self._listed[key] for key in sorted(self._listed) if key.startswith(prefix)])

    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing; StoreError for an object that is no record."""
        if not self._covers(key):
            return self._timed(lambda: self.direct.get(key))
        info = self._listed.get(key)
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

    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None if it does not exist."""
        if not self._covers(key):
            return self._timed(lambda: self.direct.head(key))
        return self._listed.get(key)

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """See `forkcast.ports.Store`."""
        if create and self._covers(key) and key in self._listed:
            raise AlreadyExists(key)
        try:
            etag = self._timed(lambda: self.direct.put(key, data, create=create, match=match))
        except (AlreadyExists, Conflict):
            self._look_up(key)
            raise
        self._listed[key] = ObjectInfo(key, len(data), etag)
        self._keep(key, _Known(etag, data, etag))
        return etag

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """See `forkcast.ports.Store`."""
        etag = self._timed(lambda: self.direct.put_file(key, path, create=create))
        self._drop(key)
        self._listed[key] = ObjectInfo(key, path.stat().st_size, etag)
        return etag

    def get_file(self, key: str, path: Path) -> None:
        """See `forkcast.ports.Store`."""
        self._timed(lambda: self.direct.get_file(key, path))

    def delete(self, key: str) -> None:
        """Delete; a missing key is success."""
        self._timed(lambda: self.direct.delete(key))
        self._forget(key)

    def _covers(self, key: str) -> bool:
        """Whether a list of this pass has shown everything that begins with the key."""
        return any(key.startswith(prefix) for prefix in self._covered)

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

    def _forget(self, key: str) -> None:
        self._drop(key)
        self._listed.pop(key, None)

    def _look_up(self, key: str) -> None:
        """Somebody else has written the key since the list."""
        self._forget(key)
        info = self._timed(lambda: self.direct.head(key))
        if info is not None:
            self._listed[key] = info

    def _timed(self, call: Callable[[], T]) -> T:
        if self._seconds is None:
            return call()
        left = self._seconds - self._answered - self._silent
        if left <= 0:
            raise self._ended(self._seconds) from None
        started, answered = self._clock(), True
        try:
            with deadline(left), keys_at_most(MOST_KEYS):
                return call()
        except StoreRefused:
            raise
        except StoreUnavailable as error:
            answered, self._why = False, error.why
            if self._too_long(self._seconds):
                raise self._ended(self._seconds) from error
            raise
        finally:
            took = self._clock() - started
            if answered:
                self._answered += took
            else:
                self._silent += took

    def _too_long(self, seconds: float) -> bool:
        """Whether most of a pass went to requests that were answered. One that waited for answers met
        an outage, whatever it has asked after the first of them.
        """
        return self._answered > seconds / 2

    def _ended(self, seconds: float) -> StoreUnavailable:
        """What ends a pass that has no time left."""
        if self._too_long(seconds):
            return PassTooLong(f"a pass over the run's records takes more than {seconds:g} s")
        return StoreUnavailable(self._why)
