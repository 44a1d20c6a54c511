"""First do no harm: what the loop does to a run that needs no help.

    python benchmarks/harm.py [--jobs N] [--arms A,B] [--json FILE] [--workdir DIR]

The quickstart's model and data without stressors, in four arms: plain training (mode Disabled), the
loop as shipped, the loop with a branch forced every 200 steps, and the same under the preset
`Literal`. Harm is the final validation loss above the mean of the plain seeds; an arm passes while
that stays within max(.02, 2 sd of the plain seeds) nats/token. Cost is the wall time over that of the
plain run of the same seed; runs of one seed follow one another, so that the machine is the same to
them. Every run is a real `forkcast run`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

_QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
_PLAIN_SEEDS, _SEEDS = (1, 2, 3, 4, 5), (1, 2, 3)
_ARMS = ("enforce", "forced-default", "forced-literal")
_LEAST_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One run. validation_loss: nats/token over all held-out text at the end; actions: accepted."""

    arm: str
    seed: int
    validation_loss: float
    branches: int
    actions: tuple[str, ...]
    cut_rate: bool
    seconds: float


def manifest(arm: str, seed: int) -> dict[str, Any]:
    """The quickstart without stressors, changed as the arm says."""
    document: dict[str, Any] = copy.deepcopy(yaml.safe_load(_QUICKSTART.read_text()))
    spec = document["spec"]
    document["metadata"]["name"] = f"{arm}-{seed}"
    spec.pop("stressors", None)
    spec["training"]["seed"] = seed
    if arm == "plain":
        spec["branching"]["mode"] = "Disabled"
    if arm.startswith("forced"):
        spec["uncertainty"]["trigger"] = {"forceEverySteps": 200}
        spec["branching"]["budget"]["maxBranches"] = 50
    if arm == "forced-literal":
        spec["branching"]["acceptance"] = {"preset": "Literal"}
        spec["branching"]["confirm"] = {"steps": 0}
    spec["branching"]["budget"]["deadlineSeconds"] = 1800
    return document


def run(arm: str, seed: int, folder: Path) -> Finished:
    """Run to the end. Raises RuntimeError with the run's last words where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    path, work = folder / f"{arm}-{seed}.yaml", folder / f"{arm}-{seed}"
    path.write_text(yaml.safe_dump(manifest(arm, seed)))
    command = [sys.executable, "-m", "forkcast_cli", "run", str(path)]
    command += ["--workdir", str(work), "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{arm}, seed {seed}: {ended.stderr.strip()[-400:]}")
    complete = json.loads((work / "complete.json").read_text())
    decisions = [json.loads(p.read_text()) for p in sorted(work.glob("branches/*/decision.json"))]
    adopted = [one["action"] for one in decisions if one["applied"] and one.get("action")]
    return Finished(
        arm=arm,
        seed=seed,
        validation_loss=complete["validation_loss"],
        branches=len(list(work.glob("branches/*"))),
        actions=tuple(_words(one) for one in adopted),
        cut_rate=any(one["learning_rate_scale"] < 1 for one in adopted),
        seconds=complete["seconds"],
    )


def _words(action: dict[str, Any]) -> str:
    from forkcast.actions import Action

    return Action(**action).describe()


def judge(runs: Sequence[Finished]) -> dict[str, Any]:
    """Per arm: mean and worst harm, nats/token, and whether it stays within the tolerance."""
    plain = [one.validation_loss for one in runs if one.arm == "plain"]
    mean, sd = statistics.mean(plain), statistics.stdev(plain)
    tolerance = max(_LEAST_TOLERANCE, 2 * sd)
    seconds = {one.seed: one.seconds for one in runs if one.arm == "plain"}
    arms: dict[str, Any] = {}
    for arm in dict.fromkeys(one.arm for one in runs):
        harms = [one.validation_loss - mean for one in runs if one.arm == arm]
        arms[arm] = {
            "mean_harm": statistics.mean(harms),
            "worst_harm": max(harms),
            "within": statistics.mean(harms) <= tolerance,
            "branches": sum(one.branches for one in runs if one.arm == arm),
            "accepted": sum(len(one.actions) for one in runs if one.arm == arm),
            "times": statistics.mean(
                one.seconds / seconds[one.seed] for one in runs if one.arm == arm
            ),
            "rate_cuts": sum(one.cut_rate for one in runs if one.arm == arm),
        }
    return {"plain_mean": mean, "plain_sd": sd, "tolerance": tolerance, "arms": arms}


def show(runs: Sequence[Finished], verdict: dict[str, Any]) -> None:
    """Two tables: the arms, and every run."""
    console = Console()
    table = Table(
        "arm", "mean harm", "worst harm", "within", "branches", "accepted", "runs with a rate cut",
        "wall time",
        title=f"plain: {verdict['plain_mean']:.4f} nats/token, sd {verdict['plain_sd']:.4f}; "
        f"tolerance {verdict['tolerance']:.4f}",
    )  # fmt: skip
    for arm, row in verdict["arms"].items():
        figures = f"{row['mean_harm']:+.4f}", f"{row['worst_harm']:+.4f}"
        counts = str(row["branches"]), str(row["accepted"]), str(row["rate_cuts"])
        wall = f"x{row['times']:.3f}"
        table.add_row(arm, *figures, "yes" if row["within"] else "NO", *counts, wall)
    console.print(table)
    each = Table("arm", "seed", "validation loss", "branches", "adopted", "seconds")
    for one in runs:
        words = "; ".join(one.actions) or "-"
        loss = f"{one.validation_loss:.4f}"
        each.add_row(one.arm, str(one.seed), loss, str(one.branches), words, f"{one.seconds:.0f}")
    console.print(each)


def main() -> int:
    """0 when every run ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; each keeps 2 cores busy")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--workdir", type=Path, help="keep the runs here")
    parser.add_argument("--arms", default=",".join(_ARMS), help="beside plain; default: all")
    given = parser.parse_args()
    folder = given.workdir or Path(tempfile.mkdtemp(prefix="harm-"))
    arms = given.arms.split(",")
    wanted = [
        (arm, seed) for seed in _PLAIN_SEEDS for arm in ("plain", *(arms if seed in _SEEDS else ()))
    ]
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = list(pool.map(lambda one: run(*one, folder), wanted))
    verdict = judge(runs)
    show(runs, verdict)
    if given.json:
        facts = {"python": platform.python_version(), "cores": os.cpu_count()}
        document = {**facts, **verdict, "runs": [asdict(one) for one in runs]}
        if not math.isfinite(verdict["plain_mean"]):
            raise ValueError("a plain run diverged: there is nothing to compare with")
        given.json.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
