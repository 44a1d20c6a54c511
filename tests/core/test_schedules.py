"""The learning rate's schedules: one contract for the shelf, a table worked out by hand, the old rates."""

import itertools
import math
import random

import pytest

from forkcast.schedules import SCHEDULES, WITH_DECAY, WITH_LENGTH
from forkcast.schedules.wsd import SHAPES
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.manifest_training import Schedule


def make(name, steps=40, warmup=5, low=1e-4, peak=1e-3, **decay):
    return SCHEDULES[name](
        peak=peak, low=low, warmup=warmup, steps=steps if name in WITH_LENGTH else None, **decay
    )


#: Peak 1, low .2, warm-up 2, length 11: the course has 11 - 1 - 2 = 8 steps from step 2 to step 10.
#: x = (step - 2) / 8. Cosine: .2 + .8 (1 + cos(pi x)) / 2. Linear: .2 + .8 (1 - x). WSD of d steps: 1 up to
#: step 10 - d, then .2 + .8 (1 - sqrt(y)) or .2 + .8 (1 - y), y = (step - 10 + d) / d.
TABLE = {
    ("Cosine", None, None): {
        0: 0.5,
        1: 1.0,
        2: 1.0,
        4: 0.8828427125,
        6: 0.6,
        10: 0.2,
        11: 0.2,
        12: 0.2,
    },
    ("Linear", None, None): {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.8, 6: 0.6, 10: 0.2, 11: 0.2, 12: 0.2},
    ("WSD", 4, None): {
        0: 0.5,
        1: 1.0,
        2: 1.0,
        6: 1.0,
        7: 0.6,
        8: 0.4343145751,
        10: 0.2,
        11: 0.2,
        12: 0.2,
    },
    ("WSD", 4, "Linear"): {0: 0.5, 2: 1.0, 6: 1.0, 7: 0.8, 8: 0.6, 9: 0.4, 10: 0.2, 11: 0.2},
    ("WSD", None, None): {0: 0.5, 1: 1.0, 8: 1.0, 9: 0.4343145751, 10: 0.2, 11: 0.2, 12: 0.2},
    ("Constant", None, None): {0: 0.5, 1: 1.0, 2: 1.0, 6: 1.0, 10: 1.0, 11: 1.0, 12: 1.0},
}


@pytest.mark.parametrize("case", TABLE, ids=lambda case: "-".join(str(one) for one in case))
def test_the_rates_are_those_worked_out_by_hand(case):
    name, decay, shape = case
    schedule = make(name, 11, 2, low=0.2, peak=1.0, decay_steps=decay, decay_shape=shape)
    assert {step: schedule.at(step) for step in TABLE[case]} == pytest.approx(TABLE[case])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_warm_up_is_linear_and_ends_at_the_peak(name):
    schedule = make(name, 100, warmup=4)
    assert [schedule.at(step) for step in range(4)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])


@pytest.mark.parametrize("name", WITH_LENGTH)
@pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (40, 5), (2, 0), (100, 98)])
def test_the_minimum_is_at_the_last_step_and_not_before(name, steps, warmup):
    schedule = make(name, steps, warmup)
    assert schedule.at(steps - 1) == pytest.approx(1e-4, rel=1e-12)
    assert schedule.at(steps - 2) > 1.0001e-4


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_beyond_its_length_a_schedule_stays_at_its_minimum(name):
    schedule = make(name, 40, warmup=5, low=0.0)
    assert {schedule.at(step) for step in (40, 41, 79, 10_000)} == {0.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_the_warm_up_no_rate_rises_or_leaves_its_range_whatever_the_length(name):
    for steps, warmup in itertools.product((1, 2, 7, 40, 1000), (0, 1, 5)):
        schedule = make(name, steps, warmup)
        rates = [schedule.at(step) for step in range(warmup, 2 * steps + warmup)]
        assert all(after <= before for before, after in itertools.pairwise(rates))
        assert all(1e-4 <= rate <= 1e-3 for rate in rates)


@pytest.mark.parametrize("name", ["Cosine", "Linear", "Constant"])
def test_a_single_step_after_the_warm_up_has_the_peak(name):
    assert make(name, 5, warmup=4).at(4) == pytest.approx(1e-3)
    assert make(name, 1, warmup=0).at(0) == pytest.approx(1e-3)


def test_a_decay_that_fills_the_schedule_begins_right_after_the_warm_up():
    schedule = make("WSD", 10, 4, decay_steps=6, decay_shape="Linear", low=0.0, peak=6.0)
    assert [schedule.at(step) for step in range(3, 10)] == pytest.approx([6, 5, 4, 3, 2, 1, 0])


def test_a_lengthened_schedule_of_wsd_leaves_no_leap_while_it_is_stable():
    short, long = (make("WSD", steps, 10, decay_steps=20) for steps in (100, 1000))
    assert all(short.at(step) == long.at(step) for step in range(80))
    assert short.at(80) < long.at(80)


@pytest.mark.parametrize("name", WITH_LENGTH)
def test_a_run_that_is_extended_goes_on_at_the_minimum(name):
    """totalSteps is not the schedule's length: raising it changes no rate that was planned."""

    def spec(total):
        document = {"data": {"train": {"uri": "t"}}, "training": {"totalSteps": total}}
        document["optimizer"] = {"schedule": {"type": name, "warmupSteps": 5}}
        return TrainingRunSpec.model_validate(document)

    first, longer = spec(40).learning_rate(), spec(80).with_schedule(40).learning_rate()
    assert first == longer
    assert longer.at(40) == longer.at(39) == longer.low


def _as_before_the_shelf(step, peak, low, warmup, steps):
    """The one function that there was, with Cosine and Constant in it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if steps is None:
        return peak
    span = steps - 1 - warmup
    part = 1.0 if step >= steps else (step - warmup) / span if span > 0 else 0.0
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * part))


@pytest.mark.parametrize("name", ["Cosine", "Constant"])
def test_an_old_manifest_has_its_old_rates_to_the_bit(name):
    draw = random.Random(3)
    for _ in range(200):
        steps, warmup, peak = draw.randint(1, 300), draw.randint(0, 120), draw.uniform(1e-5, 1e-1)
        low = peak * draw.choice([0.0, 0.1, draw.random()])
        schedule = make(name, steps, warmup, low, peak)
        for step in range(steps + 3):
            old = _as_before_the_shelf(step, peak, low, warmup, schedule.steps)
            assert schedule.at(step) == old


def test_a_schedule_needs_no_length_only_if_its_course_has_no_end():
    assert set(SCHEDULES) - set(WITH_LENGTH) == {"Constant"}
    for name in WITH_LENGTH:
        assert name in Schedule(type=name).type


def test_the_manifest_names_the_decays_shapes():
    for shape in SHAPES:
        assert Schedule(type="WSD", decay_shape=shape).decay_shape == shape
    with pytest.raises(ValueError, match="OneMinusSqrt"):
        Schedule(type="WSD", decay_shape="Other")


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - set(WITH_DECAY)))
@pytest.mark.parametrize("given", [{"decay_steps": 3}, {"decay_shape": "Linear"}])
def test_a_decay_is_refused_where_nothing_decays_like_that(name, given):
    with pytest.raises(ValueError, match=r"decayS\w+: is of WSD; leave it out"):
        Schedule(type=name, **given)
