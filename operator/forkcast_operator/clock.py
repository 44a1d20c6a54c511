"""The time of branches: Unix seconds that go on steadily, however the machine's clock is set.

A deadline is stored in Unix seconds, so that it goes on while no operator runs. The machine's own clock
may jump by an hour when it is corrected, and would end a branch or keep it open; so it is read once,
when the process starts.
"""

from __future__ import annotations

import time

_UNIX, _STEADY = time.time(), time.monotonic()


def now() -> float:
    """Unix seconds, as the machine's clock had them at the start of the process, and since then by its
    monotonic clock.
    """
    return _UNIX + (time.monotonic() - _STEADY)
