"""What can go wrong with a store::

StoreError
├── KeyMissing          the object does not exist
├── AlreadyExists       create-only write of a key that exists
├── Conflict            compare-and-swap against another version
├── BadKey              a key that could leave the store's prefix
├── StoreMisconfigured  the storage section cannot work as it is written: trying again is of no use
└── StoreUnavailable    the server or the disk does not answer; try again later
    ├── StoreRefused    it answers and refuses: keys, rights, bucket. It goes on when these change
    └── PassTooLong     it answers, and a pass asks for more than its time allows

A caller that may wait tries again on StoreUnavailable, however long that takes; StoreMisconfigured
is bad input (exit code 2).
"""

from __future__ import annotations

import re


class StoreError(Exception):
    """Base of all store errors."""


class KeyMissing(StoreError, LookupError):
    """The object does not exist."""


class AlreadyExists(StoreError):
    """A create-only write met an existing object."""


class Conflict(StoreError):
    """The object is not the version that was read."""


class BadKey(StoreError):
    """The key is not one that Forkcast builds."""


class StoreUnavailable(StoreError):
    """The store does not answer. why: the same for every object; by default the message."""

    def __init__(self, message: str, *, why: str = "") -> None:
        super().__init__(message)
        self.why = why or message


class StoreRefused(StoreUnavailable):
    """The store answers, and refuses: wrong or expired keys, missing rights, no such bucket."""


class PassTooLong(StoreUnavailable):
    """The store answers, and the pass has used up its time with what it asks."""


class StoreMisconfigured(StoreError):
    """The manifest's storage section cannot work as it is written; names field and remedy."""


_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def is_key(key: str) -> bool:
    """Whether the key is relative, plain (no percent sign, backslash, NUL) and free of '..'."""
    return len(key) <= 512 and ".." not in key and _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """The key itself. Raises BadKey unless `is_key`."""
    if not is_key(key):
        raise BadKey(f"not a store key: {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself: the beginning of a key, or ''. Raises BadKey for any other."""
    if prefix and not is_key(prefix.removesuffix("/")):
        raise BadKey(f"not a prefix of store keys: {prefix!r}")
    return prefix
