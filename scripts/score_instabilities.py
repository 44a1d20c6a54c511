"""What the detector makes of the instabilities recorded in tests/data: caught or not, when, by which arm.

    python scripts/score_instabilities.py [--preset NAME] [--records FOLDER]

Two tables: the faults by kind and size, and the runs that nothing happened to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyarrow import parquet

from forkcast.records import StepStats, Tier
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_wire.manifest import Uncertainty

RECORDS: Final = Path(__file__).resolve().parents[1] / "tests" / "data" / "instabilities"
#: Tokens of a step, both ranks.
TOKENS: Final = {"51M": 16_384, "124M": 8_192}
#: Steps of a run whose schedule was played to its end.
WHOLE: Final = 3_000
SAMPLED: Final = ("attention_logit_max", "validation_loss")


@dataclass(frozen=True)
class Verdict:
    """A run through the detector. event, branch: steps of the first from the fault's onset on (of a run
    without a fault: of the first at all); arm: the component of that event. events, branches: how many
    departures began, and how many branches were asked for, in the whole run.
    """

    name: str
    labels: dict[str, Any]
    event: int | None
    arm: str
    tier: Tier
    branch: int | None
    events: int
    branches: int

    def after(self, step: int | None, mark: str) -> int | None:
        """Steps from the label ``mark`` to ``step``; None if there is one of them only."""
        start = self.labels.get(mark)
        return None if step is None or start is None else step - start


def labels(folder: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """The labels of each run."""
    records: dict[str, dict[str, Any]] = json.loads((folder / "labels.json").read_text())["records"]
    return records


def rows(path: Path, tokens: int) -> Iterator[StepStats]:
    """A recorded run as a monitor sees it."""
    for row in parquet.read_table(path).to_pylist():
        entropy = row["attention_entropy"]
        yield StepStats(
            run_uid=path.stem,
            epoch=0,
            attempt=0,
            rank=0,
            step=row["step"],
            loss=row["loss"],
            grad_norm=row["grad_norm"],
            grad_norm_clipped=min(row["grad_norm"], 1.0),
            learning_rate=row["learning_rate"],
            tokens=(row["step"] + 1) * tokens,
            attention_entropy=None if entropy is None else (entropy,),
            **{name: row[name] for name in SAMPLED},
        )


def score(
    name: str, given: dict[str, Any], folder: Path = RECORDS, preset: str = "Forkcast"
) -> Verdict:
    """One recorded run through a detector with the defaults of ``preset``."""
    detector = Detector(configure(Uncertainty(preset=preset)), name)
    onset = given["onset_step"] or 0
    event = branch = None
    arm, tier, branches = "", Tier.CALM, 0
    for stats in rows(folder / f"{name}.parquet", TOKENS[given["size"]]):
        reading = detector.fold(stats)
        branches += reading.trigger is not None
        if stats.step < onset:
            continue
        if reading.event is not None:
            tier = max(tier, reading.event.tier)
            if event is None:
                event, arm = stats.step, reading.event.component
        if reading.trigger is not None and branch is None:
            branch = stats.step
    return Verdict(name, given, event, arm, tier, branch, detector.events, branches)


def scores(folder: Path = RECORDS, preset: str = "Forkcast") -> list[Verdict]:
    """Every run of ``folder``."""
    return [score(name, given, folder, preset) for name, given in labels(folder).items()]


def _spread(values: Iterable[int | None]) -> str:
    """Median and, if they differ, range."""
    known = sorted(v for v in values if v is not None)
    if not known:
        return "-"
    median = f"{statistics.median(known):+g}"
    return median if known[0] == known[-1] else f"{median} ({known[0]:+d} to {known[-1]:+d})"


def _lines(verdicts: list[Verdict]) -> Iterator[str]:
    yield "| kind | fault | size | runs | harm | events | branches | highest tier | event after onset | after the loss's departure | branch after onset | first arm |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    faulty = [v for v in verdicts if v.labels["onset_step"] is not None]

    def group(v: Verdict) -> tuple[str, str, str]:
        return v.labels["kind"], v.labels["fault"], v.labels["size"].rjust(4)

    for (kind, fault, size), members in itertools.groupby(sorted(faulty, key=group), key=group):
        some = list(members)
        arms = Counter(v.arm for v in some if v.arm)
        yield (
            " | ".join(
                [
                    f"| {kind.replace('_', ' ')}",
                    fault or "no QK-norm",
                    size.strip(),
                    str(len(some)),
                    "/".join(sorted({v.labels["harm"] for v in some})),
                    f"{sum(v.event is not None for v in some)}",
                    f"{sum(v.branch is not None for v in some)}",
                    _spread(v.after(v.event, "onset_step") for v in some),
                    _spread(v.after(v.event, "departure_step") for v in some),
                    _spread(v.after(v.branch, "onset_step") for v in some),
                    ", ".join(arms) or "-",
                ]
            )
            + " |"
        )
    harmed = [v for v in faulty if v.labels["harm"] in ("loss", "nonfinite")]
    missed = [v.name for v in harmed if v.event is None]
    yield ""
    yield (
        f"Of {len(harmed)} that do harm: {len(harmed) - len(missed)} events, "
        f"{sum(v.branch is not None for v in harmed)} branches; "
        f"event after onset {_spread(v.after(v.event, 'onset_step') for v in harmed)}, after the loss's "
        f"departure {_spread(v.after(v.event, 'departure_step') for v in harmed)}. "
        f"Missed: {', '.join(missed) or 'none'}."
    )
    yield ""
    yield "| healthy run | rows | events | branches | first arm |"
    yield "|---|---|---|---|---|"
    calm = [v for v in verdicts if v.labels["onset_step"] is None]
    whole = [v for v in calm if v.labels["kind"] == "healthy" and v.labels["rows"] >= WHOLE]
    for v in whole:
        yield f"| {v.name} | {v.labels['rows']:,} | {v.events} | {v.branches} | {v.arm or '-'} |"
    for title, some in (
        (
            f"{len(calm) - len(whole)} shorter ones and controls",
            [v for v in calm if v not in whole],
        ),
        (f"**all {len(calm)}**", calm),
    ):
        yield (
            f"| {title} | {sum(v.labels['rows'] for v in some):,} | "
            f"{sum(v.events for v in some)} | {sum(v.branches for v in some)} | |"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--preset", default="Forkcast")
    given = parser.parse_args()
    for line in _lines(scores(given.records, given.preset)):
        print(line)


if __name__ == "__main__":
    main()
