"""A store in memory whose every access can be interleaved with those of others, or be the last."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from forkcast.ports import ObjectInfo
from forkcast_wire.store import AlreadyExists, Conflict, KeyMissing


def at_once(_access: str, _key: str) -> None:
    """Nothing stands before an access."""


class MemoryStore:
    """A Store. ``before`` is called before every access, with its name and key."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects: dict[str, bytes] = {} if objects is None else objects
        self.before: Callable[[str, str], None] = at_once

    def get(self, key: str) -> tuple[bytes, str]:
        self.before("get", key)
        if key not in self.objects:
            raise KeyMissing(key)
        return self.objects[key], _etag(self.objects[key])

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        self.before("put", key)
        if create and key in self.objects:
            raise AlreadyExists(key)
        if match is not None and _etag(self.objects.get(key, b"")) != match:
            raise Conflict(key)
        self.objects[key] = data
        return _etag(data)

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        return self.put(key, path.read_bytes(), create=create)

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key)[0])

    def head(self, key: str) -> ObjectInfo | None:
        self.before("head", key)
        data = self.objects.get(key)
        return None if data is None else ObjectInfo(key, len(data), _etag(data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.before("list", prefix)
        found = sorted(key for key in self.objects if key.startswith(prefix))
        return iter([ObjectInfo(key, len(self.objects[key]), "") for key in found])

    def delete(self, key: str) -> None:
        self.before("delete", key)
        self.objects.pop(key, None)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Died(BaseException):
    """This actor was killed; nothing that catches errors may catch it."""


class Interleaving:
    """Runs actors as threads of which one at a time moves, from one access of its store to the
    next; which one is drawn from ``chaos``, and so is who dies at an access.
    """

    def __init__(self, chaos: random.Random, death_rate: float) -> None:
        self._chaos, self._death_rate = chaos, death_rate
        self._objects: dict[str, bytes] = {}
        self._turns: dict[str, threading.Semaphore] = {}
        self._moved = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.store = MemoryStore(self._objects)  # outside of the game: for checks

    def actor(self, name: str, body: Callable[[MemoryStore], None]) -> None:
        """Add an actor. One that dies begins its body again, as a restarted process would."""
        store, turn = MemoryStore(self._objects), threading.Semaphore(0)

        def access(access: str, key: str) -> None:
            if access == "get" and key.endswith("/manifest.json"):
                return  # nobody changes one: a move of its own would only cost time
            self._moved.release()
            turn.acquire()
            if self._chaos.random() < self._death_rate:
                raise Died

        def run() -> None:
            turn.acquire()
            try:
                while True:
                    try:
                        body(store)
                    except Died:
                        continue
                    return
            except BaseException as error:  # noqa: BLE001  handed to the test
                self._errors.append(error)
            finally:
                del self._turns[name]
                self._moved.release()

        store.before = access
        self._turns[name] = turn
        self._threads.append(threading.Thread(target=run, daemon=True))

    def run(self, check: Callable[[], None]) -> None:
        """To the end of all actors; ``check`` is called after every move."""
        for thread in self._threads:
            thread.start()
        while self._turns and not self._errors:
            self._turns[self._chaos.choice(sorted(self._turns))].release()
            self._moved.acquire()
            check()
        if self._errors:
            raise self._errors[0]
