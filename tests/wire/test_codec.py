"""What goes onto the wire comes back as it was."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkcast.actions import Action, Lattice
from forkcast.decision import Candidate
from forkcast.records import (
    WINDOW_COLUMNS,
    Forecast,
    Interval,
    StepStats,
    Trigger,
    TriggerRule,
    Window,
)
from forkcast_wire import codec
from forkcast_wire import forkcast_pb2 as pb

ANY = st.floats()  # NaN and the infinities among them
UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LAYERS = st.none() | st.lists(ANY, min_size=1, max_size=4).map(tuple)
NUMBERS = st.dictionaries(TEXT, ANY, max_size=4)

STATS = st.builds(
    StepStats,
    run_uid=TEXT,
    epoch=st.integers(0, codec.MOST["epoch"]),
    attempt=st.integers(0, codec.MOST["attempt"]),
    rank=st.integers(0, codec.MOST["rank"]),
    step=st.integers(0, codec.MOST["step"]),
    loss=ANY,
    grad_norm=ANY,
    grad_norm_clipped=ANY,
    learning_rate=ANY,
    tokens=st.integers(0, codec.MOST["tokens"]),
    update_ratio=st.none() | ANY,
    rms_max=st.none() | ANY,
    update_cosine=st.none() | ANY,
    attention_entropy=LAYERS,
    attention_logit_max=st.none() | ANY,
    activation_mean=LAYERS,
    activation_sd=LAYERS,
    group_grad_norms=NUMBERS,
    validation_loss=st.none() | ANY,
    skipped=st.booleans(),
    step_seconds=st.none() | ANY,
)
TRIGGERS = st.builds(
    Trigger,
    run_uid=TEXT,
    epoch=st.integers(0, codec.MOST["epoch"]),
    step=st.integers(0, codec.MOST["step"]),
    onset_step=st.integers(0, codec.MOST["step"]),
    rule=st.sampled_from(TriggerRule),
    z=ANY,
    index=ANY,
    components=NUMBERS,
    thresholds=NUMBERS,
)
SCALES = st.floats(min_value=0, exclude_min=True, allow_infinity=True)
CANDIDATES = st.builds(
    Candidate,
    name=TEXT,
    action=st.builds(
        Action,
        learning_rate_scale=SCALES,
        weight_decay_scale=SCALES,
        clipping=st.sampled_from(Lattice().clipping),
        momentum_reset=st.booleans(),
        rewind_steps=UINT64,
        data_reorder=st.booleans(),
        skip_batches=UINT32,
    ),
)
INTERVALS = st.none() | st.builds(Interval, ANY, ANY, ANY)
FORECASTS = st.builds(
    Forecast,
    candidate=TEXT,
    loss=INTERVALS,
    p_divergence=INTERVALS,
    risk=st.none() | ANY,
    recovery_steps=INTERVALS,
    abstained=st.none() | TEXT.filter(bool),
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    length = draw(st.integers(0, 6))
    column = st.lists(ANY, min_size=length, max_size=length)
    return Window(
        run_uid=draw(TEXT),
        epoch=draw(UINT32),
        total_steps=draw(UINT64),
        columns={name: np.array(draw(column), dtype=np.float64) for name in WINDOW_COLUMNS},
    )


def same(one: Any, other: Any) -> bool:
    """Equality of records in which NaN equals NaN and None equals only None."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "keys"):
        return sorted(one) == sorted(other) and all(same(one[k], other[k]) for k in one)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    return type(one) is type(other) and one == other


def through_bytes(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(STATS)
def test_stats(stats: StepStats) -> None:
    assert same(codec.stats_from_wire(through_bytes(codec.stats_to_wire(stats))), stats)


@given(windows())
def test_window(window: Window) -> None:
    assert same(codec.window_from_wire(through_bytes(codec.window_to_wire(window))), window)


@given(TRIGGERS)
def test_trigger(trigger: Trigger) -> None:
    assert same(codec.trigger_from_wire(through_bytes(codec.trigger_to_wire(trigger))), trigger)


@given(CANDIDATES)
def test_candidate(candidate: Candidate) -> None:
    back = codec.candidate_from_wire(through_bytes(codec.candidate_to_wire(candidate)))
    assert same(back, candidate)


@given(FORECASTS)
def test_forecast(forecast: Forecast) -> None:
    back = codec.forecast_from_wire(through_bytes(codec.forecast_to_wire(forecast)))
    assert same(back, forecast)


def stats(**more: Any) -> StepStats:
    plain = {"run_uid": "u", "epoch": 0, "attempt": 0, "rank": 0, "step": 1, "tokens": 8}
    numbers = dict.fromkeys(("loss", "grad_norm", "grad_norm_clipped", "learning_rate"), 1.0)
    return StepStats(**plain, **numbers, **more)


def test_no_layers_and_not_sampled_are_one_thing_on_the_wire() -> None:
    sent = stats(attention_entropy=(), activation_sd=())
    back = codec.stats_from_wire(codec.stats_to_wire(sent))
    assert back.attention_entropy is None
    assert back.activation_sd is None


def test_zero_is_not_absent() -> None:
    sent = stats(update_ratio=0.0, validation_loss=0.0, attention_entropy=(0.0,))
    assert codec.stats_from_wire(through_bytes(codec.stats_to_wire(sent))) == sent


def test_every_wire_field_of_the_statistics_has_a_record_field() -> None:
    for message, record in ((pb.StepStats, StepStats), (pb.Trigger, Trigger), (pb.Action, Action)):
        assert {f.name for f in message.DESCRIPTOR.fields} == {f.name for f in fields(record)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="NoSuchRule"):
        codec.trigger_from_wire(pb.Trigger(rule="NoSuchRule"))
    with pytest.raises(ValueError, match="scales"):
        codec.candidate_from_wire(pb.Candidate(name="c000"))
    with pytest.raises(ValueError, match="window"):
        codec.window_from_wire(pb.Window(columns=[pb.Column(name="step", values=[1.0])]))
    with pytest.raises(ValueError, match="out of range"):
        codec.trigger_to_wire(
            Trigger(
                run_uid="u",
                epoch=-1,
                step=1,
                onset_step=1,
                rule=TriggerRule.SINGLE,
                z=1.0,
                index=1.0,
                components={},
                thresholds={},
            )
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", 2**32 - 1),
        ("attempt", 2**32 - 1),
        ("step", 2**64 - 1),
        ("onset_step", 10),
        ("tier", 1),
        ("tier", 5),
        ("run_uid", "u" * 65),
        ("component", "c" * 65),
        ("cause", "c" * 1001),
        ("cause", ""),
    ],
)
def test_an_event_that_no_monitor_makes_is_refused_by_its_field(field, value):
    sound = {"run_uid": "u", "step": 9, "onset_step": 9, "tier": 2, "component": "c", "cause": "c"}
    event, attempt = codec.event_from_wire(pb.Event(**sound))
    assert (event.step, event.tier, attempt) == (9, 2, 0)
    with pytest.raises(ValueError, match=field):
        codec.event_from_wire(pb.Event(**{**sound, field: value}))
