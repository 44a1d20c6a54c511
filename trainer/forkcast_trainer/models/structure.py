"""The parts of a module whose class is not known, found by its structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkcast_trainer.models.parts import Taps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def taps_of(module: Any) -> Taps | None:
    """Of a causal language model of the transformers library: its blocks are the longest list of
    modules of one class, their attention is what is called so, the last norm stands behind them.
    None if a part is not found.
    """
    body, head = module.base_model, module.get_output_embeddings()
    blocks = _blocks(body)
    attention = [found for block in blocks if (found := _attention(block)) is not None]
    final = _norm_behind(body, blocks)
    if not blocks or len(attention) != len(blocks) or final is None or head is None:
        return None
    return Taps(blocks, attention, final, head)


def _blocks(body: nn.Module) -> list[nn.Module]:
    from torch import nn

    lists = [one for one in body.modules() if isinstance(one, nn.ModuleList) and len(one)]
    alike = [list(one) for one in lists if len({type(block) for block in one}) == 1]
    return max(alike, key=_parameters, default=[])


def _parameters(blocks: list[nn.Module]) -> int:
    return sum(p.numel() for block in blocks for p in block.parameters())


def _attention(block: nn.Module) -> nn.Module | None:
    """The first module called attention with a matrix of its own: not a norm before or behind it."""
    named: Iterator[tuple[str, nn.Module]] = block.named_modules()
    for name, one in named:
        last = name.rpartition(".")[2].lower()
        matrices = any(p.ndim >= 2 for p in one.parameters())
        if ("attn" in last or "attention" in last) and matrices:
            return one
    return None


def _norm_behind(body: nn.Module, blocks: list[nn.Module]) -> nn.Module | None:
    """The last norm that stands in no block and holds none."""
    inside = {id(one) for block in blocks for one in block.modules()}
    norms = [one for name, one in _leaves(body) if id(one) not in inside and _is_norm(name)]
    return norms[-1] if norms else None


def _leaves(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, one) for name, one in body.named_modules() if not list(one.children()))


def _is_norm(name: str) -> bool:
    last = name.rpartition(".")[2].lower()
    return "norm" in last or last.startswith("ln")
