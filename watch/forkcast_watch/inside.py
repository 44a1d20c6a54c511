"""What the model shows of its inside during the user's own forward pass, every so many steps.

Queries and keys are seen where they enter scaled_dot_product_attention, after rotary embeddings and
norms; logits are computed again from the first sequence. The kernel that the model calls is the same, no
generator is drawn from, and nothing is kept for the backward pass. A model that calls another kernel
(eager, flash-attn, flex), or that is compiled, does not show them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from forkcast_trainer.measure.inside import by_layer, summary
from forkcast_trainer.measure.late import Value
from forkcast_watch.tolerance import Tolerance
from forkcast_watch.unsaved import Unsaved

#: Of the first sequence so many positions are looked at: their logits take 1 MiB a head.
_POSITIONS = 512
_MOST_LAYERS = 256
PIECE = "attention and activations"


class Inside:
    """Hooks on a model; `taken` gives what the last sampled forward pass showed."""

    def __init__(self, model: nn.Module, tolerance: Tolerance, *, called: bool) -> None:
        """called: `begin` and `end` come by the model's own hooks."""
        self._tolerance, self._model = tolerance, model
        self.sampled = False
        self._seen: _Seen | None = None
        self._values: dict[str, Value] = {}
        self._blocks = _blocks(model)
        self.begin = tolerance.shield(PIECE, self._begin)
        self.end = tolerance.shield(PIECE, self._end)
        self._handles: list[RemovableHandle] = []
        if called:
            self._handles = [
                model.register_forward_pre_hook(Unsaved(lambda *_: self.begin())),
                model.register_forward_hook(Unsaved(lambda *_: self.end()), always_call=True),
            ]

    def _begin(self) -> None:
        trains = self._model.training and torch.is_grad_enabled()
        if not self.sampled or self._seen is not None or not trains:
            return
        self.sampled = False  # of a step with accumulation the first micro-batch
        self._seen = _Seen(self._blocks, self._tolerance)
        self._seen.__enter__()  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        seen, self._seen = self._seen, None
        if seen is None:
            return
        seen.__exit__(None, None, None)
        self._values = seen.values()
        if not self._values:
            self._tolerance.leave_out(PIECE, "the model calls no scaled_dot_product_attention")

    def taken(self) -> dict[str, Value]:
        """The values of the step that ends here."""
        values, self._values = self._values, {}
        return values

    def remove(self) -> None:
        """Leave no hook behind."""
        while self._handles:
            self._handles.pop().remove()
        if self._seen is not None:
            self._seen.__exit__(None, None, None)
            self._seen = None


class _Seen(TorchFunctionMode):
    """One forward pass."""

    def __init__(self, blocks: list[nn.Module], tolerance: Tolerance) -> None:
        super().__init__()
        self._note = tolerance.shield(PIECE, self._attention)
        activation = tolerance.shield(PIECE, self._activation)
        self._entropies: list[Tensor] = []
        self._tops: list[Tensor] = []
        self._means: list[Tensor] = []
        self._deviations: list[Tensor] = []
        self._handles = [
            block.register_forward_hook(Unsaved(lambda _m, _i, out: activation(out)))
            for block in blocks
        ]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            self._note(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        _value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002  as torch calls it
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """query, key: [batch, heads, positions, width]."""
        del dropout_p, enable_gqa
        if query.dim() != 4 or query.shape[-2] != key.shape[-2] or len(self._tops) == _MOST_LAYERS:
            return  # attention to another sequence, or with a cache
        length = min(query.shape[-2], _POSITIONS)
        with torch.autocast(query.device.type, enabled=False):
            q, k = query[0, :, :length].float(), key[0, :, :length].float()
            k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
            logits = q @ k.transpose(1, 2) * (scale or 1 / math.sqrt(q.shape[-1]))
            hidden = _hidden(attn_mask, length, logits, is_causal=is_causal)
            top, entropy = summary(logits, hidden)
        self._tops.append(top)
        self._entropies.append(entropy)

    @torch.no_grad()
    def _activation(self, out: Any) -> None:
        tensor = out[0] if isinstance(out, tuple) else out
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            first = tensor[0].float()
            self._means.append(first.mean())
            self._deviations.append(first.std())

    def __exit__(self, *given: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        super().__exit__(*given)  # type: ignore[no-untyped-call]

    def values(self) -> dict[str, Value]:
        """By name and layer; nothing where no attention was seen."""
        if not self._tops:
            return {}
        values = by_layer(self._tops, self._entropies, self._means, self._deviations)
        return dict[str, Value](values)


def _hidden(mask: Tensor | None, length: int, logits: Tensor, *, is_causal: bool) -> Tensor:
    """[heads or 1, length, length]: what a position does not see."""
    hidden = torch.zeros(1, length, length, dtype=torch.bool, device=logits.device)
    if is_causal:
        hidden = hidden | torch.ones_like(hidden).triu(1)
    if mask is not None:
        part = (mask[0] if mask.dim() == 4 else mask)[..., :length, :length]
        hidden = hidden | (
            ~part if part.dtype == torch.bool else part < torch.finfo(part.dtype).min / 2
        )
    return hidden


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers: the longest list of modules of one class; none if it has none."""
    lists = [
        list(one)
        for one in model.modules()
        if isinstance(one, nn.ModuleList) and len({type(block) for block in one}) == 1
    ]
    return max(lists, key=len, default=[])[:_MOST_LAYERS]


def compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled: hooks would be traced into it."""
    return any(
        type(one).__name__ == "OptimizedModule"
        or getattr(one, "_compiled_call_impl", None) is not None
        for one in model.modules()
    )
