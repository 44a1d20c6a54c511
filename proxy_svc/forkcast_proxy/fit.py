"""`python -m forkcast_proxy.fit RECORDS.parquet -o DIR`: records to model.onnx and model.json.

Runs, never rows, are the units: the candidates of one fork are nearly copies of each other. The
network is fitted on all runs. What it is worth is judged by five folds of runs: each fold's rows
are forecast by a network fitted on the other four, and those forecasts out of fold also calibrate
the intervals and the risk (cross-conformal, Vovk, arXiv 1208.0806; docs/decisions/010 says why not
one split). An output that does not surely beat the best trivial forecast at a horizon is withheld
there by the service.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forkcast_proxy.card import CARD_FILE, CARD_VERSION, MODEL_FILE, Card
from forkcast_proxy.features import FEATURE_NAMES, FEATURE_VERSION, FloatMatrix
from forkcast_proxy.judgement import (
    Held,
    adaptive_coverage,
    interval_of,
    judge_divergence,
    judge_loss,
    judge_recovery,
    risk_of,
)
from forkcast_proxy.network import fit, to_onnx
from forkcast_proxy.records import Record, read
from forkcast_proxy.table import FOLDS, Table, folds, tabulate
from forkcast_wire.documents import dump

FloatArray = NDArray[np.float64]
#: How far beyond the range seen in training a feature may lie, in widths of that range.
_BEYOND = 0.5


def hold_out(table: Table, seed: int) -> tuple[Held, float]:
    """(forecasts of every row by a network that never saw its run, share out of distribution)."""
    fold = folds(table.targets.runs, seed)
    shape = len(table.records), 3
    mean, spread, strange = np.zeros(shape), np.zeros(shape), np.zeros(shape[0], dtype=bool)
    for number in range(FOLDS):
        rest, here = table.rows(fold != number), fold == number
        matrix = table.matrix[here]
        network = fit(rest.matrix, rest.targets, seed=seed)
        mean[here], spread[here] = network.predict(matrix)
        low, high = _ranges(rest.matrix)
        strange[here] = ((matrix < low - 1e-5) | (matrix > high + 1e-5)).any(1)
    return Held(table, mean, spread, fold), float(strange.mean())


def build(records: Sequence[Record], made_from: str, seed: int) -> tuple[bytes, Card]:
    """(model.onnx, its card). Raises ValueError if the records are too few."""
    table = tabulate(records)
    held, strange = hold_out(table, seed)
    horizons = tuple(int(h) for h in np.unique(table.horizons))
    loss, recovery = judge_loss(held, horizons), judge_recovery(held, horizons)
    divergence, risk = judge_divergence(held, horizons)
    everyone = np.ones(len(table.records), dtype=bool)
    data = to_onnx(fit(table.matrix, table.targets, seed=seed))
    low, high = _ranges(table.matrix)
    return data, Card(
        version=CARD_VERSION,
        feature_version=FEATURE_VERSION,
        sha256=hashlib.sha256(data).hexdigest(),
        feature_names=FEATURE_NAMES,
        feature_low=tuple(map(float, low)),
        feature_high=tuple(map(float, high)),
        horizons=horizons,
        loss=interval_of(held, everyone, 0),
        recovery=interval_of(held, everyone, 2),
        risk=tuple(risk_of(held, table.horizons == horizon) for horizon in horizons),
        served={
            "loss": loss.served,
            "divergence": divergence.served,
            "recovery": recovery.served,
            "risk": risk.served,
        },
        figures={
            "rows": float(len(table.records)),
            "runs": float(len(np.unique(table.targets.runs))),
            "out_of_distribution": strange,
            **loss.figures,
            **adaptive_coverage(held),
            **divergence.figures,
            **risk.figures,
            **recovery.figures,
        },
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
    parser.add_argument("--seed", type=int, default=0, help="of the folds and the first weights")
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
    for name, served in card.served.items():
        where = ", ".join(f"+{horizon}" for horizon in served)
        print(f"{name:40} {f'served at {where}' if where else 'withheld'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
