"""The one place where wire messages meet records, in both directions."""

from __future__ import annotations

from operator import attrgetter
from typing import NoReturn

import numpy as np

from forkcast.actions import Action
from forkcast.decision import Candidate
from forkcast.directives import (
    MOST_HOLD_SECONDS,
    CheckpointNow,
    Collapse,
    Directive,
    Hold,
    Resume,
)
from forkcast.records import (
    Event,
    Forecast,
    Interval,
    StepStats,
    Tier,
    Trigger,
    TriggerRule,
    Window,
)
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.fields import MOST_EPOCHS, MOST_STEPS

_OPTIONAL = (
    "update_ratio",
    "rms_max",
    "update_cosine",
    "attention_logit_max",
    "validation_loss",
    "step_seconds",
)
_LAYERS = ("attention_entropy", "activation_mean", "activation_sd")
_PLAIN = (
    "run_uid",
    "epoch",
    "attempt",
    "rank",
    "step",
    "loss",
    "grad_norm",
    "grad_norm_clipped",
    "learning_rate",
    "tokens",
    "skipped",
)


_MOST_ATTEMPT, _MOST_RANK, _MOST_TOKENS = 1_000_000, 1 << 20, (1 << 53) - 1
#: The largest integers of a record: what JSON, float64 and Parquet's int64 all hold exactly.
MOST = {
    "epoch": MOST_EPOCHS,
    "attempt": _MOST_ATTEMPT,
    "rank": _MOST_RANK,
    "step": MOST_STEPS,
    "tokens": _MOST_TOKENS,
}
MOST_LAYERS = 1024
_MOST_GROUPS, _MOST_GROUP_NAME, _MOST_UID = 64, 64, 64
#: Characters of a cause, a sentence of a monitor.
_MOST_CAUSE = 1000
_MOST_TEXT = 256
#: Ten years: what an elapsed time may be at most.
_MOST_SECONDS = 10 * 366 * 86_400.0
_bounded = attrgetter(*MOST)


_NAMES = (*_PLAIN, *_OPTIONAL, *_LAYERS)
_values = attrgetter(*_NAMES)


def stats_to_wire(stats: StepStats) -> pb.StepStats:
    """A StepStats as a message: a field given as None is left unset."""
    groups = dict(stats.group_grad_norms)
    return pb.StepStats(
        **dict(zip(_NAMES, _values(stats), strict=True)), group_grad_norms=groups or None
    )


def stats_from_wire(message: pb.StepStats) -> StepStats:
    """A StepStats of a message; an empty per-layer list means "not sampled". Raises ValueError, with
    the field's name, for a record that no trainer makes.

    It is called for every step of every run, hence field by field: loops over names cost twice as much.
    """
    epoch, attempt, rank, step, tokens = _bounded(message)
    entropy, mean, sd = message.attention_entropy, message.activation_mean, message.activation_sd
    groups, sampled = message.group_grad_norms, message.HasField
    if (
        epoch > MOST_EPOCHS
        or step > MOST_STEPS
        or attempt > _MOST_ATTEMPT
        or rank > _MOST_RANK
        or tokens > _MOST_TOKENS
        or len(message.run_uid) > _MOST_UID
    ):
        _refuse(message)
    if (entropy or mean or sd) and max(len(entropy), len(mean), len(sd)) > MOST_LAYERS:
        raise ValueError(f"stats: at most {MOST_LAYERS} layers")
    if groups and (len(groups) > _MOST_GROUPS or max(map(len, groups)) > _MOST_GROUP_NAME):
        raise ValueError(f"group_grad_norms: at most {_MOST_GROUPS}, names of {_MOST_GROUP_NAME}")
    return StepStats(
        run_uid=message.run_uid,
        epoch=epoch,
        attempt=attempt,
        rank=rank,
        step=step,
        loss=message.loss,
        grad_norm=message.grad_norm,
        grad_norm_clipped=message.grad_norm_clipped,
        learning_rate=message.learning_rate,
        tokens=tokens,
        update_ratio=message.update_ratio if sampled("update_ratio") else None,
        rms_max=message.rms_max if sampled("rms_max") else None,
        update_cosine=message.update_cosine if sampled("update_cosine") else None,
        attention_entropy=tuple(entropy) if entropy else None,
        attention_logit_max=message.attention_logit_max if sampled("attention_logit_max") else None,
        activation_mean=tuple(mean) if mean else None,
        activation_sd=tuple(sd) if sd else None,
        group_grad_norms=dict(groups) if groups else {},
        validation_loss=message.validation_loss if sampled("validation_loss") else None,
        skipped=message.skipped,
        step_seconds=message.step_seconds if sampled("step_seconds") else None,
    )


def _refuse(message: pb.StepStats) -> NoReturn:
    for name, most in MOST.items():
        if getattr(message, name) > most:
            raise ValueError(f"{name}: at most {most}")
    raise ValueError(f"run_uid: at most {_MOST_UID} characters")


