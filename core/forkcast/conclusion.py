"""What a branch concludes from what was measured: its decision, and the lineage record that asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from forkcast import acceptance, ladder
from forkcast.actions import Action
from forkcast.branch_rules import BranchRules, Policy
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
from forkcast.phases import Deciding
from forkcast.records import StateRef, Trial, Trigger
from forkcast.seen import Seen


def control_of(trigger: Trigger, bases: tuple[StateRef, ...]) -> Candidate:
    """The control: rewind to the newest base, change nothing."""
    newest = max(bases, key=lambda base: base.step)
    return Candidate(name=CONTROL, action=Action(rewind_steps=trigger.step - newest.step))


def decision_of(phase: Deciding, seen: Seen, rules: BranchRules) -> Decision:
    """The decision that was reached, with all it rests on."""
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
