"""What every signal keeps to, over all there are: a new one is tested by its line in SIGNALS."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from forkcast.ports import Signal
from forkcast.records import StepStats
from forkcast.robust import usable
from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.signals import SIGNALS, default_weights
from forkcast_monitor.signals.base import SignalRules
from forkcast_wire.manifest import Uncertainty

STEPS = 240
Values = Mapping[str, float | None]


def stats(step: int, **changed: Any) -> StepStats:
    values: dict[str, Any] = {
        "run_uid": "u",
        "epoch": 0,
        "attempt": 0,
        "rank": 0,
        "step": step,
        "loss": 3.0,
        "grad_norm": 1.0,
        "grad_norm_clipped": 1.0,
        "learning_rate": 1e-3,
        "tokens": 64 * (step + 1),
    }
    return StepStats(**{**values, **changed})


def course(every: int = 10) -> list[StepStats]:
    """An ordinary run, internals sampled every so many steps, with a gap in it."""
    rng = np.random.default_rng(1)
    rows = []
    for step in range(STEPS):
        sampled = {
            "attention_entropy": (0.5 + 0.01 * rng.standard_normal(), 0.7),
            "attention_logit_max": 3.0 + 0.1 * rng.standard_normal(),
            "activation_sd": (1.0, 2.0 + 0.1 * rng.standard_normal()),
            "activation_mean": (0.0, 0.1),
        }
        rows.append(
            stats(
                step,
                loss=3 + 2 * math.exp(-step / 50) + 0.1 * rng.standard_normal(),
                grad_norm=math.exp(0.2 * rng.standard_normal()),
                **(sampled if step % every == 0 else {}),
            )
        )
    return [row for row in rows if not 100 <= row.step < 103]


@pytest.fixture(params=SIGNALS.values(), ids=SIGNALS)
def make(request: pytest.FixtureRequest) -> Callable[[], Signal]:
    return lambda: request.param(SignalRules())


def restarted(signal: Signal, make: Callable[[], Signal]) -> Signal:
    """Another one, from the first one's state as a snapshot keeps it."""
    other = make()
    other.restore(json.loads(json.dumps(signal.state(), allow_nan=False)))
    return other


def test_a_restart_at_any_step_gives_the_same_values(make: Callable[[], Signal]) -> None:
    rows = course()
    whole = make()
    expected = [whole.update(row) for row in rows]
    for cut in range(0, len(rows), 7):
        first = make()
        before = [first.update(row) for row in rows[:cut]]
        second = restarted(first, make)
        assert before + [second.update(row) for row in rows[cut:]] == expected


def test_two_that_saw_the_same_are_equal_and_neither_touches_what_it_sees(
    make: Callable[[], Signal],
) -> None:
    rows = course()
    kept = repr(rows)
    one, other = make(), make()
    assert [one.update(row) for row in rows] == [other.update(row) for row in rows]
    assert json.dumps(one.state()) == json.dumps(other.state())
    assert repr(rows) == kept


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308, 0.0])
def test_a_value_that_is_none_poisons_nothing(make: Callable[[], Signal], bad: float) -> None:
    rows = course()
    plain, hit = make(), make()
    for row in rows[:90]:
        plain.update(row)
        hit.update(row)
    wrong = {"loss": bad, "grad_norm": bad, "attention_logit_max": bad}
    said = hit.update(stats(90, **wrong, attention_entropy=(bad,), activation_sd=(bad,)))
    assert all(value is None or usable(value) for value in said.values())
    json.dumps(hit.state(), allow_nan=False)
    if bad != 0.0:  # a loss of zero is one; what is no number leaves no trace
        plain.update(stats(90, loss=math.nan, grad_norm=math.nan))
        assert [hit.update(row) for row in rows[91:]] == [plain.update(row) for row in rows[91:]]


def test_a_constant_course_says_nothing_unusual(make: Callable[[], Signal]) -> None:
    signal = make()
    sampled = {"attention_entropy": (0.5,), "attention_logit_max": 3.0, "activation_sd": (1.0,)}
    for step in range(300):
        said = signal.update(stats(step, **(sampled if step % 10 == 0 else {})))
        assert all(value is None or abs(value) < 1e-9 for value in said.values())


