"""Which of a log's names are measured inside the model: the attention's entropy, its largest logit. Pure.

A name counts only if each of its words is known: `teacher/attn_entropy`, `attn_entropy_min` or
`attn_entropy/head_3` is something else. Names of one column a layer are one stem, with ``*`` for the layer.
Of two stems that mean different things none is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

_NUMBER: Final = re.compile(r"\d+")
_WORDS: Final = re.compile(r"[a-z]+")
LAYER: Final = "*"
#: Say nothing of what is measured: where it was logged, and of which layer.
_NEUTRAL: Final = frozenset(
    [
        "train",
        "training",
        "trainer",
        "metrics",
        "log",
        "logs",
        "stats",
        "model",
        "module",
        "transformer",
        "decoder",
        "internals",
        "inside",
        "monitor",
        "monitoring",
        "debug",
        "diagnostics",
        "self",
        "layer",
        "layers",
        "block",
        "blocks",
        "l",
        "h",
    ]
)
_ATTENTION: Final = frozenset({"attention", "attn"})
_MEAN: Final = frozenset({"mean", "avg", "average", "normalized", "normalised", "relative"})
_LARGEST: Final = frozenset({"max", "maximum", "largest", "peak"})


class Inside(StrEnum):
    """What is measured. ENTROPY: mean entropy of the attention, of its most, by layer or of all layers.
    LOGIT: the largest attention logit.
    """

    ENTROPY = "attention_entropy"
    LOGIT = "attention_logit_max"


def stem(kind: Inside, name: str) -> str | None:
    """The name with ``*`` for the layer's number, if it is a name of what is measured."""
    return None if _meaning(kind, name) is None else _NUMBER.sub(LAYER, name)


def layer(stem: str, name: str) -> int | None:
    """The layer that a name of a stem is of, 0 if the stem has none; None for another name."""
    if LAYER not in stem:
        return 0 if name == stem else None
    before, _, after = stem.partition(LAYER)
    number = name.removeprefix(before).removesuffix(after)
    whole = name == f"{before}{number}{after}"
    return int(number) if whole and number.isdecimal() and len(number) < 10 else None


def choose(kind: Inside, names: Iterable[str]) -> tuple[str | None, list[str]]:
    """The stem to take, or the stems among which none can be told to be the right one."""
    meanings: dict[frozenset[str], list[str]] = {}
    for name in names:
        meaning, found = _meaning(kind, name), stem(kind, name)
        if meaning is not None and found is not None:
            meanings.setdefault(meaning, []).append(found)
    if len(meanings) > 1:
        return None, sorted({one for stems in meanings.values() for one in stems})
    for stems in meanings.values():
        # of each layer rather than their mean; then what has the least around it
        return min(stems, key=lambda one: (LAYER not in one, len(_WORDS.findall(one)))), []
    return None, []


def _meaning(kind: Inside, name: str) -> frozenset[str] | None:
    """The words that say what is measured; None if they do not say that it is this."""
    if len(_NUMBER.findall(name)) > 1:
        return None
    words = _WORDS.findall(name.lower())
    said = frozenset(words) - _NEUTRAL
    where = said & (_ATTENTION if kind is Inside.ENTROPY else _ATTENTION | {"qk"})
    if kind is Inside.ENTROPY:
        fits = "entropy" in said and said <= where | _MEAN | {"entropy"}
    else:
        what, largest = said & {"logit", "logits"}, said & _LARGEST
        fits = len(what) == len(largest) == 1 and said == where | what | largest
    return said if fits and len(where) == 1 else None
