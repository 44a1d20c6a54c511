"""What goes over the wire comes back the same."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forkcast.actions import Action
from forkcast.decision import Candidate
from forkcast.records import (
    WINDOW_COLUMNS,
    Event,
    Forecast,
    Interval,
    StepStats,
    Tier,
    Trigger,
    TriggerRule,
    Window,
)
from forkcast_wire import codec

F = st.floats(allow_nan=False)
N = st.integers(0, 2**31 - 1)
OPT = st.none() | F
LAYERS = st.none() | st.lists(F, min_size=1, max_size=4).map(tuple)
NAMES = st.text("abc-", min_size=1, max_size=8)


@given(
    st.builds(
        StepStats,
        run_uid=NAMES,
        epoch=st.integers(0, codec.MOST["epoch"]),
        attempt=st.integers(0, codec.MOST["attempt"]),
        rank=st.integers(0, codec.MOST["rank"]),
        step=st.integers(0, codec.MOST["step"]),
        loss=F,
        grad_norm=F,
        grad_norm_clipped=F,
        learning_rate=F,
        tokens=st.integers(0, codec.MOST["tokens"]),
        update_ratio=OPT,
        rms_max=OPT,
        update_cosine=OPT,
        attention_entropy=LAYERS,
        attention_logit_max=OPT,
        activation_mean=LAYERS,
        activation_sd=LAYERS,
        group_grad_norms=st.dictionaries(NAMES, F, max_size=3),
        validation_loss=OPT,
        skipped=st.booleans(),
        step_seconds=OPT,
    )
)
def test_statistics(stats):
    assert codec.stats_from_wire(codec.stats_to_wire(stats)) == stats


@given(
    st.builds(
        Trigger,
        run_uid=NAMES,
        epoch=st.integers(0, codec.MOST["epoch"]),
        step=st.integers(0, codec.MOST["step"]),
        onset_step=st.integers(0, codec.MOST["step"]),
        rule=st.sampled_from(list(TriggerRule)),
        z=F,
        index=F,
        components=st.dictionaries(NAMES, F, max_size=3),
        thresholds=st.dictionaries(NAMES, F, max_size=3),
    )
)
def test_triggers(trigger):
    assert codec.trigger_from_wire(codec.trigger_to_wire(trigger)) == trigger


@given(
    st.integers(0, codec.MOST["step"]).flatmap(
        lambda step: st.builds(
            Event,
            run_uid=NAMES,
            epoch=st.integers(0, codec.MOST["epoch"]),
            step=st.just(step),
            onset_step=st.integers(0, step),
            tier=st.sampled_from([Tier.EVENT, Tier.BRANCH, Tier.STOP]),
            component=NAMES,
            cause=NAMES,
        )
    ),
    st.integers(0, codec.MOST["attempt"]),
)
def test_events(event, attempt):
    assert codec.event_from_wire(codec.event_to_wire(event, attempt)) == (event, attempt)


@given(
    st.builds(
        Action,
        learning_rate_scale=st.floats(0.1, 10),
        weight_decay_scale=st.floats(0.1, 10),
        clipping=st.sampled_from(["Keep", "ZClip"]),
        momentum_reset=st.booleans(),
        rewind_steps=N,
        data_reorder=st.booleans(),
        skip_batches=N,
    )
)
def test_candidates(action):
    one = Candidate(name="c001", action=action)
    assert codec.candidate_from_wire(codec.candidate_to_wire(one)) == one


INTERVAL = st.none() | st.builds(Interval, F, F, F)


@given(
    st.builds(
        Forecast,
        candidate=NAMES,
        loss=INTERVAL,
        p_divergence=INTERVAL,
        risk=OPT,
        recovery_steps=INTERVAL,
        abstained=st.none() | NAMES,
    )
)
def test_forecasts(forecast):
    assert codec.forecast_from_wire(codec.forecast_to_wire(forecast)) == forecast


@given(st.integers(0, 20))
def test_windows_keep_nan_and_infinity(length):
    values = np.array([math.nan, math.inf, -0.0, 1e308] * 5)[:length]
    window = Window("u", 1, 100, dict.fromkeys(WINDOW_COLUMNS, values))
    back = codec.window_from_wire(codec.window_to_wire(window))
    assert all(np.array_equal(back.columns[n], values, equal_nan=True) for n in WINDOW_COLUMNS)
