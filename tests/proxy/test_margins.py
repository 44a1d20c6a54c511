"""From records to acceptance margins."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forkcast.acceptance import UNKNOWN_MARGIN
from forkcast.actions import Action
from forkcast.records import WINDOW_COLUMNS, Window
from forkcast_proxy.margins import Gain, beyond_unseen, forks_beyond, gains, measure, table
from forkcast_proxy.records import Fork, Outcome, Record, write

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_margins.py"
CUT = Action(learning_rate_scale=0.8)


def record(run, action=CUT, gain=0.1, horizon=50, **changes):
    window = Window(run, 0, 1000, {name: np.full(4, 3.0) for name in WINDOW_COLUMNS})
    outcome = Outcome(
        horizon=horizon,
        loss=3.0,
        mean_loss=3.0 - gain,
        control_loss=3.0,
        control_mean_loss=3.0,
        diverged=False,
        event=False,
        control_event=False,
        recovery_steps=0.0,
        steps_run=50,
        healthy=True,
    )
    fork = Fork(run=run, regime="healthy", cause="drawn", step=4, window=window)
    return Record(fork=fork, action=action, outcome=replace(outcome, **changes))


def made(values, kind="lower-rate", horizon=50):
    return [
        Gain(kind=kind, horizon=horizon, run=f"r{n}", fork=4, value=float(v))
        for n, v in enumerate(values)
    ]


def test_only_healthy_candidates_with_both_losses_count():
    records = [
        record("a"),
        record("b", Action()),
        record("c", healthy=False),
        record("d", mean_loss=math.nan, diverged=True),
        record("e", control_mean_loss=math.nan),
    ]
    assert [(one.run, one.kind) for one in gains(records)] == [("a", "lower-rate")]
    with pytest.raises(ValueError, match="no healthy fork"):
        measure(gains(records[1:]))


def test_the_bound_counts_runs_not_rows():
    few = measure(made(np.linspace(0, 1, 18)))
    assert (few[0].bound, few[0].runs) == (None, 18)  # 19 are needed for 95 %
    assert table(few) == {}
    one_loud_run = made(np.zeros(39)) + [
        Gain(kind="lower-rate", horizon=50, run="loud", fork=n, value=5.0) for n in range(500)
    ]
    assert measure(one_loud_run)[0].bound == 0.0
    assert measure(made(np.linspace(0, 1, 39)))[0].bound == pytest.approx(37 / 38)


def test_margins_are_floored_rounded_up_and_never_fall():
    found = made([0.0301] * 30) + made([0.001] * 30, horizon=200)
    found += made([-1.0] * 30, kind="momentum")
    assert table(measure(found)) == {
        "lower-rate": {50: 0.031, 200: 0.031},
        "momentum": {50: UNKNOWN_MARGIN},
    }


def test_how_often_a_margin_alone_would_act():
    found = made(np.linspace(0.0, 0.1, 100))
    assert forks_beyond(found, {}, 50) == pytest.approx(0.8)
    margins = table(measure(found))
    assert forks_beyond(found, margins, 50) <= 0.05
    assert beyond_unseen(found, 50) <= 0.1


def test_the_script_prints_the_table(tmp_path):
    write([record(f"r{n}", gain=0.03) for n in range(30)], tmp_path / "r.parquet")
    command = [sys.executable, SCRIPT, tmp_path / "r.parquet", "--json", tmp_path / "m.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "lower-rate" in done.stdout
    assert '"50": 0.03' in (tmp_path / "m.json").read_text()
    refused = subprocess.run(
        [*command[:2], tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
