"""How long an operation on the store may take: in total, in silence, and at what pace at least.

A limit is in force for whatever the thread does inside the ``with``; limits nest, and the shortest
holds. `deadline` is the caller's: a reconcile pass or a command gives itself so many seconds,
whatever it asks of the store. All clocks are monotonic.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from forkcast_wire.store.errors import StoreError

T = TypeVar("T")
#: A document's operation, retries included, and one silence within it, seconds.
DOCUMENT_SECONDS, DOCUMENT_SILENCE = 10.0, 4.0
#: A file's: no total, but no silence longer than this, seconds, and no slower pace, bytes/s, after
#: the first seconds.
FILE_SILENCE, FILE_PACE, FILE_GRACE = 30.0, 256.0, 60.0
#: The longest object that is read as a whole: whoever may write into a prefix must not use up the memory
#: of those who read there. A chunk of the history has some hundred KiB.
MOST_DOCUMENT_BYTES = 32 << 20
#: Objects that one pass lists: a run with a thousand branches has fewer.
MOST_KEYS = 100_000


@dataclass
class Limit:
    """until: monotonic seconds; silence: the longest single wait, seconds; pace: bytes/s that
    lengthen `until`, 0 for a total that nothing lengthens.
    """

    until: float
    silence: float
    pace: float = 0.0
    outer: Limit | None = None
    moved: int = field(default=0)

    def left(self) -> float:
        """Seconds until the earliest end; negative when it is over."""
        own = self.until + (self.moved / self.pace if self.pace else 0.0) - time.monotonic()
        return min(own, self.outer.left()) if self.outer else own


_limit: ContextVar[Limit | None] = ContextVar("limit", default=None)


def current() -> Limit | None:
    """The innermost limit in force."""
    return _limit.get()


def left() -> float:
    """Seconds until the limit in force ends; infinite without a limit."""
    limit = _limit.get()
    return math.inf if limit is None else limit.left()


def wait() -> float:
    """Seconds that one wait for the network may take. Raises TimeoutError when time is up."""
    limit = _limit.get()
    if limit is None:
        return FILE_SILENCE
    if (seconds := limit.left()) <= 0:
        raise TimeoutError("no whole answer in time")
    return min(seconds, limit.silence)


def count(size: int) -> None:
    """So many bytes have come or gone."""
    if (limit := _limit.get()) is not None:
        limit.moved += size


@contextmanager
def limited(limit: Limit) -> Iterator[Limit]:
    """Put a limit in force, within those that are."""
    limit.outer = _limit.get()
    token = _limit.set(limit)
    try:
        yield limit
    finally:
        _limit.reset(token)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """All store operations inside end within ``seconds``, with StoreUnavailable if they must.

    It holds for this thread (and for `asyncio.to_thread` from within), not for threads started
    inside by other means.
    """
    with limited(Limit(time.monotonic() + seconds, math.inf)):
        yield


_most_keys: ContextVar[int | None] = ContextVar("most_keys", default=None)


@contextmanager
def keys_at_most(most: int) -> Iterator[None]:
    """No list inside goes on beyond so many objects: it ends with StoreError."""
    token = _most_keys.set(most)
    try:
        yield
    finally:
        _most_keys.reset(token)


def bounded(listed: Iterable[T]) -> list[T]:
    """All that is listed. Raises StoreError once there are more than `keys_at_most` allows."""
    most = _most_keys.get()
    found = list(itertools.islice(listed, None if most is None else most + 1))
    if most is not None and len(found) > most:
        raise StoreError(f"more than {most} objects below the prefix; no run has so many")
    return found


def check_length(key: str, size: int) -> None:
    """Raises StoreError for what is too long to be read as a whole, bytes."""
    if size > MOST_DOCUMENT_BYTES:
        raise StoreError(f"{key}: is longer than {MOST_DOCUMENT_BYTES >> 20} MiB; no record is")


def of_document() -> Limit:
    """The limit of one operation on a small object."""
    return Limit(time.monotonic() + DOCUMENT_SECONDS, DOCUMENT_SILENCE)


def of_file() -> Limit:
    """The limit of one try to move a file: bounded by progress, not by its size."""
    return Limit(time.monotonic() + FILE_GRACE, FILE_SILENCE, FILE_PACE)
