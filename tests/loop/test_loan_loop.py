"""A cut and its loan with real processes: forced, accepted, calm, and offered back."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from short_run import MANIFEST

from forkcast.level import AGAIN_ROWS
from tests.waiting import until

pytestmark = pytest.mark.slow


def run(tmp_path: Path, settled: Callable[[Path], bool], forced: int, **branching) -> Path:
    """A run of which each ``forced``-th step is a trigger and whose index can fire none. Its rate is far
    too high: the loss stays above what a hundredth of it reaches within the steps of a rollout.

    On any machine the trainer is still there when a branch has something for it: it waits 40 steps
    after the first trigger for the first epoch, and at its 225th until the second branch is ``settled``.
    """
    manifest = copy.deepcopy(MANIFEST)
    spec = manifest["spec"]
    spec["optimizer"]["learningRate"] = "0.3"
    spec["training"]["totalSteps"] = 260
    spec["uncertainty"] |= {
        "warmupSteps": 20,
        "cooldownSteps": 60,
        "calmSteps": 30,
        "trigger": {"z": "1000", "singleZ": "1000", "forceEverySteps": forced},
    }
    spec["branching"] |= branching
    spec["branching"]["rollback"]["depths"] = [20]
    spec["branching"]["budget"]["maxBranches"] = 2
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    folder, goes_on = tmp_path / "w", tmp_path / "goes-on"
    waits = f"trainer/step/{forced + 40}:{folder}/lineage/1.json;trainer/step/225:{goes_on}"
    command = [sys.executable, "-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "--quiet"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "FORKCAST_WAIT": waits}
    ) as process:
        until(lambda: settled(folder) or process.poll() is not None, "the second branch's end")
        goes_on.touch()
    assert process.returncode == 0
    return folder


def read(path: Path):
    return json.loads(path.read_text())


def test_a_cut_that_was_accepted_is_offered_back_after_a_calm(tmp_path) -> None:
    def settled(folder: Path) -> bool:
        decisions = list(folder.glob("branches/e1-*/decision.json"))
        accepted = [read(path)["outcome"] == "Accepted" for path in decisions]
        return accepted == [False] or (folder / "lineage/2.json").exists()

    folder = run(
        tmp_path,
        settled,
        forced=130,  # once
        acceptance={"preset": "Literal"},
        actions={
            "learningRateScales": ["0.01"],
            "weightDecayScales": ["1"],
            "clipping": ["Keep"],
            "momentumReset": False,
        },
    )
    assert read(folder / "lineage/1.json")["action"]["learning_rate_scale"] == 0.01
    adopted = read(folder / "lineage/1.json")["state"]["step"]
    # the level is learnt again, and then so many steps were calm
    loan = folder / f"branches/e1-t{adopted + AGAIN_ROWS + 30 - 1}"
    assert read(loan / "branch.json")["trigger"]["rule"] == "Calm"
    decision = read(loan / "decision.json")
    actions = [one["action"] for one in decision["draft"]["candidates"]]
    assert sorted(one["learning_rate_scale"] for one in actions) == pytest.approx([10, 100])
    assert {one["weight_decay_scale"] for one in actions} == {1.0}
    assert {one["clipping"] for one in actions} == {"Keep"}
    assert {one["candidate"] for one in decision["trials"]} >= {"control"}
    accepted = decision["outcome"] == "Accepted"
    factor = 0.01 * decision["action"]["learning_rate_scale"] if accepted else 0.01
    assert read(folder / "progress.json")["learning_rate_factor"] == pytest.approx(factor)


def test_the_ladder_skips_and_then_lowers_the_rate(tmp_path) -> None:
    folder = run(tmp_path, lambda folder: (folder / "lineage/2.json").exists(), 60, policy="Ladder")
    first, second = (read(folder / f"lineage/{epoch}.json")["action"] for epoch in (1, 2))
    assert first["skip_batches"] == first["rewind_steps"] + 1
    assert (first["learning_rate_scale"], second["learning_rate_scale"]) == (1.0, 0.5)
    assert read(folder / "progress.json")["learning_rate_factor"] == 0.5
    assert read(folder / "complete.json")["epoch"] == 2
