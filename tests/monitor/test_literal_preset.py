"""Preset Literal is the first detector, figure by figure: its z and triggers were recorded before it was replaced."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from forkcast.records import StepStats, TriggerRule
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.presets import PRESETS
from forkcast_monitor.signals.base import MOST
from forkcast_wire.manifest import Uncertainty
from tests.make import step_stats

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "literal_rule.json").read_text()
)


def course(
    seed: int,
    rows: int,
    *,
    spikes: Sequence[tuple[int, float, float]] = (),
    internals: int = 10,
    nans: Sequence[int] = (),
    gap: tuple[int, int] | None = None,
    norm: bool = True,
) -> list[StepStats]:
    """A falling loss; spikes: (row, nats, rows to fall by e). gap: (row, steps missing before it)."""
    draw = random.Random(seed)
    made = []
    for row in range(rows):
        step = row if gap is None or row < gap[0] else row + gap[1]
        high = sum(size * math.exp(-(row - at) / last) for at, size, last in spikes if row >= at)
        inside: dict[str, Any] = {}
        if internals and row % internals == 0:
            inside = {
                "attention_entropy": (0.7 - 0.1 * min(high, 3) + 0.02 * draw.gauss(0, 1), 0.8),
                "attention_logit_max": 6.0 + 0.3 * draw.gauss(0, 1) + 4 * high,
                "activation_sd": (1.0, 1.5 + 0.05 * draw.gauss(0, 1)),
            }
        loss = 3 + 3 * math.exp(-row / 250) + 0.1 * draw.gauss(0, 1) + high
        grad = math.exp(0.2 * draw.gauss(0, 1) + 0.5 * high) if norm else 0.0
        if row in nans:
            loss = math.nan
        made.append(step_stats(step, loss=loss, grad_norm=grad, **inside))
    return made


COURSES = {
    "spikes": course(1, 1000, spikes=((420, 1.5, 8), (700, 0.6, 30))),
    "no_internals": course(2, 800, spikes=((500, 0.35, 60),), internals=0, norm=False),
    "healthy": course(3, 900),
    "slow": course(18, 700, spikes=((450, 0.2, 60),)),
    "holes": course(4, 700, nans=(300, 301), gap=(500, 7)),
}


def detector() -> Detector:
    return Detector(configure(Uncertainty(preset="Literal")), "u")


@pytest.mark.parametrize("name", COURSES)
def test_its_z_is_that_of_the_first_detector_at_every_row(name):
    d = detector()
    got = [d.fold(row).index.components["literal"] for row in COURSES[name]]
    expected = [min(max(z, 0.0), MOST) for z in RECORDED[name]["z"]]
    assert got == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("name", COURSES)
def test_it_triggers_where_the_first_detector_did_by_the_same_rule(name):
    d = detector()
    fired = [d.fold(row).trigger for row in COURSES[name]]
    # a row that is not finite is the detector's own rule, and no cooldown hides it any more
    kept = [one for one in fired if one is not None and one.rule is not TriggerRule.NON_FINITE]
    got = [[one.step, one.rule.value] for one in kept]
    assert got == [[step, rule] for step, rule, _ in RECORDED[name]["triggers"]]


def test_both_of_its_thresholds_and_its_cooldown_are_met_in_the_recording():
    rules = {rule for one in RECORDED.values() for _, rule, _ in one["triggers"]}
    assert rules == {"Single", "Consecutive"}
    hidden = [
        step
        for one in RECORDED.values()
        for step, z in enumerate(one["z"])
        if z > 3.2 and all(step != at for at, _, _ in one["triggers"])
    ]
    assert hidden


def test_rows_that_are_not_finite_running_are_one_trigger():
    d = detector()
    rows = course(5, 340, nans=range(300, 340))
    fired = [one for row in rows if (one := d.fold(row).trigger) and row.step >= 300]
    assert [(one.step, one.rule) for one in fired] == [(300, TriggerRule.NON_FINITE)]


def test_a_restart_changes_no_figure():
    rows = COURSES["spikes"]
    whole, first, second = detector(), detector(), detector()
    expected = [whole.fold(row) for row in rows]
    got = [first.fold(row) for row in rows[:431]]
    second.restore(json.loads(json.dumps(first.state())))
    got += [second.fold(row) for row in rows[431:]]
    assert got == expected


def test_it_is_a_preset_with_the_configured_defaults():
    tiers = PRESETS["Literal"].tiers
    assert (tiers.z, tiers.consecutive_steps, tiers.single_z) == (2.5, 3, 3.2)
    assert configure(Uncertainty(preset="Literal")).trigger.tiers.quiet_steps == 200
