"""The definitions on a real API server: what it fills in, what it keeps. What it refuses:
tests/operator/cluster/test_wrong_manifests.py.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from forkcast.records import TriggerRule
from forkcast_wire import resources
from forkcast_wire.manifest import TrainingRun, TrainingRunSpec
from forkcast_wire.resources import (
    BranchCondition,
    BranchSpec,
    BranchStatus,
    Condition,
    ConditionStatus,
    RunCondition,
    TrainingRunStatus,
    set_condition,
)
from tests.waiting import HANG_OPTION
from tests.wrong_runs import GOOD, changed

ROOT = Path(__file__).parents[2]
NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("**/*.yaml")), ids=lambda p: p.stem
)
def test_every_example_is_accepted_and_filled_in_as_the_model_does(kubectl, path):
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest.get("kind") != "TrainingRun":
            continue
        done = kubectl.apply(manifest, "--dry-run=server", "-o", "json")
        assert done.returncode == 0, done.stderr
        stored = json.loads(done.stdout)["spec"]
        assert TrainingRunSpec.model_validate(stored) == TrainingRun.model_validate(manifest).spec
        # and the defaults stand in the object itself, for whoever reads it without the model
        model = TrainingRun.model_validate(manifest).document()["spec"]
        assert stored["training"] == model["training"]
        assert stored["branching"].keys() == model["branching"].keys()
        assert stored.keys() == model.keys()


@pytest.fixture
def run(kubectl):
    """A TrainingRun on the server."""
    assert kubectl.apply(GOOD).returncode == 0
    yield "one"
    kubectl.ok("delete", "trun", "one", "--ignore-not-found")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.model.architecture", "gpt2-medium", "spec.model"),
        ("spec.data.train.uri", "elsewhere", "spec.data"),
        ("spec.storage.prefix", "elsewhere/", "spec.storage"),
        ("spec.parallelism.processesPerNode", 2, "spec.parallelism"),
        ("spec.optimizer.learningRate", "1e-3", "spec.optimizer"),
        ("spec.training.seed", 7, "spec.training.seed"),
        ("spec.training.totalSteps", 9, "spec.training.totalSteps"),
        ("spec.resources.scratch", "20Gi", "spec.resources"),
        ("spec.scheduling.queueName", "other", "spec.scheduling"),
    ],
)
def test_what_makes_a_run_cannot_change(kubectl, run: str, path: str, value: Any, said: str):
    done = kubectl.apply(changed(path, value))
    assert done.returncode != 0
    assert said in done.stderr


def test_what_may_change_changes(kubectl, run: str):
    longer = changed("spec.training.totalSteps", 20)
    observed = changed("spec.branching.mode", "Observe", longer)
    suspended = changed("spec.suspend", True, observed)  # noqa: FBT003
    roomier = changed("spec.resources.scratch", "20Gi", suspended)
    resumed = changed("spec.suspend", False, roomier)  # noqa: FBT003
    for manifest in (longer, observed, suspended, roomier, resumed):
        done = kubectl.apply(manifest)
        assert done.returncode == 0, done.stderr
    assert kubectl.get("trun", run)["metadata"]["generation"] == 6


def _conditions(kinds: Any, true: set[str]) -> list[Condition]:
    made: list[Condition] = []
    for kind in kinds:
        status = ConditionStatus.TRUE if kind in true else ConditionStatus.FALSE
        made = set_condition(made, kind, status, "Running", "words", generation=1, now=NOW)
    return made


def _full_status() -> TrainingRunStatus:
    return TrainingRunStatus(
        observed_generation=1,
        conditions=_conditions(set(RunCondition) - resources.TRANSIENT, {"Ready", "Finished"}),
        start_time=NOW,
        completion_time=NOW,
        last_heartbeat_time=NOW,
        progress=resources.RunProgress(step=5, total_steps=10, tokens=40, percentage=50),
        metrics=[resources.MetricValue(name="train_loss", value="3.125")],
        uncertainty=resources.UncertaintyStatus(index="0.5", z="1.25", ready=True),
        checkpoints=resources.CheckpointsStatus(
            latest=resources.CheckpointInfo(
                step=5, epoch=0, key="checkpoints/e0/a0/000000000005", sha256="0" * 64, size_bytes=9
            ),
            oldest_step=5,
            count=1,
        ),
        branches=resources.BranchesStatus(total=2, accepted=1, no_action=1, last_name="one-e0-t4"),
        trainer=resources.TrainerStatus(kind="Job", name="one-trainer", pods=1, ready_pods=1),
        last_failure=resources.LastFailure(reason="Evicted", message="a pod went", time=NOW),
    )


def test_a_status_is_kept_whole_and_read_by_kubectl(kubectl, run: str):
    status = _full_status().document()
    patch = json.dumps({"status": status})
    kubectl.ok("patch", "trun", run, "--subresource=status", "--type=merge", "-p", patch)
    stored = kubectl.get("trun", run)["status"]
    assert stored == status  # nothing pruned, nothing added
    assert TrainingRunStatus.model_validate(stored) == _full_status()
    kubectl.ok("wait", "trun", run, "--for=condition=Finished", HANG_OPTION)
    row = kubectl.ok("get", "trun", run).splitlines()[1].split()
    assert row[:8] == ["one", "True", "Running", "5", "10", "3.125", "1.25", "2"]
    assert "gpt2" in kubectl.ok("get", "trun", run, "-o", "wide")


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "Ready", "status": "Maybe"}]},
        {
            "conditions": [_conditions(["Ready"], set())[0].model_dump(mode="json", by_alias=True)]
            * 2
        },
        {"metrics": [{"name": "train_loss", "value": 3.1}]},
        {"metrics": [{"name": f"m{i}", "value": "1"} for i in range(17)]},
    ],
)
def test_a_wrong_status_is_refused(kubectl, run: str, status: dict[str, Any]):
    patch = json.dumps({"status": status})
    done = kubectl("patch", "trun", run, "--subresource=status", "--type=merge", "-p", patch)
    assert done.returncode != 0
    assert "status." in done.stderr


def _branch(name: str = "one-e0-t4") -> dict[str, Any]:
    spec = BranchSpec(
        run_ref=resources.RunRef(name="one", uid="0-1-2"),
        trigger=resources.BranchTrigger(
            epoch=0,
            step=4,
            onset_step=3,
            rule=TriggerRule.CONSECUTIVE,
            z="2.75",
            index="1.5",
            components={"volatility": "3.5"},
        ),
        opened_at=NOW,
        deadline_seconds=60,
        candidates=8,
        top_k=2,
        rungs=[10, 25],
        confirm_steps=50,
        confirm_finalists=1,
        depths=[0],
        apply=True,
        acceptance=resources.BranchAcceptance(
            preset="Default",
            max_risk_quantile="0.2",
            max_volatility_ratio="1.05",
            unknown_margin="0.02",
        ),
    )
    return {
        "apiVersion": "forkcast.dev/v1alpha1",
        "kind": "Branch",
        "metadata": {"name": name, "labels": {resources.LABEL_RUN: "one"}},
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def test_a_branch_is_kept_whole_and_never_changes(kubectl):
    made = _branch()
    assert kubectl.apply(made).returncode == 0
    stored = kubectl.get("fkb", "one-e0-t4")["spec"]
    assert stored == made["spec"]
    refused = kubectl.apply(changed("spec.topK", 3, made))
    assert refused.returncode != 0
    assert "never changes" in refused.stderr
    status = BranchStatus(
        observed_generation=1,
        conditions=_conditions(BranchCondition, {"Ready", "Finished", "Accepted"}),
        draft=resources.DraftStatus(source="Heuristic", count=8, finalists=["c000", "c001"]),
        rollouts=[
            resources.RolloutStatus(
                name="control", state="Measured", rung=50, validation_loss="3.5", verdict=None
            ),
            resources.RolloutStatus(
                name="c000",
                action="learning rate x0.8, rewind 0",
                job_name="one-e0-t4-c000",
                state="Measured",
                rung=50,
                improvement="0.25",
                verdict="Accepted",
            ),
        ],
        decision=resources.DecisionStatus(
            outcome="Accepted",
            reason="better",
            winner="c000",
            action="learning rate x0.8, rewind 0",
            key="branches/e0-t4/decision.json",
            sha256="0" * 64,
            time=NOW,
        ),
        cost=resources.BranchCost(rollout_steps=170, rollout_seconds="12.5"),
        completion_time=NOW,
    ).document()
    patch = json.dumps({"status": status})
    kubectl.ok("patch", "fkb", "one-e0-t4", "--subresource=status", "--type=merge", "-p", patch)
    stored = kubectl.get("fkb", "one-e0-t4")["status"]
    assert stored == status
    row = kubectl.ok("get", "fkb", "one-e0-t4").splitlines()[1]
    for word in ("one", "Consecutive", "Running", "Accepted", "c000", "learning rate x0.8"):
        assert word in row
    kubectl.ok("delete", "fkb", "one-e0-t4")


def test_branches_are_found_by_run(kubectl):
    kubectl.apply(_branch("one-e0-t5"))
    found = kubectl.ok("get", "fkb", "--field-selector=spec.runRef.name=one", "-o", "name")
    assert found.split() == ["branch.forkcast.dev/one-e0-t5"]
    assert not kubectl.ok("get", "fkb", "--field-selector=spec.runRef.name=two", "-o", "name")
    assert "one-e0-t5" in kubectl.ok("get", "forkcast", "-o", "name")
    kubectl.ok("delete", "fkb", "one-e0-t5")
