"""A branch in words: what happened, what was tried, what was decided and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from forkcast import ladder
from forkcast.actions import Action
from forkcast.allowance import Allowance
from forkcast.decision import CONTROL, Decision, DraftSource, Judgement, Outcome, Verdict
from forkcast.records import Tier, Trial, Trigger, TriggerRule
from forkcast_wire.branches import Suppression
from forkcast_wire.run_events import RunEvent
from forkcast_wire.run_records import BranchView

_RULES = {
    TriggerRule.CONSECUTIVE: "the index stood over its threshold for several steps in a row",
    TriggerRule.SINGLE: "the index jumped over its single-step threshold",
    TriggerRule.SLOW: "the loss or the gradient norm had crept up",
    TriggerRule.INTERNAL: "the model's inside stood where no healthy run is",
    TriggerRule.VALIDATION_REGRESSION: "the validation loss stayed above its trend",
    TriggerRule.INSTABILITY_RATE: "instability events became more frequent",
    TriggerRule.NON_FINITE: "the loss or the gradient was not finite",
    TriggerRule.FORCED: "the manifest forces a trigger at this step",
    TriggerRule.CALM: "the run had been calm long enough to try the learning rate it had before a cut",
}
_VERDICTS = {
    Verdict.ACCEPTED: "accepted",
    Verdict.PASSED: "passed; another was better",
    Verdict.DROPPED_AT_RUNG: "dropped at a rung",
    Verdict.NOT_CONFIRMED: "not confirmed",
    Verdict.RISK: "refused: risk",
    Verdict.NO_BETTER: "no better than the control",
    Verdict.VOLATILE: "too volatile",
    Verdict.DIVERGED: "diverged",
    Verdict.FAILED: "failed",
    Verdict.UNFINISHED: "unfinished",
}
_REASONS = {
    "NoCandidatePassed": "no candidate met every condition",
    "DeadlineExceeded": "the deadline came first",
    "EndedByAnotherOperator": "another operator ended it",
    "EpochTaken": "another branch had opened the next epoch",
    "NextStepOfTheLadder": "the ladder verifies nothing",
    "NoSafeCheckpoint": "no saved state from before the departure existed",
    "NoCandidatePassedTheGate": "no candidate passed the risk gate",
    "RunFinished": "the run had ended",
    "WinnerStateMissing": "the winner's end state never became durable",
    "TransientCause": "a plain replay escaped what hit the run",
    "LadderStepFailed": "the replay under the ladder's action failed",
    "Improved": "it beat the control by more than the margin",
}


def verdict(judgement: Judgement) -> str:
    """A verdict in a few words."""
    return _VERDICTS[judgement.verdict]


def trigger_sentence(trigger: Trigger) -> str:
    """Why the branch was opened."""
    if trigger.cause:
        return f"At step {trigger.step:,}: {trigger.cause}."
    parts = sorted(trigger.components.items(), key=lambda item: -item[1])
    signals = ", ".join(f"{name} {value:+.1f}" for name, value in parts)
    since = ""
    if trigger.onset_step < trigger.step:
        since = f" The departure began at step {trigger.onset_step}."
    said = f" ({signals})" if signals else ""
    return f"At step {trigger.step}, {_RULES[trigger.rule]}: z {trigger.z:.1f}{said}.{since}"


def passes(progress: Mapping[str, Any]) -> str:
    """How often each text has been seen, e.g. `code 2.31, web 0.12`; '' if the trainer has not said."""
    found: Mapping[str, float] = progress.get("passes") or {}
    if list(found) == ["train"]:
        return f"{found['train']:.2f}"
    return ", ".join(f"{name} {count:.2f}" for name, count in found.items())


def told_events(progress: Mapping[str, Any]) -> list[str]:
    """The newest events that a watched run has told of, in sentences."""
    return [f"unstable at step {one['step']}: {one['cause']}" for one in progress.get("events", ())]


def event_row(event: RunEvent) -> list[str]:
    """An event as a row: step, its departure's first step, tier, cause."""
    return [str(event.step), str(event.onset_step), Tier(event.tier).name.lower(), event.cause]


def allowance_sentence(allowance: Allowance) -> str:
    """What the branch may cost."""
    return f"It may try {allowance.words}."


def refused_sentence(refused: Sequence[Suppression]) -> str:
    """How many triggers opened no branch and why, the commonest reason first, and the newest of them."""
    counts = Counter(one.reason for one in refused).most_common()
    why = "; ".join(f"{count} because {reason.words}" for reason, count in counts)
    many = f"{len(refused)} triggers" if len(refused) > 1 else "1 trigger"
    newest = max(one.trigger.step for one in refused)
    return f"{many} opened no branch, the last at step {newest:,}: {why}"


def draft_sentence(decision: Decision) -> str:
    """What was drafted, and by whom it was ranked."""
    draft = decision.draft
    if draft.strategy == ladder.STRATEGY:
        return f"The ladder's action ({draft.detail}) was applied without a comparison."
    ranked = "the proxy" if draft.source is DraftSource.PROXY else "the heuristic"
    note = f" ({draft.note})" if draft.note else ""
    states = ", ".join(str(base.step) for base in decision.bases)
    return (
        f"{len(draft.candidates)} actions were drawn ({draft.strategy}) and ranked by {ranked}{note}; "
        f"the first {len(draft.finalists)} were run for real beside an unchanged control, "
        f"from the states of steps {states}."
    )


