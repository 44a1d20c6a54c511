"""Any text that has `name: number`, `name=number` or `name number` in its lines: the last resort, for
loops of one's own that print.

A name is up to three words. All its endings are given as names (`my train loss` is `train loss` and
`loss`, too), unless that would drop a word which says that it is not the training loss. A number with a
decimal comma is passed over: half of it would be another number.
"""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.names import spoils
from forkcast_cli.logs.numbers_in_text import NUMBER

_WORD: Final = r"[A-Za-z_][\w/.-]{0,60}"
_PAIR: Final = re.compile(
    rf"(?<![\w/.-])((?:{_WORD} ){{0,2}}{_WORD})(?:\s*[:=]\s*|\s+)(?:tensor)?[\[(]?\s*{NUMBER}(?![\w.]|,\d)"
)
#: The counter of a progress bar of tqdm, or of Keras; tqdm calls it `it`.
_BAR: Final = re.compile(r"(?<![\w/.-])(\d+)/(?:\d+|\?) (?:\[(?:\d+:|[=>.])|\u2501)")
#: The same in brackets, as torch's examples print it: `Epoch: [0][ 12/400]`, `Epoch: 1 [640/60000 (1%)]`.
#: Of several the one that goes furthest: others count ranks or epochs.
_COUNTER: Final = re.compile(r"\[ *(\d+)/ *(\d+)(?: *\( *\d+%\))? *\]")
_LONGEST: Final = 2000


def _read(line: str) -> Values | None:
    values: dict[str, str] = {}
    for name, number in _PAIR.findall(line[:_LONGEST]):
        words = name.split(" ")
        while words:
            values.setdefault(" ".join(words), number)
            if spoils(words[0]):
                break
            words = words[1:]
    if bar := _BAR.search(line[:_LONGEST]):
        values.setdefault("it", bar[1])
    elif counters := _COUNTER.findall(line[:_LONGEST]):
        values.setdefault("it", max(counters, key=lambda one: int(one[1]))[0])
    return values or None


FORMAT: Final = TextFormat(name="text with names and numbers", reader=lambda: Stateless(_read))
