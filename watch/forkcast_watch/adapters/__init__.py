"""Loops that can be watched, by name. To add one: a file here with `watch`, and a line in ADAPTERS.

Each adapter gives `takes(subject)`: whether `subject`, the first argument of `forkcast.watch`, is one of
its kind, without importing a framework that the user has not; and `watch(subject, optimizer, settings)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from forkcast_watch.adapters import torch_loop
from forkcast_watch.settings import Settings


class Adapter(Protocol):
    """A module of this folder."""

    def takes(self, subject: Any) -> bool:
        """Whether it can watch this."""

    def watch(self, subject: Any, optimizer: Any, settings: Settings) -> Any:
        """Watch it. Raises WatchError."""


ADAPTERS: Mapping[str, Adapter] = {
    "torch": torch_loop,
}