def outcome_sentence(decision: Decision) -> str:
    """The decision and its reason."""
    match decision.outcome:
        case Outcome.ACCEPTED:
            return _accepted(decision)
        case Outcome.CONTROL_ADOPTED:
            return f"The control was adopted: {reason(decision.reason)}."
        case Outcome.DATA_CAUSED:
            where = (
                "the same step" if decision.cause_step is None else f"step {decision.cause_step}"
            )
            return f"Every rollout spiked at {where}, so the data is the cause; nothing changed."
        case _:
            end = "the main run went on from its own state"
            return f"{spelt(decision.outcome.value)}: {reason(decision.reason)}; {end}."


def _accepted(decision: Decision) -> str:
    judged = next((one for one in decision.judgements if one.candidate == decision.winner), None)
    action = decision.action.describe() if decision.action is not None else "?"
    figures = ""
    if judged is not None and judged.improvement is not None:
        figures = f" It ended {judged.improvement:.3f} nats/token below the control"
        figures += f" at +{judged.rung}" if judged.rung is not None else ""
        figures += f" (margin {judged.margin:.3f})" if judged.margin is not None else ""
        if judged.volatility_ratio is not None:
            figures += f", with {judged.volatility_ratio:.2f} times its volatility"
        figures += "."
    applied = "adopted" if decision.applied else "accepted but not applied (dry run)"
    return f"{decision.winner} was {applied}: {action}.{figures}"


def spelt(word: str) -> str:
    """``NoAction`` as ``No action``."""
    parts = "".join(f" {c.lower()}" if c.isupper() else c for c in word).strip()
    return parts[:1].upper() + parts[1:]


def reason(word: str) -> str:
    """A one-word reason, spelt out where it is known."""
    return _REASONS.get(word, word)


def cost_sentence(decision: Decision) -> str:
    """What the branch cost."""
    cost = decision.cost
    return f"It cost {cost.rollout_steps} rollout steps ({cost.rollout_seconds:.0f} s of rollouts)."


EDITED = (
    "NOT AS RECORDED: decision.json was changed after the decision was taken; its digest is not the "
    "recorded one. What follows is what the file says now."
)


def sentences(branch: BranchView) -> list[str]:
    """The whole story of one branch."""
    said = [trigger_sentence(branch.trigger)]
    if branch.allowance is not None:
        said.append(allowance_sentence(branch.allowance))
    decision = branch.decision
    if decision is None:
        if branch.outcome is None:
            said.append(f"It is open, in phase {branch.phase}.")
        else:
            said.append(f"It ended without a decision, {branch.outcome}: {reason(branch.reason)}.")
        return said
    if branch.edited:
        said.insert(0, EDITED)
    said += [draft_sentence(decision), outcome_sentence(decision), cost_sentence(decision)]
    if branch.outcome is not None and branch.outcome != decision.outcome.value:
        said.append(f"The branch then ended {branch.outcome}: {reason(branch.reason)}.")
    return said


def table(branch: BranchView) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the finalists' table: the control first, then in ranked order.

    Losses are validation losses with the mean of recent weights, nats/token, at each rung.
    """
    decision = branch.decision
    rungs = sorted({rung for by in branch.trials.values() for rung in by})
    header = ["", "action", *(f"+{rung}" for rung in rungs)]
    header += ["gain", "margin", "volatility", "risk", "verdict"]
    names = [] if decision and decision.draft.strategy == ladder.STRATEGY else [CONTROL]
    names += decision.draft.finalists if decision else ()
    names += [name for name in sorted(branch.trials) if name not in names]
    judged = {one.candidate: one for one in decision.judgements} if decision else {}
    rows = []
    for name in names:
        trials = branch.trials.get(name, {})
        row = [name, _action(decision, name)]
        row += [_loss(trials.get(rung)) for rung in rungs]
        rows.append(row + _judged(judged.get(name)))
    return header, rows


def _action(decision: Decision | None, name: str) -> str:
    if decision is None:
        return ""
    if name == CONTROL:
        newest = max(base.step for base in decision.bases)
        return Action(rewind_steps=decision.trigger.step - newest).describe()
    return decision.draft.candidate(name).action.describe()


def _loss(trial: Trial | None) -> str:
    if trial is None:
        return ""
    value = (
        trial.mean_weights_loss if trial.mean_weights_loss is not None else trial.validation_loss
    )
    return f"{value:.3f}" if value is not None else trial.status.value.lower()


def _judged(judgement: Judgement | None) -> list[str]:
    if judgement is None:
        return ["", "", "", "", ""]

    def figure(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    said = verdict(judgement)
    plain = (Verdict.ACCEPTED, Verdict.NO_BETTER, Verdict.NOT_CONFIRMED)
    if judgement.verdict not in plain and judgement.reason:
        said += f" ({judgement.reason})"
    return [
        figure(judgement.improvement, "+.3f"),
        figure(judgement.margin, ".3f"),
        figure(judgement.volatility_ratio, ".2f"),
        figure(judgement.risk, ".2f"),
        said,
    ]
