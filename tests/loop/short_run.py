"""The short scenario of the loop's tests: real processes, a tiny model, one forced trigger whose
branch is verified, accepted and adopted. Its identity is fixed, so that its decision is, too.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import yaml
from typer.testing import CliRunner

from forkcast.decision import Decision
from forkcast_cli.__main__ import app
from forkcast_wire.documents import dump, load

STEPS, BRANCH = 400, "e0-t60"
#: If both monitor and operator die before the main run is held, it goes on alone. It must neither end
#: nor let go of the states from before the trigger until they are back: after so many steps of one
#: process it waits for the branch's end.
_ALONE = 100
#: Steps of this model are faster than any real one's: a ring state is still being written when the
#: next is due.
_PACE = "trainer/step:0.015"
#: So low that the loss hardly moves, while at ten times the rate it falls by half a nat in the steps of
#: a rollout: the branch is accepted however a processor rounds.
LOW_RATE, RAISE = "1e-4", "10"
#: Fixed, so that states and decisions compare to the bit.
_UID = "5407"
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
            "train": {"uri": "python-stdlib:", "maxBytes": 200000},
            "validation": {"maxBatches": 4, "everySteps": 50},
            "sequenceLength": 32,
        },
        "optimizer": {"learningRate": LOW_RATE, "schedule": {"warmupSteps": 5}},
        "training": {"totalSteps": STEPS, "microBatchSize": 4},
        "checkpoint": {"everySteps": 50, "ringEverySteps": 20, "ringKeep": 16},
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
            "confirm": {"steps": 0},
            "rollback": {"depths": [0, 20], "steps": 60},
            "acceptance": {"preset": "Literal"},
            "actions": {
                "learningRateScales": [RAISE],
                "weightDecayScales": ["1"],
                "clipping": ["Keep"],
                "momentumReset": False,
            },
            "budget": {"maxBranches": 1, "deadlineSeconds": 1800},
        },
    },
}


def start(tmp_path, **environment):
    """`forkcast run` of the scenario in tmp_path/w, begun or taken up again."""
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(MANIFEST))
    folder = tmp_path / "w"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (folder / "run.json").exists():
        identity = {"uid": _UID, "name": "short", "manifest_digest": ""}
        (folder / "run.json").write_bytes(dump(identity))
    points = {
        "FORKCAST_PACE": _PACE,
        "FORKCAST_WAIT": f"trainer/step/{_ALONE}:{folder}/lineage/1.json",
    }
    command = [sys.executable, "-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "--quiet"]
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **points, **environment},
    )


def to_the_end(tmp_path, **environment):
    """Run the scenario until it is complete; where `forkcast run` itself is killed, again."""
    ended = -signal.SIGKILL
    while ended == -signal.SIGKILL:
        ended = start(tmp_path, **environment).wait()
    assert ended == 0


def check(folder: Path):
    """What holds of every run of the scenario, whatever was killed; returns its decision."""
    assert json.loads((folder / "complete.json").read_text())["step"] == STEPS
    assert [path.name for path in (folder / "branches").iterdir()] == [BRANCH]
    decision = load(Decision, (folder / "branches" / BRANCH / "decision.json").read_bytes())
    assert {one.candidate for one in decision.trials} == {"control", *decision.draft.finalists}
    outcome = json.loads((folder / "branches" / BRANCH / "outcome.json").read_text())["outcome"]
    assert outcome == decision.outcome
    lineage = sorted((folder / "lineage").glob("*")) if (folder / "lineage").exists() else []
    assert [path.name for path in lineage] == (["1.json"] if decision.outcome.adopts else [])
    if lineage:
        assert json.loads(lineage[0].read_text())["decision_digest"] == decision.digest
        assert json.loads((folder / "complete.json").read_text())["epoch"] == 1
    assert json.loads((folder / "catalogue.json").read_text())["pins"] == {}
    assert list((folder / "scratch").iterdir()) == []
    until = [json.loads(path.read_text()) for path in folder.glob("rollouts/*/*/until.json")]
    assert until
    assert all(wish["until"] is None for wish in until)
    assert [p.info for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)] == []
    check_statistics(folder)
    said = CliRunner().invoke(app, ["report", str(folder), "--output", str(folder / "again.html")])
    assert said.exit_code == 0, said.output
    assert "<svg" in (folder / "again.html").read_text()
    return decision


def check_statistics(folder: Path):
    """No step of one attempt is recorded twice, and none of the lineage that ended is missing."""
    from forkcast_wire.statistics import read_history

    rows = read_history(folder / "statistics")
    seen = Counter((row["epoch"], row["attempt"], row["step"]) for row in rows)
    assert [key for key, times in seen.items() if times > 1] == []
    last = max(row["epoch"] for row in rows)
    steps = {row["step"] for row in rows if row["epoch"] == last}
    assert steps == set(range(min(steps), STEPS))


def substance(decision: Decision):
    """Of a decision what no fault may change: all but wall time, process counts, file digests, and
    the opinion of a proxy that was not there.
    """
    return {
        "trigger": decision.trigger.id,
        "bases": [base.step for base in decision.bases],
        "candidates": [(one.name, one.action) for one in decision.draft.candidates],
        "finalists": decision.draft.finalists,
        "trials": [
            (t.candidate, t.rung, t.status, t.validation_loss, t.mean_weights_loss, t.losses)
            for t in decision.trials
        ],
        "verdicts": [(j.candidate, j.verdict, j.improvement) for j in decision.judgements],
        "end": (decision.outcome, decision.reason, decision.winner, decision.action),
    }
