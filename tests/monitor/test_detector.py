"""The detector over whole runs: which tier, since when, which signal, and what it says of the cause."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.records import Event, StepStats, Tier, Trigger, TriggerRule
from forkcast_monitor.detector import Reading
from forkcast_monitor.presets import PRESETS
from tests.made_runs import NOISE, detector, healthy, laid_over, readings
from tests.make import step_stats

#: Where made departures begin, unless a test says otherwise.
AT = 600


def events(found: list[Reading]) -> list[Event]:
    return [one.event for one in found if one.event is not None]


def triggers(found: list[Reading]) -> list[Trigger]:
    return [one.trigger for one in found if one.trigger is not None]


def flat(steps: int = 1500, **more: Any) -> list[StepStats]:
    """A healthy run whose curve has flattened by step 600."""
    return healthy(steps, tau=80, **more)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tau", [50, 400, 3000])
def test_a_healthy_run_makes_no_event(seed: int, tau: float) -> None:
    found = readings(healthy(3000, seed=seed, tau=tau))
    assert events(found) == []
    assert max(one.index.z for one in found) < 2.5


def test_a_spike_that_heals_is_an_event_and_asks_for_nothing() -> None:
    found = readings(laid_over(flat(), AT, AT + 4, rise=0.2, norm=3))
    (event,) = events(found)
    assert (event.tier, event.component) == (Tier.EVENT, "volatility")
    assert event.onset_step == AT
    assert AT <= event.step <= AT + 4
    assert "gradient norm x" in event.cause
    assert "this is the state of the run" in event.cause
    assert "healthy steps" in event.cause
    assert "\n" not in event.cause
    assert triggers(found) == []
    assert found[-1].index.tier is Tier.CALM


def test_a_shift_with_its_norm_doubled_asks_for_a_branch_when_its_patience_is_over() -> None:
    one = detector()
    found = readings(laid_over(flat(), AT, 1500, rise=0.25, norm=2.5), one)
    first, second = events(found)[:2]
    assert (first.tier, second.tier) == (Tier.EVENT, Tier.BRANCH)
    assert first.component == second.component == "volatility"
    assert first.onset_step == second.onset_step == AT
    assert second.step - first.step == 10
    trigger = triggers(found)[0]
    assert (trigger.step, trigger.onset_step) == (second.step, AT)
    assert trigger.cause == second.cause
    assert f"since step {AT}" in trigger.cause
    assert trigger.thresholds["single_z"] == 3.2
    by_step = {reading.index.step: reading.index.tier for reading in found}
    assert by_step[first.step - 1] <= Tier.WATCH
    assert by_step[first.step] is Tier.EVENT
    assert by_step[second.step] is Tier.BRANCH


def test_patience_is_what_the_manifest_says() -> None:
    found = readings(laid_over(flat(), AT, 1500, rise=0.25, norm=2.5), detector(patienceRows=30))
    first, second = events(found)[:2]
    assert second.step - first.step >= 15  # the norm's creep may be sooner than thirty
    assert (first.component, first.tier) == ("volatility", Tier.EVENT)


def test_a_severe_shift_does_not_wait() -> None:
    found = readings(laid_over(flat(), AT, 1500, rise=1.5, norm=3))
    first = triggers(found)[0]
    assert AT <= first.step <= AT + 6
    assert first.rule is TriggerRule.SINGLE


def test_a_stretch_whose_norm_does_not_move_is_the_batch_and_no_event() -> None:
    rows = laid_over(flat(), AT, AT + 15, rise=0.25)
    found = readings(rows)
    assert events(found) == []
    assert max(one.index.tier for one in found) is Tier.WATCH
    one = detector()
    readings(rows[: AT + 8], one)
    cause = one._signals["volatility"].cause()
    assert "gradient norm unchanged: this is the batch" in cause


def test_a_stretch_that_is_far_and_lasts_is_an_event_that_asks_for_nothing() -> None:
    """Regression: 30 rows of 1.5 nats more, with the gradient norm of before, were not told."""
    found = readings(laid_over(flat(), AT, AT + 30, rise=1.5))
    (event,) = [one for one in events(found) if one.component == "volatility"]
    assert (event.tier, event.onset_step) == (Tier.EVENT, AT)
    assert AT + 4 <= event.step <= AT + 6
    assert "gradient norm unchanged: this is the batch" in event.cause
    assert triggers(found) == []
    assert found[-1].index.tier is Tier.CALM


def test_a_norm_that_doubles_later_makes_a_state_of_what_was_the_batch() -> None:
    rows = laid_over(laid_over(flat(), AT, AT + 60, rise=1.5), AT + 15, AT + 60, rise=0, norm=4)
    found = [one for one in events(readings(rows)) if one.component == "volatility"]
    assert (found[0].tier, found[0].step < AT + 10) == (Tier.EVENT, True)
    branch = next(one for one in found if one.tier is Tier.BRANCH)
    assert AT + 15 <= branch.step <= AT + 17
    assert branch.onset_step == AT


def test_a_shift_that_lasts_is_seen_whatever_the_norm_says() -> None:
    found = readings(laid_over(flat(2500), AT, 2500, rise=0.3))
    first = triggers(found)[0]
    assert "drift" in first.components
    assert AT + 10 < first.step < AT + 200


def test_a_loss_that_creeps_up_is_an_event_and_asks_for_a_branch_when_no_data_would_do_that() -> (
    None
):
    found = readings(laid_over(flat(2500), AT, 2500, rise=lambda since: since / 2000))
    first, second = events(found)[:2]
    assert (first.component, first.tier) == (second.component, Tier.EVENT) == ("drift", Tier.EVENT)
    assert second.tier is Tier.BRANCH
    assert "nats above its best, which harder data may do" in first.cause
    assert second.cause.endswith("nats above its best")
    assert AT < first.onset_step == second.onset_step < first.step < second.step < AT + 800
    assert triggers(found)[0].rule is TriggerRule.SLOW


def test_a_loss_that_creeps_up_with_its_norm_does_not_wait() -> None:
    rows = laid_over(flat(2500), AT, 2500, rise=lambda since: since / 2000, norm=1.7)
    first = events(readings(rows))[0]
    assert (first.component, first.tier) == ("drift", Tier.BRANCH)
    assert "the loss has crept" in first.cause


def harder(since: int) -> float:
    """Data that become harder within 150 rows, by four scales and a half, and are learnt as the others are."""
    return 4.5 * NOISE * min(since / 150, 1.0) - since / 60_000


def test_data_that_become_harder_ask_for_no_branch_however_long_they_last() -> None:
    found = readings(laid_over(flat(4000), AT, 4000, rise=harder))
    assert [(one.component, one.tier) for one in events(found)] == [("drift", Tier.EVENT)]
    assert triggers(found) == []


def test_the_same_rise_of_the_validation_loss_says_that_it_is_no_matter_of_the_data() -> None:
    rise = lambda step: harder(step - AT) if step > AT else 0.0  # noqa: E731
    level = lambda step: 3.0 + 0.003 * (-1) ** (step // 50) + rise(step)  # noqa: E731
    rows = flat(4000, validation_loss=lambda step: level(step) if step % 50 == 0 else None)
    found = readings(laid_over(rows, AT, 4000, rise=harder))
    first = triggers(found)[0]
    assert first.rule is TriggerRule.VALIDATION_REGRESSION
    assert AT < first.onset_step < first.step < AT + 400


def test_a_drift_after_a_spike_that_did_not_heal_is_one_cause() -> None:
    """Regression: drift asked for a second branch some thirty rows after volatility."""
    found = readings(laid_over(flat(AT + 150), AT, AT + 150, rise=0.8, norm=3))
    assert [one.rule for one in triggers(found)] == [TriggerRule.SINGLE]
    late = next(one for one in events(found) if one.component == "drift")
    assert late.tier is Tier.EVENT
    assert f"the same cause as the branch asked for at step {triggers(found)[0].step}" in late.cause


def test_a_drift_long_after_a_spike_that_healed_is_another_cause() -> None:
    """Regression: rows of which nothing was to be said did not count."""
    rows = laid_over(flat(2500), AT, AT + 8, rise=0.8, norm=3)
    found = readings(laid_over(rows, 1500, 2500, norm=2.5))
    spike, drift = triggers(found)[:2]
    assert spike.rule is TriggerRule.SINGLE
    assert (drift.rule, drift.step > 1500) == (TriggerRule.SLOW, True)
    assert "the same cause" not in drift.cause


def test_a_norm_that_creeps_up_is_slow() -> None:
    rows = [
        replace(row, grad_norm=row.grad_norm * math.exp(max(0, row.step - AT) / 400))
        for row in flat(2000)
    ]
    first = events(readings(rows))[0]
    assert (first.tier, first.component) == (Tier.BRANCH, "drift")
    assert "the gradient norm has crept to x" in first.cause
    assert first.step > AT


INTERNALS = {
    "logits": (
        {"attention_logit_max": lambda step: 10 * math.exp(step / 400)},
        "largest attention logit 1",
    ),
    "collapse": (
        {"attention_entropy": lambda step: (0.7, 0.7 * math.exp(-step / 300), 0.6)},
        "of its most in layer 1",
    ),
}


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize("name", INTERNALS)
def test_what_grows_inside_a_model_is_an_event_and_asks_beyond_what_healthy_runs_show(
    name: str, every: int
) -> None:
    """While the loss says nothing."""
    columns, words = INTERNALS[name]
    sparse = {
        column: (lambda step, of=value: of(step) if step % every == 0 else None)
        for column, value in columns.items()
    }
    found = readings(flat(2400, **sparse))
    told = events(found)
    assert [one.tier for one in told] == [Tier.EVENT, Tier.BRANCH]
    assert {one.component for one in told} == {"entropy"}
    assert all(words in one.cause and "3 samples running" in one.cause for one in told)
    assert told[0].onset_step == told[1].onset_step < told[0].step < told[1].step - 100
    (trigger,) = triggers(found)
    assert trigger.rule is TriggerRule.INTERNAL
    assert all(one.step % every <= 2 for one in told)


def test_rms_of_the_update_is_recorded_and_judged_by_nobody() -> None:
    rows = flat(1500, rms_max=lambda step: 1.5 if step < AT else 400.0)
    assert events(readings(rows)) == []


def test_an_odd_sample_or_two_inside_a_model_are_none() -> None:
    rows = flat(1500, attention_logit_max=lambda step: 9000.0 if step in (700, 710) else 12.0)
    assert events(readings(rows)) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("at", [5, AT])
def test_what_is_not_finite_asks_at_once_even_while_the_level_is_learnt(
    name: str, bad: float, at: int
) -> None:
    # a loss asks at once; of a norm, one that overflows in fp16 is a step that is skipped, three are not
    wrong = (at,) if name == "loss" else (at - 2, at - 1, at)
    rows = [replace(row, **{name: bad}) if row.step in wrong else row for row in flat(900)]
    found = readings(rows)
    (event,), (trigger,) = events(found), triggers(found)
    assert (event.step, event.tier, event.component) == (at, Tier.BRANCH, "nonFinite")
    assert "not finite" in event.cause
    assert trigger.rule is TriggerRule.NON_FINITE
    assert found[-1].index.tier is Tier.CALM


def test_a_step_that_overflowed_now_and_then_is_no_departure() -> None:
    rows = [replace(row, grad_norm=math.inf) if row.step % 50 < 2 else row for row in flat(900)]
    assert events(readings(rows)) == []


def test_a_run_of_which_nothing_is_left_stops() -> None:
    rows = [replace(row, loss=math.nan) if row.step >= AT else row for row in flat(900)]
    found = readings(rows)
    assert [one.tier for one in events(found)] == [Tier.BRANCH, Tier.STOP]
    assert found[-1].index.tier is Tier.STOP


def test_the_warm_up_of_the_rate_is_no_event() -> None:
    rows = healthy(1500, tau=150, learning_rate=lambda step: 1e-3 * min(1.0, (step + 1) / 400))
    # the norm of a warm-up: high, then falling
    rows = [
        replace(row, grad_norm=row.grad_norm * (1 + 8 * math.exp(-row.step / 60))) for row in rows
    ]
    assert events(readings(rows)) == []


def test_the_decay_of_a_schedule_is_no_event_and_a_spike_in_it_is() -> None:
    def rate(step: int) -> float:
        return 1e-3 * min(1.0, (step + 1) / 100, max(0.0, (1500 - step) / 400))

    rows = laid_over(
        healthy(1500, learning_rate=rate), 1100, 1500, rise=lambda since: -0.3 * since / 400
    )
    assert events(readings(rows)) == []
    assert events(readings(laid_over(rows, 1300, 1306, rise=0.3, norm=3)))


def test_a_restart_of_the_rate_may_raise_the_loss_and_even_the_norm() -> None:
    def rate(step: int) -> float:
        return 5e-4 * (1 + math.cos(math.pi * (step % 1000) / 1000)) + 1e-5

    rows = laid_over(
        healthy(2000, learning_rate=rate),
        1000,
        2000,
        rise=lambda since: 0.2 * min(1, since / 20) * math.exp(-since / 100),
        norm=1.5,
    )
    assert triggers(readings(rows)) == []
    same = [replace(row, learning_rate=1e-3) for row in laid_over(rows, 1000, 1040, norm=2)]
    assert events(readings(same))  # without the restart it is an event


def test_a_severe_departure_after_a_restart_of_the_rate_is_none_of_its_doing() -> None:
    rows = healthy(1500, learning_rate=lambda step: 1e-3 if step < 1000 else 2e-3)
    found = readings(laid_over(rows, 1010, 1500, rise=2.0, norm=4))
    assert 1010 <= triggers(found)[0].step < 1020


def test_a_larger_batch_is_no_event() -> None:
    tokens = np.cumsum(np.where(np.arange(1500) < 900, 100, 400))
    rows = laid_over(flat(tokens=lambda step: int(tokens[step])), 900, 1500, rise=-0.2)
    assert events(readings(rows)) == []


def test_a_smaller_batch_scatters_more_and_is_no_event() -> None:
    tokens = np.cumsum(np.where(np.arange(2500) < 900, 1600, 100))
    rng = np.random.default_rng(9)
    rows = [
        replace(row, loss=row.loss + (0.12 * rng.standard_normal() if row.step >= 900 else 0.0))
        for row in flat(2500, tokens=lambda step: int(tokens[step]))
    ]
    assert triggers(readings(rows)) == []


def test_sequences_of_all_lengths_blind_nothing() -> None:
    """Regression: the scale grew with each shorter step, and a shift of many scales was none."""
    tokens = np.cumsum(np.random.default_rng(2).integers(60, 140, 2500))
    rows = flat(2500, tokens=lambda step: int(tokens[step]))
    assert events(readings(rows)) == []
    found = readings(laid_over(rows, 2000, 2500, rise=0.4, norm=3))
    assert events(found)[0].component == "volatility"
    assert events(found)[0].onset_step == pytest.approx(2000, abs=3)


@pytest.mark.parametrize(("decimals", "noise"), [(2, 0.002), (3, 0.0002), (2, 0.03), (4, 0.03)])
def test_a_log_of_rounded_losses_makes_no_event_and_a_shift_in_it_does(
    decimals: int, noise: float
) -> None:
    """Regression: a scale of nearly 0 made a creep of the last digit."""

    def rounded(rows: list[StepStats]) -> list[StepStats]:
        return [replace(row, loss=round(row.loss, decimals)) for row in rows]

    rows = flat(5000, noise=noise)
    assert events(readings(rounded(rows))) == []
    found = readings(rounded(laid_over(rows, 2000, 2500, rise=0.4, norm=3)))
    assert events(found)[0].onset_step == pytest.approx(2000, abs=3)


def test_a_loss_that_did_not_move_and_then_does_is_no_event() -> None:
    rng = np.random.default_rng(0)
    rows = [
        step_stats(step, loss=3.0 + (1e-4 * rng.standard_normal() if step > 1500 else 0.0))
        for step in range(4000)
    ]
    assert events(readings(rows)) == []


def test_an_evaluation_that_takes_a_few_steps_of_the_log_changes_nothing() -> None:
    kept = [row for row in flat() if not 590 <= row.step < 600]
    assert events(readings(kept)) == []
    found = readings(laid_over(kept, 600, 606, rise=0.3, norm=3))
    assert events(found)[0].onset_step == pytest.approx(600, abs=20)


def test_after_a_gap_the_level_is_learnt_again_and_then_judged() -> None:
    rows = [row for row in healthy(3000) if not 1000 <= row.step < 1500]
    lower = laid_over(rows, 1500, 3000, rise=0.5, norm=1.5)  # whatever went on in the gap
    found = readings(lower)
    assert events(found) == []
    assert [one.index.ready for one in found[1000:1017]] == [False] * 16 + [True]
    assert events(readings(laid_over(lower, 1530, 1536, rise=0.3, norm=3)))


def test_a_log_resumed_from_an_earlier_step_is_no_rise_of_the_loss() -> None:
    rows = [replace(row, grad_norm=math.nan) for row in healthy(1200, tau=300)]
    again = [*rows[:700], *rows[300:]]  # .8 nats higher than before
    assert events(readings(again)) == []


def test_rows_in_disorder_are_no_gaps() -> None:
    rows = flat()
    for at in range(100, 1400, 40):
        rows[at], rows[at + 2] = rows[at + 2], rows[at]
    found = readings(laid_over(rows, 1200, 1500, rise=0.3, norm=3))
    assert events(found)[0].onset_step == pytest.approx(1200, abs=2)


@pytest.mark.parametrize("every", [10, 50])
def test_a_log_of_a_row_every_few_steps_is_as_good(every: int) -> None:
    at = 600 * every
    rows = healthy(1200 * every, every=every, tau=80 * every)
    assert events(readings(rows)) == []
    found = readings(laid_over(rows, at, 1200 * every, rise=0.25, norm=3))
    first = events(found)[0]
    assert (first.tier, first.component, first.onset_step) == (Tier.EVENT, "volatility", at)
    assert first.step <= at + 5 * every


def test_a_log_that_thins_out_is_not_taken_for_gaps() -> None:
    """Regression: after ten rows a step apart, each row of one in fifty steps was the end of a gap."""
    rows = healthy(40_000, tau=4000)
    thin = [row for row in rows if row.step < 20 or row.step % 50 == 0]
    assert events(readings(thin)) == []
    found = readings(laid_over(thin, 30_000, 40_000, rise=0.3, norm=3))
    assert events(found)[0].onset_step == 30_000


def test_the_loss_alone_is_enough() -> None:
    alone = [replace(row, grad_norm=math.nan, grad_norm_clipped=math.nan) for row in flat(2500)]
    assert events(readings(alone)) == []
    found = readings(laid_over(alone, AT, AT + 9, rise=0.3))
    (event,) = events(found)
    assert (event.tier, event.component, event.onset_step) == (Tier.EVENT, "volatility", AT)
    assert "no gradient norm is logged" in event.cause
    found = readings(laid_over(alone, AT, 2500, rise=0.3))
    assert triggers(found)[0].onset_step == AT


def test_a_second_spike_right_after_the_first_is_a_second_event() -> None:
    rows = laid_over(flat(), AT, AT + 4, rise=0.2, norm=3)
    rows = laid_over(rows, AT + 25, AT + 29, rise=0.2, norm=3)
    assert [one.onset_step for one in events(readings(rows))] == [AT, AT + 25]


def test_a_spike_inside_a_slow_departure_is_an_event_of_its_own() -> None:
    rows = laid_over(flat(2000), AT, 2000, rise=lambda since: min(0.3, since / 1000))
    rows = laid_over(rows, 1500, 1505, rise=0.3, norm=3)
    found = events(readings(rows))
    assert found[0].component == "drift"
    assert ("volatility", 1500) in [(one.component, one.onset_step) for one in found]


# ---- a collapse: another epoch, that begins from the state of an earlier step


def collapsed(**columns: Any) -> list[StepStats]:
    """Steps 0 to 999 of epoch 0, whose last hundred are lost to a departure; epoch 1 from 950 on."""
    rows = laid_over(flat(1000, **columns), 900, 1000, rise=1.5, norm=10)
    after = [replace(row, epoch=1) for row in flat(2000, seed=1, **columns) if row.step >= 950]
    return [*rows, *after]


def later(found: list[Reading]) -> list[Event]:
    """The events of epoch 1."""
    return [one for one in events(found) if one.epoch == 1]


def test_after_a_collapse_the_level_is_learnt_again_and_a_spike_is_seen() -> None:
    rows = collapsed()
    assert later(readings(rows)) == []
    found = readings(
        [
            replace(row, loss=row.loss + 0.25, grad_norm=3 * row.grad_norm)
            if row.epoch == 1 and 1000 <= row.step < 1008
            else row
            for row in rows
        ]
    )
    assert [(one.tier, one.onset_step) for one in later(found)] == [(Tier.EVENT, 1000)]


@pytest.mark.parametrize("every", [1, 10, 50])
def test_a_base_that_is_damaged_is_said_once_and_asks_for_nothing(every: int) -> None:
    """Whatever a channel that is sampled more often has said of it meanwhile."""
    rows = collapsed(
        attention_entropy=lambda _: (0.6, 0.5),
        attention_logit_max=lambda step: (
            (1500.0 if step > 700 else 12.0) if step % every == 0 else None
        ),
    )
    found = readings(rows)
    (event,) = later(found)
    assert (event.tier, event.component) == (Tier.EVENT, "entropy")
    assert "largest attention logit 1500" in event.cause
    assert "the base of this epoch had it already: it is damaged" in event.cause
    assert [one for one in triggers(found) if one.epoch == 1] == []
    assert found[-1].index.tier is Tier.EVENT
    assert [one for one in triggers(found) if one.epoch == 0 and one.rule is TriggerRule.INTERNAL]


def logits(of: Any) -> list[Reading]:
    """A collapsed run whose largest attention logit is that of the row."""
    return readings(replace(row, attention_logit_max=of(row)) for row in collapsed())


def test_a_base_that_is_sound_is_not_blamed_for_what_grows_later() -> None:
    """Regression: whatever came within 64 rows was the base's; the samples of the lost rows, too."""
    found = logits(lambda row: 1500.0 if row.epoch == 0 and row.step > 800 else 12.0)
    assert later(found) == []
    found = logits(lambda row: 1500.0 if row.step > (800, 990)[row.epoch] else 12.0)
    (first, *_) = later(found)
    assert (first.tier, first.component) == (Tier.BRANCH, "entropy")
    assert "the base" not in first.cause


