"""One model in training: its steps, with or without a fault, and their statistics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instabilities.faults import FAULTS, Fault, moments, shifted
from instabilities.model import GPT2, GROUPS, SIZES, VOCABULARY, group_of, internals
from instabilities.units import Unit

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
BETAS, DECAY, CLIP, EPSILON = (0.9, 0.95), 0.1, 1.0, 1e-8
INTERNALS_EVERY, VALIDATION_EVERY = 5, 50


class Text:
    """The tokens on the device: a training part, a held-out part, and the ids that hardly occur."""

    def __init__(self, folder: Path, device: str, vocabulary: int = VOCABULARY) -> None:
        tokens = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
        counts = np.bincount(tokens, minlength=vocabulary)
        cut = int(len(tokens) * 0.97)
        self.train = torch.from_numpy(tokens[:cut].astype(np.int32)).to(device)
        self.held_out = torch.from_numpy(tokens[cut:].astype(np.int32)).to(device)
        rarest = np.argsort(counts, kind="stable")[: vocabulary // 20]
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
        return shifted(rows)

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
            scaled = torch._foreach_clamp_min(moments(self, "exp_avg_sq"), EPSILON**2)
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
            loss: Tensor = self.model(*shifted(rows))[0]
        return loss

    # ------------------------------------------------------------------------ state and record

    def keep_early(self) -> None:
        """The moments of an early step, for faults that bring them back."""
        self.early = tuple(  # type: ignore[assignment]
            [m.clone() for m in moments(self, name)] for name in ("exp_avg", "exp_avg_sq")
        )

    def state(self) -> dict[str, Any]:
        """A copy of all that a step reads."""
        return {
            "weights": [p.detach().clone() for p in self.parameters],
            "moments": [[m.clone() for m in moments(self, n)] for n in self._state_names()],
            "update": [u.clone() for u in self.update or []],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to `state`."""
        self._set(state["weights"])
        for name, kept in zip(self._state_names(), state["moments"], strict=True):
            torch._foreach_copy_(moments(self, name), kept)
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
