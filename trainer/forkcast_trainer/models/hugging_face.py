"""Modules of the transformers library: from a configuration and a seed, or from a folder's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkcast_trainer.errors import TrainerError
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import Model
from forkcast_wire.manifest_file import looks_like_path

if TYPE_CHECKING:
    from torch import nn

_LAYOUT = "give a folder in Hugging Face layout"


def read_config(source: str) -> dict[str, Any] | None:
    """The config.json of a folder; None if there is none that can be read."""
    try:
        document = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def whole_numbers(config: Mapping[str, Any], *names: str) -> list[int] | None:
    """These entries of a configuration; None unless all are positive integers."""
    numbers = [config.get(name) for name in names]
    whole = [one for one in numbers if isinstance(one, int) and one > 0]
    return whole if len(whole) == len(names) else None


def random_module(make: Any, config: Any, seed: int) -> nn.Module:
    """``make(config)`` with weights drawn from ``seed``; the caller's generators stay as they are."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = make(config)
    return built


def pretrained_module(kind: Any, field: str, source: str, **changed: Any) -> nn.Module:
    """A ``kind`` with a folder's or a hub id's weights, float32. Only safetensors are read, and no
    code that lies beside them. Attention is scaled-dot-product attention where the model has it.
    changed: entries of the configuration.

    Raises TrainerError naming ``field``.
    """
    import torch
    from safetensors import SafetensorError

    try:
        loaded: nn.Module = kind.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            **changed,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable(field, source, error) from None
    return loaded


def unusable(field: str, source: str, error: Exception) -> TrainerError:
    """What the library says of a folder or an id, in one line."""
    if looks_like_path(source) and not Path(source).is_dir():
        return TrainerError(field, f"no such folder: {Path(source).absolute()}", _LAYOUT)
    return TrainerError(field, f"{source}: {first_line(error)}", _LAYOUT)


def refuse_other_sizes(model: Model, *, layers: int, heads: int, width: int) -> None:
    """Raises TrainerError if spec.model.size asks for what the weights, of these sizes, have not."""
    for name, value in {"layers": layers, "heads": heads, "width": width}.items():
        wish = getattr(model.size, name)
        if wish not in {None, value}:
            raise TrainerError(
                f"spec.model.size.{name}",
                f"{wish}, but the weights of {model.source} have {value}",
                "remove it, or train from scratch",
            )


def refuse_too_small(field: str, ids: int, positions: int, vocabulary: int, length: int) -> None:
    """Raises TrainerError if a model of so many ids and positions cannot read the run's text."""
    if ids < vocabulary or positions < length:
        raise TrainerError(
            field,
            f"{ids} ids and {positions} positions are fewer than the "
            f"{vocabulary} and {length} needed",
            "use its own tokenizer, or a shorter sequence",
        )
