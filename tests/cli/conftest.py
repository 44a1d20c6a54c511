"""A finished run's work directory, written with the project's own records: 300 steps, a spike at
150, one branch that accepted a lower rate and one that ended without action."""

import json
import math

import pytest

from forkcast.acceptance import AcceptanceRules
from forkcast.actions import Action
from forkcast.branch import branch_name
from forkcast.branch_rules import BranchRules
from forkcast.conclusion import entry_of
from forkcast.decision import (
    Candidate,
    Circumstances,
    Cost,
    Decision,
    Draft,
    DraftSource,
    Judgement,
    Outcome,
    ProxyAnswer,
    Reason,
    Verdict,
)
from forkcast.phases import Finished
from forkcast.records import StateKind, Trial, TrialStatus, Trigger, TriggerRule
from forkcast_wire.branches import BranchRecord, OutcomeRecord, save_phase
from forkcast_wire.documents import Complete, RunInfo, dump
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.statistics import write_chunk
from forkcast_wire.store import FolderStore
from tests.make import state_ref

UID = "0123456789abcdef"


def state(step, kind=StateKind.RING, epoch=0):
    key = f"rollouts/x/{step}" if kind is StateKind.ROLLOUT else f"ring/e{epoch}/a0/{step:012d}"
    return state_ref(step, kind, key=key, epoch=epoch, digest="0" * 64, size_bytes=10)


def loss_at(step):
    return 3.0 + 2.0 * math.exp(-step / 60) + 0.02 * math.sin(step * 1.7)


def trial(name, rung, t, gain, base, end=None):
    steps = range(base, t + rung)
    return Trial(
        candidate=name,
        rung=rung,
        step=t + rung,
        status=TrialStatus.OK,
        validation_loss=3.1 - gain,
        mean_weights_loss=3.1 - gain,
        losses_from=base,
        losses=tuple(loss_at(step) - gain for step in steps),
        spike_steps=(),
        steps_run=len(steps),
        seconds=1.0,
        state=end,
    )


def decided(t, epoch, base, *, accept):
    actions = [
        Action(learning_rate_scale=0.8, rewind_steps=t - base),
        Action(clipping="ZClip", rewind_steps=t - base),
    ]
    candidates = tuple(Candidate(name=f"c00{i}", action=a) for i, a in enumerate(actions))
    end = state(t + 20, StateKind.ROLLOUT, epoch)
    gains = (0.05, -0.01) if accept else (-0.02, -0.01)
    trials = [trial(n, r, t, 0.0, base) for n in ("control",) for r in (10, 20)]
    for one, gain in zip(candidates, gains, strict=True):
        trials.append(trial(one.name, 10, t, gain, base))
        if one.name == "c000":
            trials.append(trial(one.name, 20, t, gain, base, end))
    verdicts = (Verdict.ACCEPTED if accept else Verdict.NO_BETTER, Verdict.DROPPED_AT_RUNG)
    return Decision(
        schema_version=2,
        run_uid=UID,
        branch=f"made-e{epoch}-t{t}",
        epoch=epoch,
        trigger=Trigger(
            run_uid=UID,
            epoch=epoch,
            step=t,
            onset_step=t - 2,
            rule=TriggerRule.SINGLE,
            z=6.5,
            index=3.0,
            components={"volatility": 7.0, "entropy": 0.1},
            thresholds={"z": 2.5, "single_z": 3.2},
        ),
        bases=(state(base, epoch=epoch),),
        draft=Draft(
            seed=1,
            strategy="Lattice",
            source=DraftSource.HEURISTIC,
            model="",
            horizon=0,
            proxy=ProxyAnswer.NOT_ASKED,
            detail="<proxy & down>",
            candidates=candidates,
            finalists=("c000", "c001"),
        ),
        trials=tuple(trials),
        judgements=tuple(
            Judgement(
                candidate=one.name,
                rung=20,
                verdict=verdict,
                improvement=gain,
                margin=0.02,
                volatility_ratio=0.9,
                risk=None,
                risk_rule="no unstable step in the rollout",
                reason="measured",
            )
            for one, verdict, gain in zip(candidates, verdicts, gains, strict=True)
        ),
        outcome=Outcome.ACCEPTED if accept else Outcome.NO_ACTION,
        reason=Reason.IMPROVED if accept else Reason.NO_CANDIDATE_PASSED,
        cause_step=None,
        applied=accept,
        winner="c000" if accept else None,
        action=actions[0] if accept else None,
        adopted=end if accept else None,
        rules=BranchRules(acceptance=AcceptanceRules()).recorded(),
        cost=Cost(rollout_steps=150, rollout_seconds=12.5),
        circumstances=Circumstances.of(
            3.0, over_threshold=False, cut_short=False, run_finished=False
        ),
    )


def row(epoch, step, loss):
    names = ("update_ratio", "rms_max", "validation_loss", "attention_entropy")
    return dict.fromkeys(names) | {
        "run_uid": UID,
        "epoch": epoch,
        "attempt": 0,
        "rank": 0,
        "step": step,
        "loss": loss,
        "grad_norm": 1.0 + 0.01 * math.cos(step),
        "grad_norm_clipped": 1.0,
        "learning_rate": 1e-3,
        "tokens": 256 * (step + 1),
        "skipped": False,
        "index": 0.1,
        "z": 0.5,
        "u_volatility": 0.2,
    }


@pytest.fixture
def made_run(tmp_path):
    folder = tmp_path / "made"
    manifest = TrainingRun.model_validate(
        {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "made"},
            "spec": {
                "model": {"architecture": "gpt2-tiny"},
                "data": {"train": {"uri": "python-stdlib:"}, "sequenceLength": 64},
                "training": {"totalSteps": 300, "microBatchSize": 4},
            },
        }
    )
    statistics = folder / "statistics"
    statistics.mkdir(parents=True)
    write_chunk([row(0, s, loss_at(s) + (4.0 if s == 150 else 0)) for s in range(156)], statistics)
    write_chunk([row(1, s, loss_at(s)) for s in range(170, 300)], statistics)
    (folder / "manifest.json").write_text(json.dumps(manifest.document()))
    (folder / "run.json").write_bytes(dump(RunInfo(uid=UID, name="made", manifest_digest="0")))
    done = Complete(epoch=1, step=300, tokens=76800, validation_loss=2.5, seconds=9.0)
    (folder / "complete.json").write_bytes(dump(done))
    accepted = decided(150, 0, 140, accept=True)
    for decision in (accepted, decided(250, 1, 240, accept=False)):
        branch = folder / "branches" / decision.trigger.id
        branch.mkdir(parents=True)
        name, trigger = branch_name("made", decision.trigger), decision.trigger
        end = {"branch": name, "outcome": decision.outcome, "reason": decision.reason}
        record = BranchRecord(name=name, trigger=trigger, rules=BranchRules(), opened_at=0.0)
        (branch / "branch.json").write_bytes(dump(record))
        save_phase(FolderStore(folder), trigger.id, Finished(trigger=trigger, **end))
        (branch / "outcome.json").write_bytes(dump(OutcomeRecord(**end)))
        (branch / "decision.json").write_bytes(dump(decision))
        for one in decision.trials:
            path = folder / "rollouts" / decision.trigger.id / one.candidate
            path.mkdir(parents=True, exist_ok=True)
            (path / f"trial-{one.rung:06d}.json").write_bytes(dump(one))
    (folder / "lineage").mkdir()
    (folder / "lineage" / "1.json").write_bytes(dump(entry_of(accepted)))
    return folder
