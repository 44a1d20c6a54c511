"""Trainings that can be watched: whose class, and the adapter for it. To add one: a file here and a line
in ADAPTERS.

An adapter is a module with `watch(subject, optimizer, settings)`. It is imported when the first argument
of `forkcast.watch` is of its class, so no framework is imported that the user has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from forkcast_watch.settings import Settings, WatchError

#: The full name of a class -> the module here.
ADAPTERS: Mapping[str, str] = {
    "torch.nn.modules.module.Module": "torch_loop",
    "transformers.trainer.Trainer": "huggingface",
    "lightning.pytorch.trainer.trainer.Trainer": "lightning",
}


class Adapter(Protocol):
    """A module of this folder."""

    def watch(self, subject: Any, optimizer: Any, settings: Settings) -> Any:
        """Watch it from here on. Raises WatchError."""


def adapter_of(subject: Any) -> Adapter:
    """The one for the nearest class that is on the shelf. Raises WatchError."""
    for kind in type(subject).__mro__:
        name = ADAPTERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is not None:
            return cast("Adapter", import_module(f"{__name__}.{name}"))
    rule = f"a {type(subject).__name__} cannot be watched"
    trainers = [name.partition(".")[0] for name, at in ADAPTERS.items() if at != "torch_loop"]
    known = " or ".join(f"a Trainer of {package}" for package in trainers)
    raise WatchError("subject", rule, f"give a model and its optimizer, or {known}")