def test_a_base_that_is_only_unusual_is_said_to_be_and_asks_once_it_is_worse() -> None:
    def logit(row: StepStats) -> float:
        return 12.0 if row.step < 800 else 1500.0 if row.epoch and row.step > 1300 else 200.0

    first, second = later(logits(logit))
    assert (first.tier, second.tier) == (Tier.EVENT, Tier.BRANCH)
    assert first.cause.endswith("the base of this epoch had it already")
    assert "the base" not in second.cause


def test_a_damaged_base_that_recovers_and_is_damaged_again_asks() -> None:
    def logit(row: StepStats) -> float:
        return 12.0 if row.step < 800 or (row.epoch == 1 and 1100 < row.step < 1400) else 1500.0

    tiers = [(one.tier, "damaged" in one.cause) for one in later(logits(logit))]
    assert tiers == [(Tier.EVENT, True), (Tier.BRANCH, False)]


# ---- what a restart, and a month, need


def eventful(steps: int, seed: int = 0) -> list[StepStats]:
    """A run with something every few hundred rows."""
    rows = flat(
        steps,
        seed=seed,
        attention_logit_max=lambda step: 10 * (step % 200) if step % 10 == 0 else None,
        attention_entropy=lambda step: (0.5, 0.6) if step % 10 == 0 else None,
        rms_max=lambda _: 1.3,
        validation_loss=lambda step: 3.0 + math.exp(-step / 900) if step % 250 == 0 else None,
        tokens=lambda step: 4096 * step,
    )
    for at in range(300, steps, 311):
        rows = laid_over(rows, at, at + 6, rise=0.3, norm=3)
    for at in range(700, steps, 1900):
        rows = [row for row in rows if not at <= row.step < at + 60]
        rows = [replace(row, loss=math.nan) if row.step == at + 90 else row for row in rows]
    return [replace(row, epoch=row.step // 2500) for row in rows]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_cut_anywhere_is_the_same_run(preset: str) -> None:
    rows = eventful(3200 if preset == "Forkcast" else 1300)
    whole = detector(preset=preset)
    expected = readings(rows, whole)
    assert events(expected)
    rng = np.random.default_rng(4)
    cuts = [0, *sorted(rng.choice(len(rows), 12, replace=False).tolist()), len(rows)]
    got: list[Reading] = []
    one = detector(preset=preset)
    for begin, end in pairwise(cuts):
        state = json.loads(json.dumps(one.state(), allow_nan=False))
        one = detector(preset=preset)
        one.restore(state)
        got += readings(rows[begin:end], one)
    assert got == expected
    assert json.dumps(one.state()) == json.dumps(whole.state())
    assert all(isinstance(reading.index.tier, Tier) for reading in got)


def test_two_runs_folded_by_turns_know_nothing_of_each_other() -> None:
    first, second = eventful(1500), eventful(1500, seed=1)
    one, other = detector(), detector()
    by_turns = [(one.fold(a), other.fold(b)) for a, b in zip(first, second, strict=True)]
    assert [a for a, _ in by_turns] == readings(first)
    assert [b for _, b in by_turns] == readings(second)


def test_the_state_of_a_run_is_less_than_two_kilobytes_after_a_month_of_events() -> None:
    one, most, told = detector(), 0, 0
    for number, row in enumerate(eventful(20_000)):
        told += one.fold(row).event is not None
        if number % 50 == 0:
            most = max(most, len(json.dumps(one.state(), separators=(",", ":"))))
    assert told > 60
    assert most <= 2048


def test_every_event_and_trigger_explains_itself_in_a_sentence() -> None:
    found = readings(eventful(6000))
    for one in [*events(found), *triggers(found)]:
        assert one.cause.strip() == one.cause
        assert one.cause
        assert "\n" not in one.cause
        assert one.onset_step <= one.step
    assert {one.component for one in events(found)} >= {"volatility", "entropy", "nonFinite"}
    shown = {one.step for one in events(found)}
    assert {one.step for one in triggers(found) if one.rule is not TriggerRule.CALM} <= shown


def test_a_validation_that_got_worse_twice_explains_itself() -> None:
    losses = iter([3.0 - 0.1 * n + 0.01 * (-1) ** n for n in range(8)] + [2.7, 2.7])
    rows = flat(1000, validation_loss=lambda step: next(losses) if step % 100 == 0 else None)
    (event,) = events(readings(rows))
    assert (event.component, event.tier, event.step) == ("validation", Tier.BRANCH, 900)
    assert event.cause.startswith(
        "the validation loss stands above its trend since step 800; 2 running, now 0.4"
    )


def test_a_long_calm_after_a_collapse_is_a_trigger_and_no_event() -> None:
    found = readings(collapsed(), detector(calmSteps=300))
    offers = [one for one in triggers(found) if one.rule is TriggerRule.CALM]
    assert offers
    assert offers[0].step == 950 + 16 + 300 - 1
    assert all(one.onset_step == one.step for one in offers)
    assert later(found) == []


def test_an_event_at_a_step_that_is_forced_is_shown_as_well() -> None:
    rows = laid_over(flat(), AT, AT + 6, rise=0.2, norm=3)
    (event,) = events(readings(rows))
    found = readings(rows, detector(trigger={"forceEverySteps": event.step}))
    assert events(found) == [event]
    assert [one.rule for one in triggers(found)] == [TriggerRule.FORCED] * (1500 // event.step)


def test_a_gap_is_known_to_the_rate_of_events() -> None:
    one = detector()
    readings([row for row in flat(1200) if not 500 <= row.step < 900], one)
    assert one.triggers.state()["rate"]["missing"] == {"0": 400}


ANY = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.sampled_from([0.0, 5e-324, 1e99, -1e101]),
    st.floats(0.1, 5),
)
MAYBE = st.one_of(st.none(), ANY)
ROW = st.fixed_dictionaries(
    {
        "loss": ANY,
        "grad_norm": ANY,
        "learning_rate": ANY,
        "tokens": st.integers(0, 2**63 - 1),
        "rms_max": MAYBE,
        "attention_logit_max": MAYBE,
        "validation_loss": MAYBE,
        "attention_entropy": st.one_of(st.none(), st.lists(ANY, max_size=3).map(tuple)),
    }
)
STEPS = st.lists(
    st.tuples(
        ROW,
        st.integers(1, 6),  # times
        st.sampled_from([1] * 6 + [0, -1, -40, 10, 2000, 2**40]),  # steps on
        st.sampled_from([0] * 9 + [1]),  # epochs on
    ),
    max_size=25,
)


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 80), STEPS, st.integers(0, 40))
def test_whatever_comes_each_row_is_read_and_a_restart_is_bit_equal(
    preset: str, calm: int, steps: list[Any], cut: int
) -> None:
    rules = {"preset": preset, "warmupSteps": 10, "calmSteps": 30, "cooldownSteps": 5}
    one, other = detector(**rules), None
    readings(flat(calm), one)
    step, epoch = calm, 0
    for number, (values, times, on, epochs) in enumerate(steps):
        if number == cut:
            other = detector(**rules)
            other.restore(json.loads(json.dumps(one.state(), allow_nan=False)))
        epoch += epochs
        for _ in range(times):
            step = max(0, step + on)
            row = step_stats(step, epoch=epoch, **values)
            reading = one.fold(row)
            if other is not None:
                assert other.fold(row) == reading
                assert other.over_threshold == one.over_threshold
            index, event, trigger = reading.index, reading.event, reading.trigger
            assert 0 <= index.z < 1e3
            assert all(0 <= u <= 8 for u in index.components.values())
            assert math.isfinite(index.index)
            for told in (event, trigger):
                assert told is None or (told.cause and "\n" not in told.cause)
                assert told is None or 0 <= told.onset_step <= told.step
            assert trigger is None or event is None or event.tier >= Tier.EVENT
    assert json.dumps(one.state(), allow_nan=False)
