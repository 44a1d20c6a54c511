"""Watch any training: `forkcast.watch`.

Importing the package needs neither torch nor a tracker's library: the command line uses its trackers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

#: By name, the module that it is in.
_INSIDE: Final = {"Watch": "forkcast_watch.session", "WatchError": "forkcast_watch.settings"}
__all__ = ["Watch", "WatchError", "watch"]


def __getattr__(name: str) -> Any:
    if name in _INSIDE:
        return getattr(import_module(_INSIDE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def watch(subject: Any, optimizer: Any = None, **settings: Any) -> Any:
    """Watch a training from here on; nothing of it is changed.

    subject: a model, with its optimizer; or a trainer of a framework (ADAPTERS). settings: see Settings.
    Returns for a loop a Watch, for a trainer the callback that was added. Raises WatchError,
    TypeError for a setting that does not exist.
    """
    from forkcast_watch.adapters import adapter_of
    from forkcast_watch.settings import Settings

    return adapter_of(subject).watch(subject, optimizer, Settings(**settings))
