"""Make training runs go wrong on purpose, on GPUs, and record what a detector can see of them.

A GPT-2 of 51M or 124M parameters trains on text; at its *fork step* the state is kept, and from it
each fault of the unit is played, and the same steps without a fault (the control, so that a
reader sees when the fault's loss left its own course). One record a run: ``<name>.npz`` with the
columns of `COLUMNS` ([steps], float32), ``internals`` and ``validation`` (NaN where not sampled), and
``<name>.json`` with the labels. Needs torch and numpy alone, except `prepare` (tokenizers).

    make_instabilities.py prepare --to DIR --text FILE_OR_FOLDER ... --bpe FOLDER
    make_instabilities.py plans --to DIR
    make_instabilities.py drive --plan DIR/a.json --data DIR --seconds 500 --out $OUT
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 50_257
GROUPS = ("embedding", "attention", "mlp", "norm", "other")
COLUMNS = (
    "loss",
    "log_z",
    "grad_norm",
    "rms_max",
    "update_cosine",
    *(f"norm_{group}" for group in GROUPS),
    "update_ratio",
    "skipped",
)
WARM_UP, BETAS, DECAY, CLIP, EPSILON = 100, (0.9, 0.95), 0.1, 1.0, 1e-8
INTERNALS_EVERY, VALIDATION_EVERY, LOOK_EVERY, EARLY_STEP = 5, 50, 50, 50


@dataclass(frozen=True)
class Size:
    """A model's shape, its tuned rate, and the tokens in each of a step's two micro-batches."""

    layers: int
    width: int
    heads: int
    rate: float
    tokens: int


SIZES = {
    "toy": Size(2, 64, 2, 3e-3, 128),
    "51M": Size(8, 512, 8, 1e-3, 8192),
    "124M": Size(12, 768, 12, 6e-4, 4096),
}


# ------------------------------------------------------------------------------------- the model


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, size: Size, qk_norm: bool) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attn_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = nn.Parameter(torch.ones(width // size.heads))
            self.k_norm = nn.Parameter(torch.ones(width // size.heads))

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [B, heads, T, head width]."""
        rows, length, width = x.shape
        split = self.qkv(self.norm_1(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            q = functional.rms_norm(q.float(), q.shape[-1:], self.q_norm, 1e-6).to(v.dtype)
            k = functional.rms_norm(k.float(), k.shape[-1:], self.k_norm, 1e-6).to(v.dtype)
        return q, k, v

    def after_attention(self, x: Tensor, seen: Tensor) -> Tensor:
        """The residual stream after this block; ``seen``: [B, heads, T, head width]."""
        x = x + self.attn_out(seen.transpose(1, 2).reshape(x.shape))
        wide = functional.gelu(self.mlp_in(self.norm_2(x)), approximate="tanh")
        mixed: Tensor = self.mlp_out(wide)
        return x + mixed

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after this block, [B, T, width]."""
        q, k, v = self.query_key_value(x)
        return self.after_attention(
            x, functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        )


class GPT2(nn.Module):
    """GPT-2 with tied embeddings and no dropout."""

    def __init__(self, size: Size, qk_norm: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, size.width)
        self.positions = nn.Embedding(1024, size.width)
        self.blocks = nn.ModuleList(Block(size, qk_norm) for _ in range(size.layers))
        self.norm_out = nn.LayerNorm(size.width)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(weight)
                continue
            deep = name.endswith(("attn_out.weight", "mlp_out.weight"))
            nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * size.layers) if deep else 1.0))

    def embed(self, ids: Tensor) -> Tensor:
        """[B, T] ids as the first residual stream, [B, T, width]."""
        seen: Tensor = self.tokens(ids)
        return seen + self.positions.weight[: ids.shape[1]]

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, nats/token, and mean log Z of the output's softmax."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm_out(x), self.tokens.weight).float()
        log_z = logits.logsumexp(-1)
        loss = (log_z - logits.gather(-1, targets[..., None]).squeeze(-1)).mean()
        return loss, log_z.detach().mean()


def group_of(name: str) -> str:
    """The group of StepStats that a parameter's gradient norm counts to."""
    if name.startswith(("tokens", "positions")):
        return "embedding"
    if "norm" in name:
        return "norm"
    return "attention" if "qkv" in name or "attn" in name else "mlp"


@torch.no_grad()
def internals(model: GPT2, ids: Tensor) -> Tensor:
    """[3 layers + 1]: attention entropy over log(visible keys), activation mean and sd of each
    layer, and the largest attention logit, on one sequence [T].
    """
    x, length = model.embed(ids[None]), len(ids)
    hidden = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
    visible = torch.arange(2, length + 1, device=ids.device).float().log()
    entropies, means, deviations, tops = [], [], [], []
    for block in model.blocks:
        q, k, v = block.query_key_value(x)  # type: ignore[operator]
        logits = (q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1]))[0]
        tops.append(logits.masked_fill(hidden, -torch.inf).max())
        log_p = logits.masked_fill(hidden, -torch.inf).log_softmax(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(hidden, 0.0)).sum(-1)[:, 1:]
        entropies.append((entropy / visible).mean())
        x = block.after_attention(x, log_p.exp().to(v.dtype)[None] @ v)  # type: ignore[operator]
        means.append(x.float().mean())
        deviations.append(x.float().std())
    return torch.stack([*entropies, *means, *deviations, torch.stack(tops).max()])


