"""Forkcast's decision loop: pure values and functions, stdlib and numpy only.

`forkcast.watch`, `forkcast.load_run` and what else users call is in other packages; it is imported when it
is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

#: By name, the module that it is in.
_ELSEWHERE: Final = {
    "load_run": "forkcast_wire.loaded_run",
    "watch": "forkcast_watch",
}
__all__ = ["load_run", "watch"]


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
