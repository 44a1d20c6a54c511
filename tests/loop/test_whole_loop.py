"""The whole loop, with real processes: trigger, branch, rollouts, decision; and killed parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

MANIFEST = {
    "apiVersion": "forkcast.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "short"},
    "spec": {
        "model": {
            "architecture": "gpt2-tiny",
            "size": {"layers": 2, "width": 32, "heads": 2},
            "dtype": "Float32",
            "device": "Cpu",
        },
        "data": {
            "train": {"uri": "python-stdlib:", "maxBytes": 400000},
            "validation": {"maxBatches": 4, "everySteps": 50},
            "sequenceLength": 32,
        },
        "optimizer": {"learningRate": "3e-2", "schedule": {"warmupSteps": 5}},
        "training": {"totalSteps": 600, "microBatchSize": 4},
        "checkpoint": {"everySteps": 50, "ringEverySteps": 10},
        "uncertainty": {
            "window": 32,
            "warmupSteps": 5000,
            "cooldownSteps": 5000,
            "trigger": {"forceEverySteps": 60},
        },
        "branching": {
            "topK": 2,
            "candidates": 8,
            "rungs": [4, 8],
            "confirm": {"steps": 20, "finalists": 1},
            "rollback": {"depths": [0, 20], "steps": 60},
            "budget": {"maxBranches": 1, "deadlineSeconds": 120},
        },
    },
}


def start(tmp_path, **environment):
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(MANIFEST))
    command = [sys.executable, "-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "--quiet"]
    return subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )


def check(folder: Path):
    assert json.loads((folder / "complete.json").read_text())["step"] == 600
    branches = sorted(p.name for p in (folder / "branches").iterdir())
    assert branches == ["e0-t60"]
    decision = json.loads((folder / "branches/e0-t60/decision.json").read_text())
    assert {t["candidate"] for t in decision["trials"]} == {
        "control",
        *decision["draft"]["finalists"],
    }
    outcome = json.loads((folder / "branches/e0-t60/outcome.json").read_text())["outcome"]
    adopted = outcome in ("Accepted", "ControlAdopted")
    lineage = list((folder / "lineage").glob("*.json")) if (folder / "lineage").exists() else []
    assert len(lineage) == int(adopted)
    catalogue = json.loads((folder / "catalogue.json").read_text())
    assert catalogue["pins"] == {}
    ours = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]
    assert not ours
    return decision


def test_a_forced_trigger_is_branched_verified_and_decided(tmp_path):
    assert start(tmp_path).wait(240) == 0
    check(tmp_path / "w")


POINTS = [
    "operator/after-put:branches.decision/1",
    "monitor/before-trigger/1",
    "trainer/step/70",
    "rollout/before-put:rollouts.trial/1",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_part_killed_at_a_call_point_changes_nothing_but_time(tmp_path, point):
    marker = tmp_path / "died"
    assert start(tmp_path, FORKCAST_CRASH=f"{point}:{marker}").wait(240) == 0
    assert marker.exists(), "the point was never reached"
    check(tmp_path / "w")


def test_forkcast_run_itself_killed_and_run_again(tmp_path):
    first = start(tmp_path)
    job = tmp_path / "w/branches/e0-t60/branch.json"
    deadline = time.monotonic() + 120
    while not job.exists() and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(tmp_path).wait(240) == 0
    check(tmp_path / "w")
