"""What one optimizer step of somebody else's loop looked like, taken by hooks of torch alone.

Before clipping: at the end of the backward pass. After it: when the optimizer begins, which is also
after GradScaler has divided by its scale. A step that GradScaler leaves out begins no optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from forkcast.parameter_groups import GROUPS, group_of
from forkcast_watch.backward import BackwardEnd
from forkcast_watch.late import Value
from forkcast_watch.moments import is_adam, rms_max, update_ratio
from forkcast_watch.norms import GradientNorms, Norms
from forkcast_watch.tolerance import Tolerance


class Gradients:
    """The hooks on one optimizer and its parameters; `taken` gives what a step has left."""

    def __init__(
        self,
        named: Mapping[Tensor, str],
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        tolerance: Tolerance,
    ) -> None:
        """named: the model's parameters and their names. scaler: torch's GradScaler, or None."""
        self._optimizer, self._scaler = optimizer, scaler
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._parameters: list[Tensor] = [p for p in params if p.requires_grad]
        self._groups = [group_of(named.get(p, "")) for p in self._parameters]
        self._shares: dict[tuple[int, ...], Tensor] = {}
        self.sampled = False
        self._passes, self._usual_passes = 0, 1
        self._before: GradientNorms | None = None
        self._values: dict[str, Value] = {}
        self._stepped = False
        shield = tolerance.shield
        self._take_norms = Norms(self._parameters).take
        self._measure = shield("gradient norm", self._norms)
        self._take = shield("gradients at the optimizer's step", self._ready)
        self._sample_before = shield("RMS_t and norms by group", self._sampled_before)
        self._sample_after = shield("update ratio", self._sampled_after)
        ended = shield("gradient norm before clipping", self._backward_ended)
        self._backward = BackwardEnd(self._parameters, ended)
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._step_begins),
            optimizer.register_step_post_hook(self._step_ended),
        ]

    # ------------------------------------------------------------------------------------- hooks

    def _backward_ended(self) -> None:
        """Of a step with accumulation only the last pass counts, and as many as last time are
        expected.
        """
        self._passes += 1
        if self._passes >= self._usual_passes:
            self._before = self._measure()
            scale = self._scale()
            if self._before is not None:
                total = self._before.total
                self._values["grad_norm"] = total if scale is None else total / scale

    def _scale(self) -> Tensor | None:
        return None if self._scaler is None else getattr(self._scaler, "_scale", None)

    def _step_begins(
        self, optimizer: torch.optim.Optimizer, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """given: as `step` was called, the optimizer first. With a closure (Lightning) the gradients are
        there once it has run.
        """
        closure = given[1] if len(given) > 1 else named.get("closure")
        if closure is None:
            self._take(optimizer)
            return None

        def measured() -> Any:
            result = closure()
            self._take(optimizer)
            return result

        if len(given) > 1:
            return (given[0], measured, *given[2:]), named
        return given, {**named, "closure": measured}

    @torch.no_grad()
    def _ready(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients are as the optimizer takes them."""
        self._stepped = True
        before, self._before = self._before, None  # it must not keep gradients that are set to None
        unchanged = before is not None and before.still_hold(self._parameters)
        after = before if unchanged else self._measure()
        # a fused optimizer under GradScaler divides by the scale itself, and may find an infinity
        scale = getattr(optimizer, "grad_scale", None)
        overflow = getattr(optimizer, "found_inf", None)
        if after is not None:
            total = after.total if scale is None else after.total / scale
            self._values["grad_norm_clipped"] = total
        if overflow is not None:
            self._values["overflow"] = overflow
        self._values["learning_rate"] = optimizer.param_groups[0]["lr"]
        if self.sampled and after is not None:
            self._sample_before(after, scale)

    def _sampled_before(self, after: GradientNorms, scale: Tensor | None) -> None:
        totals = (self._share(after) * after.each.square()).sum(1).sqrt()
        for name, total in zip(GROUPS, totals.unbind(), strict=True):
            if name in self._groups:
                self._values[f"norm:{name}"] = total if scale is None else total / scale
        if (largest := rms_max(self._optimizer)) is not None:
            self._values["rms_max"] = largest if scale is None else largest / scale

    def _share(self, norms: GradientNorms) -> Tensor:
        """[groups, n]: 1 where a gradient belongs to the group."""
        if norms.present not in self._shares:
            rows = [[float(self._groups[i] == name) for i in norms.present] for name in GROUPS]
            made = torch.tensor(rows, dtype=norms.each.dtype)
            self._shares = {norms.present: made.to(norms.each.device, non_blocking=True)}
        return self._shares[norms.present]

    def _step_ended(self, *_: object) -> None:
        if self.sampled:
            self._sample_after()

    def _sampled_after(self) -> None:
        if is_adam(self._optimizer) and (ratio := update_ratio(self._optimizer)) is not None:
            self._values["update_ratio"] = ratio

    def _norms(self) -> GradientNorms | None:
        with torch.no_grad():
            return self._take_norms()

    # ------------------------------------------------------------------------------- the session's

    def taken(self) -> tuple[dict[str, Value], bool]:
        """The values of the step that ends here, and whether its optimizer has stepped."""
        values, stepped = self._values, self._stepped
        if (
            stepped
        ):  # of a window that ended early, as the last of an epoch, the clipped one is known
            values.setdefault("grad_norm", values.get("grad_norm_clipped", float("nan")))
        self._usual_passes = max(self._passes, 1)
        self._values, self._stepped, self._before, self._passes = {}, False, None, 0
        self._backward.settle()
        return values, stepped

    def remove(self) -> None:
        """Leave no hook behind."""
        self._backward.remove()
        while self._handles:
            self._handles.pop().remove()


def shards(parameters: Sequence[Tensor]) -> str:
    """What shards the parameters, in words; "" where each rank has them whole. A norm of a shard is not
    the gradient's, and the sum over ranks would be a collective of the user's process group.
    """
    for p in parameters:
        kind = type(p).__name__
        if (
            kind in ("DTensor", "FlatParameter")
            or type(getattr(p, "data", p)).__name__ == "DTensor"
        ):
            return "FSDP or tensor parallelism"
        if hasattr(p, "ds_id"):
            return "DeepSpeed ZeRO-3"
    return ""
