"""A store whose documents are read again only after a list has shown another version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forkcast.ports import ObjectInfo, Store


class Remembered:
    """For who polls: after ``list(prefix)``, ``get`` of a listed key answers from memory while the
    etag is the one remembered, so that what has not changed costs the list alone.

    A document is thus as new as the last list that held it; a key that no list has shown is read
    from the store. Folders list no etags: there, too, everything is read. One thread uses it; who
    does not list, as a child of a fork, uses the store behind it, or sees the past without end.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._etags: dict[str, str] = {}
        self._read: dict[str, tuple[bytes, str]] = {}

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the store behind it."""
        found = list(self._inner.list(prefix))
        for known in [key for key in self._etags if key.startswith(prefix)]:
            del self._etags[known]
        self._etags.update({info.key: info.etag for info in found if info.etag})
        for gone in [k for k in self._read if k.startswith(prefix) and k not in self._etags]:
            del self._read[gone]
        return iter(found)

    def get(self, key: str) -> tuple[bytes, str]:
        """As the store behind it, or from memory."""
        listed = self._etags.get(key)
        if listed is not None and (held := self._read.get(key)) is not None and held[1] == listed:
            return held
        read = self._inner.get(key)
        if listed is not None:
            self._read[key] = read
        return read

    def head(self, key: str) -> ObjectInfo | None:
        """As the store behind it."""
        return self._inner.head(key)

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """As the store behind it."""
        self._etags.pop(key, None)
        return self._inner.put(key, data, create=create, match=match)

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """As the store behind it."""
        return self._inner.put_file(key, path, create=create)

    def get_file(self, key: str, path: Path) -> None:
        """As the store behind it."""
        self._inner.get_file(key, path)

    def delete(self, key: str) -> None:
        """As the store behind it."""
        self._etags.pop(key, None)
        self._inner.delete(key)
