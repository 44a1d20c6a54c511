"""The objects of the cluster as the watches have told of them, by kind and by run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from forkcast_wire.resources import LABEL_RUN

Body = Mapping[str, Any]
Key = tuple[str, str]


def _number(version: str) -> int:
    """Resource versions rise; one that is no number is taken as newest."""
    return int(version) if version.isascii() and version.isdecimal() else 1 << 63


def _version(body: Body) -> int:
    return _number(str(body["metadata"].get("resourceVersion", "")))


class View:
    """Newer always replaces older, wherever it comes from: a watch, a list, or our own write."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Body]] = {}

    def put(self, kind: str, body: Body) -> bool:
        """Take in an object; False if a newer one is known."""
        known = self._objects.setdefault(kind, {})
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        before = known.get(key)
        if before is not None and _version(before) > _version(body):
            return False
        known[key] = body
        return True

    def drop(self, kind: str, key: Key, uid: str | None = None) -> None:
        """The object is gone (that of the uid, where one of its name came after it)."""
        known = self._objects.get(kind, {})
        if key in known and uid in (None, known[key]["metadata"]["uid"]):
            del known[key]

    def get(self, kind: str, key: Key) -> Body | None:
        """One object."""
        return self._objects.get(kind, {}).get(key)

    def all(self, kind: str) -> list[Body]:
        """All objects of a kind."""
        return list(self._objects.get(kind, {}).values())

    def of_run(self, kind: str, run: Key) -> list[Body]:
        """The objects of a kind that belong to a run."""
        namespace, name = run
        return [
            body
            for (where, _), body in self._objects.get(kind, {}).items()
            if where == namespace and body["metadata"].get("labels", {}).get(LABEL_RUN) == name
        ]

    def settle(self, kind: str, run: Key, listed: Iterable[Body], version: str = "") -> None:
        """A fresh list of a run's objects: what is not on it is gone, whatever the watch missed.

        version: of the list. An object that is newer came after it, and stays: a list may be from
        the past, served by a cache, or overtaken on its way by a watch or by our own write.
        """
        bodies, limit = list(listed), _number(version)
        there = {body["metadata"]["name"] for body in bodies}
        for body in self.of_run(kind, run):
            if body["metadata"]["name"] not in there and _version(body) <= limit:
                self.drop(kind, (run[0], body["metadata"]["name"]))
        for body in bodies:
            self.put(kind, body)
