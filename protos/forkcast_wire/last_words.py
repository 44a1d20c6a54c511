"""Why a trainer ended, in one line that whoever started it finds: the supervisor in its log, the
operator in the pod's termination message. Of several ranks each may say it; the newest counts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

#: What the kubelet shows as a container's last words; elsewhere there is no such file.
TERMINATION_LOG: Final = Path("/dev/termination-log")
#: The exit code of a run that is trained and saved to its end, which is not on record yet.
NOT_RECORDED: Final = 4
_LINE: Final = re.compile(r"ended: (?P<reason>[A-Za-z]+): (?P<text>.+)")
_MOST: Final = 500


class Ended(StrEnum):
    """Reasons, as conditions name them."""

    NO_USABLE_STATE = "NoUsableState"
    HUNG = "Hung"
    END_NOT_RECORDED = "EndNotRecorded"


@dataclass(frozen=True, slots=True)
class LastWords:
    """A reason, and what it is about."""

    reason: Ended
    text: str

    @property
    def line(self) -> str:
        """As `say` prints it."""
        return f"ended: {self.reason}: {self.text}"

    def __str__(self) -> str:
        return f"{self.reason}: {self.text}"


def say(reason: Ended, text: str) -> None:
    """As the last line of this process's log, and as its container's last words."""
    line = LastWords(reason, " ".join(text.split())[:_MOST]).line
    with suppress(OSError):  # a log that cannot be written ends nothing in another way
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    if TERMINATION_LOG.is_file():
        with suppress(OSError):
            TERMINATION_LOG.write_text(f"{line}\n")


def heard(lines: Iterable[str]) -> LastWords | None:
    """The newest such line, None if there is none."""
    found = None
    for line in lines:
        match = _LINE.fullmatch(line.strip())
        if match is not None and match["reason"] in {*Ended}:
            found = LastWords(Ended(match["reason"]), match["text"])
    return found
