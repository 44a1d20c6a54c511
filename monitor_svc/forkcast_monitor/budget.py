"""What one run may take of the monitor beyond its share of the time: bounded here, on the server's side,
because a trainer may be of another version, or not be one.
"""

from __future__ import annotations

from typing import Final, Literal

What = Literal["attempts", "gaps", "disk"]
WHATS: Final[tuple[What, ...]] = ("attempts", "gaps", "disk")
#: Of one run's history, some ten million steps.
RUN_DISK_BYTES = 4 << 30


class OverBudgetError(RuntimeError):
    """The run has used up what it may take. what: of which."""

    def __init__(self, what: What, message: str) -> None:
        super().__init__(message)
        self.what: What = what
