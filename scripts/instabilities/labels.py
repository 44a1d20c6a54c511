"""From the records of a study to labelled logs that anybody can score: one Parquet file a run, and labels.

A fault's *departure* is the first step at which the mean of five rows of (its loss - the loss of its
control) exceeds `LIMIT`: two runs of the same unit that nothing happened to differ by .005 nats (sd of
the same means), so the limit is far over four of those. *harm* says what became of it: "none" (it never
departed), "slight" (it never rose above `SLIGHT`), "loss", or "nonfinite" (the loss or the gradient norm).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

ROWS, LIMIT, SLIGHT = 5, 0.06, 0.2
#: A run that diverges by itself began to where it stays so far above its twin with QK-norm, nats.
DIVERGED = 0.5
KEPT = ("kind", "fault", "onset_step", "size", "seed", "qk_norm", "schedule", "rate_factor", "rate")
ALSO = ("length", "precision", "rows", "finished")

Column = NDArray[np.float64]


def smooth(difference: Column) -> Column:
    """The mean of each row and the four before it, [steps]; NaN in the first four."""
    means = np.convolve(difference, np.full(ROWS, 1 / ROWS), "valid")
    return np.concatenate([np.full(ROWS - 1, np.nan), means])


def departure(loss: Column, norm: Column, control: Column, onset: int) -> dict[str, Any]:
    """departure_step (None: none), rise (the largest mean of five rows, nats) and harm of a fault."""
    rows = min(len(loss), len(control))
    difference = np.where(np.arange(rows) < onset, 0.0, loss[:rows] - control[:rows])
    means = smooth(difference)
    lost = ~np.isfinite(loss[:rows])
    lost[:onset] = False
    gone = np.flatnonzero((means > LIMIT) | lost)
    finite = means[np.isfinite(means)]
    rise = float(finite.max())
    harm = "none" if not len(gone) else "loss" if rise >= SLIGHT else "slight"
    if lost.any() or not np.isfinite(norm[onset:]).all():
        harm = "nonfinite"
    step = int(gone[0]) if len(gone) else None
    return {"departure_step": step, "rise": round(rise, 3), "harm": harm}


def diverged_from(loss: Column, twin: Column) -> int:
    """The step from which on a run stays `DIVERGED` nats above its twin."""
    rows = min(len(loss), len(twin))
    below = np.flatnonzero(~(smooth(loss[:rows] - twin[:rows]) > DIVERGED))
    return int(below[-1]) + 1


def table(record: Any) -> pa.Table:
    """The columns that a detector reads; null where nothing was sampled. attention_entropy: lowest layer's."""
    rows = len(record["loss"])
    inside = record["internals_step"][record["internals_step"] < rows]
    sampled = {
        "attention_entropy": record["attention_entropy"].min(axis=1),
        "attention_logit_max": record["attention_logit_max"],
    }
    columns: dict[str, Any] = {"step": np.arange(rows, dtype=np.int32)}
    for name in ("loss", "grad_norm", "learning_rate"):
        columns[name] = record[name].astype(np.float32)
    for name, values in sampled.items():
        full = np.full(rows, np.nan, dtype=np.float32)
        full[inside] = values[: len(inside)]
        columns[name] = full
    columns["validation_loss"] = record["validation_loss"].astype(np.float32)
    sparse = (*sampled, "validation_loss")
    return pa.table({n: pa.array(c, from_pandas=n in sparse) for n, c in columns.items()})


def _twin(name: str, labels: dict[str, dict[str, Any]]) -> str:
    """The QK-norm run of the same seed, that is of the same batches, and the same factor."""
    mine = labels[name]
    same = ("kind", "size", "seed", "rate_factor")
    fits = [n for n, x in labels.items() if x["qk_norm"] and all(x[k] == mine[k] for k in same)]
    return max(fits, key=lambda n: labels[n]["rows"])


def label(folders: list[Path], to: Path, card: str) -> None:
    """Write ``to``/NAME.parquet and ``to``/labels.json of the records in ``folders``.

    Runs at 51M without QK-norm diverge by themselves: labelled so, and their faults are left out.
    """
    paths = {p.stem: p for folder in folders for p in sorted(folder.glob("*.npz"))}
    given = {n: json.loads(p.with_suffix(".json").read_text()) for n, p in paths.items()}
    losses = {n: np.load(p)["loss"].astype(np.float64) for n, p in paths.items()}
    to.mkdir(parents=True, exist_ok=True)
    labelled: dict[str, dict[str, Any]] = {}
    for name, path in paths.items():
        mine = given[name]
        kept = {key: mine[key] for key in KEPT + ALSO}
        alone = mine["size"] == "51M" and not mine["qk_norm"]
        if alone and mine["kind"] != "healthy":
            continue
        if alone:
            onset = diverged_from(losses[name], losses[_twin(name, given)])
            kept |= {"kind": "slow_divergence", "onset_step": onset, "harm": "loss"}
        elif mine["onset_step"] is not None:
            control = name.removesuffix(mine["fault"]) + "control"
            norm = np.load(path)["grad_norm"].astype(np.float64)
            kept |= departure(losses[name], norm, losses[control], mine["onset_step"])
            kept["lasts"] = mine["fault_details"]["last"]
        with np.load(path) as record:
            written = table(record)
        parquet.write_table(
            written,
            to / f"{name}.parquet",
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            column_encoding=dict.fromkeys(written.column_names[1:], "BYTE_STREAM_SPLIT")
            | {"step": "DELTA_BINARY_PACKED"},
        )
        labelled[name] = kept
    text = json.dumps({"card": card, "records": labelled}, indent=1)
    (to / "labels.json").write_text(text + "\n")
