"""What goes wrong: each fault by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from instabilities.training import Run


@dataclass(frozen=True)
class Fault:
    """What goes wrong from the fork step on.

    kind: its label. last: steps it lasts, 0 = to the end. tail: steps recorded from the fork on.
    rate: factor on the learning rate. batch: spoils (ids, targets). rank: what the second rank's
    gradient suffers. at_onset: once, before the first step; each: before every step. length: of
    the sequences. scale: the loss scale that is forced; unchecked: its overflow is not looked for.
    """

    kind: str
    last: int = 0
    tail: int = 400
    rate: float = 1.0
    batch: Callable[[Run, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    rank: str = ""
    at_onset: Callable[[Run], None] | None = None
    each: Callable[[Run], None] | None = None
    length: int = 0
    scale: float = 0.0
    unchecked: bool = False


def shifted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and targets, each [B, T], of sequences [B, T + 1]."""
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _rows(ids: Tensor, targets: Tensor) -> Tensor:
    return torch.cat([ids, targets[:, -1:]], 1)


def _bytes(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Random bytes: GPT-2's first 256 ids are the single bytes."""
    return shifted(torch.randint(0, 256, _rows(ids, targets).shape, **run.draw))


def _part_bytes(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    bad_ids, bad_targets = _bytes(run, ids, targets)
    bad = (torch.arange(len(ids), device=ids.device) % 4 == 0)[:, None]
    return torch.where(bad, bad_ids, ids), torch.where(bad, bad_targets, targets)


def _shuffled(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(ids, targets)
    order = torch.rand(rows.shape, device=rows.device, generator=run.generator).argsort(1)
    return shifted(rows.gather(1, order))


def _repeated(_run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(ids, targets)
    return shifted(rows[:, :8].repeat(1, rows.shape[1] // 8 + 1)[:, : rows.shape[1]])


def _rare(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A tenth of the tokens become ids that the text hardly holds."""
    rows = _rows(ids, targets)
    chosen = torch.rand(rows.shape, device=rows.device, generator=run.generator) < 0.1
    picks = run.text.rare[torch.randint(0, len(run.text.rare), rows.shape, **run.draw)]
    return shifted(torch.where(chosen, picks, rows))


def _noisy_labels(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.rand(targets.shape, device=ids.device, generator=run.generator) < 0.3
    noise = torch.randint(0, run.size.vocabulary, ids.shape, **run.draw)
    return ids, torch.where(chosen, noise, targets)


def moments(run: Run, name: str) -> list[Tensor]:
    """The optimizer's moment ``name`` of each parameter."""
    return [run.optimizer.state[p][name] for p in run.parameters]


def _zero_second(run: Run) -> None:
    torch._foreach_zero_(moments(run, "exp_avg_sq"))


def _zero_both(run: Run) -> None:
    torch._foreach_zero_(moments(run, "exp_avg_sq") + moments(run, "exp_avg"))


def _early_second(run: Run) -> None:
    torch._foreach_copy_(moments(run, "exp_avg_sq"), run.early[1])


def _early_first(run: Run) -> None:
    torch._foreach_copy_(moments(run, "exp_avg"), run.early[0])


def _misplaced(run: Run) -> None:
    """The moments come back in reverse order among the tensors of the same shape."""
    for name in ("exp_avg", "exp_avg_sq"):
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for moment in moments(run, name):
            by_shape.setdefault(moment.shape, []).append(moment)
        for same in by_shape.values():
            torch._foreach_copy_(same, [moment.clone() for moment in reversed(same)])


def _grow(run: Run) -> None:
    """One layer's MLP output grows by 5 % a step until float16 cannot hold it."""
    run.model.blocks[len(run.model.blocks) // 2].mlp_out.weight.data.mul_(1.05)  # type: ignore[union-attr, operator]


FAULTS = {
    "control": Fault("control", tail=500),
    "rate_x8": Fault("rate_step", rate=8.0, tail=500),
    "bad_shard_bytes": Fault("bad_shard", last=60, tail=250, batch=_bytes),
    "label_noise": Fault("label_noise", batch=_noisy_labels, tail=300),
    "rank_sign": Fault("poisoned_rank", rank="sign"),
    "moments_zero_second": Fault("stalemoments", at_onset=_zero_second, tail=300),
    "rare_tokens": Fault("rare_tokens", last=30, tail=200, batch=_rare),
    "rate_x4": Fault("rate_step", rate=4.0, tail=500),
    "bad_shard_shuffled": Fault("bad_shard", last=60, tail=250, batch=_shuffled),
    "moments_early_second": Fault("stalemoments", at_onset=_early_second, tail=300),
    "rank_noise": Fault("poisoned_rank", rank="noise"),
    "bad_shard_repeated": Fault("bad_shard", last=60, tail=250, batch=_repeated),
    "rank_scale": Fault("poisoned_rank", rank="scale"),
    "bad_shard_part": Fault("bad_shard", last=60, tail=250, batch=_part_bytes),
    "rate_x2": Fault("rate_step", rate=2.0, tail=500),
    "moments_misplaced": Fault("stalemoments", at_onset=_misplaced, tail=300),
    "rank_stale": Fault("poisoned_rank", rank="stale"),
    "moments_zero_both": Fault("stalemoments", at_onset=_zero_both, tail=300),
    "moments_early_first": Fault("stalemoments", at_onset=_early_first, tail=250),
    "fp16_scale_forced": Fault("fp16_overflow", scale=2.0**32, tail=300),
    "fp16_unchecked": Fault("fp16_overflow", scale=2.0**32, unchecked=True, tail=100),
    "fp16_activations": Fault("fp16_overflow", each=_grow, tail=400),
    "fp16_no_scale": Fault("fp16_underflow", scale=2.0**-8, tail=400),
    "longer_x4": Fault("longer_sequences", length=1024),
    "longer_x2": Fault("longer_sequences", length=512, tail=300),
}
