"""A window is the judged steps as columns."""

import math
from dataclasses import replace

from forkcast.records import WINDOW_COLUMNS, StepStats, Window, window_row

STATS = StepStats(
    run_uid="u",
    epoch=1,
    attempt=0,
    rank=0,
    step=7,
    loss=3.0,
    grad_norm=2.0,
    grad_norm_clipped=1.0,
    learning_rate=1e-3,
    tokens=64,
    attention_entropy=(1.0, 2.0),
)


def test_a_row_has_means_over_layers_and_nan_for_what_was_not_sampled():
    row = dict(zip(WINDOW_COLUMNS, window_row(STATS, 4.5), strict=True))
    assert (row["step"], row["loss"], row["index_z"], row["attention_entropy"]) == (7, 3, 4.5, 1.5)
    assert math.isnan(row["update_ratio"])


def test_rows_become_columns_oldest_first():
    rows = [window_row(replace(STATS, step=step), 0.0) for step in (7, 8, 9)]
    window = Window.of("u", 1, 100, rows)
    assert list(window.columns["step"]) == [7, 8, 9]
    assert len(window) == 3
    assert len(Window.of("u", 1, 100, [])) == 0
