"""The trainer's benchmark runs as it is called; no verdict on pace."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "trainer.py"
SMALL = ("--batch", "1", "--length", "16", "--block", "1", "--warm", "0", "--rounds", "1")


def run(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARK, "--model", "gpt2-tiny", *SMALL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_all_contestants_begin_with_one_loss_and_have_all_figures(tmp_path):
    written = tmp_path / "trainer.json"
    done = run("--peak-tflops", "1", "--no-compile", "--json", written)
    assert done.returncode == 0, done.stderr
    document = json.loads(written.read_text())
    assert document["not_measured"].pop("nanoGPT's loop, float32") == "no --nanogpt FOLDER"
    assert "not measured: nanoGPT's loop" in done.stdout
    assert document["not_measured"] == {}
    of = {}
    for row in document["rows"]:
        of.setdefault(row["section"], {})[row["name"]] = row
    contestants = {"ours, everything on", "ours, all off", "HF Trainer"}
    for section in ("tokens/s", "step p50", "step p95", "MFU", "peak memory"):
        names = set(of[section])
        (again,) = names - contestants
        assert again.endswith("again (A/A)")
        assert contestants < names
        assert all(row["value"] > 0 for row in of[section].values())
    assert set(of["first step"]) == contestants | {"ours, everything on, second start"}
    losses = [row["value"] for row in of["first loss"].values()]
    assert len(losses) == 3
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-3)


def test_a_folder_that_is_no_checkout_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    arguments = importlib.import_module("trainer")._arguments
    monkeypatch.setattr(sys, "argv", ["trainer.py", "--nanogpt", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        arguments()
    assert ended.value.code == 2
    assert f"--nanogpt: {tmp_path} has no model.py" in capsys.readouterr().err
