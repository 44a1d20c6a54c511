"""A store that holds one object, in memory."""

from forkcast.ports import ObjectInfo
from forkcast_wire.store import KeyMissing


class OneObject:
    """Only what readers ask of a store."""

    def __init__(self, key, data):
        self._key, self._data = key, data

    def get(self, key):
        if key != self._key:
            raise KeyMissing(key)
        return self._data, "etag"

    def head(self, key):
        return ObjectInfo(key, len(self._data), "etag") if key == self._key else None

    def list(self, prefix):
        if self._key.startswith(prefix):
            yield ObjectInfo(self._key, len(self._data), "etag")
