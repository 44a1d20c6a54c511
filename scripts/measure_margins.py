"""Measure the acceptance margins on healthy forks of recorded small runs.

    python scripts/measure_margins.py records.parquet

A healthy run needs no action, so whatever an action seems to gain over its control there is what a
short look at a loss may show by itself. The margin of a kind of action at a horizon is the 95 %
quantile of that gain, with runs as the units (each run carries the same weight and one more stands
at infinity, so that few runs give no margin rather than a small one); it falls neither under the
floor nor under the margin of a shorter horizon. `DEFAULT_MARGINS` of core/forkcast/acceptance.py is
this table; docs/experiments.md has the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from forkcast_proxy.margins import beyond_unseen, forks_beyond, gains, measure, table
from forkcast_proxy.records import read


def main() -> int:
    """0 after the table was printed, 2 for unusable records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="Parquet file of scripts/collect_branches.py")
    parser.add_argument("--json", type=Path, help="also write the margins there")
    given = parser.parse_args()
    try:
        found = gains(read(given.records))
        measured = measure(found)
        digest = hashlib.sha256(given.records.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        print(f"margins: {error}", file=sys.stderr)
        return 2
    margins = table(measured)
    print(f"records sha256 {digest}")
    print("kind          steps forks runs   median      95 %  > .02  margin")
    for one in measured:
        bound = "     -" if one.bound is None else f"{one.bound:+.4f}"
        shipped = margins.get(one.kind, {}).get(one.horizon)
        print(
            f"{one.kind:12} {one.horizon:6} {one.forks:5} {one.runs:4}  {one.median:+.4f}   {bound}"
            f"  {one.beyond_floor:5.3f}  {'-' if shipped is None else f'{shipped:.3f}'}"
        )
    for horizon in sorted({one.horizon for one in measured}):
        print(
            f"+{horizon}: healthy forks with a gain beyond the floor "
            f"{forks_beyond(found, {}, horizon):.3f}, beyond the table "
            f"{forks_beyond(found, margins, horizon):.3f}, beyond a table of other runs "
            f"{beyond_unseen(found, horizon):.3f}"
        )
    if given.json is not None:
        given.json.write_text(json.dumps({"records": digest, "margins": margins}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
