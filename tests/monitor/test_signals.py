"""What every signal keeps to, over all there are: a new one is tested by its line in SIGNALS, and one of
another project's rule by its preset's line in PRESETS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.departures import TierRules
from forkcast.level import AGAIN_ROWS, Level
from forkcast.ports import Signal
from forkcast.records import StepStats
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.presets import PRESETS
from forkcast_monitor.presets.base import Preset
from forkcast_monitor.signals import SIGNALS
from forkcast_monitor.signals.base import LEAST_SIZE, MOST, SignalBase, SignalRules
from forkcast_wire.manifest import Uncertainty
from tests.made_runs import healthy, laid_over
from tests.make import step_stats

#: Every kind of signal by its preset and name, each once.
KINDS = {
    f"{preset}-{name}" if preset != "Forkcast" else name: kind
    for preset, one in PRESETS.items()
    for name, kind in one.signals.items()
    if preset == "Forkcast" or kind not in SIGNALS.values()
}
Make = Callable[[], Signal]
SPLICED = 250


class Said(NamedTuple):
    """What a signal says of a row."""

    u: float | None
    severe: bool
    healed: bool
    cause: str


def course(every: int = 10) -> list[StepStats]:
    """A run in which everything departs at some time, internals sampled every so many steps, with a
    splice in it.
    """
    rng = np.random.default_rng(1)
    rows = healthy(
        500,
        seed=1,
        tau=50,
        attention_logit_max=lambda step: 8 + step / 5 if step % every == 0 else None,
        attention_entropy=lambda step: (
            (0.6, 0.5 * math.exp(-step / 100)) if step % every == 0 else None
        ),
        rms_max=lambda step: math.exp(0.1 * rng.standard_normal()) + (step > 300) * 10,
        activation_sd=lambda step: (1.0, 2.0) if step % every == 0 else None,
    )
    rows = laid_over(rows, 150, 156, rise=0.5, norm=3)
    rows = laid_over(rows, 200, 230, rise=lambda since: since / 50, norm=3)
    rows = laid_over(rows, 330, 500, rise=lambda since: since / 40, norm=2)
    return laid_over(rows, 470, 495, rise=100.0, norm=100)


def said(signal: Signal, level: Level, rows: Iterable[StepStats]) -> list[Said]:
    """What a signal says of rows that its level folds before it; both are spliced at step SPLICED."""
    found = []
    for row in rows:
        if row.step == SPLICED:
            level.splice()
            signal.splice()
        level.fold(row)
        u = signal.update(row, level)
        found.append(Said(u, signal.severe, signal.healed, signal.cause() if u else ""))
    return found


def us(make: Make, rows: Iterable[StepStats]) -> list[float]:
    """u of each row, 0 if there is nothing to say."""
    return [one.u or 0.0 for one in said(make(), Level(), rows)]


def sound(one: Said) -> bool:
    """Whether it is what a signal may say."""
    if one.u is None:
        return one.cause == ""
    explained = not one.u or (bool(one.cause.strip()) and "\n" not in one.cause)
    return type(one.u) is float and 0 <= one.u <= MOST and explained


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return lambda: request.param(SignalRules())


@pytest.fixture(params=SIGNALS.values(), ids=SIGNALS)
def ours(request: pytest.FixtureRequest) -> Make:
    return lambda: request.param(SignalRules())


def test_a_restart_at_any_row_gives_the_same(make: Make) -> None:
    rows = course()
    expected = said(make(), Level(), rows)
    for cut in range(0, len(rows), 23):
        first, level = make(), Level()
        said(first, level, rows[:cut])
        second, other = make(), Level()
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        other.restore(json.loads(json.dumps(level.state(), allow_nan=False)))
        assert json.dumps(second.state()) == json.dumps(first.state())
        assert said(second, other, rows[cut:]) == expected[cut:]


def test_it_says_something_in_a_run_that_departs(make: Make) -> None:
    """Or the other tests would show nothing; the rules of other projects want much of a departure."""
    assert max(us(make, laid_over(course(every=1), 450, 480, rise=500.0))) > 0


def test_two_that_saw_the_same_are_equal_and_neither_touches_what_it_sees(make: Make) -> None:
    rows = course()
    kept = repr(rows)
    one, other, level, mirror = make(), make(), Level(), Level()
    for row in rows:
        level.fold(row)
        mirror.fold(row)
        before = json.dumps(level.state())
        assert one.update(row, level) == other.update(row, mirror)
        assert json.dumps(level.state()) == before
    assert json.dumps(one.state()) == json.dumps(other.state())
    assert repr(rows) == kept


BAD = [math.nan, math.inf, -math.inf, 1e308, -1e308]


@pytest.mark.parametrize("bad", BAD)
def test_a_value_that_is_none_leaves_no_trace(make: Make, bad: float) -> None:
    rows = course()
    plain, hit, level, other = make(), make(), Level(), Level()
    said(plain, level, rows[:90])
    said(hit, other, rows[:90])
    nothing = {"attention_logit_max": None, "attention_entropy": None, "rms_max": None}
    wrong = {
        "loss": bad,
        "grad_norm": bad,
        "grad_norm_clipped": bad,
        "attention_entropy": (bad, bad),
    }
    wrong |= {"attention_logit_max": bad, "rms_max": bad, "activation_sd": (bad,)}
    assert all(sound(one) for one in said(hit, other, [replace(rows[90], **wrong)]))
    json.dumps(hit.state(), allow_nan=False)
    said(plain, level, [replace(rows[90], loss=math.nan, grad_norm=math.nan, **nothing)])
    assert said(hit, other, rows[91:]) == said(plain, level, rows[91:])


ANY = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-310, 1e99, 1e101, -1e99, 3.0]),
    st.floats(0.1, 5),
)
MAYBE = st.one_of(st.none(), ANY)
ROW = st.fixed_dictionaries(
    {
        "loss": ANY,
        "grad_norm": ANY,
        "learning_rate": ANY,
        "rms_max": MAYBE,
        "attention_logit_max": MAYBE,
        "update_ratio": MAYBE,
        "update_cosine": MAYBE,
        "attention_entropy": st.one_of(st.none(), st.lists(ANY, max_size=3).map(tuple)),
        "activation_sd": st.one_of(st.none(), st.lists(ANY, max_size=3).map(tuple)),
        "group_grad_norms": st.dictionaries(st.sampled_from(["mlp", "attention"]), ANY),
        "skipped": st.booleans(),
    }
)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 80), st.lists(st.tuples(ROW, st.integers(1, 4)), max_size=30), st.integers(0, 30)
)
def test_whatever_comes_u_is_within_its_range_and_explained(name, calm, rows, cut) -> None:
    """After a calm of some rows, rows of anything, each several times over."""
    signal, level, other, mirror = KINDS[name](SignalRules()), Level(), None, Level()
    said(signal, level, healthy(calm))
    step = calm
    for number, (values, times) in enumerate(rows):
        if number == cut:
            other = KINDS[name](SignalRules())
            other.restore(json.loads(json.dumps(signal.state(), allow_nan=False)))
            mirror.restore(json.loads(json.dumps(level.state(), allow_nan=False)))
        for _ in range(times):
            row = step_stats(step, **values)
            step += 1
            (one,) = said(signal, level, [row])
            assert sound(one), one
            if other is not None:
                assert said(other, mirror, [row]) == [one]
    json.dumps(signal.state(), allow_nan=False)


def constant(loss: float) -> list[StepStats]:
    """A run in which nothing ever moves."""
    return [
        step_stats(
            step,
            loss=loss,
            attention_entropy=(0.5,) if step % 10 == 0 else None,
            attention_logit_max=3.0,
            rms_max=1.0,
            activation_sd=(1.0,),
        )
        for step in range(800)
    ]


def test_a_constant_run_says_nothing(make: Make) -> None:
    assert not any(us(make, constant(3.0)))


@pytest.mark.parametrize("loss", [0.0, 1e-30, 1e6])
def test_a_constant_run_says_nothing_whatever_its_unit(ours: Make, loss: float) -> None:
    assert not any(us(ours, constant(loss)))


def test_a_healthy_run_makes_no_event(ours: Make) -> None:
    rows = healthy(4000, seed=7, attention_logit_max=lambda _: 12.0, rms_max=lambda _: 1.2)
    assert max(us(ours, rows)) < 2.5


def test_a_log_of_the_loss_alone_is_enough_not_to_fail(make: Make) -> None:
    rows = [step_stats(one.step, loss=one.loss, grad_norm=math.nan) for one in course()]
    found = said(make(), Level(), rows)
    assert all(sound(one) for one in found)
    still = [step_stats(step, loss=3.0, grad_norm=math.nan) for step in range(400)]
    assert not any(us(make, still))


def test_its_memory_is_bounded(make: Make) -> None:
    signal, level, sizes = make(), Level(), []
    for step in range(4000):
        row = step_stats(
            step, loss=3.0 + math.sin(step), attention_entropy=(0.5,), attention_logit_max=50.0
        )
        said(signal, level, [row])
        if step % 1000 == 999:
            sizes.append(len(json.dumps(signal.state())))
    assert sizes[-1] <= 1.1 * sizes[0] + 64


@pytest.mark.parametrize("power", [-1, 1, 6])
def test_u_knows_no_unit_of_the_loss_while_sizes_stand_above_the_least(
    ours: Make, power: int
) -> None:
    """Exact for powers of two: nothing is rounded otherwise then."""
    rows = laid_over(healthy(600, noise=0.2, tau=50), 200, 240, rise=5.0, norm=3)
    rows = laid_over(rows, 400, 600, rise=lambda since: since / 50)
    scaled = [replace(row, loss=row.loss * 2.0**power) for row in rows]
    assert us(ours, scaled) == us(ours, rows)


def test_what_is_smaller_than_the_least_is_no_event_however_quiet_the_run(ours: Make) -> None:
    rows = laid_over(healthy(900, noise=1e-4, tau=50), 600, 640, rise=0.5 * LEAST_SIZE, norm=1.9)
    rows = laid_over(rows, 700, 900, rise=lambda since: 0.9 * LEAST_SIZE * since / 200)
    assert max(us(ours, rows)) < 2.5


@pytest.mark.parametrize("factor", [1e-4, 3.0, 1e6])
def test_u_knows_no_unit_of_the_norm(ours: Make, factor: float) -> None:
    rows = course()
    scaled = [replace(row, grad_norm=row.grad_norm * factor) for row in rows]
    assert us(ours, scaled) == pytest.approx(us(ours, rows), abs=1e-6)


def test_after_a_splice_nothing_is_said_of_what_came_before(ours: Make) -> None:
    rows = course()
    first = [row for row in rows if row.step < SPLICED]
    after = healthy(SPLICED + 200, tau=20, end=2.5)[SPLICED:]
    found = said(ours(), Level(), [*first, *after])[SPLICED:]
    assert not any(one.u for one in found[:AGAIN_ROWS])
    assert all(one.healed and not one.severe for one in found[:AGAIN_ROWS])
    assert max(one.u or 0.0 for one in found) < 1.6


def test_its_share_is_a_number_and_all_shares_make_one() -> None:
    assert all(kind.weight >= 0 for kind in SIGNALS.values())
    weights = configure(Uncertainty()).weights
    assert math.fsum(weights.values()) == pytest.approx(1)
    assert set(weights) == set(SIGNALS)


class Refused(SignalBase):
    """A signal that nobody may make."""

    weight: ClassVar[float] = 0.0

    def __init__(self, rules: SignalRules) -> None:
        raise AssertionError


def test_a_signal_of_weight_nothing_is_not_computed() -> None:
    config = configure(Uncertainty())
    preset = Preset(signals={**SIGNALS, "refused": Refused}, source="", tiers=TierRules())
    weights = {**config.weights, "refused": 0.0}
    detector = Detector(replace(config, preset=preset, weights=weights), "u")
    for row in healthy(300):
        index = detector.fold(row).index
        assert set(index.components) <= {name for name, one in weights.items() if one}
    given_one = Uncertainty.model_validate({"weights": {"volatility": "0.5", "drift": "0.5"}})
    assert set(Detector(configure(given_one), "u").state()["signals"]) == {"volatility", "drift"}


def test_a_part_of_the_trigger_keeps_the_other_defaults() -> None:
    plain = configure(Uncertainty()).trigger.tiers
    given_one = configure(Uncertainty.model_validate({"trigger": {"singleZ": "9"}})).trigger.tiers
    assert given_one == replace(plain, single_z=9)


def test_every_default_that_the_manifest_states_is_the_one_in_force() -> None:
    plain = configure(Uncertainty())
    stated = {
        name: info.description.rpartition("; ")[2].rpartition(". ")[2].removesuffix(" if absent.")
        for model in (Uncertainty, type(Uncertainty.model_validate({"trigger": {}}).trigger))
        for name, info in model.model_fields.items()
        if info.description and info.description.endswith(" if absent.") and name != "preset"
    }
    tiers = plain.trigger.tiers
    known: Mapping[str, Any] = {
        "window": plain.signals.window,
        "ema_decay": plain.signals.ema_decay,
        "forecast_horizon_steps": plain.signals.horizon,
        "warmup_steps": plain.trigger.warmup_steps,
        "calm_steps": plain.trigger.calm_steps,
        **{
            name: getattr(tiers, name)
            for name in ("z", "single_z", "consecutive_steps", "cooldown_steps", "patience_rows")
        },
    }
    assert {name: float(value) for name, value in stated.items()} == known
