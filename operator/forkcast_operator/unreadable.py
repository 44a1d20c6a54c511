"""What a peer sends and nobody can read: left out, so that the rest of the stream or answer counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import structlog

_log = structlog.get_logger()
_MOST_RUNS: Final = 10_000
_MOST_UID, _MOST_REASON = 64, 256


class OfRun(Protocol):
    """A message about one run."""

    @property
    def run_uid(self) -> str:
        """The run's uid, as the peer names it."""


M = TypeVar("M", bound=OfRun)
T = TypeVar("T")


class Reader:
    """Reads messages of one kind. event: what is logged of a message that is left out, once for each
    run and at most `_MOST_RUNS` times, whatever uids a peer makes up.
    """

    def __init__(self, event: str) -> None:
        self._event, self._told = event, set[str]()

    def read(self, decode: Callable[[M], T], message: M) -> T | None:
        """The decoded message; None if ``decode`` raises ValueError."""
        try:
            return decode(message)
        except ValueError as error:
            uid = message.run_uid[:_MOST_UID]
            if uid not in self._told and len(self._told) < _MOST_RUNS:
                self._told.add(uid)
                _log.error(self._event, run_uid=uid, reason=str(error)[:_MOST_REASON])
            return None
