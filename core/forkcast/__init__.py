"""Forkcast's decision loop: pure values and functions, stdlib and numpy only.

`forkcast.load_run` and what else users call stands in other packages; it is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

#: By name, the module that it stands in.
_ELSEWHERE: Final = {"load_run": "forkcast_wire.loaded_run"}
__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
