"""What one optimizer step of somebody else's loop looked like, taken by hooks of torch alone.

Before clipping: at the end of the backward pass. After it: when the optimizer begins, which is also
after GradScaler has divided by its scale. A step that GradScaler leaves out begins no optimizer.

Many loops wait for the device between the two, to see whether the loss is a number: what is launched
after that, the device waits for, and what is launched in the backward pass it does not. So all that
takes long is done at the end of a backward pass: RMS_t of the gradients that may be clipped yet, which
is scaled by what clipping takes, and the update of the step before, whose moments still stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from forkcast.parameter_groups import GROUPS, group_of
from forkcast_trainer.measure.late import Value, kept
from forkcast_trainer.measure.moments import Begun, begun, is_adam, rms_max, update_ratio
from forkcast_trainer.measure.norms import GradientNorms, Norms
from forkcast_watch.backward import BackwardEnd
from forkcast_watch.tolerance import Tolerance


@dataclass(frozen=True)
class Taken:
    """What a step has left. stepped: whether its optimizer has made a step. of_last: of the step before."""

    values: dict[str, Value]
    stepped: bool
    of_last: dict[str, Value]


@dataclass(frozen=True)
class _Sample:
    """Of the gradients at the end of the backward pass. groups: [GROUPS], norms."""

    total: Tensor
    groups: Tensor
    rms_max: Tensor | None


class Gradients:
    """The hooks on one optimizer and its parameters; `taken` gives what a step has left."""

    def __init__(
        self,
        named: Mapping[Tensor, str],
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        tolerance: Tolerance,
        *,
        behind: Callable[[], object] = lambda: None,
    ) -> None:
        """named: the model's parameters and their names. scaler: torch's GradScaler, or None. behind:
        called at the end of a step's backward pass, while the device is behind the host.
        """
        self._optimizer, self._scaler, self._behind = optimizer, scaler, behind
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._parameters: list[Tensor] = [p for p in params if p.requires_grad]
        self._groups = [group_of(named.get(p, "")) for p in self._parameters]
        self._shares: dict[tuple[int, ...], Tensor] = {}
        self.sampled = False
        self._passes, self._usual_passes = 0, 1
        self._before: GradientNorms | None = None
        self._sample: _Sample | None = None
        #: The norm, and the most that is left of it, as the loop's own clipping tells them; whether it does.
        self._clip: tuple[Tensor, float] | None = None
        self._clips = False
        #: The sampled step that begins, and the last whose update is still to be measured.
        self._begun: Begun | None = None
        self._owed: Begun | None = None
        self._values: dict[str, Value] = {}
        self._of_last: dict[str, Value] = {}
        self._stepped = False
        shield = tolerance.shield
        self._take_norms = Norms(self._parameters).take
        self._measure = shield("gradient norm", self._norms)
        self._take = shield("gradients at the optimizer's step", self._ready)
        self._take_sample = shield("RMS_t and norms by group", self._sampled)
        self._take_update = shield("update ratio", self._update)
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
        if self._passes < self._usual_passes:
            return
        self._behind()
        if self._owed is not None:
            self._take_update()
        if self._clips and not self.sampled:
            return
        self._before = self._measure()
        if self._before is None:
            return
        scale, total = self._scale(), self._before.total
        self._values["grad_norm"] = total if scale is None else total / scale
        if self.sampled:
            self._sample = self._take_sample(self._before)

    def clipped(self, total: Tensor, largest: float) -> None:
        """The loop has clipped by the norm of all gradients, as clip_grad_norm_ does: what that was, and
        the largest it is left at. Its norms need not be taken again.
        """
        self._clip = total, largest

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
        self._values["learning_rate"] = kept(optimizer.param_groups[0]["lr"])
        # a fused optimizer under GradScaler divides by the scale itself, and may find an infinity
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None:
            self._values["overflow"] = kept(overflow)
        after = self._after(getattr(optimizer, "grad_scale", None))
        if self.sampled:
            self._begun = begun(optimizer)
            if after is not None:
                self._tell_sample(after)
        self._sample = None

    def _after(self, scale: Tensor | None) -> Tensor | None:
        """The norm after clipping; None if it is not known, or not needed: of a clipping that was told it is
        computed where the values are read.
        """
        before, self._before = self._before, None  # it must not keep gradients that are set to None
        clip, self._clip = self._clip, None
        self._clips = clip is not None
        after: Tensor | None
        if clip is not None:
            self._values["grad_norm"], self._values["clip_at"] = clip
            after = clip[0] * clip_factor(*clip) if self.sampled else None
        else:
            unchanged = before is not None and before.still_hold(self._parameters)
            norms = before if unchanged else self._measure()
            if norms is None:
                return None
            after = norms.total if scale is None else norms.total / scale
            self._values["grad_norm_clipped"] = after
            before = before or norms
        if self.sampled and self._sample is None:
            norms = before or self._measure()
            self._sample = None if norms is None else self._take_sample(norms)
        return after

    def _tell_sample(self, after: Tensor) -> None:
        """What was sampled before clipping, scaled by what clipping, and the scale of the loss, took."""
        sample = self._sample
        if sample is None:
            return
        left = after / sample.total.clamp_min(1e-30)
        left = torch.where(left.isfinite(), left, 1.0)
        for name, norm in zip(GROUPS, (sample.groups * left).unbind(), strict=True):
            if name in self._groups:
                self._values[f"norm:{name}"] = norm
        if sample.rms_max is not None:
            self._values["rms_max"] = sample.rms_max * left

    @torch.no_grad()
    def _sampled(self, norms: GradientNorms) -> _Sample:
        groups = (self._share(norms) * norms.each.square()).sum(1).sqrt()
        return _Sample(norms.total, groups, rms_max(self._optimizer))

    def _share(self, norms: GradientNorms) -> Tensor:
        """[groups, n]: 1 where a gradient belongs to the group."""
        if norms.present not in self._shares:
            rows = [[float(self._groups[i] == name) for i in norms.present] for name in GROUPS]
            made = torch.tensor(rows, dtype=norms.each.dtype)
            self._shares = {norms.present: made.to(norms.each.device, non_blocking=True)}
        return self._shares[norms.present]

    def _step_ended(self, *_: object) -> None:
        if self.sampled and is_adam(self._optimizer):
            self._owed = self._begun

    def _update(self) -> None:
        """Of the step before: its moments stand until the next."""
        owed, self._owed = self._owed, None
        if owed is not None and (ratio := update_ratio(self._optimizer, owed)) is not None:
            self._of_last["update_ratio"] = ratio

    def _norms(self) -> GradientNorms | None:
        with torch.no_grad():
            return self._take_norms()

    # ------------------------------------------------------------------------------- the session's

    def taken(self) -> Taken:
        """The values of the step that ends here."""
        values, stepped, of_last = self._values, self._stepped, self._of_last
        if stepped:
            # of a window that ended early, as the last of an epoch, the clipped one is known
            values.setdefault("grad_norm", values.get("grad_norm_clipped", math.nan))
        self._usual_passes = max(self._passes, 1)
        self._values, self._of_last, self._stepped, self._passes = {}, {}, False, 0
        self._before = self._sample = self._clip = self._begun = None
        self._backward.settle()
        return Taken(values, stepped, of_last)

    def last(self) -> dict[str, Value]:
        """What the last step still owes: no other will follow."""
        if self._owed is not None:
            self._take_update()
        of_last, self._of_last = self._of_last, {}
        return of_last

    def remove(self) -> None:
        """Leave no hook behind."""
        self._backward.remove()
        while self._handles:
            self._handles.pop().remove()


def clip_factor(total: Any, largest: float) -> Any:
    """What clip_grad_norm_ multiplies the gradients with: total, a tensor or a number, is their norm."""
    factor = largest / (total + 1e-6)
    return factor.clamp(max=1.0) if isinstance(factor, Tensor) else min(factor, 1.0)


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
