"""The end of a run: complete.json holds the last step that was reached, and the run has ended if
that is the last step wanted now. A run whose `totalSteps` was raised goes on.
"""

from __future__ import annotations

from forkcast.ports import Store
from forkcast_wire import keys
from forkcast_wire.documents import Complete, DocumentError, dump, load
from forkcast_wire.store import AlreadyExists, Conflict, KeyMissing, StoreError

#: Other writers between a look and a write, at most; there are two at a time, a trainer and its successor.
_TRIES = 20


def ended(complete: Complete | None, total_steps: int) -> bool:
    """Whether a run of so many steps has ended with this record."""
    return complete is not None and complete.step >= total_steps


def completion(store: Store, total_steps: int) -> Complete | None:
    """complete.json, if it ends a run of so many steps. A damaged one counts as none: the trainer
    writes it again. Raises StoreError.
    """
    try:
        found = _read(store.get(keys.COMPLETE)[0])
    except KeyMissing:
        return None
    return found if ended(found, total_steps) else None


def record(store: Store, done: Complete) -> bool:
    """Write complete.json; False if an end at least as late is on record already.

    Raises StoreError.
    """
    data = dump(done)
    for _ in range(_TRIES):
        try:
            before, etag = store.get(keys.COMPLETE)
        except KeyMissing:
            try:
                store.put(keys.COMPLETE, data, create=True)
            except AlreadyExists:
                continue
            return True
        standing = _read(before)
        if standing is not None and (standing.step, standing.epoch) >= (done.step, done.epoch):
            return False
        try:
            store.put(keys.COMPLETE, data, match=etag)
        except Conflict:
            continue
        return True
    raise StoreError(f"{keys.COMPLETE}: can be neither read nor written; is it a file?")


def _read(data: bytes) -> Complete | None:
    try:
        return load(Complete, data)
    except DocumentError:
        return None
