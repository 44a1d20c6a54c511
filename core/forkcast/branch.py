"""The branch machine: all that moves a branch lives in this file, and nothing else does.

Two rules. First, `decide` is pure and level-based: it looks at the phase and at what the world
shows *now*, and answers with the next phase and the commands that are still needed. It never
remembers that it has sent a command; as long as the world does not show the effect, the command
comes again. So a crash before, between or after commands changes nothing but the time taken.
Second, every command is idempotent: names are deterministic and "already there" is success.

The moves, as a table (`MOVES`), from which the diagram in the documentation is drawn::

    Forking -> Drafting -> Verifying (rung by rung) -> Deciding -> Collapsing -> Releasing -> Finished
       |          |                                       |                         ^
       +----------+------------+--- nothing to do --------+-------------------------+

A phase before Collapsing goes there, or to Releasing, where another operator has decided already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from forkcast import acceptance
from forkcast.actions import Action
from forkcast.branch_rules import BranchRules, Policy
from forkcast.commands import (
    AppendLineage,
    Command,
    DraftCandidates,
    HoldMain,
    PinBases,
    PinState,
    PostCollapse,
    RecordDecision,
    Release,
    RunRollout,
    StopRollout,
)
from forkcast.conclusion import control_of, decision_of, entry_of
from forkcast.decision import CONTROL, Candidate, Decision, Outcome, Reason
from forkcast.phases import (
    Collapsing,
    Deciding,
    Drafting,
    Finished,
    Forking,
    Phase,
    Releasing,
    Verifying,
)
from forkcast.records import StateRef, Trial, Trigger
from forkcast.seen import Seen


def branch_name(run: str, trigger: Trigger) -> str:
    """``<run>-e<epoch>-t<step>``: one trigger, one name, so one branch."""
    return f"{run}-{trigger.id}"


def decide(phase: Phase, seen: Seen, rules: BranchRules) -> tuple[Phase, tuple[Command, ...]]:
    """The next phase and the commands that are still needed. Pure; see the rules of this file."""
    if isinstance(phase, Forking | Drafting | Verifying | Deciding):
        # a recorded decision holds, whichever operator took it; and if another one has ended the
        # branch, a hold or a rollout asked for now would outlive it
        if seen.decision is not None:
            return _carry_out(phase, seen.decision), ()
        if seen.released:
            return _release(phase, Outcome.SUPERSEDED, Reason.ENDED_BY_ANOTHER_OPERATOR), ()
    match phase:
        case Forking():
            return _fork(phase, seen, rules)
        case Drafting():
            return _draft(phase, seen, rules)
        case Verifying():
            return _verify(phase, seen, rules)
        case Deciding():
            return _conclude(phase, seen, rules)
        case Collapsing():
            return _collapse(phase, seen)
        case Releasing(branch=branch, trigger=trigger, outcome=outcome, reason=reason):
            if seen.released:
                done = Finished(branch=branch, trigger=trigger, outcome=outcome, reason=reason)
                return done, ()
            return phase, (Release(branch=branch, outcome=outcome, reason=reason),)
        case Finished():
            return phase, ()


def _hold(
    phase: Forking | Drafting | Verifying | Deciding, rules: BranchRules
) -> tuple[Command, ...]:
    return (HoldMain(branch=phase.branch),) if rules.hold_main else ()


def _release(phase: Phase, outcome: Outcome, reason: Reason) -> Releasing:
    return Releasing(branch=phase.branch, trigger=phase.trigger, outcome=outcome, reason=reason)


def _early_end(phase: Phase, seen: Seen) -> Releasing | None:
    """A branch with nothing measured yet ends where the run has ended or its time is up."""
    if seen.run_finished:
        return _release(phase, Outcome.NO_ACTION, Reason.RUN_FINISHED)
    if seen.expired:
        return _release(phase, Outcome.FAILED, Reason.DEADLINE_EXCEEDED)
    return None


def _fork(phase: Forking, seen: Seen, rules: BranchRules) -> tuple[Phase, tuple[Command, ...]]:
    if (end := _early_end(phase, seen)) is not None:
        return end, ()
    if seen.bases is None:
        pin = PinBases(
            branch=phase.branch, before_step=phase.trigger.onset_step, depths=rules.depths
        )
        return phase, (*_hold(phase, rules), pin)
    if not seen.bases:
        return _release(phase, Outcome.FAILED, Reason.NO_SAFE_CHECKPOINT), ()
    return Drafting(branch=phase.branch, trigger=phase.trigger, bases=seen.bases), ()


def _draft(phase: Drafting, seen: Seen, rules: BranchRules) -> tuple[Phase, tuple[Command, ...]]:
    if (end := _early_end(phase, seen)) is not None:
        return end, ()
    if seen.draft is None:
        draw = DraftCandidates(branch=phase.branch, trigger=phase.trigger, bases=phase.bases)
        return phase, (*_hold(phase, rules), draw)
    if not seen.draft.finalists:
        return _release(phase, Outcome.NO_ACTION, Reason.NO_CANDIDATE_PASSED_THE_GATE), ()
    return (
        Verifying(
            branch=phase.branch,
            trigger=phase.trigger,
            bases=phase.bases,
            draft=seen.draft,
            entrants=seen.draft.finalists
            if rules.policy is Policy.LADDER
            else (CONTROL, *seen.draft.finalists),
            rung=rules.rungs[0],
        ),
        (),
    )


def base_of(action: Action, trigger: Trigger, bases: tuple[StateRef, ...]) -> StateRef:
    """The pinned base an action starts from. Raises KeyError for a depth that was not pinned."""
    for base in bases:
        if trigger.step - base.step == action.rewind_steps:
            return base
    raise KeyError(f"no base {action.rewind_steps} steps before {trigger.step}")


def _entrant(phase: Verifying, name: str) -> Candidate:
    if name == CONTROL:
        return control_of(phase.trigger, phase.bases)
    return phase.draft.candidate(name)


def _verify(phase: Verifying, seen: Seen, rules: BranchRules) -> tuple[Phase, tuple[Command, ...]]:
    trials = {
        name: rollout.trials[phase.rung]
        for name, rollout in seen.rollouts.items()
        if phase.rung in rollout.trials
    }
    cut_short = seen.expired or seen.run_finished
    if cut_short or all(name in trials for name in phase.entrants):
        following = None if cut_short else _next_rung(phase, trials, rules)
        if following is not None:
            return following, ()
        conclusion = Deciding(
            branch=phase.branch,
            trigger=phase.trigger,
            bases=phase.bases,
            draft=phase.draft,
            cut_short=cut_short,
        )
        return conclusion, ()
    commands: list[Command] = list(_hold(phase, rules))
    for name, rollout in seen.rollouts.items():
        if name not in phase.entrants and rollout.until is not None:
            commands.append(StopRollout(branch=phase.branch, candidate=name))
    for name in phase.entrants:
        known = seen.rollouts.get(name)
        if known is None or known.until != phase.rung:
            commands.append(_run(phase, _entrant(phase, name)))
    return phase, tuple(commands)


def _run(phase: Verifying, candidate: Candidate) -> RunRollout:
    return RunRollout(
        branch=phase.branch,
        candidate=candidate.name,
        action=candidate.action,
        base=base_of(candidate.action, phase.trigger, phase.bases),
        trigger_step=phase.trigger.step,
        until=phase.rung,
    )


def _next_rung(
    phase: Verifying, trials: Mapping[str, Trial], rules: BranchRules
) -> Verifying | None:
    """The phase of the next rung with the rollouts that go on to it; None if verification is over."""
    later = [rung for rung in rules.rungs if rung > phase.rung]
    if later:
        going_on = acceptance.survivors(trials, phase.rung, rules.acceptance)
        rung = later[0]
    elif rules.confirm_steps > phase.rung:
        actions = {c.name: c.action for c in phase.draft.candidates}
        going_on = acceptance.to_confirm(
            trials, actions, phase.rung, rules.confirm_finalists, rules.acceptance
        )
        rung = rules.confirm_steps
    else:
        return None
    entrants = tuple(name for name in phase.entrants if name in going_on)
    if len(entrants) < 2:
        return None
    return replace(phase, entrants=entrants, rung=rung)


def _carry_out(
    phase: Forking | Drafting | Verifying | Deciding, decision: Decision
) -> Collapsing | Releasing:
    """What a standing decision leads to."""
    if decision.outcome.adopts and decision.applied:
        return Collapsing(branch=phase.branch, trigger=phase.trigger, decision=decision)
    return _release(phase, decision.outcome, decision.reason)


def _conclude(phase: Deciding, seen: Seen, rules: BranchRules) -> tuple[Phase, tuple[Command, ...]]:
    decision = decision_of(phase, seen, rules)
    record = RecordDecision(branch=phase.branch, decision=decision)
    if decision.adopted is not None:
        return phase, (
            *_hold(phase, rules),
            PinState(branch=phase.branch, state=decision.adopted),
            record,
        )
    return phase, (*_hold(phase, rules), record)


def _collapse(phase: Collapsing, seen: Seen) -> tuple[Phase, tuple[Command, ...]]:
    entry = entry_of(phase.decision)
    if seen.lineage is None:
        if seen.run_finished:
            return _release(phase, Outcome.NO_ACTION, Reason.RUN_FINISHED), ()
        return phase, (AppendLineage(branch=phase.branch, entry=entry),)
    if seen.lineage != entry:
        return _release(phase, Outcome.SUPERSEDED, Reason.EPOCH_TAKEN), ()
    if seen.durable_epoch < entry.epoch:
        if seen.run_finished:  # the trainer ended between our look and our append: nobody adopts
            return _release(phase, Outcome.NO_ACTION, Reason.RUN_FINISHED), ()
        return phase, (PostCollapse(branch=phase.branch, entry=entry),)
    return _release(phase, phase.decision.outcome, phase.decision.reason), ()
