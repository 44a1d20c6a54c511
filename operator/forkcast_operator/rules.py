"""A manifest's `branching` as the rules of the core."""

from __future__ import annotations

from forkcast.acceptance import AcceptanceRules, Preset
from forkcast.actions import Lattice
from forkcast.branch import BranchRules
from forkcast.records import StateRef, Trigger
from forkcast_wire.manifest import Mode, TrainingRunSpec

_ARC_LEAST = 3


def branch_rules(spec: TrainingRunSpec, trigger: Trigger) -> BranchRules:
    """The rules a branch is opened with; rungs and confirm rung end where the run ends.

    Raises ValueError where not even the first rung fits into the steps left.
    """
    branching, left = spec.branching, spec.training.total_steps - trigger.step
    confirm = min(branching.confirm.steps, left)
    # where the confirm rung moves forward it takes the place of the rungs it meets: without one,
    # a rate cut would be accepted on the evidence of the early rungs
    rungs = tuple(r for r in branching.rungs if r <= left and (not confirm or r < confirm))
    if not rungs:
        raise ValueError(f"only {left} steps are left, the first rung is {branching.rungs[0]}")
    acceptance = branching.acceptance
    return BranchRules(
        rungs=rungs,
        confirm_steps=confirm,
        confirm_finalists=branching.confirm.finalists,
        depths=tuple(branching.rollback.depths),
        hold_main=True,
        apply=branching.mode is Mode.ENFORCE,
        acceptance=AcceptanceRules(
            preset=Preset(acceptance.preset),
            max_risk=acceptance.max_risk_quantile,
            max_volatility_ratio=acceptance.max_volatility_ratio,
            unknown_margin=acceptance.margin,
            ema_decay=spec.uncertainty.ema_decay or 0.98,
        ),
    )


def lattice_of(spec: TrainingRunSpec, trigger: Trigger, bases: tuple[StateRef, ...]) -> Lattice:
    """The actions a branch may draw: the manifest's choices, over the depths of its bases."""
    choices = spec.branching.actions
    micro = spec.training.gradient_accumulation_steps * spec.parallelism.processes
    clipping = tuple(name for name in choices.clipping if name != "ARC" or micro >= _ARC_LEAST)
    return Lattice(
        learning_rate_scales=tuple(choices.learning_rate_scales),
        weight_decay_scales=tuple(choices.weight_decay_scales),
        clipping=clipping,
        momentum_reset=(False, True) if choices.momentum_reset else (False,),
        rewind_steps=tuple(trigger.step - base.step for base in bases),
        data_reorder=(False, True) if choices.data_reorder else (False,),
        skip_batches=(0, 1) if choices.skip_batch else (0,),
    )
