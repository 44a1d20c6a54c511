"""Watch any training: `forkcast.watch`."""

from __future__ import annotations

from typing import Any

from forkcast_watch.adapters import ADAPTERS
from forkcast_watch.session import Watch
from forkcast_watch.settings import Settings, WatchError

__all__ = ["Watch", "WatchError", "watch"]


def watch(subject: Any, optimizer: Any = None, **settings: Any) -> Any:
    """Watch a training from here on; nothing of it is changed.

    subject: a model, with its optimizer; or a trainer of a framework (ADAPTERS). settings: see Settings.
    Returns what the adapter gives: for a loop a Watch. Raises WatchError, TypeError for a setting that
    does not exist.
    """
    given = Settings(**settings)
    for adapter in ADAPTERS.values():
        if adapter.takes(subject):
            return adapter.watch(subject, optimizer, given)
    rule = f"{type(subject).__name__} cannot be watched"
    raise WatchError("subject", rule, f"give a model and its optimizer, or one of {list(ADAPTERS)}")
