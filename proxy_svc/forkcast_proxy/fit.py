"""`python -m forkcast_proxy.fit RECORDS.parquet -o DIR`: records to model.onnx and model.json.

Runs, never rows, are split into training, calibration and test: the candidates of one fork are
nearly copies of each other. All figures in the card are of test runs. An output that does not
surely beat the best trivial forecast there is marked, and the service abstains on it.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forkcast_proxy.calibration import RiskTable, grouped_quantile, normalised_scores, risk_table
from forkcast_proxy.card import CARD_FILE, CARD_VERSION, MODEL_FILE, Card, IntervalTable
from forkcast_proxy.features import FEATURE_NAMES, FEATURE_VERSION, FloatMatrix
from forkcast_proxy.judgement import (
    ALPHA,
    adaptive_coverage,
    judge_divergence,
    judge_loss,
    judge_recovery,
    probability_of,
)
from forkcast_proxy.network import Network, fit, to_onnx
from forkcast_proxy.records import Record, read
from forkcast_proxy.table import Table, split, tabulate
from forkcast_wire.documents import dump

FloatArray = NDArray[np.float64]
_RISK_BINS = 4
#: How far beyond the range seen in training a feature may lie, in widths of that range.
_BEYOND = 0.5


# ---------------------------------------------------------------------------------------- calibration


def calibrate(network: Network, table: Table, column: int) -> tuple[IntervalTable, FloatArray]:
    """The interval of an amount from calibration runs, and their scores."""
    mean, spread = network.predict(table.matrix)
    known = table.targets.known[:, column]
    floor = max(float(np.median(spread[:, column])) if len(spread) else 0.0, 1e-6)
    scores = normalised_scores(
        table.targets.values[known, column], mean[known, column], spread[known, column] + floor
    )
    runs = table.targets.runs[known]
    quantile = grouped_quantile(scores, runs.tolist(), ALPHA)
    return (
        IntervalTable(
            alpha=ALPHA,
            quantile=quantile if math.isfinite(quantile) else None,
            floor=floor,
            runs=len(np.unique(runs)),
        ),
        scores,
    )


def calibrate_risk(network: Network, table: Table) -> RiskTable:
    """Forecast probability to bounds, from calibration runs."""
    mean, _ = network.predict(table.matrix)
    return risk_table(
        probability_of(mean[:, 1]),
        table.targets.values[:, 1] > 0.5,
        table.targets.runs.tolist(),
        alpha=ALPHA,
        bins=_RISK_BINS,
    )


# ---------------------------------------------------------------------------------------- the whole


def build(records: Sequence[Record], made_from: str, seed: int) -> tuple[bytes, Card]:
    """(model.onnx, its card). Raises ValueError where the records are too few."""
    table = tabulate(records)
    train, calibration, test = (table.rows(part) for part in split(table.targets.runs, seed))
    network = fit(train.matrix, train.targets, seed=seed)
    loss, scores = calibrate(network, calibration, 0)
    recovery, _ = calibrate(network, calibration, 2)
    risk = calibrate_risk(network, calibration)
    known = calibration.targets.known[:, 0]
    low, high = _ranges(train.matrix)
    strange = ((test.matrix < low - 1e-5) | (test.matrix > high + 1e-5)).any(1)
    judgements = (
        judge_loss(network, train, test, loss),
        judge_divergence(network, train, test, risk),
        judge_recovery(network, train, test, recovery),
    )
    figures: dict[str, float | None] = {
        "rows": float(len(table.records)),
        "runs_train": float(len(np.unique(train.targets.runs))),
        "runs_calibration": float(len(np.unique(calibration.targets.runs))),
        "runs_test": float(len(np.unique(test.targets.runs))),
        "out_of_distribution": float(strange.mean()),
        **adaptive_coverage(network, test, loss, scores, calibration.targets.runs[known].tolist()),
    }
    beaten: dict[str, bool] = {}
    for judgement in judgements:
        figures |= judgement.figures
        beaten |= judgement.beaten
    data = to_onnx(network)
    horizons = [one.outcome.horizon for one in table.records]
    return data, Card(
        version=CARD_VERSION,
        feature_version=FEATURE_VERSION,
        sha256=hashlib.sha256(data).hexdigest(),
        feature_names=FEATURE_NAMES,
        feature_low=tuple(map(float, low)),
        feature_high=tuple(map(float, high)),
        horizons=(min(horizons), max(horizons)),
        loss=loss,
        recovery=recovery,
        risk=risk,
        no_better_than_baseline={name: not better for name, better in beaten.items()},
        figures=figures,
        made_from=made_from,
    )


def _ranges(matrix: FloatMatrix) -> tuple[FloatArray, FloatArray]:
    """Training ranges, widened where a feature varies at all."""
    low, high = matrix.min(0).astype(np.float64), matrix.max(0).astype(np.float64)
    return low - _BEYOND * (high - low), high + _BEYOND * (high - low)


def main() -> int:
    """0 after the model was written, 2 for unusable records."""
    parser = argparse.ArgumentParser(prog="forkcast_proxy.fit", description=__doc__)
    parser.add_argument("records", type=Path, help="Parquet file of scripts/collect_branches.py")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the first weights")
    given = parser.parse_args()
    digest = ""
    try:
        digest = hashlib.sha256(given.records.read_bytes()).hexdigest()
        data, card = build(read(given.records), f"sha256 {digest}", given.seed)
    except (OSError, ValueError) as error:
        print(f"fit: {error}", file=sys.stderr)  # noqa: T201
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / CARD_FILE).unlink(missing_ok=True)  # a card never stands beside another's model
    (given.out / MODEL_FILE).write_bytes(data)
    (given.out / CARD_FILE).write_bytes(dump(card))
    for name, figure in card.figures.items():
        print(f"{name:40} {'-' if figure is None else f'{figure:.4f}'}")  # noqa: T201
    for name, worse in card.no_better_than_baseline.items():
        print(f"{name:40} {'withheld' if worse else 'served'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
