"""Statistics from inside the model: attention entropy, attention logits, block activations.

They come from one extra forward pass over one sequence, in evaluation mode and without gradients,
so that neither the training kernels nor any random generator are touched. Queries and keys are
taken where they meet, at the call of scaled-dot-product attention: after rotary embeddings and
norms, whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkcast_trainer.learner import Learner
from forkcast_trainer.measure.inside import LAYERED, by_layer, layers, summary
from forkcast_trainer.models import Taps

_SDPA = nn.functional.scaled_dot_product_attention
#: A mask's bias below it hides a key: some models write the least float for minus infinity.
_HIDDEN = -1e30


@dataclass(frozen=True)
class Internals:
    """Per layer: normalised attention entropy in [0, 1], activation mean and sd; and the largest
    attention logit.
    """

    attention_entropy: tuple[float, ...]
    attention_logit_max: float
    activation_mean: tuple[float, ...]
    activation_sd: tuple[float, ...]


@torch.no_grad()
def sample(learner: Learner, sequence: Tensor) -> dict[str, Tensor]:
    """Look inside on one sequence of ids, shape [T]: 0-d values on the device, by name and layer; empty
    if the model has no taps, which is said once. Its mode is restored.
    """
    taps = learner.taps
    if taps is None:
        return {}
    blocks: list[Tensor] = []
    training = learner.module.training
    learner.module.eval()
    try:
        with _outputs(taps.blocks, blocks.append), _Attention(taps) as attention:
            learner.hidden(learner.objective.look(sequence))
    finally:
        learner.module.train(training)
    if len(attention.seen) != len(taps.blocks):
        learner.untap("its attention is not scaled-dot-product attention")
        return {}
    wide = [block.float() for block in blocks]
    return by_layer(
        [top for top, _ in attention.seen],
        [entropy for _, entropy in attention.seen],
        [block.mean() for block in wide],
        [block.std() for block in wide],
    )


def read(numbers: Mapping[str, float]) -> Internals | None:
    """What `sample` gave, as numbers; None if it was not among them."""
    if "attention_logit_max" not in numbers:
        return None
    entropies, means, deviations = (layers(numbers, name) for name in LAYERED)
    return Internals(entropies, numbers["attention_logit_max"], means, deviations)


@contextmanager
def _outputs(modules: Sequence[nn.Module], keep: Callable[[Tensor], None]) -> Generator[None]:
    """Give every module's output, or the first of several, to ``keep``."""
    with ExitStack() as hooks:
        for one in modules:
            handle = one.register_forward_hook(
                lambda _m, _i, out: keep(out[0] if isinstance(out, tuple) else out)
            )
            hooks.callback(handle.remove)
        yield


class _Attention(TorchFunctionMode):
    """Reads the first call of attention inside each of the tapped modules."""

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []
        self._inside = False
        self._handles = [one.register_forward_pre_hook(self._enter) for one in taps.attention]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _enter(self, *_: Any) -> None:
        self._inside = True

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is _SDPA and self._inside:
            self._inside = False
            named |= dict(zip(("query", "key", "value", "attn_mask"), args, strict=False))
            self.seen.append(_seen(named))
            return func(*args, **(kwargs or {}))
        return func(*args, **named)


def _seen(call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The `summary` of a call of attention, of its first sequence."""
    query, key = call["query"][0].float(), call["key"][0].float()
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scale = call.get("scale") or 1 / math.sqrt(query.shape[-1])
    logits = query @ key.transpose(1, 2) * scale
    hidden = torch.zeros(logits.shape[1:], dtype=torch.bool, device=logits.device)
    if call.get("is_causal"):
        hidden = torch.ones_like(hidden).triu(1)
    mask = call.get("attn_mask")
    if mask is not None and mask.dtype is torch.bool:
        hidden = hidden | ~mask[0]
    elif mask is not None:
        logits = logits + mask[0].float()
        hidden = hidden | (mask[0] < _HIDDEN)
    return summary(logits, hidden.expand_as(logits))
