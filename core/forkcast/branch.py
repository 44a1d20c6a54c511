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
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeAlias

from forkcast import acceptance, ladder
from forkcast.acceptance import AcceptanceRules
from forkcast.actions import Action
from forkcast.decision import (
    CONTROL,
    SCHEMA_VERSION,
    Candidate,
    Circumstances,
    Cost,
    Decision,
    Draft,
    Outcome,
    Reason,
)
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef, Trial, Trigger

# ---------------------------------------------------------------------------- what the world shows


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSeen:
    """One rollout as it stands: its desired rung, the trials it has published, its failure."""

    until: int | None
    trials: Mapping[int, Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look at the world shows. Absent things are None or empty, never guessed.

    bases: the pinned base states, newest first; None until the pin is durable, () where no state
        from before the departure exists.
    main_losses: the main run's training losses by step, from the oldest base to where it stands.
    main_over_threshold: whether the index is still over its threshold at the main run's last step.
    lineage: the record of epoch (trigger.epoch + 1), whichever operator wrote it.
    durable_epoch: highest epoch of which a checkpoint with a valid manifest exists.
    expired: the branch's deadline has passed. run_finished: the trainer has ended the run.
    released: no rollout, pin or hold of this branch is left.
    """

    bases: tuple[StateRef, ...] | None
    draft: Draft | None
    rollouts: Mapping[str, RolloutSeen]
    main_losses: Mapping[int, float]
    main_over_threshold: bool
    decision: Decision | None
    lineage: LineageEntry | None
    durable_epoch: int
    expired: bool
    run_finished: bool
    released: bool


# ---------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldMain:
    """Ask the trainer to wait at its next step boundary (executor Process only)."""

    branch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinBases:
    """Choose base states from before ``before_step`` and pin them in the catalogue."""

    branch: str
    before_step: int
    depths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCandidates:
    """Draw the candidates, ask the proxy, rank, and record the draft (create-only)."""

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRollout:
    """Let the rollout exist and run until ``until`` steps after the trigger."""

    branch: str
    candidate: str
    action: Action
    base: StateRef
    trigger_step: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRollout:
    """Let the rollout not run any more; its records stay."""

    branch: str
    candidate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PinState:
    """Pin the winner's end state, before the decision that names it is written."""

    branch: str
    state: StateRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDecision:
    """Write decision.json, create-only. Another decision already there is the one that holds."""

    branch: str
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendLineage:
    """Create the lineage record of the next epoch. Losing the race is not an error."""

    branch: str
    entry: LineageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class PostCollapse:
    """Tell the trainer that a newer epoch exists and what it adopts."""

    branch: str
    entry: LineageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Stop what runs, unpin, let the main run go on, record the outcome."""

    branch: str
    outcome: Outcome
    reason: Reason


Command: TypeAlias = (
    HoldMain
    | PinBases
    | DraftCandidates
    | RunRollout
    | StopRollout
    | PinState
    | RecordDecision
    | AppendLineage
    | PostCollapse
    | Release
)

# ------------------------------------------------------------------------------------------ phases


@dataclass(frozen=True, slots=True, kw_only=True)
class Forking:
    """Base states are being chosen and pinned."""

    branch: str
    trigger: Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """Candidates are being drawn and ranked."""

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifying:
    """``entrants`` run to ``rung``, including the control except under policy Ladder; any other
    rollout is stopped.
    """

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]
    draft: Draft
    entrants: tuple[str, ...]
    rung: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """Everything is measured; the decision is being recorded."""

    branch: str
    trigger: Trigger
    bases: tuple[StateRef, ...]
    draft: Draft
    cut_short: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapsing:
    """The decision stands and is carried into the main run."""

    branch: str
    trigger: Trigger
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Releasing:
    """Nothing is left to decide; what the branch holds is given back."""

    branch: str
    trigger: Trigger
    outcome: Outcome
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end. A finished branch holds no resources."""

    branch: str
    trigger: Trigger
    outcome: Outcome
    reason: Reason


Phase: TypeAlias = Forking | Drafting | Verifying | Deciding | Collapsing | Releasing | Finished

#: Legal moves, phase to phase (staying is always legal).
MOVES: Final[Mapping[type, tuple[type, ...]]] = {
    Forking: (Drafting, Collapsing, Releasing),
    Drafting: (Verifying, Collapsing, Releasing),
    Verifying: (Verifying, Deciding, Collapsing, Releasing),
    Deciding: (Collapsing, Releasing),
    Collapsing: (Releasing,),
    Releasing: (Finished,),
    Finished: (),
}

PHASES: Final[Mapping[str, type]] = {kind.__name__: kind for kind in MOVES}


class Policy(StrEnum):
    """How a branch chooses. Forkcast: by verified rollouts. Ladder: by a fixed rule, unverified."""

    FORKCAST = "Forkcast"
    LADDER = "Ladder"


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRules:
    """The rules a branch is opened with; frozen for its life, whatever the manifest says later.

    rungs: steps after the trigger at which all entrants are compared, rising.
    confirm_steps: the confirm rung, after the last of ``rungs``; 0 for none.
    confirm_finalists: how many go on to it beside the control.
    depths: wanted distances of the base states before the departure, steps; 0 is the newest.
    hold_main: whether the main run waits at t while the branch is open.
    apply: False in mode DryRun.
    """

    rungs: tuple[int, ...] = (10, 25, 50)
    confirm_steps: int = 200
    confirm_finalists: int = 2
    depths: tuple[int, ...] = (0, 200)
    hold_main: bool = True
    apply: bool = True
    policy: Policy = Policy.FORKCAST
    acceptance: AcceptanceRules = field(default_factory=AcceptanceRules)

    def __post_init__(self) -> None:
        ladder = (*self.rungs, self.confirm_steps) if self.confirm_steps else self.rungs
        if not self.rungs or list(ladder) != sorted(set(ladder)) or ladder[0] < 1:
            raise ValueError(f"branch: rungs must rise from >= 1, confirm last; got {ladder}")

    def recorded(self) -> Mapping[str, str | int | float | bool]:
        """The rules as they stand in decision.json."""
        rules = self.acceptance
        return {
            "policy": self.policy.value,
            "preset": rules.preset.value,
            "maxRiskQuantile": rules.max_risk,
            "maxVolatilityRatio": rules.max_volatility_ratio,
            "unknownMargin": rules.unknown_margin,
            "rungs": ",".join(map(str, self.rungs)),
            "confirmSteps": self.confirm_steps,
            "confirmFinalists": self.confirm_finalists,
            "apply": self.apply,
        }


def branch_name(run: str, trigger: Trigger) -> str:
    """``<run>-e<epoch>-t<step>``: one trigger, one name, so one branch."""
    return f"{run}-{trigger.id}"


# ------------------------------------------------------------------------------------------ decide


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


def control_of(trigger: Trigger, bases: tuple[StateRef, ...]) -> Candidate:
    """The control: rewind to the newest base, change nothing."""
    newest = max(bases, key=lambda base: base.step)
    return Candidate(name=CONTROL, action=Action(rewind_steps=trigger.step - newest.step))


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
    decision = _decision(phase, seen, rules)
    record = RecordDecision(branch=phase.branch, decision=decision)
    if decision.adopted is not None:
        return phase, (
            *_hold(phase, rules),
            PinState(branch=phase.branch, state=decision.adopted),
            record,
        )
    return phase, (*_hold(phase, rules), record)


def _decision(phase: Deciding, seen: Seen, rules: BranchRules) -> Decision:
    trials = {name: rollout.trials for name, rollout in seen.rollouts.items()}
    circumstances = Circumstances.of(
        seen.main_losses.get(phase.trigger.step),
        over_threshold=seen.main_over_threshold,
        cut_short=phase.cut_short,
        run_finished=seen.run_finished and not seen.expired,
    )
    end = _end(phase.trigger, phase.draft, trials, circumstances, rules)
    winner = end.winner
    action = None
    if winner is not None:
        control = control_of(phase.trigger, phase.bases)
        action = control.action if winner == CONTROL else phase.draft.candidate(winner).action
    finals = [by[max(by)] for by in trials.values() if by]
    return Decision(
        schema_version=SCHEMA_VERSION,
        run_uid=phase.trigger.run_uid,
        branch=phase.branch,
        epoch=phase.trigger.epoch,
        trigger=phase.trigger,
        bases=phase.bases,
        draft=phase.draft,
        trials=tuple(trial for name in sorted(trials) for _, trial in sorted(trials[name].items())),
        judgements=end.judgements,
        outcome=end.outcome,
        reason=end.reason,
        cause_step=end.cause_step,
        applied=rules.apply and end.outcome.adopts,
        winner=winner,
        action=action,
        adopted=trials[winner][max(trials[winner])].state if winner is not None else None,
        rules=rules.recorded(),
        cost=Cost(
            rollout_steps=sum(trial.steps_run for trial in finals),
            rollout_seconds=sum(trial.seconds for trial in finals),
        ),
        circumstances=circumstances,
    )


def _end(
    trigger: Trigger,
    draft: Draft,
    trials: Mapping[str, Mapping[int, Trial]],
    circumstances: Circumstances,
    rules: BranchRules,
) -> acceptance.Conclusion:
    """How the branch ends by its policy; a winner whose end state is missing adopts nothing."""
    evidence = acceptance.Evidence(
        trigger=trigger,
        draft=draft,
        trials=trials,
        circumstances=circumstances,
        rung=rules.rungs[-1],
        confirm_rung=rules.confirm_steps,
    )
    if rules.policy is Policy.LADDER:
        end = ladder.conclude(evidence)
    else:
        end = acceptance.conclude(evidence, rules.acceptance)
    if end.winner is not None and trials[end.winner][max(trials[end.winner])].state is None:
        missing = Reason.WINNER_STATE_MISSING  # it measured well, but its state is not durable
        return replace(end, outcome=Outcome.NO_ACTION, reason=missing, winner=None)
    return end


def redecide(decision: Decision, rules: BranchRules) -> acceptance.Conclusion:
    """What these rules conclude from a recorded decision's evidence; by the rules of its branch.json
    the recorded outcome. Raises ValueError for a decision of schema 1, which lacks a part of it.
    """
    if decision.circumstances is None:
        version = decision.schema_version
        raise ValueError(f"decision of {decision.branch}: schema {version} lacks its circumstances")
    trials: dict[str, dict[int, Trial]] = {}
    for trial in decision.trials:
        trials.setdefault(trial.candidate, {})[trial.rung] = trial
    return _end(decision.trigger, decision.draft, trials, decision.circumstances, rules)


def entry_of(decision: Decision) -> LineageEntry:
    """The lineage record that a decision asks for. Raises ValueError if it adopts nothing."""
    if decision.adopted is None or decision.action is None:
        raise ValueError(f"decision of {decision.branch} adopts nothing: {decision.outcome}")
    return LineageEntry(
        epoch=decision.epoch + 1,
        run_uid=decision.run_uid,
        branch=decision.branch,
        decision_digest=decision.digest,
        action=decision.action,
        state=decision.adopted,
        base_step=decision.trigger.step - decision.action.rewind_steps,
        trigger_step=decision.trigger.step,
    )


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