def window_to_wire(window: Window) -> pb.Window:
    """A Window as a message."""
    return pb.Window(
        run_uid=window.run_uid,
        epoch=window.epoch,
        total_steps=window.total_steps,
        columns=[
            pb.Column(name=name, values=values.tolist()) for name, values in window.columns.items()
        ],
    )


def window_from_wire(message: pb.Window) -> Window:
    """A Window of a message. Raises ValueError where a column is missing or ragged."""
    return Window(
        run_uid=message.run_uid,
        epoch=message.epoch,
        total_steps=message.total_steps,
        columns={c.name: np.array(c.values, dtype=np.float64) for c in message.columns},
    )


def trigger_to_wire(trigger: Trigger) -> pb.Trigger:
    """A Trigger as a message."""
    return pb.Trigger(
        run_uid=trigger.run_uid,
        epoch=trigger.epoch,
        step=trigger.step,
        onset_step=trigger.onset_step,
        rule=trigger.rule.value,
        z=trigger.z,
        index=trigger.index,
        components=trigger.components,
        thresholds=trigger.thresholds,
        cause=trigger.cause,
        severe=trigger.severe,
    )


def trigger_from_wire(message: pb.Trigger) -> Trigger:
    """A Trigger of a message. Raises ValueError, with the field's name, for one that no monitor
    makes.
    """
    _at_most(message, epoch=MOST["epoch"], step=MOST["step"], onset_step=MOST["step"])
    if len(message.run_uid) > _MOST_UID:
        raise ValueError(f"run_uid: at most {_MOST_UID} characters")
    if len(message.cause) > _MOST_CAUSE:
        raise ValueError(f"cause: at most {_MOST_CAUSE} characters")
    for field in ("components", "thresholds"):
        names = getattr(message, field)
        if len(names) > _MOST_GROUPS or any(len(name) > _MOST_GROUP_NAME for name in names):
            raise ValueError(f"{field}: at most {_MOST_GROUPS}, names of {_MOST_GROUP_NAME}")
    return Trigger(
        run_uid=message.run_uid,
        epoch=message.epoch,
        step=message.step,
        onset_step=message.onset_step,
        rule=TriggerRule(message.rule),
        z=message.z,
        index=message.index,
        components=dict(message.components),
        thresholds=dict(message.thresholds),
        cause=message.cause,
        severe=message.severe,
    )


def event_to_wire(event: Event, attempt: int) -> pb.Event:
    """An Event that was found at a row of an attempt, as a message."""
    return pb.Event(
        run_uid=event.run_uid,
        epoch=event.epoch,
        attempt=attempt,
        step=event.step,
        onset_step=event.onset_step,
        tier=int(event.tier),
        component=event.component,
        cause=event.cause,
    )


def event_from_wire(message: pb.Event) -> tuple[Event, int]:
    """The Event of a message, and the attempt of its row. Raises ValueError, with the field's name, for one
    that no monitor makes.
    """
    _at_most(message, epoch=MOST["epoch"], attempt=MOST["attempt"], step=MOST["step"])
    _at_most(message, onset_step=message.step)
    if not Tier.EVENT <= message.tier <= Tier.STOP:
        raise ValueError(f"tier: {Tier.EVENT} to {Tier.STOP}")
    for name, most in (
        ("run_uid", _MOST_UID),
        ("component", _MOST_GROUP_NAME),
        ("cause", _MOST_CAUSE),
    ):
        if len(getattr(message, name)) > most:
            raise ValueError(f"{name}: at most {most} characters")
    if not message.cause:
        raise ValueError("cause: an event has one")
    event = Event(
        run_uid=message.run_uid,
        epoch=message.epoch,
        step=message.step,
        onset_step=message.onset_step,
        tier=Tier(message.tier),
        component=message.component,
        cause=message.cause,
    )
    return event, message.attempt


def summary_from_wire(message: pb.RunSummary) -> pb.RunSummary:
    """The message itself. Raises ValueError, with the field's name, for one that no monitor makes."""
    _at_most(
        message,
        epoch=MOST["epoch"],
        attempt=MOST["attempt"],
        next_step=MOST["step"] + 1,
        total_steps=MOST["step"],
        tokens=MOST["tokens"],
        last_trigger_step=MOST["step"],
        events=MOST["step"],
        last_event_step=MOST["step"],
        last_event_onset_step=MOST["step"],
    )
    if len(message.last_event) > _MOST_CAUSE:
        raise ValueError(f"last_event: at most {_MOST_CAUSE} characters")
    if not 0 <= message.seconds_since_report <= _MOST_SECONDS:
        raise ValueError(f"seconds_since_report: 0 to {_MOST_SECONDS:g}")
    return message


