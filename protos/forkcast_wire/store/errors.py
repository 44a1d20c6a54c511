"""What can go wrong with a store::

StoreError
├── KeyMissing          the object does not exist
├── AlreadyExists       create-only write of a key that exists
├── Conflict            compare-and-swap against another version
├── BadKey              a key that could leave the store's prefix
└── StoreUnavailable    the server or the disk does not answer; try again later
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
