"""What Hugging Face's Trainer prints: `{'loss': 2.4139, 'grad_norm': 1.2048, 'learning_rate': 4.75e-05,
'epoch': 0.15}`, often behind a progress bar, with numbers in quotes since version 5. It prints no step.
"""

from __future__ import annotations

import re
from typing import Final

from forkcast_cli.logs.base import Stateless, TextFormat, Values
from forkcast_cli.logs.numbers_in_text import NUMBER

_ENTRY: Final = re.compile(r"\{'[^{}]*\}")
_PAIR: Final = re.compile(rf"'([^']+)': '?{NUMBER}'?")


def _read(line: str) -> Values | None:
    found = _ENTRY.search(line)
    if found is None:
        return None
    values = dict(_PAIR.findall(found[0]))
    # the closing entry has `train_loss`, the mean over the run
    return values if "loss" in values or "eval_loss" in values else None


FORMAT: Final = TextFormat(
    name="Hugging Face Trainer's output",
    reader=lambda: Stateless(_read),
    note="each row is the mean over the steps since the row before; a loss that was not finite is left"
    " out of it unless the run sets logging_nan_inf_filter=False",
)
