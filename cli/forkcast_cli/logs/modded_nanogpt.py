"""modded-nanogpt's logs: `step:251/6200 train_loss:4.8123 train_time:52310ms step_avg:216.60ms`, after
some thousand lines of the run's own source code.
"""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_LINE: Final = re.compile(rf"step:(\d+)/\d+ (train_loss|val_loss):{NUMBER}")


def _read(line: str) -> Values | None:
    found = _LINE.match(line)
    return {"step": found[1], found[2]: found[3]} if found else None


FORMAT: Final = TextFormat(
    name="modded-nanogpt", reader=lambda: Stateless(_read), note="each loss is that of one rank"
)
