"""Write docs/statistics.md from the monitor's log_schema.json; with --check, fail where it is out of
date.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
_HEAD = """\
# The statistics history
There are two, with the same columns. The **trainer** writes what it measured into the run's store,
whatever watches the run (also with `mode: Disabled`); there it outlives the TrainingRun. The
**monitor** writes the rows it has accepted, with its index, before it acknowledges them.

| file | holds |
|---|---|
| `history/e<epoch>-a<attempt>-<first>-<last step, 12 digits>.parquet` in the store | rows of one lineage epoch and one start of the trainer, the last step included; `index` and `z` are null. A small file before each saved state, one in the place of the small ones with each checkpoint and at the latest after 1,024 rows |
| `statistics/e<epoch>-a<attempt>-<first step, 12 digits>.parquet` in the work directory, or the monitor's volume | up to 1,024 rows of one lineage epoch and one start of the trainer |
| `statistics.tail` beside that folder | the newest rows, until they become a Parquet file; binary, see below |

- In the store the steps of an adopted rollout are the first rows of the epoch that it opened. A file whose
  steps are all in another file of the same epoch and attempt is left over from a crash; skip it.
- A store that does not answer never holds up a step: the rows wait in memory, at most 8,192 of them in
  each of two lists; then the oldest are dropped, and the trainer's log says how many.
- No state is published before the rows of the steps that led to it, the steps of an adopted rollout
  included, so a run that is killed and resumed lacks none. A state is worth more than its history, though:
  if only the history cannot be written, three saves in a row wait for it; the next is published without.
  So is a state whose rows were dropped, one that a store which refuses the history (rights) takes, and the
  last one before a process leaves. `history-gap.json` in its folder then says how many steps were
  missing and why; `forkcast run`, `forkcast status` (`history_gap`) and `forkcast checkpoint ls` show it.
  The rows still wait in memory, and are written when they can be.
- A Parquet file takes its place whole; what a crash cut short in the tail is no row. A row that stands in
  both the tail and a Parquet file counts once: its key is (epoch, attempt, rank, step).
- Where a restarted trainer took steps again, the rows of the later attempt replace those of the
  earlier one from its first row on. After a collapse the same step comes again in a new epoch; a
  lineage is the rows of epoch 0 up to the first collapse's base, then of epoch 1, and so on.
- The tail is a sequence of frames, one a write: the bytes `fc 54 4c 31`, the length and the CRC-32 of
  what follows (little-endian uint32), and a `TailFrame` message (`forkcast.proto`). A damaged frame costs
  its own rows; a reader goes on at the next four bytes. Earlier versions wrote `statistics.tail.jsonl`,
  one JSON object a line; it is read, and taken over by the monitor that opens it.
- A column that was added later (`tier`, `event`, `onset_step`, a signal's) is missing in older files: it reads as null.

`forkcast.load_run(PLACE).steps()` reads both with these rules and joins them, see
[analysis.md](analysis.md). Any Parquet reader reads the files:
```python
import pyarrow.parquet as pq

print(pq.read_table("DIR/history").select(["epoch", "step", "loss", "grad_norm"]))
print(pq.read_table("DIR/statistics").select(["epoch", "step", "loss", "z"]))
```

## Columns
The schema is shipped as `forkcast_monitor/log_schema.json` (JSON Schema of a row, with each column's
`parquet` type and `unit`); a test holds it equal to what is written. This page is generated from it
by `scripts/generate_statistics_reference.py`; do not edit it.

| column | type | unit | range | meaning |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    text = files("forkcast_monitor").joinpath("log_schema.json").read_text(encoding="utf-8")
    document: dict[str, dict[str, dict[str, Any]]] = json.loads(text)
    rows = [_row(f"`{name}`", column) for name, column in document["properties"].items()]
    (component,) = document["patternProperties"].values()
    return _HEAD + "".join([*rows, _row("`u_` and a signal's name", component)])


def _row(name: str, column: dict[str, Any]) -> str:
    kind = column["parquet"] + (" or null" if "null" in column["type"] else "")
    inner = column.get("items") or column.get("additionalProperties") or column
    cells = (name, kind, column.get("unit", ""), _range(inner), column["description"])
    return "| " + " | ".join(cells) + " |\n"


def _range(column: dict[str, Any]) -> str:
    low, high = column.get("minimum"), column.get("maximum")
    if low is None:
        return ""
    return f">= {low}" if high is None else f"{low} to {high}"


def main() -> int:
    """0: written, or up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where out of date")
    given = parser.parse_args()
    text = page()
    if not given.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{PAGE.name} is out of date; run scripts/{Path(__file__).name}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
