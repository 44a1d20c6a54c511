"""Hooks on modules that are no part of the modules: a copy or a pickle of a watched model has none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any


class Unsaved:
    """A hook. In a pickle, which is read where nothing of this project need be, stands what does nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        """As torch calls it."""
        return self._call(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None
