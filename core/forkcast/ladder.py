"""The fixed rule practice uses, as a policy: skip, then lower the rate, then go back and skip more.

Nothing is drawn, compared or verified. It is what a branch has to beat, so it takes the same path:
one rollout replays the base under the step's action, and its end state is adopted. Rewinding about
a hundred steps and skipping 200 to 500 batches is what large runs report (PaLM, arXiv 2204.02311,
section 5.1; GLM-130B, arXiv 2210.02414).
"""

from __future__ import annotations

from collections.abc import Sequence

from forkcast.acceptance import Conclusion, Evidence
from forkcast.actions import Action
from forkcast.decision import (
    Candidate,
    Draft,
    DraftSource,
    Judgement,
    Outcome,
    ProxyAnswer,
    Reason,
    Verdict,
)
from forkcast.lineage import LineageEntry
from forkcast.records import StateRef, TrialStatus, Trigger
from forkcast.relapse import WATCHED_STEPS

STRATEGY = "Ladder"
CLIMB_STEPS = WATCHED_STEPS[0]
LOWER_RATE = 0.5
SKIPPED_BATCHES = 200
#: Steps after the trigger at which the end state is taken: as few as a rollout can run.
RUNG = 1
_TOP = 2
_NAME = "c000"


def step_of(trigger: Trigger, lineage: Sequence[LineageEntry]) -> int:
    """0, 1 or 2: one higher for each of the last collapses that was followed, within 500 steps, by
    the next trigger. The top step is repeated.
    """
    step, at = 0, trigger.step
    for entry in sorted(lineage, key=lambda one: one.epoch, reverse=True):
        if entry.epoch > trigger.epoch:
            continue
        if at - entry.state.step > CLIMB_STEPS:
            break
        step, at = step + 1, entry.trigger_step
    return min(step, _TOP)


def action_of(
    trigger: Trigger, bases: Sequence[StateRef], lineage: Sequence[LineageEntry]
) -> Action:
    """What the ladder does about a trigger, from bases newest first.

    Step 0 skips the batches from the newest base through the trigger, step 1 halves the rate from
    there, step 2 goes back to the oldest base and skips 200 batches.
    """
    newest, oldest = trigger.step - bases[0].step, trigger.step - bases[-1].step
    match step_of(trigger, lineage):
        case 0:
            return Action(skip_batches=newest + 1, rewind_steps=newest)
        case 1:
            return Action(learning_rate_scale=LOWER_RATE, rewind_steps=newest)
        case _:
            return Action(skip_batches=SKIPPED_BATCHES, rewind_steps=oldest)


def draft(trigger: Trigger, bases: Sequence[StateRef], lineage: Sequence[LineageEntry]) -> Draft:
    """The draft that holds the ladder's action alone."""
    only = Candidate(name=_NAME, action=action_of(trigger, bases, lineage))
    return Draft(
        seed=0,
        strategy=STRATEGY,
        source=DraftSource.HEURISTIC,
        model="",
        horizon=0,
        proxy=ProxyAnswer.NOT_ASKED,
        detail=f"step {step_of(trigger, lineage) + 1} of 3",
        candidates=(only,),
        finalists=(_NAME,),
    )


def conclude(evidence: Evidence) -> Conclusion:
    """The action is adopted as soon as its end state exists; a replay that died adopts nothing."""
    trials = evidence.trials.get(_NAME, {})
    trial = trials[max(trials)] if trials else None
    adopted = trial is not None and trial.status is TrialStatus.OK and trial.state is not None
    if trial is None:
        verdict, reason = Verdict.UNFINISHED, "no trial was published"
    elif adopted:
        verdict, reason = Verdict.ACCEPTED, "the ladder verifies nothing"
    elif trial.status is TrialStatus.DIVERGED:
        verdict, reason = Verdict.DIVERGED, f"diverged by step {trial.step}"
    else:
        verdict, reason = Verdict.FAILED, trial.failure or "its end state was not published"
    judged = Judgement(
        candidate=_NAME,
        rung=trial.rung if trial is not None else None,
        verdict=verdict,
        improvement=None,
        margin=None,
        volatility_ratio=None,
        risk=None,
        risk_rule="none",
        reason=reason,
    )
    return Conclusion(
        outcome=Outcome.ACCEPTED if adopted else Outcome.NO_ACTION,
        reason=Reason.NEXT_STEP_OF_THE_LADDER if adopted else Reason.LADDER_STEP_FAILED,
        winner=_NAME if adopted else None,
        judgements=(judged,),
    )