def _at_most(message: pb.Event | pb.Trigger | pb.RunSummary, **limits: int) -> None:
    for name, most in limits.items():
        if getattr(message, name) > most:
            raise ValueError(f"{name}: at most {most}")


def directive_to_wire(run_uid: str, directive: Directive) -> pb.Directive:
    """A Directive for a run as a message."""
    message = pb.Directive(run_uid=run_uid, id=directive.id)
    match directive:
        case Hold(branch=branch, deadline_seconds=seconds):
            message.hold.CopyFrom(pb.Hold(branch=branch, deadline_seconds=seconds))
        case Resume(branch=branch):
            message.resume.CopyFrom(pb.Resume(branch=branch))
        case Collapse(branch=branch, epoch=epoch, decision_digest=digest):
            message.collapse.CopyFrom(
                pb.Collapse(branch=branch, epoch=epoch, decision_digest=digest)
            )
        case CheckpointNow():
            message.checkpoint_now.CopyFrom(pb.CheckpointNow())
    return message


def directive_from_wire(message: pb.Directive) -> Directive:
    """The Directive of a message. Raises ValueError, with the field's name, for one that no operator
    makes.
    """
    what = message.WhichOneof("what")
    if what == "hold":
        seconds = message.hold.deadline_seconds
        if not 0 < seconds <= MOST_HOLD_SECONDS:
            rule = f"more than 0 and at most {MOST_HOLD_SECONDS:.0f}"
            raise ValueError(f"hold.deadline_seconds: {rule}")
        return Hold(branch=_text("hold.branch", message.hold.branch), deadline_seconds=seconds)
    if what == "resume":
        return Resume(branch=_text("resume.branch", message.resume.branch))
    if what == "collapse":
        if not 1 <= message.collapse.epoch <= MOST_EPOCHS:
            raise ValueError(f"collapse.epoch: 1 to {MOST_EPOCHS}")
        return Collapse(
            branch=_text("collapse.branch", message.collapse.branch),
            epoch=message.collapse.epoch,
            decision_digest=_text("collapse.decision_digest", message.collapse.decision_digest),
        )
    if what == "checkpoint_now":
        if not message.id:
            raise ValueError("id: a directive needs one")
        return CheckpointNow(id=_text("id", message.id))
    raise ValueError("what: give hold, resume, collapse or checkpoint_now")


def _text(name: str, value: str) -> str:
    if len(value) > _MOST_TEXT:
        raise ValueError(f"{name}: at most {_MOST_TEXT} characters")
    return value


def candidate_to_wire(candidate: Candidate) -> pb.Candidate:
    """Name and action of a candidate as a message; its forecast does not travel."""
    action = candidate.action
    return pb.Candidate(
        name=candidate.name,
        action=pb.Action(
            learning_rate_scale=action.learning_rate_scale,
            weight_decay_scale=action.weight_decay_scale,
            clipping=action.clipping,
            momentum_reset=action.momentum_reset,
            rewind_steps=action.rewind_steps,
            data_reorder=action.data_reorder,
            skip_batches=action.skip_batches,
        ),
    )


def candidate_from_wire(message: pb.Candidate) -> Candidate:
    """A Candidate of a message. Raises ValueError for impossible values."""
    action = message.action
    return Candidate(
        name=message.name,
        action=Action(
            learning_rate_scale=action.learning_rate_scale,
            weight_decay_scale=action.weight_decay_scale,
            clipping=action.clipping,
            momentum_reset=action.momentum_reset,
            rewind_steps=action.rewind_steps,
            data_reorder=action.data_reorder,
            skip_batches=action.skip_batches,
        ),
    )


def _interval_to_wire(interval: Interval | None) -> pb.Interval | None:
    if interval is None:
        return None
    return pb.Interval(point=interval.point, low=interval.low, high=interval.high)


def forecast_to_wire(forecast: Forecast) -> pb.CandidateForecast:
    """A Forecast as a message."""
    return pb.CandidateForecast(
        candidate=forecast.candidate,
        loss=_interval_to_wire(forecast.loss),
        p_divergence=_interval_to_wire(forecast.p_divergence),
        risk=forecast.risk,
        recovery_steps=_interval_to_wire(forecast.recovery_steps),
        abstained=forecast.abstained or "",
    )


def forecast_from_wire(message: pb.CandidateForecast) -> Forecast:
    """A Forecast of a message."""

    def interval(name: str) -> Interval | None:
        if not message.HasField(name):
            return None
        value = getattr(message, name)
        return Interval(point=value.point, low=value.low, high=value.high)

    return Forecast(
        candidate=message.candidate,
        loss=interval("loss"),
        p_divergence=interval("p_divergence"),
        risk=message.risk if message.HasField("risk") else None,
        recovery_steps=interval("recovery_steps"),
        abstained=message.abstained[:_MOST_TEXT] or None,
    )