# ----------------------------------------------------------------------------------- the faults


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


def _shifted(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _rows(ids: Tensor, targets: Tensor) -> Tensor:
    return torch.cat([ids, targets[:, -1:]], 1)


def _bytes(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Random bytes: GPT-2's first 256 ids are the single bytes."""
    return _shifted(torch.randint(0, 256, _rows(ids, targets).shape, **run.draw))


def _part_bytes(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    bad_ids, bad_targets = _bytes(run, ids, targets)
    bad = (torch.arange(len(ids), device=ids.device) % 4 == 0)[:, None]
    return torch.where(bad, bad_ids, ids), torch.where(bad, bad_targets, targets)


def _shuffled(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(ids, targets)
    order = torch.rand(rows.shape, device=rows.device, generator=run.generator).argsort(1)
    return _shifted(rows.gather(1, order))


def _repeated(_run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = _rows(ids, targets)
    return _shifted(rows[:, :8].repeat(1, rows.shape[1] // 8 + 1)[:, : rows.shape[1]])


def _rare(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A tenth of the tokens become ids that the text hardly holds."""
    rows = _rows(ids, targets)
    chosen = torch.rand(rows.shape, device=rows.device, generator=run.generator) < 0.1
    picks = run.text.rare[torch.randint(0, len(run.text.rare), rows.shape, **run.draw)]
    return _shifted(torch.where(chosen, picks, rows))


def _noisy_labels(run: Run, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    chosen = torch.rand(targets.shape, device=ids.device, generator=run.generator) < 0.3
    return ids, torch.where(chosen, torch.randint(0, VOCABULARY, ids.shape, **run.draw), targets)


def _moments(run: Run, name: str) -> list[Tensor]:
    return [run.optimizer.state[p][name] for p in run.parameters]


def _zero_second(run: Run) -> None:
    torch._foreach_zero_(_moments(run, "exp_avg_sq"))


def _zero_both(run: Run) -> None:
    torch._foreach_zero_(_moments(run, "exp_avg_sq") + _moments(run, "exp_avg"))


def _early_second(run: Run) -> None:
    torch._foreach_copy_(_moments(run, "exp_avg_sq"), run.early[1])


def _early_first(run: Run) -> None:
    torch._foreach_copy_(_moments(run, "exp_avg"), run.early[0])


def _misplaced(run: Run) -> None:
    """The moments come back in reverse order among the tensors of the same shape."""
    for name in ("exp_avg", "exp_avg_sq"):
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for moment in _moments(run, name):
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
    "moments_zero_second": Fault("stale_moments", at_onset=_zero_second, tail=300),
    "rare_tokens": Fault("rare_tokens", last=30, tail=200, batch=_rare),
    "rate_x4": Fault("rate_step", rate=4.0, tail=500),
    "bad_shard_shuffled": Fault("bad_shard", last=60, tail=250, batch=_shuffled),
    "moments_early_second": Fault("stale_moments", at_onset=_early_second, tail=300),
    "rank_noise": Fault("poisoned_rank", rank="noise"),
    "bad_shard_repeated": Fault("bad_shard", last=60, tail=250, batch=_repeated),
    "rank_scale": Fault("poisoned_rank", rank="scale"),
    "bad_shard_part": Fault("bad_shard", last=60, tail=250, batch=_part_bytes),
    "rate_x2": Fault("rate_step", rate=2.0, tail=500),
    "moments_misplaced": Fault("stale_moments", at_onset=_misplaced, tail=300),
    "rank_stale": Fault("poisoned_rank", rank="stale"),
    "moments_zero_both": Fault("stale_moments", at_onset=_zero_both, tail=300),
    "moments_early_first": Fault("stale_moments", at_onset=_early_first, tail=250),
    "fp16_scale_forced": Fault("fp16_overflow", scale=2.0**32, tail=300),
    "fp16_unchecked": Fault("fp16_overflow", scale=2.0**32, unchecked=True, tail=100),
    "fp16_activations": Fault("fp16_overflow", each=_grow, tail=400),
    "fp16_no_scale": Fault("fp16_underflow", scale=2.0**-8, tail=400),
    "longer_x4": Fault("longer_sequences", length=1024),
    "longer_x2": Fault("longer_sequences", length=512, tail=300),
}
SPLIT = ("rank_sign", "rank_noise", "rank_scale", "rank_stale")


# -------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Unit:
    """One lineage of a plan. ``steps``: of the schedule; ``stop``: the last that is trained
    without a fault. With ``faults`` the run forks at ``fork``.
    """

    name: str
    size: str
    seed: int
    qk_norm: bool
    schedule: str
    rate_factor: float = 1.0
    steps: int = 3000
    stop: int = 3000
    length: int = 512
    precision: str = "bf16"
    fork: int = 0
    tail: int = 0
    faults: tuple[str, ...] = ()

    def tail_of(self, fault: str) -> int:
        """Steps of a fault's record after the fork; ``tail`` cuts them short."""
        return min(self.tail or 10_000, FAULTS[fault].tail)

    @property
    def total_steps(self) -> int:
        """All that the unit trains."""
        return self.stop + self.fork + sum(map(self.tail_of, self.faults))

    def rate(self, step: int) -> float:
        """The learning rate of ``step`` (from 0): warm-up, then WSD (last fifth) or cosine to .1."""
        peak = SIZES[self.size].rate * self.rate_factor
        if step < WARM_UP:
            return peak * (step + 1) / WARM_UP
        share = (step - WARM_UP) / max(1, self.steps - WARM_UP)
        if self.schedule == "cosine":
            return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        return peak * min(1.0, 5 * (1 - share) + 0.01)


class Text:
    """The tokens on the device: a training part, a held-out part, and the ids that hardly occur."""

    def __init__(self, folder: Path, device: str) -> None:
        tokens = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
        counts = np.bincount(tokens, minlength=VOCABULARY)
        cut = int(len(tokens) * 0.97)
        self.train = torch.from_numpy(tokens[:cut].astype(np.int32)).to(device)
        self.held_out = torch.from_numpy(tokens[cut:].astype(np.int32)).to(device)
        rarest = np.argsort(counts, kind="stable")[: VOCABULARY // 20]
        self.rare = torch.from_numpy(rarest.astype(np.int64)).to(device)


class Run:
    """One model in training, its statistics on the device, its state at the fork."""

    def __init__(self, unit: Unit, text: Text, device: str, compiled: bool) -> None:
        self.unit, self.text, self.device = unit, text, device
        self.size = SIZES[unit.size]
        torch.manual_seed(unit.seed)
        self.model = GPT2(self.size, unit.qk_norm).to(device)
        self.compute: Any = torch.compile(self.model, dynamic=False) if compiled else self.model
        named = dict(self.model.named_parameters())
        self.parameters: list[Tensor] = list(named.values())
        self.groups = torch.tensor([GROUPS.index(group_of(n)) for n in named], device=device)
        self.sizes = torch.tensor([p.numel() for p in self.parameters], device=device).sqrt()
        wide = [p for p in self.parameters if p.dim() >= 2]
        narrow = [p for p in self.parameters if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": wide, "weight_decay": DECAY}, {"params": narrow, "weight_decay": 0.0}],
            lr=1.0,
            betas=BETAS,
            eps=EPSILON,
            fused=True,
        )
        half = unit.precision == "fp16"
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device, growth_interval=200, enabled=half)
        length = max([unit.stop, *(unit.fork + unit.tail_of(f) for f in unit.faults)])
        self.rows = torch.full((length, len(COLUMNS)), torch.nan, device=device)
        inside = (length, 3 * self.size.layers + 1)
        self.internals = torch.full(inside, torch.nan, device=device)
        self.validation = torch.full((length,), torch.nan, device=device)
        self.rates = np.zeros(length, dtype=np.float32)
        self.update: list[Tensor] | None = None
        self.early: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.stale: list[Tensor] = []
        self.generator = torch.Generator(device).manual_seed(unit.seed)
        self.draw: dict[str, Any] = {"device": device, "generator": self.generator}

    def rows_at(self, step: int, length: int) -> tuple[Tensor, Tensor]:
        """(ids, targets) of a step, both ranks, [2 sequences, length]; drawn by seed and step."""
        count = 2 * max(1, self.size.tokens // length)
        rng = np.random.default_rng((self.unit.seed, step))
        starts = rng.integers(0, len(self.text.train) - length - 1, count)
        index = torch.from_numpy(starts).to(self.device, non_blocking=True)[:, None]
        rows = self.text.train[index + torch.arange(length + 1, device=self.device)].long()
        return _shifted(rows)

    def autocast(self) -> torch.autocast:
        """Of the unit's precision."""
        return torch.autocast(self.device, dtype=self.dtype)

    def step(self, step: int, fault: Fault | None) -> None:
        """One optimizer step; its row of statistics stays on the device."""
        fault = fault or FAULTS["control"]
        length = fault.length or self.unit.length
        ids, targets = self.rows_at(step, length)
        if fault.batch:
            ids, targets = fault.batch(self, ids, targets)
        if fault.each:
            fault.each(self)
        rate = self.unit.rate(step) * fault.rate
        self.rates[step] = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        first, second = ids.chunk(2), targets.chunk(2)
        losses, log_zs = zip(
            *(self._backward(first[r], second[r], fault if r else None) for r in (0, 1)),
            strict=True,
        )
        if fault.rank == "noise":
            self._add_noise()
        self.scaler.unscale_(self.optimizer)
        seen = [torch.stack(losses).mean(), torch.stack(log_zs).mean(), *self._gradients()]
        before = [p.detach().clone() for p in self.parameters]
        skipped = self._apply(fault)
        seen += [*self._updated(before), skipped]
        self.rows[step] = torch.stack([value.float().reshape(()) for value in seen])
        if step % INTERNALS_EVERY == 0:
            with self.autocast():
                self.internals[step] = internals(self.model, ids[0])
        if step % VALIDATION_EVERY == VALIDATION_EVERY - 1:
            self.validation[step] = self._validate()

    def _backward(self, ids: Tensor, targets: Tensor, fault: Fault | None) -> tuple[Tensor, Tensor]:
        """One rank's half of the step; ``fault`` is what this rank suffers."""
        kind = fault.rank if fault else ""
        if kind == "stale":
            current = [p.detach().clone() for p in self.parameters]
            self._set(self.stale)
        with self.autocast():
            loss, log_z = self.compute(ids, targets)
        weight = {"sign": -0.5, "scale": 15.0}.get(kind, 0.5)
        self.scaler.scale(loss * weight).backward()
        if kind == "stale":
            self._set(current)
        return loss.detach(), log_z.detach().clone()

    @torch.no_grad()
    def _set(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self.parameters, weights)

    @property
    def _grads(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    @torch.no_grad()
    def _add_noise(self) -> None:
        """The second rank's gradient is noise three times as long as the mean gradient."""
        norms = torch._foreach_norm(self._grads)
        for grad, norm in zip(self._grads, norms, strict=True):
            noise = torch.randn(grad.shape, **self.draw)
            grad.add_(noise * (3 * norm / math.sqrt(grad.numel())))

    @torch.no_grad()
    def _gradients(self) -> list[Tensor]:
        """Gradient norm, RMS_max, update cosine, norm by group; then the gradients are clipped."""
        grads = self._grads
        norms = torch.stack(torch._foreach_norm(grads))
        total = norms.norm()
        nothing = torch.full((), torch.nan, device=self.device)
        rms = cosine = nothing
        if self.optimizer.state:
            scaled = torch._foreach_clamp_min(_moments(self, "exp_avg_sq"), EPSILON**2)
            torch._foreach_sqrt_(scaled)
            ratios = torch._foreach_div(grads, scaled)
            rms = (torch.stack(torch._foreach_norm(ratios)) / self.sizes).max()
        if self.update is not None:
            dots = torch._foreach_mul(grads, self.update)
            dot = torch.stack([d.sum() for d in dots]).sum()
            cosine = dot / (torch.stack(torch._foreach_norm(self.update)).norm() * total + 1e-30)
        squares = torch.zeros(len(GROUPS), device=self.device)
        squares.index_add_(0, self.groups, norms**2)
        torch._foreach_mul_(grads, (CLIP / (total + 1e-6)).clamp(max=1.0))
        return [total, rms, cosine, *squares.sqrt().unbind()]

    def _apply(self, fault: Fault) -> Tensor:
        """The optimizer's step; 1 if the scaler refused it."""
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return torch.zeros((), device=self.device)
        found = self.scaler._per_optimizer_states[id(self.optimizer)]["found_inf_per_device"]
        refused = torch.stack([flag.reshape(()) for flag in found.values()]).max().clone()
        if fault.unchecked:
            for flag in found.values():
                flag.zero_()
            refused = torch.zeros_like(refused)
        self.scaler.step(self.optimizer)
        self.scaler.update(fault.scale or None)
        return refused

    @torch.no_grad()
    def _updated(self, before: list[Tensor]) -> list[Tensor]:
        """Update ratio; the update itself stays for the next step's cosine."""
        size = torch.stack(torch._foreach_norm(before)).norm()
        torch._foreach_sub_(before, self.parameters)
        torch._foreach_neg_(before)
        self.update = before
        return [torch.stack(torch._foreach_norm(before)).norm() / (size + 1e-30)]

    @torch.no_grad()
    def _validate(self) -> Tensor:
        """Loss on 16 fixed held-out sequences."""
        length = self.unit.length
        room = len(self.text.held_out) - length - 1
        starts = torch.arange(16, device=self.device)[:, None] * (room // 16)
        rows = self.text.held_out[starts + torch.arange(length + 1, device=self.device)].long()
        with self.autocast():
            loss: Tensor = self.model(*_shifted(rows))[0]
        return loss

    # ------------------------------------------------------------------------ state and record

    def keep_early(self) -> None:
        """The moments of an early step, for faults that bring them back."""
        self.early = tuple(  # type: ignore[assignment]
            [m.clone() for m in _moments(self, name)] for name in ("exp_avg", "exp_avg_sq")
        )

    def state(self) -> dict[str, Any]:
        """A copy of all that a step reads."""
        return {
            "weights": [p.detach().clone() for p in self.parameters],
            "moments": [[m.clone() for m in _moments(self, n)] for n in self._state_names()],
            "update": [u.clone() for u in self.update or []],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to `state`."""
        self._set(state["weights"])
        for name, kept in zip(self._state_names(), state["moments"], strict=True):
            torch._foreach_copy_(_moments(self, name), kept)
        self.update = [u.clone() for u in state["update"]]
        if self.scaler.is_enabled():
            scaler = torch.amp.GradScaler(self.device, growth_interval=200)
            scaler.load_state_dict(state["scaler"])
            self.scaler = scaler

    @staticmethod
    def _state_names() -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "step")

    def record(self, folder: Path, name: str, end: int, labels: dict[str, Any]) -> bool:
        """Write the rows up to ``end``; False if the last fifty losses are not finite."""
        rows = self.rows[:end].cpu().numpy()
        columns: dict[str, Any] = {column: rows[:, i] for i, column in enumerate(COLUMNS)}
        columns["grad_norm_clipped"] = np.minimum(rows[:, COLUMNS.index("grad_norm")], CLIP)
        columns["learning_rate"] = self.rates[:end]
        inside = self.internals[:end].cpu().numpy()
        layers = self.size.layers
        sampled = np.arange(0, end, INTERNALS_EVERY, dtype=np.int32)
        columns["internals_step"] = sampled
        for i, key in enumerate(("attention_entropy", "activation_mean", "activation_sd")):
            columns[key] = inside[sampled, i * layers : (i + 1) * layers]
        columns["attention_logit_max"] = inside[sampled, -1]
        columns["validation_loss"] = self.validation[:end].cpu().numpy()
        np.savez_compressed(folder / f"{name}.part.npz", **columns)
        (folder / f"{name}.part.npz").replace(folder / f"{name}.npz")
        alive = bool(np.isfinite(rows[-50:, 0]).any())
        labels = {**labels, "finished": labels["finished"] or not alive}
        text = {"name": name, "rows": end, **labels}
        (folder / f"{name}.json").write_text(json.dumps(text, indent=1) + "\n")
        return alive


class Clock:
    """The end of the machine's time."""

    def __init__(self, end: float) -> None:
        self.end, self.begun, self.steps = end, time.time(), 0

    @property
    def rate(self) -> float:
        """Steps a second so far."""
        return self.steps / (time.time() - self.begun)

    @property
    def over(self) -> bool:
        """Time to stop."""
        return time.time() > self.end


def _labels(unit: Unit, kind: str, fault: str, onset: int | None) -> dict[str, Any]:
    shape = {k: v for k, v in asdict(unit).items() if k not in ("name", "faults", "tail", "stop")}
    shape["rate"] = SIZES[unit.size].rate * unit.rate_factor
    details: dict[str, Any] = {}
    if fault in FAULTS:
        details = {
            k: getattr(FAULTS[fault], k)
            for k in ("last", "rate", "rank", "length", "scale", "unchecked")
        }
    return {"kind": kind, "fault": fault, "onset_step": onset, "fault_details": details, **shape}


def _train(
    run: Run,
    steps: Iterator[int],
    fault: Fault | None,
    clock: Clock,
    save: Callable[[int, bool], bool],
) -> bool:
    """Train ``steps``; ``save(end, finished)`` at every look. False if time or the run is over."""
    end = 0
    for step in steps:
        active = fault if fault and (not fault.last or step < run.unit.fork + fault.last) else None
        run.step(step, active)
        end, clock.steps = step + 1, clock.steps + 1
        if step == min(EARLY_STEP, run.unit.fork // 2) and run.unit.faults and not fault:
            run.keep_early()
        if end % LOOK_EVERY == 0 and (not save(end, False) or clock.over):
            return False
    save(end, True)
    return True


def play(unit: Unit, run: Run, folder: Path, clock: Clock) -> None:
    """A unit's whole lineage, then its faults from the fork."""
    kind = "healthy" if unit.rate_factor <= 1 else "rate_from_start"
    onset = None if kind == "healthy" else 0

    def saver(name: str, labels: dict[str, Any]) -> Callable[[int, bool], bool]:
        return lambda end, done: run.record(folder, name, end, {**labels, "finished": done})

    if not unit.faults:
        labels = _labels(unit, kind, f"rate_x{unit.rate_factor:g}" if onset == 0 else "", onset)
        _train(run, iter(range(unit.stop)), None, clock, saver(unit.name, labels))
        return
    quiet: Callable[[int, bool], bool] = lambda _end, _done: True  # noqa: E731
    if not _train(run, iter(range(unit.fork)), None, clock, quiet):
        return
    kept = run.state()
    run.stale = kept["weights"]
    for name in unit.faults:
        if clock.over:
            return
        fault = FAULTS[name]
        run.restore(kept)
        run.generator.manual_seed(unit.seed)
        run.rows[unit.fork :], run.internals[unit.fork :] = torch.nan, torch.nan
        run.validation[unit.fork :] = torch.nan
        if fault.at_onset:
            fault.at_onset(run)
        labels = _labels(unit, fault.kind, name, None if name == "control" else unit.fork)
        steps = iter(range(unit.fork, unit.fork + unit.tail_of(name)))
        active = None if name == "control" else fault
        _train(run, steps, active, clock, saver(f"{unit.name}-{name}", labels))
        print(f"{unit.name}-{name} {clock.rate:.1f} steps/s", flush=True)


# -------------------------------------------------------------------------- workers and driver


def work(options: argparse.Namespace) -> None:
    """Take units off the plan until time or the plan is over: first the slot's own, then in order."""
    units = [
        Unit(**{**u, "faults": tuple(u["faults"])}) for u in json.loads(options.plan.read_text())
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    text, end = Text(options.data, device), options.end
    compiled = device == "cuda" and not options.eager
    order = [*units[options.slot : options.slot + 1], *units]
    for unit in order:
        if time.time() > end:
            return
        try:
            os.close(os.open(options.work / f"{unit.name}.claim", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        for tried in (compiled, False) if compiled else (False,):
            clock, run = Clock(end), None
            try:
                run = Run(unit, text, device, tried)
                play(unit, run, options.work, clock)
                break
            except Exception:  # noqa: BLE001 - one unit's failure must not end the others
                print(f"FAILED {unit.name} compiled={tried}\n{traceback.format_exc()}", flush=True)
                del run
                if device == "cuda":
                    torch.cuda.empty_cache()
        took = time.time() - clock.begun
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        print(
            f"slot {options.slot} {unit.name}: {clock.steps} steps in {took:.0f} s, "
            f"{clock.steps / took:.1f} steps/s, peak {peak:.1f} GiB",
            flush=True,
        )


def drive(options: argparse.Namespace) -> None:
    """Start the workers; every 15 seconds bring what they wrote into OUT/<plan>.zip. Exit 1 if a
    unit failed without torch.compile as well.
    """
    end = time.time() + options.seconds
    folder = Path(options.scratch) / f"{options.plan.stem}-{os.getpid()}"
    folder.mkdir(parents=True)
    gpus = max(1, torch.cuda.device_count())
    base = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": f"{options.scratch}/inductor",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
    }
    mine = range(gpus) if options.gpu is None else [options.gpu]
    workers = []
    for place in range(options.processes):
        for gpu in mine:
            command = [
                sys.executable,
                __file__,
                "work",
                "--plan",
                str(options.plan),
                "--data",
                str(options.data),
                "--slot",
                str(place * gpus + gpu),
                "--end",
                str(end),
                "--work",
                str(folder),
                *(["--eager"] if options.eager else []),
            ]
            output = (folder / f"slot{place * gpus + gpu}.log").open("w")
            workers.append(
                subprocess.Popen(
                    command,
                    env={**base, "CUDA_VISIBLE_DEVICES": str(gpu)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    options.out.mkdir(parents=True, exist_ok=True)
    bundled = time.time()
    while any(worker.poll() is None for worker in workers) and time.time() < end + 20:
        time.sleep(1)
        if time.time() > bundled + 15:
            _bundle(folder, options.out / f"{options.plan.stem}.zip")
            bundled = time.time()
    for worker in workers:
        worker.kill()
        worker.wait()
    _bundle(folder, options.out / f"{options.plan.stem}.zip")
    told = [line for log in sorted(folder.glob("*.log")) for line in log.read_text().splitlines()]
    for line in told:
        if "slot" in line or "FAILED" in line or "Error" in line:
            print(line[:300])
    print(f"{len(list(folder.glob('*.json')))} records of {options.plan.stem}", flush=True)
    if any(line.startswith("FAILED") and line.endswith("compiled=False") for line in told):
        sys.exit(1)


def _bundle(folder: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".npz", ".json", ".log") and ".part" not in path.name:
                archive.write(path, path.name)
    part.replace(target)
    if target.stat().st_size > 15 * 2**20:
        print(f"{target}: larger than 15 MiB", flush=True)


# -------------------------------------------------------------------------- text and the plans


def prepare(options: argparse.Namespace) -> None:
    """GPT-2 tokens of text files (.py, .txt), shuffled by file, at most 25 MB, as uint16."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer(str(options.bpe / "vocab.json"), str(options.bpe / "merges.txt"))
    files = [
        p for top in options.text for p in ([top] if top.is_file() else sorted(top.rglob("*.py")))
    ]
    files = [p for p in files if "site-packages" not in p.parts and "encodings" not in p.parts]
    random.Random(0).shuffle(files)
    pieces, total = [], 0
    for path in files:
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_text("utf-8")
            for start in range(0, len(text), 200_000):
                ids = bpe.encode(text[start : start + 200_000]).ids
                pieces.append(np.array([*ids, VOCABULARY - 1], dtype=np.uint16))
                total += len(ids) + 1
    random.Random(1).shuffle(pieces)
    tokens = np.concatenate(pieces)[:12_500_000]
    options.to.mkdir(parents=True, exist_ok=True)
    tokens.tofile(options.to / "tokens.bin")
    print(f"{total} tokens, {len(tokens)} kept, {len(np.unique(tokens))} ids")


def plans() -> dict[str, list[Unit]]:
    """smoke: every path, a few steps. a: healthy, and rates too high from the start. b, c: faults
    at 51M and at 124M. The first units of a plan go to the first workers, one to each GPU in turn.
    """
    plain = [
        n for n, f in FAULTS.items() if n != "control" and not n.startswith(("fp16", "longer"))
    ]
    groups = [("control", *plain[i::3]) for i in range(3)]
    half = ("control", *(n for n in FAULTS if n.startswith("fp16")))
    longer = ("control", *(n for n in FAULTS if n.startswith("longer")))

    def unit(
        size: str, seed: int, qk_norm: bool, schedule: str, tag: str = "", **more: Any
    ) -> Unit:
        factor = more.get("rate_factor", 1.0)
        name = f"{size}-s{seed}-qk{int(qk_norm)}-{schedule}-x{factor:g}{tag}"
        return Unit(name, size, seed, qk_norm, schedule, **more)

    def hot(size: str, seed: int, qk_norm: bool, schedule: str, factor: float) -> Unit:
        return unit(size, seed, qk_norm, schedule, rate_factor=factor, stop=1200)

    def faulty(size: str, seed: int, qk_norm: bool, schedule: str) -> list[Unit]:
        fork = 600 if seed % 2 else 700
        return [
            unit(size, seed, qk_norm, schedule, f"-f{i}", stop=0, fork=fork, faults=group)
            for i, group in enumerate(groups)
        ]

    def special(size: str, seed: int, qk_norm: bool, schedule: str) -> list[Unit]:
        more: dict[str, Any] = {"stop": 0, "fork": 600}
        return [
            unit(size, seed, qk_norm, schedule, "-fp16", precision="fp16", faults=half, **more),
            unit(size, seed, qk_norm, schedule, "-t256", length=256, faults=longer, **more),
        ]

    four = [(1, False, "wsd"), (2, True, "wsd"), (2, False, "cosine"), (1, True, "cosine")]
    healthy = [
        unit(size, seed, qk, schedule, rate_factor=factor)
        for size, kinds in (
            (
                "124M",
                [
                    (1, False, "wsd", 1.0),
                    (2, True, "cosine", 1.0),
                    (3, False, "cosine", 0.5),
                    (4, True, "wsd", 0.5),
                ],
            ),
            ("51M", [(s, qk, schedule, f) for f in (1.0, 0.5) for s, qk, schedule in four]),
        )
        for seed, qk, schedule, factor in kinds
    ]
    a = [
        *healthy,
        *(hot("51M", *kind, factor) for factor in (4.0, 8.0, 2.0) for kind in four),
        *(unit("51M", seed, bool(seed % 2), "wsd", steps=4000, stop=4000) for seed in (5, 6, 7, 8)),
    ]
    b = [
        *(u for kind in four for u in faulty("51M", *kind)),
        *special("51M", *four[0]),
        *special("51M", *four[1]),
    ]
    c = [
        *faulty("124M", 1, False, "wsd"),
        *special("124M", 1, False, "wsd"),
        *(hot("124M", 1, False, "wsd", factor) for factor in (4.0, 8.0, 2.0)),
        *faulty("124M", 2, True, "cosine"),
        *(hot("124M", 2, True, "cosine", factor) for factor in (4.0, 8.0, 2.0)),
    ]
    few: dict[str, Any] = {"stop": 0, "fork": 20, "tail": 6, "steps": 200}
    smoke = [
        unit("51M", 1, False, "wsd", steps=200, stop=200),
        unit("51M", 1, True, "cosine", "-all", faults=("control", *plain), **few),
        unit("51M", 1, False, "wsd", "-fp16", precision="fp16", faults=half, **few),
        unit("51M", 1, False, "wsd", "-t256", length=256, faults=longer, **few),
        unit("124M", 1, True, "cosine", steps=200, stop=200),
        unit("124M", 1, False, "wsd", steps=200, stop=200),
        unit("124M", 1, False, "wsd", "-fp16", precision="fp16", faults=half, **few),
        unit("124M", 1, False, "wsd", "-t256", length=256, faults=longer, **few),
    ]
    toy = [
        replace(
            u,
            size="toy",
            name=f"toy{i}",
            fork=min(u.fork, 4),
            stop=min(u.stop, 5),
            tail=3,
            length=32,
        )
        for i, u in enumerate(smoke[:4])
    ]
    return {"smoke": smoke, "a": a, "b": b, "c": c, "toy": toy}


def write_plans(options: argparse.Namespace) -> None:
    """One JSON file a plan, and how many steps it asks for."""
    for name, units in plans().items():
        text = json.dumps([asdict(unit) for unit in units], indent=1)
        (options.to / f"{name}.json").write_text(text + "\n")
        by_size = {s: sum(u.total_steps for u in units if u.size == s) for s in SIZES}
        records = sum(len(u.faults) or 1 for u in units)
        print(
            name, len(units), "units", records, "records", {s: n for s, n in by_size.items() if n}
        )


def main() -> None:
    """The four commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)

    def command(name: str, call: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(call=call)
        return added

    made = command("prepare", prepare)
    made.add_argument("--to", type=Path, required=True)
    made.add_argument("--text", type=Path, nargs="+", required=True)
    made.add_argument("--bpe", type=Path, required=True)
    command("plans", write_plans).add_argument("--to", type=Path, required=True)
    for name, call in (("drive", drive), ("work", work)):
        added = command(name, call)
        added.add_argument("--plan", type=Path, required=True)
        added.add_argument("--data", type=Path, required=True)
        added.add_argument("--eager", action="store_true", help="without torch.compile")
        if name == "work":
            added.add_argument("--slot", type=int, required=True)
            added.add_argument("--end", type=float, required=True)
            added.add_argument("--work", type=Path, required=True)
        else:
            added.add_argument("--gpu", type=int, help="this GPU alone; default all")
            added.add_argument("--processes", type=int, default=3, help="side by side on a GPU")
            added.add_argument("--seconds", type=float, required=True)
            added.add_argument("--scratch", default="/tmp/make_instabilities")
            added.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
