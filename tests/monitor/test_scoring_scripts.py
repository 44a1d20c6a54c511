"""The scripts that score detectors: the same rules as the reference script, and what they print."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forkcast_cli.metrics import poisson_interval
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.scoring import records
from forkcast_wire.manifest import Uncertainty

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "score_detector.py"


@pytest.fixture
def labelled(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import labelled_logs

    return labelled_logs


def write(folder: Path, logs: list[dict]) -> Path:
    """A folder of logs: the labels as given, random losses."""
    rng = np.random.default_rng(7)
    for label in logs:
        n = label["rows"]
        table = np.column_stack(
            [label.pop("first", 0) + np.arange(n), 3 + 0.1 * rng.normal(size=n)]
        )
        label["file"] = f"{label['name']}.csv.gz"
        with gzip.open(folder / label["file"], "wt") as file:
            file.write("step,loss\n")
            np.savetxt(file, table, delimiter=",")
    (folder / "labels.json").write_text(json.dumps(logs))
    return folder


def label(name: str, rows: int = 1500, **more) -> dict:
    plain = {"steps_per_row": 1, "true_events": [], "minor_events": [], "unstable_run": None}
    return {"name": name, "rows": rows, **plain, **more}


@pytest.fixture
def folder(tmp_path):
    return write(
        tmp_path,
        [
            label("plain"),
            label("modded_rank"),
            label("events", true_events=[[300, 310], [700, 720, 0.2], [1100, 1110]]),
            label("minor", unstable_run=True, minor_events=[[500, 520]], first=5),
            label("short", rows=300),
            label("binned", steps_per_row=10, true_events=[[500, 510]]),
            label("coarse", low_resolution=True),
        ],
    )


def often(columns, chance=0.02):
    """Alarms at random: the same for the same log."""
    return np.random.default_rng(len(columns["step"])).random(len(columns["step"])) < chance


@pytest.mark.parametrize("chance", [0.0, 0.001, 0.02, 0.3])
@pytest.mark.skipif(
    not REFERENCE.exists(), reason="the reference script is not beside the checkout"
)
def test_scores_are_those_of_the_reference_script(labelled, folder, chance):
    spec = importlib.util.spec_from_file_location("reference", REFERENCE)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    sums = np.zeros(4, int)
    delays = []
    ours = labelled.Score()
    kept = [(m, c) for m, c in reference.load(folder) if m["steps_per_row"] == 1]
    kept = [(m, c) for m, c in kept if not m.get("low_resolution")]
    logs = list(labelled.read(folder))
    assert [log.name for log in logs] == [meta["name"] for meta, _ in kept]
    for log, (meta, columns) in zip(logs, kept, strict=True):
        alarms = often(columns, chance)
        events, caught, delayed, false, rows = reference.score(meta, columns, alarms)
        sums += [events, caught, false, rows]
        delays += delayed
        ours.add(log, alarms)
    false = ours.false + ours.one_rank_false + ours.other_false
    rows = ours.rows + ours.one_rank_rows + ours.other_rows
    assert [ours.events, len(ours.delays), false, rows] == sums.tolist()
    assert ours.delays == delays


def test_an_alarm_within_the_event_is_caught_and_one_a_row_too_early_is_false(labelled, folder):
    log = next(one for one in labelled.read(folder) if one.name == "events")
    for row, caught in ((694, 0), (695, 1), (745, 1), (746, 0)):
        score = labelled.Score()
        score.add(log, np.arange(1500) == row)
        assert (len(score.delays), score.other_false) == (caught, 1 - caught)
    # the first event lies before the rows that are scored
    assert score.events == 2


def test_logs_are_counted_by_whose_loss_they_hold(labelled, folder):
    score = labelled.Score()
    for log in labelled.read(folder):
        score.add(log, np.arange(len(log.columns["step"])) == 450)
    assert (score.false, score.one_rank_false, score.other_false) == (1, 1, 2)
    assert (score.rows, score.one_rank_rows, score.other_rows) == (1100, 1100, 2200)


def test_a_log_may_be_plain_text_and_have_cells_that_were_not_measured(labelled, tmp_path):
    lines = ["step,loss,attention_entropy,attention_logit_max"]
    lines += [f"{row},3.0,{0.5 if row % 2 else ''},{'' if row % 3 else 7}" for row in range(6)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    (tmp_path / "labels.json").write_text(json.dumps([{**label("a"), "file": "a.csv"}]))
    (log,) = labelled.read(tmp_path)
    rows = list(records(log.columns))
    assert [one.attention_entropy for one in rows] == [None, (0.5,)] * 3
    assert [one.attention_logit_max for one in rows] == [7, None, None] * 2


def test_the_entropies_of_all_layers_may_be_given():
    columns = {"step": [0, 1], "loss": [3.0, 3.0]}
    layers = np.array([[0.5, 0.7], [np.nan, np.nan]])
    rows = list(records({**columns, "attention_entropy": layers}))
    assert [one.attention_entropy for one in rows] == [(0.5, 0.7), None]


def test_a_label_may_say_whose_loss_it_is(labelled, tmp_path):
    write(tmp_path, [label("modded", one_rank=False), label("ours", one_rank=True)])
    assert [one.one_rank for one in labelled.read(tmp_path)] == [False, True]


def test_rates_carry_the_exact_interval(labelled):
    low, high = poisson_interval(3)
    assert labelled.rate(3, 200_000) == f"1.5 [{low / 2:.1f}, {high / 2:.1f}]"
    assert labelled.rate(0, 0) == "-"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_command_prints_both_tiers_of_every_detector_asked_for(folder, tmp_path):
    written = tmp_path / "figures.json"
    done = run(
        "score_detectors.py", folder, "--preset", "Forkcast", "--preset", "Lightning",
        "--weights", "volatility=1", "--json", written,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[:2] for line in done.stdout.splitlines()[2:]]
    names = ["| Forkcast", "| Lightning", "| volatility=1"]
    assert rows == [[name, tier] for name in names for tier in ("event", "branch")]
    assert json.loads(written.read_text())["Forkcast"]["event"]["rows"] == 1100


def test_a_folder_without_labels_is_one_line(tmp_path):
    done = run("score_detectors.py", tmp_path)
    assert done.returncode == 2
    assert "labels.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_labels_of_another_shape_are_one_line(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps([{"name": "a"}]))
    done = run("score_detectors.py", tmp_path)
    assert done.returncode == 2
    assert "steps_per_row" in done.stderr
    assert "Traceback" not in done.stderr


def test_healthy_runs_are_the_same_for_the_same_seed_and_finite(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from healthy_runs import KINDS, healthy_run

    for kind in KINDS:
        rows = list(healthy_run(kind, 3, 0, 600).rows())
        losses = np.array([one.loss for one in rows])
        norms = np.array([one.grad_norm for one in rows])
        again = np.array([one.loss for one in healthy_run(kind, 3, 0, 600).rows()])
        other = np.array([one.loss for one in healthy_run(kind, 3, 1, 600).rows()])
        assert (losses == again).all()
        assert (losses != other).any()
        assert np.isfinite(losses).all()
        assert np.isnan(norms).all() or (norms > 0).all()
        assert all(a.step < b.step for a, b in itertools.pairwise(rows))
        assert losses[-100:].mean() < losses[:100].mean() - 1


@pytest.mark.parametrize("number", [1, 4, 7])
def test_a_restart_of_the_rate_is_no_event_however_long_the_loss_takes_to_settle(
    monkeypatch, number
):
    monkeypatch.syspath_prepend(SCRIPTS)
    from healthy_runs import healthy_run

    d = Detector(configure(Uncertainty()), "healthy")
    rows = healthy_run("restarts of the rate", 1, number).rows()
    assert [one.event for row in rows if (one := d.fold(row)).event] == []


@pytest.mark.parametrize(
    ("kind", "seed", "number"),
    [
        ("data that drift", 11, 39),
        ("data that drift", 11, 72),
        ("evaluations and resumes", 1, 27),
        ("evaluations and resumes", 1, 39),
    ],
)
def test_harder_data_and_a_validation_by_chance_are_events_and_ask_for_no_branch(
    monkeypatch, kind, seed, number
):
    """Regression: each of these asked for a branch, one of them twice."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from healthy_runs import healthy_run

    d = Detector(configure(Uncertainty()), "healthy")
    found = [d.fold(row) for row in healthy_run(kind, seed, number).rows()]
    assert [one.event.component for one in found if one.event] == [
        "drift" if kind == "data that drift" else "validation"
    ]
    assert not any(one.trigger for one in found)


def test_the_simulation_counts_every_kind(tmp_path):
    written = tmp_path / "healthy.json"
    done = run("simulate_healthy.py", "--rows", 14_000, "--json", written)
    assert done.returncode == 0, done.stderr
    counts = json.loads(written.read_text())
    assert all(0 < one["rows"] <= 1000 for one in counts.values())
    assert all(f"| {kind} | " in done.stdout for kind in counts)


def test_a_kind_that_there_is_not_is_one_line():
    done = run("simulate_healthy.py", "--kind", "nothing")
    assert done.returncode == 2
    assert "'nothing' is not one of" in done.stderr
