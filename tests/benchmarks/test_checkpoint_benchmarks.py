"""The benchmarks of checkpoints run as they are called, and their tables have every side."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, "--model", "gpt2-tiny", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_sides_save_load_and_are_saved_beside_the_training(tmp_path):
    written = tmp_path / "checkpoint.json"
    shown = run(
        "checkpoint.py", "--rounds", "1", "--warm-up-steps", "2", "--steps", "1", "--json", written
    )
    document = json.loads(written.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert len(rows) == 9
    for name, row in rows.items():
        assert name in shown
        if row["note"]:  # a package that is not installed
            assert (name, row["note"][:12]) == ("ZipNN", "not measured")
            continue
        assert "added_steps_p95" in row
        if not name.startswith("nothing"):
            assert row["save_seconds"] > 0
            assert row["load_cpu_seconds_per_gb"] > 0
    assert rows["ours, Full"]["times_smaller"] > 1.19
    assert rows["ours, Int8"]["times_smaller"] > 2
    assert document["state_bytes"] > 9e6


def test_the_gaps_after_a_resume_are_measured_for_every_arm(tmp_path):
    written = tmp_path / "resume.json"
    run(
        "int8_resume.py",
        *("--steps", "3", "--seeds", "1", "--after", "1", "2", "--json", written),
    )
    rows = {row["arm"]: row for row in json.loads(written.read_text())["rows"]}
    assert set(rows["exact again"]["gap +1"] + rows["exact again"]["largest"]) == {0.0}
    assert rows["exact"]["update error"] == [0.0]
    assert 0 < rows["Int8"]["update error"][0] < 0.05
    assert rows["moments 0"]["update error"] == [1.0]
