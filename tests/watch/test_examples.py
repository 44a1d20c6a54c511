"""The examples of examples/watch run as they stand, each made unstable late, and each is caught."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import forkcast
from tests.waiting import HANG_SECONDS

EXAMPLES = Path(__file__).parents[2] / "examples" / "watch"
STEPS = 300
NEEDS = {
    "hf_trainer": "accelerate",
    "lightning_module": "lightning",
    "nanogpt_loop": "torch",
    "trl_sft": "trl",
}


def test_each_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_an_unstable_training_is_caught(name, tmp_path):
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed; it is in the extra dev")
    command = [sys.executable, f"{EXAMPLES}/{name}.py", "--unstable", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, "--steps", str(STEPS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    place = tmp_path if name == "nanogpt_loop" else tmp_path / "forkcast"
    run = forkcast.load_run(place)
    assert run.steps().num_rows == STEPS
    assert max(run.events()["step"].to_pylist()) >= STEPS * 4 // 5
    assert "unstable at step" in done.stderr
