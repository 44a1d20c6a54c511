"""A loop of the user's own, in plain PyTorch or with Accelerate or Fabric."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from forkcast_watch.session import Watch
from forkcast_watch.settings import Settings, WatchError


def watch(subject: nn.Module, optimizer: Any, settings: Settings) -> Watch:
    """Hook the model and its optimizer; the loop calls `step`. Raises WatchError."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        rule = f"a {type(optimizer).__name__} is no torch.optim.Optimizer"
        raise WatchError("optimizer", rule, "give the one that steps the model")
    return Watch(subject, optimizer, settings)
