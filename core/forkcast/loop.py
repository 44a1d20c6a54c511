"""The loop itself: look, decide, act, write the phase once."""

from __future__ import annotations

from forkcast.branch import decide
from forkcast.branch_rules import BranchRules
from forkcast.phases import Phase
from forkcast.ports import World


def reconcile(world: World, phase: Phase, rules: BranchRules) -> Phase:
    """One level-based pass over one branch; returns the phase it ends in.

    Commands are carried out before the phase is saved: after a crash in between they come again,
    and they are idempotent.
    """
    following, commands = decide(phase, world.observe(phase), rules)
    for command in commands:
        world.do(command)
    if following != phase:
        world.save(following)
    return following
