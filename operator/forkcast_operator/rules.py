"""A manifest's `branching` as the rules of the core."""

from __future__ import annotations

from collections.abc import Sequence

from forkcast import ladder, loan
from forkcast.acceptance import AcceptanceRules, Preset
from forkcast.actions import KEEP, Lattice
from forkcast.branch_rules import BranchRules, Policy
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef, Trigger, TriggerRule
from forkcast_wire.manifest import Mode, TrainingRunSpec
from forkcast_wire.shelves import SHELVES


def branch_rules(spec: TrainingRunSpec, trigger: Trigger, *, hold_main: bool = True) -> BranchRules:
    """The rules a branch is opened with; rungs and confirm rung end where the run ends.
    hold_main: whether the executor lets the main run wait (a pod does not).

    Raises ValueError if not even the first rung fits into the steps left.
    """
    branching, left = spec.branching, spec.training.total_steps - trigger.step
    policy = Policy(branching.policy)
    wanted, confirm = branching.rungs, min(branching.confirm.steps, left)
    if policy is Policy.LADDER:
        wanted, confirm = [ladder.RUNG], 0
    # where the confirm rung moves forward it takes the place of the rungs it meets: without one,
    # a rate cut would be accepted on the evidence of the early rungs
    rungs = tuple(r for r in wanted if r <= left and (not confirm or r < confirm))
    if not rungs:
        raise ValueError(f"only {left} steps are left, the first rung is {wanted[0]}")
    acceptance, decay = branching.acceptance, spec.uncertainty.ema_decay
    return BranchRules(
        rungs=rungs,
        confirm_steps=confirm,
        confirm_finalists=branching.confirm.finalists,
        # a calm run has no departure to go back behind
        depths=(0,) if trigger.rule is TriggerRule.CALM else tuple(branching.rollback.depths),
        hold_main=hold_main,
        apply=branching.mode is Mode.ENFORCE,
        policy=policy,
        acceptance=AcceptanceRules(
            preset=Preset(acceptance.preset),
            max_risk=acceptance.max_risk_quantile,
            max_volatility_ratio=acceptance.max_volatility_ratio,
            unknown_margin=acceptance.margin,
            ema_decay=AcceptanceRules().ema_decay if decay is None else decay,
        ),
    )


def lattice_of(
    spec: TrainingRunSpec,
    trigger: Trigger,
    bases: tuple[StateRef, ...],
    lineage: Sequence[LineageEntry],
) -> Lattice:
    """The actions a branch may draw: the manifest's choices, over the depths of its bases; on a Calm
    trigger only what pays back the learning rate's loan.
    """
    if trigger.rule is TriggerRule.CALM:
        return Lattice(
            learning_rate_scales=loan.repayments(lineage, trigger.epoch),
            weight_decay_scales=(1.0,),
            clipping=(KEEP,),
            momentum_reset=(False,),
            rewind_steps=tuple(trigger.step - base.step for base in bases),
        )
    choices = spec.branching.actions
    micro = spec.training.gradient_accumulation_steps * spec.parallelism.processes
    keeps = SHELVES["optimizers"][spec.optimizer.name]["secondMoment"]
    fit = {
        name: micro >= of["leastMicroBatches"] and (keeps or not of["needsSecondMoment"])
        for name, of in SHELVES["clipping"].items()
    }
    clipping = tuple(name for name in choices.clipping if fit.get(name, True))
    depths = tuple(trigger.step - base.step for base in bases)
    return Lattice(
        learning_rate_scales=tuple(choices.learning_rate_scales),
        weight_decay_scales=tuple(choices.weight_decay_scales),
        clipping=clipping,
        momentum_reset=(False, True) if choices.momentum_reset else (False,),
        rewind_steps=depths,
        data_reorder=(False, True) if choices.data_reorder else (False,),
        # from the deepest base through the trigger's own batch: from a nearer one some more
        skip_batches=(0, max(depths, default=0) + 1) if choices.skip_batch else (0,),
    )
