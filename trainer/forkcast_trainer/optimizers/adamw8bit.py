"""AdamW with both moments of a matrix in 8 bits, in blocks of 256 (arXiv 2110.02861), by bitsandbytes.

The moments of embeddings, heads and vectors stay in float32, as its authors advise: rows of rare tokens
are of sizes too many for a block's 8 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.optimizers.adamw import AdamW
from forkcast_trainer.optimizers.base import Kind, Layout, Moments, Parameter, Slot, groups
from forkcast_trainer.optimizers.split import Split
from forkcast_trainer.table import Role
from forkcast_wire.manifest import Optimizer

#: Weights of one block, and the fewest of a matrix that is kept in them: of bitsandbytes.
_BLOCK: Final = 256
_LEAST: Final = 4096


class Blockwise(Layout):
    """Codes of a byte, each an index of a map of 256 values, times the largest magnitude of the block."""

    __slots__ = ()

    def slots(self, parameter: Tensor) -> Mapping[str, Slot]:
        """Codes of the weights' shape, scales of [blocks], and the counter."""
        codes = Slot(tuple(parameter.shape), torch.uint8)
        scales = Slot((-(-parameter.numel() // _BLOCK),), torch.float32)
        both = {f"state{n}": codes for n in (1, 2)} | {f"absmax{n}": scales for n in (1, 2)}
        return both | {"step": Slot((), torch.int64)}

    def saved(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """All but the two maps, which are the library's constants; its counter is a number."""
        if "state1" not in state:
            return {}
        kept = {slot: state[slot] for slot in ("state1", "absmax1", "state2", "absmax2")}
        return kept | {"step": torch.tensor(state["step"], dtype=torch.int64)}

    def restored(self, parameter: Tensor, saved: Mapping[str, Tensor]) -> dict[str, Any]:
        """With the maps, and the counter as a number."""
        kept = {slot: value.clone().to(parameter.device) for slot, value in saved.items()}
        first, second = _maps(parameter.device)
        return {**kept, "step": int(saved["step"]), "qmap1": first, "qmap2": second}

    def roles(self) -> Mapping[str, Role]:
        """They are in 8 bits already."""
        return {}

    def moments(self, state: Mapping[str, Any]) -> Moments | None:
        """Decoded."""
        if "state1" not in state:
            return None
        first, second = (
            _map[state[f"state{n}"].int()].flatten()
            for n, _map in ((1, state["qmap1"]), (2, state["qmap2"]))
        )
        shape = state["state1"].shape
        return Moments(
            _scaled(first, state["absmax1"]).view(shape),
            _scaled(second, state["absmax2"]).view(shape),
            torch.tensor(float(state["step"]), device=first.device),
        )

    def reset(self, state: MutableMapping[str, Any]) -> None:
        """As before the first step: a scale of 0 makes every code 0."""
        if "state1" in state:
            for slot in ("state1", "absmax1", "state2", "absmax2"):
                state[slot].zero_()
            state["step"] = 0


def _scaled(values: Tensor, largest: Tensor) -> Tensor:
    """[n] values times their blocks' scales."""
    return values * largest.repeat_interleave(_BLOCK)[: values.numel()]


@cache
def _maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """The library's maps of signed and of unsigned values."""
    from bitsandbytes.functional import create_dynamic_map

    signed, unsigned = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
    return signed.to(device), unsigned.to(device)


class AdamW8bit(Kind):
    """2 bytes and a scale in 128 of a matrix's weight (counted as 17 bits); AdamW's 8 of all others."""

    matrix_bits = 17
    other_bits = 64

    def build(
        self, parameters: Sequence[Parameter], settings: Optimizer, device: torch.device
    ) -> torch.optim.Optimizer:
        """Blocks for matrices of 4,096 weights and more; torch's AdamW for all others. Raises TrainerError
        without bitsandbytes.
        """
        # it advises at import to install what only inference uses
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            import bitsandbytes
        except ImportError as error:
            raise TrainerError(
                "spec.optimizer.name",
                "AdamW8bit needs bitsandbytes, which is not installed here",
                "pip install 'forkcast[bitsandbytes]', or take AdamW",
            ) from error

        class Unwaiting(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]
            """The library's own step waits for the GPU after every tensor; nothing of it needs that."""

            @torch.no_grad()
            def step(self, closure: Callable[[], Any] | None = None) -> None:
                del closure
                for number, group in enumerate(self.param_groups):
                    for place, parameter in enumerate(group["params"]):
                        if parameter.grad is None:
                            continue
                        if not self.state[parameter]:
                            self.init_state(group, parameter, number, place)
                        self.update_step(group, parameter, number, place)

        in_blocks = [one for one in parameters if one.matrix and one.tensor.numel() >= _LEAST]
        names = {one.name for one in in_blocks}
        others = AdamW().build(
            [one for one in parameters if one.name not in names], settings, device
        )
        if not in_blocks:
            return others
        layout = Blockwise("state1", "state2", "step")
        blocks = Unwaiting(
            groups(in_blocks, layout),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=0.0,
            min_8bit_size=_LEAST,
        )
        return Split([blocks, others])
