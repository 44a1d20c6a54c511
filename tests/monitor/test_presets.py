"""The rules of other projects fire where their definitions say, and not one row earlier."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable

import pytest

from forkcast.departures import TierRules
from forkcast.level import Level
from forkcast.records import Tier
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.presets import PRESETS
from forkcast_monitor.signals.base import EVENT, MOST, SignalRules
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.shelves import SHELVES
from tests.make import step_stats

FOREIGN = [name for name in PRESETS if name not in ("Forkcast", "Literal")]


def fires(preset: str, losses: Iterable[float], norms: Iterable[float] | None = None) -> list[int]:
    """The rows, from 0, at which the preset's one rule fires."""
    (make,) = PRESETS[preset].signals.values()
    signal, level = make(SignalRules()), Level()
    losses = list(losses)
    rows = []
    for row, (loss, norm) in enumerate(zip(losses, norms or [math.nan] * len(losses), strict=True)):
        stats = step_stats(row, loss=loss, grad_norm=norm)
        level.fold(stats)
        u = signal.update(stats, level)
        if u:
            assert EVENT < u <= MOST
            assert signal.cause()
            rows.append(row)
    return rows


def wave(rows: int, mean: float = 3.0, sd: float = 0.1) -> list[float]:
    """Values whose mean and standard deviation over every even number of rows are exact."""
    return [mean + sd * (-1) ** row for row in range(rows)]


@pytest.mark.parametrize(
    ("preset", "limit"), [("OlmoCore", 3.0 + 6 * 0.1), ("WandbZScore", 3.0 + 3 * 0.1)]
)
def test_a_value_just_beyond_so_many_deviations_fires_and_one_just_within_does_not(preset, limit):
    rows = {"OlmoCore": 128, "WandbZScore": 30}[preset]
    assert fires(preset, [*wave(rows), limit + 1e-6]) == [rows]
    assert fires(preset, [*wave(rows), limit - 1e-6]) == []
    assert fires(preset, [*wave(rows - 2), limit + 1e-6]) == []  # the window is not full


def test_olmo_core_watches_the_norm_as_well_and_lets_spikes_into_its_window():
    norms = [*wave(128, 1.0), 1.61, 1.61, 1.9]
    assert fires("OlmoCore", [3.0] * 131, norms) == [128, 130]
    assert fires("OlmoCore", [*wave(128), 30.0, 3.7]) == [128]


def test_a_constant_series_is_no_spike_for_olmo_core():
    assert fires("OlmoCore", [*[3.0] * 128, 9.0]) == []


def test_llm_foundry_fires_at_the_fifth_loss_in_a_row_at_twice_the_mean():
    # outliers enter the window: each has to be twice a mean that they raise
    high = [7.0] * 7
    assert fires("LlmFoundry", [*[3.0] * 100, *high]) == [104, 105, 106]
    assert fires("LlmFoundry", [*[3.0] * 100, *high[:4], 3.0, *high[:4]]) == []
    assert fires("LlmFoundry", [*[3.0] * 99, *high[:5]]) == []  # the first enters the window unseen
    assert fires("LlmFoundry", [*[3.0] * 100, *[6.0] * 9]) == []


def test_llm_foundry_fires_from_row_200_on_while_half_of_its_window_is_above_ten():
    # the cap stays 10, though the first window never exceeded 11
    falling = [*[11.0] * 230, *[9.0] * 100]
    assert fires("LlmFoundry", falling) == list(range(199, 230 + 51))
    assert fires("LlmFoundry", [9.9] * 300) == []


def test_lightning_fires_at_three_times_the_mean_of_ten_if_the_loss_rose():
    assert fires("Lightning", [*[2.0] * 20, 5.99, 2.0]) == []
    assert fires("Lightning", [*[2.0] * 20, 6.0, 2.0]) == [20]
    # a spike is not accepted: the next one is measured by the same ten
    assert fires("Lightning", [*[2.0] * 20, 6.0, 6.0]) == [20, 21]
    assert fires("Lightning", [2.0, 6.0]) == [1]
    # ten means, not eleven: the oldest value has left
    assert fires("Lightning", [90.0, *[2.0] * 10, 6.0]) == [11]
    assert fires("Lightning", [90.0, *[2.0] * 9, 6.0]) == []


