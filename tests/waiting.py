"""Waiting for what a process, a thread or a server does: the one place where tests look at a clock.

Every wait has the same bound, so long that only what hangs meets it, on a busy machine, too. It is
never the verdict. That something comes soon enough, or not too soon, is counted (requests, steps,
passes) or shown on a clock that the test moves; test_no_pace.py refuses the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import pytest

#: What takes longer than this hangs. Below pytest's own limit (pyproject.toml), which says less.
HANG_SECONDS: Final = 600
#: The same for kubectl and helm.
HANG_OPTION: Final = f"--timeout={HANG_SECONDS}s"

_T = TypeVar("_T")


def until(condition: Callable[[], _T], what: str = "it", *, every: float = 0.02) -> _T:
    """The first true answer of `condition`, asked again after `every` seconds; fails if it hangs."""
    end = time.monotonic() + HANG_SECONDS
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} has not come about in {HANG_SECONDS} s")
        time.sleep(every)
    return found


async def until_async(
    condition: Callable[[], Awaitable[_T]], what: str = "it", *, every: float = 0.02
) -> _T:
    """The same of an async function, inside its loop."""
    end = time.monotonic() + HANG_SECONDS
    while not (found := await condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} has not come about in {HANG_SECONDS} s")
        await asyncio.sleep(every)
    return found


def running(pid: int) -> bool:
    """Whether the process is there; a zombie that nobody has waited for is not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
