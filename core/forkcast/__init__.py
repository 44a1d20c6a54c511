"""Forkcast's decision loop: pure values and functions, stdlib and numpy only.

What users call by the project's own name is found in the package that has it, when it is asked for.
"""

from importlib import import_module
from typing import Any

#: Name -> the package it is in.
_ELSEWHERE = {
    "watch": "forkcast_watch",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