def test_megatron_fires_at_ten_times_the_largest_of_the_first_hundred_rows():
    start = [11.0, *[4.0] * 99]
    assert fires("Megatron", [*start, 109.9, 110.0, 200.0]) == [101, 102]
    assert fires("Megatron", [*start[:99], 110.0, 200.0]) == []  # still sampled: 110 is the largest


def test_llm_c_counts_the_new_value_into_its_window():
    # z of one value x beside 127 zeros-on-average is at most sqrt(127), reached only by an outlier
    assert fires("LlmC", [*wave(128), 1e6]) == [128]
    assert fires("LlmC", [*wave(127), 1e6]) == []
    # 7 deviations of the others would be enough if the value were outside
    inside = 3.0 + 0.1 * 7.0
    assert fires("LlmC", [*wave(128), inside]) == []
    # z = 7 with the value in the window: d (n-1)/n / sqrt(s^2 (n-1)/n + d^2 (n-1)/n^2) = 7 at
    # d = 7 s / sqrt((n-1)/n - 49/n)
    n = 128
    values = wave(n)
    rest = values[1:]  # the oldest leaves
    mean = math.fsum(rest) / (n - 1)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in rest) / (n - 1))
    limit = mean + 7 * sd / math.sqrt((n - 1) / n - 49 / n)
    assert fires("LlmC", [*values, limit + 1e-6]) == [n]
    assert fires("LlmC", [*values, limit - 1e-6]) == []
    assert fires("LlmC", [3.0] * 129, [*wave(128, 1.0), 50.0]) == [128]


def test_axolotl_fires_at_the_third_loss_in_a_row_above_twice_the_first():
    assert fires("Axolotl", [5.0, 10.1, 10.1, 10.1, 10.1]) == [3, 4]
    assert fires("Axolotl", [5.0, 10.1, 10.1, 9.9, 10.1, 10.1]) == []
    assert fires("Axolotl", [5.0, 10.0, 10.0, 10.0]) == []


def noisy(rows: int = 400) -> list[float]:
    draw = random.Random(1)
    return [3 + 0.1 * draw.gauss(0, 1) + (40.0 if row in (300, 301) else 0) for row in range(rows)]


@pytest.mark.parametrize("preset", FOREIGN)
def test_each_asks_for_a_branch_at_the_row_it_fires(preset):
    losses = [*wave(260), *[500.0] * 8]
    d = Detector(configure(Uncertainty(preset=preset)), "u")
    read = [d.fold(step_stats(row, loss=loss)) for row, loss in enumerate(losses)]
    first = next(row for row in fires(preset, losses) if row >= 200)
    asked = [row for row, one in enumerate(read) if one.trigger is not None]
    assert asked[0] == first
    event = read[first].event
    assert event is not None
    assert event.tier is Tier.BRANCH
    assert event.cause.startswith(event.component)


@pytest.mark.parametrize("preset", FOREIGN)
@pytest.mark.parametrize("cut", [1, 99, 150, 301])
def test_a_restart_at_any_row_changes_nothing(preset, cut):
    rows = [step_stats(row, loss=loss) for row, loss in enumerate(noisy())]
    config = configure(Uncertainty(preset=preset))
    whole, first, second = (Detector(config, "u") for _ in range(3))
    expected = [whole.fold(row) for row in rows]
    got = [first.fold(row) for row in rows[:cut]]
    second.restore(json.loads(json.dumps(first.state())))
    got += [second.fold(row) for row in rows[cut:]]
    assert got == expected


@pytest.mark.parametrize("preset", FOREIGN)
def test_no_value_that_is_not_finite_enters_a_window(preset):
    losses = noisy()
    holes = [*losses[:250], math.nan, math.inf, *losses[250:]]
    moved = [row + 2 * (row >= 250) for row in fires(preset, losses)]
    assert fires(preset, holes) == moved


def test_every_preset_can_be_named_in_a_manifest_and_says_whose_it_is():
    assert list(SHELVES["presets"]) == list(PRESETS)
    for name, preset in PRESETS.items():
        assert Uncertainty(preset=name).preset == name
        assert preset.source
        assert isinstance(preset.tiers, TierRules)
