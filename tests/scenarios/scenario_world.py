"""The world of a scenario file: what the text has said, and what the commands so far have done."""

from dataclasses import dataclass, field, replace

from forkcast.actions import Action
from forkcast.branch import base_of
from forkcast.branch_rules import BranchRules
from forkcast.commands import (
    AppendLineage,
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
from forkcast.decision import CONTROL, Candidate, Draft, DraftSource, ProxyAnswer
from forkcast.lineage import LineageEntry
from forkcast.phases import Phase
from forkcast.records import Forecast, StateKind, StateRef, Trial, TrialStatus, Trigger
from forkcast.seen import RolloutSeen, Seen

ACTION = {"lr": ("learning_rate_scale", float), "wd": ("weight_decay_scale", float)} | {
    "clip": ("clipping", str),
    "reset": ("momentum_reset", bool),
    "rewind": ("rewind_steps", int),
}
NOTHING = Seen(
    bases=None,
    draft=None,
    rollouts={},
    main_losses={},
    main_over_threshold=False,
    decision=None,
    lineage=None,
    durable_epoch=0,
    expired=False,
    run_finished=False,
    released=False,
)


def entry_of_another(trigger, branch):
    """The lineage record of the next epoch, opened by another branch."""
    return LineageEntry(
        epoch=trigger.epoch + 1,
        run_uid=trigger.run_uid,
        branch=branch,
        decision_digest="another",
        action=Action(),
        state=state("another", trigger.step),
        base_step=trigger.step,
        trigger_step=trigger.step,
    )


def state(key: str, step: int) -> StateRef:
    kind = StateKind.RING
    return StateRef(key=key, kind=kind, epoch=0, attempt=0, step=step, digest=key, size_bytes=1)


@dataclass
class ScenarioWorld:
    """A `World` of plain values. ``losing``: the commands of this look have no effect."""

    trigger: Trigger = None  # set by the scenario's first line
    rules: BranchRules = field(default_factory=BranchRules)
    bases: tuple = ()
    candidates: tuple = ()
    seen: Seen = NOTHING
    losing: bool = False
    saved: Phase = None
    did: list = field(default_factory=list)
    decided: list = field(default_factory=list)

    def observe(self, phase):
        return self.seen

    def save(self, phase):
        self.saved = phase

    def show(self, **facts):
        self.seen = replace(self.seen, **facts)

    def rollout(self, name, **facts):
        known = self.seen.rollouts.get(name, RolloutSeen(until=None, trials={}))
        self.show(rollouts={**self.seen.rollouts, name: replace(known, **facts)})

    def do(self, command):
        match command:
            case HoldMain():
                words, effect = "hold", {}
            case PinBases(before_step=step):
                words, effect = f"pin before {step}", {"bases": self.bases}
            case DraftCandidates():
                words, effect = "draft", {"draft": self.draft()}
            case RunRollout(candidate=name, until=until):
                words, effect = f"run {name} to +{until}", {}
            case StopRollout(candidate=name):
                words, effect, until = f"stop {name}", {}, None
            case PinState(state=ref):
                words, effect = f"pin {ref.key}", {}
            case RecordDecision(decision=d):
                self.decided.append(d)
                verdicts = ", ".join(f"{j.candidate} {j.verdict}" for j in d.judgements)
                words, effect = f"decide {d.outcome} ({d.reason}) [{verdicts}]", {"decision": d}
            case AppendLineage(entry=entry):
                words, effect = f"open epoch {entry.epoch}", {"lineage": self.seen.lineage or entry}
            case PostCollapse(entry=entry):
                words, effect = f"collapse to epoch {entry.epoch}", {}
            case Release():
                words, effect = "release", {"released": True}
        self.did.append(words)
        if not self.losing:
            self.show(**effect)
            if isinstance(command, RunRollout | StopRollout):
                self.rollout(name, until=until)

    def draft(self):
        names = tuple(one.name for one in self.candidates)
        return Draft(
            seed=0,
            strategy="Lattice",
            source=DraftSource.PROXY,
            model="",
            horizon=0,
            proxy=ProxyAnswer.NOT_ASKED,
            detail="",
            candidates=self.candidates,
            finalists=names,
        )

    def candidate(self, name, **said):
        risk = float(said.pop("risk")) if "risk" in said else None
        forecast = Forecast(
            candidate=name, loss=None, p_divergence=None, risk=risk, recovery_steps=None
        )
        action = Action(**{ACTION[k][0]: ACTION[k][1](v) for k, v in said.items()})
        proxy = forecast if risk is not None else None
        self.candidates += (Candidate(name=name, action=action, forecast=proxy),)

    def trial(self, name, rung, loss="nan", swing=0.1, spike=None, status="Ok", *, stateless=False):
        step, base = self.trigger.step + int(rung), max(self.bases, key=lambda one: one.step)
        if name != CONTROL:
            action = next(one.action for one in self.candidates if one.name == name)
            base = base_of(action, self.trigger, self.bases)
        losses = tuple(3.0 + float(swing) * (-1) ** s for s in range(base.step, step))
        ok = status == "Ok"
        trial = Trial(
            candidate=name,
            rung=int(rung),
            step=step,
            status=TrialStatus(status),
            validation_loss=float(loss) if ok else None,
            mean_weights_loss=float(loss) if ok else None,
            losses_from=base.step,
            losses=losses,
            spike_steps=(int(spike),) if spike else (),
            steps_run=len(losses),
            seconds=0.0,
            state=state(f"{name}+{int(rung)}", step) if ok and not stateless else None,
        )
        known = self.seen.rollouts.get(name)
        self.rollout(name, trials={**(known.trials if known else {}), trial.rung: trial})
