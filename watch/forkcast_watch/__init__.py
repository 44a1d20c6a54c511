"""Watch any training: `forkcast.watch`."""

from __future__ import annotations

from typing import Any

from forkcast_watch.adapters import adapter_of
from forkcast_watch.session import Watch
from forkcast_watch.settings import Settings, WatchError

__all__ = ["Watch", "WatchError", "watch"]


def watch(subject: Any, optimizer: Any = None, **settings: Any) -> Any:
    """Watch a training from here on; nothing of it is changed.

    subject: a model, with its optimizer; or a trainer of a framework (ADAPTERS). settings: see Settings.
    Returns for a loop a Watch, for a trainer the callback that was added. Raises WatchError,
    TypeError for a setting that does not exist.
    """
    return adapter_of(subject).watch(subject, optimizer, Settings(**settings))