def test_its_channels_are_the_same_at_every_step(make: Callable[[], Signal]) -> None:
    signal = make()
    assert len({tuple(signal.update(row)) for row in course()}) == 1


def test_its_memory_is_bounded(make: Callable[[], Signal]) -> None:
    signal, sizes = make(), []
    for step in range(4000):
        signal.update(stats(step, loss=3.0 + math.sin(step), attention_entropy=(0.5,)))
        if step % 1000 == 999:
            sizes.append(len(json.dumps(signal.state())))
    assert sizes[-1] <= 2 * sizes[0]


def test_its_share_is_a_number_and_all_shares_make_one() -> None:
    assert all(kind.weight >= 0 for kind in SIGNALS.values())
    assert math.fsum(default_weights().values()) == pytest.approx(1)
    assert set(default_weights()) == set(SIGNALS)


@pytest.mark.parametrize("every", [1, 5, 10, 40])
def test_the_baseline_of_the_internals_spans_the_same_steps_however_often_they_are_sampled(
    every: int,
) -> None:
    """After a step in the level, what is left of it 80 steps later hangs on the decay alone."""
    signal = SIGNALS["entropy"](SignalRules(ema_decay=0.98))
    left = None
    for step in range(2000, 2000 + 401, every):
        level = 0.5 if step < 2320 else 0.4
        said = signal.update(stats(step, attention_entropy=(level,)))
        if step == 2400:
            left = said["collapse"]
    assert left == pytest.approx(0.1 * 0.98**80, rel=0.25 if every > 1 else 0.05)


def test_a_part_of_the_trigger_keeps_the_other_defaults() -> None:
    plain = configure(Uncertainty())
    given = configure(Uncertainty.model_validate({"trigger": {"singleZ": "9"}}))
    assert given.trigger.single_z == 9
    assert (given.trigger.z, given.index.outside_z) == (plain.trigger.z, plain.index.outside_z)
    assert given.trigger.consecutive_steps == plain.trigger.consecutive_steps


def test_every_default_that_the_manifest_states_is_the_one_in_force() -> None:
    plain = configure(Uncertainty())
    stated = {
        name: info.description.rpartition("; ")[2].removesuffix(" if absent.")
        for model in (Uncertainty, type(Uncertainty.model_validate({"trigger": {}}).trigger))
        for name, info in model.model_fields.items()
        if info.description and info.description.endswith(" if absent.")
    }
    known = {
        "window": plain.index.window,
        "ema_decay": plain.signals.ema_decay,
        "forecast_horizon_steps": plain.signals.horizon,
        **{name: getattr(plain.trigger, name) for name in ("z", "single_z", "consecutive_steps")},
        **{n: getattr(plain.trigger, n) for n in ("warmup_steps", "cooldown_steps", "calm_steps")},
    }
    assert {name: float(value) for name, value in stated.items()} == known


def test_a_detector_of_other_signals_does_not_take_up_a_snapshot(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Its state is folded again from the history; a state it cannot read is never a refusal."""
    from forkcast_monitor import detector, run
    from forkcast_monitor.history import History

    watched = run.WatchedRun(configure(Uncertainty()), "u", tmp_path / "s", History(tmp_path / "h"))
    watched.hello(0, 0, 0, 1000)
    for row in course():
        watched.accept(row)
    watched.close()
    fewer = {name: kind for name, kind in SIGNALS.items() if name != "entropy"}
    rules = Uncertainty.model_validate({})
    monkeypatch.setattr(detector, "SIGNALS", fewer)
    monkeypatch.setattr(run, "SIGNALS", fewer)
    again = run.WatchedRun(configure(rules), "u", tmp_path / "s", History(tmp_path / "h"))
    assert again.next_step == STEPS
    assert again.detector.last is not None
    assert set(again.detector.last.components) <= set(fewer)
    folded = Detector(configure(rules), "u")
    for row in course():
        folded.fold(row)
    assert again.detector.state() == folded.state()
