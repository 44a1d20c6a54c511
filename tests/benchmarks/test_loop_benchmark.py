"""The benchmark starts, measures its cheapest section, and writes what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARKS / "loop.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "150"},
    )


def test_the_cheapest_section_is_measured_and_written(tmp_path):
    written = tmp_path / "loop.json"
    done = run("--only", "detector", "--scale", "0.002", "--json", written)
    assert done.returncode == 0, done.stderr
    document = json.loads(written.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    for streams in ("1 stream", "50 streams", "500 streams"):
        assert {f"detector, {streams}", f"plain EMA, {streams}"} <= set(rows)
    assert all(row["value"] > 0 for row in rows.values())
    assert document["failed"] == {}
    assert set(document["load_average"]) == {"start", "detector"}
    assert document["machine"]["threads"] == dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
    assert all(name in done.stdout for name in rows)


def test_an_unknown_section_is_named():
    done = run("--only", "detector,nothing")
    assert done.returncode == 2
    assert "nothing is not one of" in done.stderr


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import figures

    return figures


def test_every_section_can_be_measured(figures):
    import loop

    for module in loop.SECTIONS.values():  # not imported: torch takes seconds
        text = (BENCHMARKS / f"{module}.py").read_text()
        assert "def measure(scale: float) -> list[Row]:" in text


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)]
)
def test_a_quantile_is_one_of_the_values(figures, fraction, expected):
    assert figures.quantile([3, 1, 4, 2], fraction) == expected


def test_medians(figures):
    assert figures.median([3, 1, 2]) == 2
    assert figures.median([4, 1, 2, 3]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        figures.median([])
