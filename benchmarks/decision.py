"""From trigger to decision in the whole loop, real processes, and where the time goes.

The quickstart without its stressors, with one forced trigger: Top-K 6 and the control through all
rungs. Times are read off what the run leaves behind: its records and their files' times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import served
import yaml
from figures import Row

_TRIGGER_STEP = 150
_PATIENCE = 900.0
_LOOK_SECONDS = 0.2
#: Below this scale a branch of two finalists on short rungs stands in for the real one.
_WHOLE_SCALE = 0.5


def manifest(*, whole: bool) -> dict[str, Any]:
    """The quickstart's, with one forced trigger and no other."""
    made: dict[str, Any] = yaml.safe_load(served.QUICKSTART.read_text())
    spec = made["spec"]
    spec["stressors"] = []
    spec["uncertainty"] |= {
        "warmupSteps": 5000,
        "cooldownSteps": 5000,
        "trigger": {"forceEverySteps": _TRIGGER_STEP if whole else 60},
    }
    spec["branching"]["budget"] = {"maxBranches": 1, "deadlineSeconds": int(_PATIENCE)}
    if not whole:
        spec["branching"] |= {"topK": 2, "rungs": [4, 8], "confirm": {"steps": 12, "finalists": 1}}
    return made


def measure(scale: float) -> list[Row]:
    """One run up to the end of its branch, then it is stopped."""
    with served.folder() as folder:
        whole = scale >= _WHOLE_SCALE
        (folder / "m.yaml").write_text(yaml.safe_dump(manifest(whole=whole)))
        _run(folder)
        return rows(folder / "w", whole=whole)


def _run(folder: Path) -> None:
    """`forkcast run` until the branch has ended. Raises TimeoutError, RuntimeError."""
    command = ["-m", "forkcast_cli", "run", "m.yaml", "--workdir", "w", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=dict(os.environ), start_new_session=True
    )
    deadline = time.monotonic() + _PATIENCE
    try:
        while not list((folder / "w").glob("branches/*/outcome.json")):
            if process.poll() is not None:
                raise RuntimeError(
                    f"the run ended without a branch, exit code {process.returncode}"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"no decision in {_PATIENCE:.0f} s")
            time.sleep(_LOOK_SECONDS)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def rows(run: Path, *, whole: bool) -> list[Row]:
    """The phases of the run's one branch, seconds."""
    (branch,) = (run / "branches").iterdir()
    marks = _marks(run, branch)
    span = marks[-1][1] - marks[0][1]
    busy, steps, trials = _work(run)
    slots = _slots(run)
    size = "Top-K 6 and control" if whole else "a short branch: two finalists and control"
    total = Row(
        section="decision",
        name="trigger to decision",
        value=span,
        unit="s",
        note=f"{size}; {steps} rollout steps in {trials} trials, {slots} at a time",
    )
    parts = [
        Row(
            section="decision",
            name=f"of it: {name}",
            value=at - before,
            unit="s",
            ratio=(at - before) / span,
            against="the whole",
        )
        for (_, before), (name, at) in pairwise(marks)
    ]
    alone = Row(
        section="decision",
        name="rollout steps alone, over the slots",
        value=busy / slots,
        unit="s",
        note=f"trigger to decision is x{span * slots / busy:.3g} of it; goal x1.25",
    )
    return [total, *parts, alone]


def _work(run: Path) -> tuple[float, int, int]:
    """(seconds spent in rollout steps, how many steps, trials) over all rollouts."""
    trials = [json.loads(path.read_text()) for path in run.glob("rollouts/*/*/trial-*.json")]
    # seconds and steps of a trial count from its rollout's start: the last one has them all
    last = {one["candidate"]: one for one in sorted(trials, key=lambda one: int(one["rung"]))}
    seconds = sum(float(one["seconds"]) for one in last.values())
    return seconds, sum(int(one["steps_run"]) for one in last.values()), len(trials)


def _slots(run: Path) -> int:
    branching = json.loads((run / "manifest.json").read_text())["spec"]["branching"]
    return int(branching["maxConcurrentRollouts"])


def _marks(run: Path, branch: Path) -> list[tuple[str, float]]:
    """(what ended then, Unix seconds), in order; the first is the trigger."""
    opened = json.loads((branch / "branch.json").read_text())["opened_at"]
    (trigger,) = run.glob("monitor/triggers/000001.json")
    marks = [
        ("trigger", trigger.stat().st_mtime),
        ("trigger seen, branch opened", opened),
        ("fork: bases pinned", (branch / "bases.json").stat().st_mtime),
        ("draft", (branch / "draft.json").stat().st_mtime),
    ]
    ended: dict[int, float] = {}
    for path in run.glob(f"rollouts/{branch.name}/*/trial-*.json"):
        rung = json.loads(path.read_text())["rung"]
        ended[rung] = max(ended.get(rung, 0.0), path.stat().st_mtime)
    confirm = json.loads((branch / "branch.json").read_text())["rules"]["confirm_steps"]
    for number, rung in enumerate(sorted(ended)):
        kind = "confirm rung" if rung == confirm else "first rung" if not number else "rung"
        marks.append((f"{kind} +{rung}", ended[rung]))
    marks.append(("decide", (branch / "decision.json").stat().st_mtime))
    return marks
