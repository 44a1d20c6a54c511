"""Ours and every preset on labelled logs: one table by one command.

    python scripts/score_detectors.py FOLDER
    python scripts/score_detectors.py FOLDER --preset Forkcast --weights volatility=.5,entropy=.3,drift=.2

FOLDER holds labels.json and the logs it names (scripts/labelled_logs.py says of what shape, and how is
scored). A row for each detector's event tier and for its branch tier: recall, delay in rows, false
alarms per 100,000 rows of the batch's mean loss and of one rank's, with their exact Poisson intervals.
docs/experiments.md has the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from labelled_logs import Log, Score, rate, read

from forkcast_monitor.presets import PRESETS
from forkcast_monitor.scoring import verdicts

_HEAD = (
    "| detector | tier | recall | delay, median / 90 % | false, batch mean | false, one rank |\n"
    "|---|---|---|---|---|---|"
)


def score(
    logs: Sequence[Log], preset: str, weights: Mapping[str, float] | None = None
) -> dict[str, Score]:
    """The event tier and the branch tier of one detector."""
    tiers = {"event": Score(), "branch": Score()}
    for log in logs:
        for one, flags in zip(tiers.values(), verdicts(log.columns, preset, weights), strict=True):
            one.add(log, flags)
    return tiers


def line(name: str, tier: str, one: Score) -> str:
    """A row of the table."""
    delay = "-"
    if one.delays:
        delay = f"{np.median(one.delays):.3g} / {np.percentile(one.delays, 90):.3g}"
    return (
        f"| {name} | {tier} | {len(one.delays)}/{one.events} | {delay} "
        f"| {rate(one.false, one.rows)} | {rate(one.one_rank_false, one.one_rank_rows)} |"
    )


def _shares(text: str) -> dict[str, float]:
    return {
        name: float(share) for name, _, share in (one.partition("=") for one in text.split(","))
    }


def main() -> int:
    """0 after the table was printed, 2 for a folder or weights that cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="labels.json and logs")
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="only this one")
    parser.add_argument(
        "--weights", action="append", default=[], help="of preset Forkcast; a row each"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    try:
        logs = list(read(given.folder))
        variants = [(preset, preset, None) for preset in given.preset or PRESETS]
        variants += [(text, "Forkcast", _shares(text)) for text in given.weights]
        found = {}
        print(_HEAD)
        for name, preset, weights in variants:
            found[name] = score(logs, preset, weights)
            for tier, one in found[name].items():
                print(line(name, tier, one), flush=True)
    except KeyError as error:
        print(f"labelled logs: labels.json or a log has no {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"labelled logs: {error}", file=sys.stderr)
        return 2
    if given.json is not None:
        plain = {
            name: {t: asdict(one) for t, one in tiers.items()} for name, tiers in found.items()
        }
        given.json.write_text(json.dumps(plain, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
