"""Enumerated crash points: every call to the outside has a name, and a test can die exactly there.

Without the environment variables this costs one comparison a call. With
``FORKCAST_CRASH_LOG=FILE`` each point that is reached is appended to FILE as
``<component> <point> <occurrence>``. With ``FORKCAST_CRASH=<component>/<point>/<occurrence>:FILE``
the process kills itself with SIGKILL when it reaches that point, once: FILE is created first, and
where it exists already nothing happens, so that the restarted process gets past. Several of them are
separated by semicolons; a process counts occurrences from its own start.

``FORKCAST_WAIT=<component>/<point>/<occurrence>:FILE`` makes the process wait at that point until
FILE exists: what a test has to see before the run goes on then comes first on any machine. Several of
them are separated by semicolons.

``FORKCAST_PACE=<component>/<point>:SECONDS`` makes every arrival there take that much longer: a tiny
model takes all its steps while a killed process is being started again, a real one does not.

A fault suite runs a scenario once with the log, and then once for each point of the log.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from forkcast.ports import ObjectInfo, Store

_LOG = os.environ.get("FORKCAST_CRASH_LOG")


def _files(variable: str) -> dict[str, str]:
    """The file of each point that the variable names."""
    parts = (one.rpartition(":") for one in os.environ.get(variable, "").split(";"))
    return {point: file for point, _, file in parts if point}


_MARKERS, _AWAITED = _files("FORKCAST_CRASH"), _files("FORKCAST_WAIT")
_PACED, _, _SECONDS = os.environ.get("FORKCAST_PACE", "").rpartition(":")
ENABLED = bool(_LOG or _MARKERS or _AWAITED or _PACED)
_LOOK_SECONDS = 0.02
_reached: Counter[str] = Counter()
_lock = threading.Lock()


def reach(point: str) -> None:
    """Say that the named point is reached; die here if this is the one."""
    if not ENABLED:
        return
    component = os.environ.get("FORKCAST_COMPONENT", "unknown")
    if f"{component}/{point}" == _PACED:
        time.sleep(float(_SECONDS))
    with _lock:
        _reached[point] += 1
        occurrence = _reached[point]
    if _LOG:
        line = f"{component} {point} {occurrence}\n".encode()
        descriptor = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line)
        os.close(descriptor)
    awaited = _AWAITED.get(f"{component}/{point}/{occurrence}")
    while awaited is not None and not os.path.exists(awaited):  # noqa: PTH110  as it is given
        time.sleep(_LOOK_SECONDS)
    marker = _MARKERS.get(f"{component}/{point}/{occurrence}")
    if marker is not None:
        try:
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def _family(key: str) -> str:
    """The kind of object a key names, e.g. ``rollouts.trial``: stable over epochs and steps."""
    folder, _, rest = key.partition("/")
    name = (rest or folder).rpartition("/")[2].split(".")[0]
    kind = "".join(c for c in name if not c.isdigit()).strip("-_")
    return ".".join(part for part in (folder if rest else "", kind) if part)


class CrashingStore:
    """A Store whose every write has a crash point before and after it."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def get(self, key: str) -> tuple[bytes, str]:
        """As the store behind it."""
        return self._inner.get(key)

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """As the store behind it."""
        reach(f"before-put:{_family(key)}")
        etag = self._inner.put(key, data, create=create, match=match)
        reach(f"after-put:{_family(key)}")
        return etag

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """As the store behind it."""
        reach(f"before-put:{_family(key)}")
        etag = self._inner.put_file(key, path, create=create)
        reach(f"after-put:{_family(key)}")
        return etag

    def get_file(self, key: str, path: Path) -> None:
        """As the store behind it."""
        self._inner.get_file(key, path)

    def head(self, key: str) -> ObjectInfo | None:
        """As the store behind it."""
        return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the store behind it."""
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        """As the store behind it."""
        reach(f"before-delete:{_family(key)}")
        self._inner.delete(key)
        reach(f"after-delete:{_family(key)}")
