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
    """The store does not answer."""


_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def check_key(key: str) -> str:
    """The key itself. Raises BadKey unless it is relative, plain and has no '..' part."""
    if len(key) > 512 or not _KEY.fullmatch(key) or ".." in key:
        raise BadKey(f"not a store key: {key!r}")
    return key
