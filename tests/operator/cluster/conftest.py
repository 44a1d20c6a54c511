"""A run, a configuration and a branch as values."""

from __future__ import annotations

import pytest

from forkcast.branch import BranchRules
from forkcast.records import Trigger, TriggerRule
from forkcast_operator.branch_records import BranchRecord
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import Run

UID = "075a10ff-1f5a-48a3-9968-60e178b53fc8"


@pytest.fixture
def config() -> OperatorConfig:
    return OperatorConfig.model_validate(
        {
            "monitor": {"target": "forkcast-monitor.system.svc:50051", "tls": "/etc/forkcast/tls"},
            "trainer": {"image": "forkcast/trainer:1", "rolloutPriorityClassName": "low"},
            "stores": [{"endpoint": "https://s3.example", "bucket": "runs"}],
        }
    )


def _make_run(name: str = "gpt", **spec) -> Run:
    given = {
        "data": {"train": {"uri": "python-stdlib:"}},
        "training": {"totalSteps": 1000},
        **spec,
    }
    meta = {"name": name, "namespace": "ml", "uid": UID, "generation": 3}
    return Run.of({"metadata": meta, "spec": given})


@pytest.fixture
def make_run():
    return _make_run


@pytest.fixture
def record() -> BranchRecord:
    trigger = Trigger(
        run_uid=UID,
        epoch=0,
        step=288,
        onset_step=286,
        rule=TriggerRule.SINGLE,
        z=4.0,
        index=1.0,
        components={"volatility": 4.0},
        thresholds={"z": 2.5},
    )
    return BranchRecord(
        name="gpt-e0-t288", trigger=trigger, rules=BranchRules(hold_main=False), opened_at=1e9
    )
