"""Nothing that watches may end what it watches: a piece that fails is logged once and left out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger("forkcast")
P = ParamSpec("P")
T = TypeVar("T")


class Tolerance:
    """Which pieces of one watched run have failed, by name."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}

    def shield(self, piece: str, call: Callable[P, T]) -> Callable[P, T | None]:
        """``call``, which after its first error does nothing and returns None."""

        @functools.wraps(call)
        def shielded(*given: P.args, **named: P.kwargs) -> T | None:
            if piece in self.failed:
                return None
            try:
                return call(*given, **named)
            except Exception as error:  # noqa: BLE001  the training is the user's
                self.leave_out(piece, f"{type(error).__name__}: {error}")
                return None

        return shielded

    def leave_out(self, piece: str, why: Any) -> None:
        """Do without a piece from now on."""
        if piece not in self.failed:
            self.failed[piece] = str(why)
            log.warning("not measured from here on: %s (%s); training goes on", piece, why)
