"""Where checkpoints, lineage and decisions stand: a folder or any S3 API, behind one protocol."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from forkcast.ports import Store
from forkcast_wire import crash
from forkcast_wire.documents import dump, load, load_at
from forkcast_wire.manifest import Storage
from forkcast_wire.store.errors import (
    AlreadyExists,
    BadKey,
    Conflict,
    KeyMissing,
    PassTooLong,
    StoreError,
    StoreMisconfigured,
    StoreRefused,
    StoreUnavailable,
)
from forkcast_wire.store.folder import FolderStore
from forkcast_wire.store.limits import deadline
from forkcast_wire.store.remembered import Remembered
from forkcast_wire.store.waiting import wait_for

__all__ = [
    "AlreadyExists",
    "BadKey",
    "Conflict",
    "FolderStore",
    "KeyMissing",
    "PassTooLong",
    "Remembered",
    "StoreError",
    "StoreMisconfigured",
    "StoreRefused",
    "StoreUnavailable",
    "deadline",
    "open_store",
    "put_document",
    "read_document",
    "update_document",
    "wait_for",
]

T = TypeVar("T")
_SWAPS = 64


def open_store(storage: Storage, workdir: Path, *, write: bool = True) -> Store:
    """The store that a manifest names: one a process, kept for its life.

    write: whether the caller will write. Then the store is tried first: reached, and asked whether
    it honours conditional writes (which writes and deletes a key). Without, nothing is asked of a
    server, and nothing is created in a folder.

    Raises StoreUnavailable if it cannot be reached or refuses, StoreMisconfigured if the
    storage section cannot work.
    """
    store: Store
    if storage.bucket is not None:
        from forkcast_wire.store.s3 import S3Store  # the client is slow to import

        store = S3Store.connect(storage) if write else S3Store(storage)
    else:
        store = FolderStore(Path(storage.path) if storage.path else workdir, create=write)
    return crash.CrashingStore(store) if crash.ENABLED else store


def put_document(store: Store, key: str, record: object) -> bool:
    """Create the document; True if this call created it, False if it stood there already.

    Raises AlreadyExists if another document stands under the key: the caller was superseded.
    """
    data = dump(record)
    try:
        store.put(key, data, create=True)
    except AlreadyExists:
        if store.get(key)[0] != data:
            raise
        return False
    return True


def read_document(store: Store, kind: type[T], key: str) -> T | None:
    """The document, or None if there is none. Raises DocumentError if it is damaged."""
    try:
        return load_at(store, kind, key)
    except KeyMissing:
        return None


def update_document(
    store: Store, kind: type[T], key: str, default: T, change: Callable[[T], T]
) -> T:
    """Change a document by compare-and-swap; returns what stands there afterwards.

    ``change`` may be called several times. Raises Conflict after 64 lost races.
    """
    for lost in range(_SWAPS):
        try:
            data, etag = store.get(key)
            before = load(kind, data)
        except KeyMissing:
            before, etag = default, None
        after = change(before)
        if after == before and etag is not None:
            return after
        try:
            if etag is None:
                store.put(key, dump(after), create=True)
            else:
                store.put(key, dump(after), match=etag)
        except (Conflict, AlreadyExists):
            time.sleep(secrets.randbelow(1000) / 1e6 * (lost + 1))
            continue
        return after
    raise Conflict(f"{key}: lost {_SWAPS} races")
