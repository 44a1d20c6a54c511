"""What a branch may change: the action, its lattice, and the words for it.

An action is applied once, to the state a branch starts from. Its factors multiply the scheduled
values and stay in the optimizer state of the lineage that adopts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

#: The choice of the clipping axis that keeps the run's own policy.
KEEP = "Keep"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Action:
    """One point of the lattice.

    learning_rate_scale, weight_decay_scale: factors on the value in force, > 0.
    clipping: ``Keep`` or the name of a registered clipping policy.
    momentum_reset: zero both Adam moments and their step counters, then re-warm the rate.
    rewind_steps: how many steps before the trigger the base state lies, >= 0.
    data_reorder: draw the batches after the base in another seeded order (research only).
    skip_batches: batches to skip after the base (research only), >= 0.
    """

    learning_rate_scale: float = 1.0
    weight_decay_scale: float = 1.0
    clipping: str = KEEP
    momentum_reset: bool = False
    rewind_steps: int = 0
    data_reorder: bool = False
    skip_batches: int = 0

    def __post_init__(self) -> None:
        if not (self.learning_rate_scale > 0 and self.weight_decay_scale > 0):
            raise ValueError(f"action: scales must be > 0; got {self}")
        if self.rewind_steps < 0 or self.skip_batches < 0:
            raise ValueError(f"action: rewind_steps and skip_batches must be >= 0; got {self}")

    @property
    def is_identity(self) -> bool:
        """True if nothing but the rewind is left. On equal data order and RNG a replay that
        changes nothing gives the same trajectory from every depth, so all identities are one.
        """
        return (
            self.learning_rate_scale == 1.0
            and self.weight_decay_scale == 1.0
            and self.clipping == KEEP
            and not self.momentum_reset
            and not self.data_reorder
            and self.skip_batches == 0
        )

    @property
    def changes_only_clipping(self) -> bool:
        """True for the class that needs no confirm rung: it neither anneals nor resets."""
        return (
            self.learning_rate_scale == 1.0
            and self.weight_decay_scale == 1.0
            and not self.momentum_reset
            and not self.data_reorder
            and self.skip_batches == 0
            and self.clipping != KEEP
        )

    @property
    def kind(self) -> str:
        """The class under which its acceptance margin is tabled."""
        if self.data_reorder or self.skip_batches:
            return "data"
        if self.momentum_reset:
            return "momentum"
        if self.learning_rate_scale < 1.0:
            return "lower-rate"
        if self.learning_rate_scale > 1.0:
            return "raise-rate"
        if self.weight_decay_scale != 1.0:
            return "weight-decay"
        return "clipping" if self.clipping != KEEP else "identity"

    def describe(self) -> str:
        """The action in words, e.g. ``learning rate x0.8, ZClip, rewind 50``."""
        parts = []
        if self.learning_rate_scale != 1.0:
            parts.append(f"learning rate x{self.learning_rate_scale:g}")
        if self.weight_decay_scale != 1.0:
            parts.append(f"weight decay x{self.weight_decay_scale:g}")
        if self.clipping != KEEP:
            parts.append(f"clipping {self.clipping}")
        if self.momentum_reset:
            parts.append("momentum reset")
        if self.data_reorder:
            parts.append("data reordered")
        if self.skip_batches:
            parts.append(f"skip {self.skip_batches} batches")
        words = ", ".join(parts) if parts else "change nothing"
        return f"{words}, rewind {self.rewind_steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """The choices a branch draws from; ``rewind_steps`` are the depths of the bases at hand."""

    learning_rate_scales: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1)
    weight_decay_scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    clipping: tuple[str, ...] = (KEEP, "ZClip", "ARC", "SPAM", "None")
    momentum_reset: tuple[bool, ...] = (False, True)
    rewind_steps: tuple[int, ...] = (0,)
    data_reorder: tuple[bool, ...] = (False,)
    skip_batches: tuple[int, ...] = (0,)

    def axes(self) -> Sequence[tuple[str, tuple[object, ...]]]:
        """(field name, choices) of each axis, in the order of Action's fields."""
        return (
            ("learning_rate_scale", self.learning_rate_scales),
            ("weight_decay_scale", self.weight_decay_scales),
            ("clipping", self.clipping),
            ("momentum_reset", self.momentum_reset),
            ("rewind_steps", self.rewind_steps),
            ("data_reorder", self.data_reorder),
            ("skip_batches", self.skip_batches),
        )

    def actions(self) -> Iterator[Action]:
        """All distinct actions but the identities (the control is never a candidate)."""
        for lr, wd, clip, reset, rewind, reorder, skip in product(
            dict.fromkeys(self.learning_rate_scales),
            dict.fromkeys(self.weight_decay_scales),
            dict.fromkeys(self.clipping),
            dict.fromkeys(self.momentum_reset),
            dict.fromkeys(self.rewind_steps),
            dict.fromkeys(self.data_reorder),
            dict.fromkeys(self.skip_batches),
        ):
            action = Action(
                learning_rate_scale=lr,
                weight_decay_scale=wd,
                clipping=clip,
                momentum_reset=reset,
                rewind_steps=rewind,
                data_reorder=reorder,
                skip_batches=skip,
            )
            if not action.is_identity:
                yield action

    def size(self) -> int:
        """Number of distinct candidate actions, the identities not counted."""
        return sum(1 for _ in self.actions())

    def contains(self, action: Action) -> bool:
        """Whether the action is a candidate of this lattice."""
        return not action.is_identity and all(
            getattr(action, name) in choices for name, choices in self.axes()
        )
