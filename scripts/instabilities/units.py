"""Units of work, and the plans of the calls that the study was made with."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from instabilities.faults import FAULTS
from instabilities.model import SIZES

WARM_UP = 100
#: The faults that are worth their time at 124M.
MAIN = (
    "control",
    "rate_x8",
    "label_noise",
    "rank_sign",
    "bad_shard_bytes",
    "moments_early_second",
    "rare_tokens",
    "rate_x4",
    "rank_noise",
    "moments_zero_second",
)


@dataclass(frozen=True)
class Unit:
    """One lineage of a plan. ``steps``: of the schedule; ``stop``: the last that is trained
    without a fault. With ``faults`` the run forks at ``fork``.
    """

    name: str
    size: str
    seed: int
    qk_norm: bool
    schedule: str
    rate_factor: float = 1.0
    steps: int = 3000
    stop: int = 3000
    length: int = 512
    precision: str = "bf16"
    fork: int = 0
    tail: int = 0
    faults: tuple[str, ...] = ()

    def tail_of(self, fault: str) -> int:
        """Steps of a fault's record after the fork; ``tail`` cuts them short."""
        return min(self.tail or 10_000, FAULTS[fault].tail)

    @property
    def total_steps(self) -> int:
        """All that the unit trains."""
        return self.stop + self.fork + sum(map(self.tail_of, self.faults))

    def rate(self, step: int) -> float:
        """The learning rate of ``step`` (from 0): warm-up, then WSD (last fifth) or cosine to .1."""
        peak = SIZES[self.size].rate * self.rate_factor
        if step < WARM_UP:
            return peak * (step + 1) / WARM_UP
        share = (step - WARM_UP) / max(1, self.steps - WARM_UP)
        if self.schedule == "cosine":
            return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        return peak * min(1.0, 5 * (1 - share) + 0.01)


def plans() -> dict[str, list[Unit]]:
    """smoke: every path, a few steps. a: healthy, and rates too high from the start. b: faults at 51M.
    c: more healthy runs at 51M. d: faults at 124M. The first units of a plan go to the first workers,
    one to each GPU in turn.
    """
    plain = [
        n for n, f in FAULTS.items() if n != "control" and not n.startswith(("fp16", "longer"))
    ]
    groups = [("control", *plain[i::3]) for i in range(3)]
    half = ("control", *(n for n in FAULTS if n.startswith("fp16")))
    longer = ("control", *(n for n in FAULTS if n.startswith("longer")))

    def unit(
        size: str, seed: int, qk_norm: bool, schedule: str, tag: str = "", **more: Any
    ) -> Unit:
        factor = more.get("rate_factor", 1.0)
        name = f"{size}-s{seed}-qk{int(qk_norm)}-{schedule}-x{factor:g}{tag}"
        return Unit(name, size, seed, qk_norm, schedule, **more)

    def hot(size: str, seed: int, qk_norm: bool, schedule: str, factor: float) -> Unit:
        return unit(size, seed, qk_norm, schedule, rate_factor=factor, stop=1200)

    def faulty(size: str, seed: int, qk_norm: bool, schedule: str) -> list[Unit]:
        fork = 600 if seed % 2 else 700
        return [
            unit(size, seed, qk_norm, schedule, f"-f{i}", stop=0, fork=fork, faults=group)
            for i, group in enumerate(groups)
        ]

    def special(size: str, seed: int, qk_norm: bool, schedule: str) -> list[Unit]:
        more: dict[str, Any] = {"stop": 0, "fork": 600}
        return [
            unit(size, seed, qk_norm, schedule, "-fp16", precision="fp16", faults=half, **more),
            unit(size, seed, qk_norm, schedule, "-t256", length=256, faults=longer, **more),
        ]

    four = [(1, False, "wsd"), (2, True, "wsd"), (2, False, "cosine"), (1, True, "cosine")]
    healthy = [
        unit(size, seed, qk, schedule, rate_factor=factor)
        for size, kinds in (
            (
                "124M",
                [
                    (1, False, "wsd", 1.0),
                    (2, True, "cosine", 1.0),
                    (3, False, "cosine", 0.5),
                    (4, True, "wsd", 0.5),
                ],
            ),
            ("51M", [(s, qk, schedule, f) for f in (1.0, 0.5) for s, qk, schedule in four]),
        )
        for seed, qk, schedule, factor in kinds
    ]
    a = [
        *healthy,
        *(hot("51M", *kind, factor) for factor in (4.0, 8.0, 2.0) for kind in four),
        *(unit("51M", seed, bool(seed % 2), "wsd", steps=4000, stop=4000) for seed in (5, 6, 7, 8)),
    ]
    b = [
        *(u for kind in four for u in faulty("51M", *kind)),
        *special("51M", *four[0]),
        *special("51M", *four[1]),
    ]
    c = [
        unit("51M", 3, True, "cosine"),
        unit("51M", 4, True, "wsd", rate_factor=0.5),
        unit(
            "51M", 5, True, "wsd", "-fp16", precision="fp16", faults=half, stop=0, fork=300, tail=80
        ),
    ]
    short: dict[str, Any] = {"stop": 0, "fork": 450, "tail": 150}
    d = [
        *(
            unit("124M", *kind, "-f", stop=0, fork=500, tail=200, faults=MAIN)
            for kind in ((1, False, "wsd"), (2, True, "cosine"))
        ),
        unit("124M", 1, False, "wsd", "-fp16", precision="fp16", faults=half, **short),
        unit("124M", 1, False, "wsd", "-t256", length=256, faults=longer, **short),
    ]
    few: dict[str, Any] = {"stop": 0, "fork": 20, "tail": 6, "steps": 200}
    smoke = [
        unit("51M", 1, False, "wsd", steps=200, stop=200),
        unit("51M", 1, True, "cosine", "-all", faults=("control", *plain), **few),
        unit("51M", 1, False, "wsd", "-fp16", precision="fp16", faults=half, **few),
        unit("51M", 1, False, "wsd", "-t256", length=256, faults=longer, **few),
        unit("124M", 1, True, "cosine", steps=200, stop=200),
        unit("124M", 1, False, "wsd", steps=200, stop=200),
        unit("124M", 1, False, "wsd", "-fp16", precision="fp16", faults=half, **few),
        unit("124M", 1, False, "wsd", "-t256", length=256, faults=longer, **few),
    ]
    return {"smoke": smoke, "a": a, "b": b, "c": c, "d": d}


def write_plans(options: argparse.Namespace) -> None:
    """One JSON file a plan, and how many steps it asks for."""
    for name, units in plans().items():
        text = json.dumps([asdict(unit) for unit in units], indent=1)
        (options.to / f"{name}.json").write_text(text + "\n")
        by_size = {s: sum(u.total_steps for u in units if u.size == s) for s in SIZES}
        records = sum(len(u.faults) or 1 for u in units)
        print(
            name, len(units), "units", records, "records", {s: n for s, n in by_size.items() if n}
        )
