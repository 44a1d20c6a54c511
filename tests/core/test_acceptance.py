"""Who is accepted, as a table of named cases."""

import pytest

from forkcast.acceptance import AcceptanceRules, Evidence, Preset, conclude, survivors, to_confirm
from forkcast.actions import Action
from forkcast.decision import (
    CONTROL,
    Candidate,
    Circumstances,
    Draft,
    DraftSource,
    Outcome,
    ProxyAnswer,
    Verdict,
)
from forkcast.records import Forecast, StateKind, Trial, TrialStatus, Trigger, TriggerRule
from tests.make import state_ref

T = 100
LOWER = Action(learning_rate_scale=0.8, rewind_steps=10)
CLIP = Action(clipping="ZClip", rewind_steps=10)
STATE = state_ref(1, StateKind.ROLLOUT)


def trial(name, rung, mean, *, raw=None, wobble=0.1, status=TrialStatus.OK, spikes=(), state=STATE):
    losses = tuple(3.0 + wobble * (-1) ** i for i in range(rung + 10))
    return Trial(
        candidate=name,
        rung=rung,
        step=T + rung,
        status=status,
        validation_loss=mean if raw is None else raw,
        mean_weights_loss=mean,
        losses_from=T - 9,
        losses=losses,
        spike_steps=tuple(spikes),
        steps_run=rung + 10,
        seconds=1.0,
        state=state,
    )


def evidence(action, mine, control, *, forecast=None, over=False, main=None, cut_short=False):
    trigger = Trigger(
        run_uid="u",
        epoch=0,
        step=T,
        onset_step=T - 2,
        rule=TriggerRule.SINGLE,
        z=4.0,
        index=2.0,
        components={},
        thresholds={},
    )
    draft = Draft(
        seed=1,
        strategy="Lattice",
        source=DraftSource.HEURISTIC,
        model="",
        horizon=0,
        proxy=ProxyAnswer.NOT_ASKED,
        detail="",
        candidates=(Candidate(name="c000", action=action, forecast=forecast),),
        finalists=("c000",),
    )
    return Evidence(
        trigger=trigger,
        draft=draft,
        trials={
            "c000": {one.rung: one for one in mine},
            CONTROL: {one.rung: one for one in control},
        },
        circumstances=Circumstances.of(
            (main or {}).get(T), over_threshold=over, cut_short=cut_short, run_finished=False
        ),
        rung=50,
        confirm_rung=200,
    )


def control(rungs=(50, 200), mean=3.0, **more):
    return [trial(CONTROL, rung, mean, **more) for rung in rungs]


RISKY = Forecast(candidate="c000", loss=None, p_divergence=None, risk=0.3, recovery_steps=None)
SAFE = Forecast(candidate="c000", loss=None, p_divergence=None, risk=0.1, recovery_steps=None)
CASES = {
    "confirmed beyond the margin": (
        evidence(LOWER, [trial("c000", 50, 2.9), trial("c000", 200, 2.9)], control()),
        Outcome.ACCEPTED,
        Verdict.ACCEPTED,
    ),
    "a healthy lower rate anneals: better at +50, never confirmed": (
        evidence(LOWER, [trial("c000", 50, 2.9)], control()),
        Outcome.NO_ACTION,
        Verdict.NOT_CONFIRMED,
    ),
    "confirmed, but inside the margin": (
        evidence(LOWER, [trial("c000", 200, 2.985)], control()),
        Outcome.NO_ACTION,
        Verdict.NO_BETTER,
    ),
    "clip-only needs no confirmation": (
        evidence(CLIP, [trial("c000", 50, 2.9)], control()),
        Outcome.ACCEPTED,
        Verdict.ACCEPTED,
    ),
    "better but more volatile": (
        evidence(CLIP, [trial("c000", 50, 2.9, wobble=0.2)], control()),
        Outcome.NO_ACTION,
        Verdict.VOLATILE,
    ),
    "calibrated risk refuses": (
        evidence(CLIP, [trial("c000", 50, 2.5)], control(), forecast=RISKY),
        Outcome.NO_ACTION,
        Verdict.RISK,
    ),
    "calibrated risk overrides an event in the rollout": (
        evidence(CLIP, [trial("c000", 50, 2.5, spikes=(120,))], control(), forecast=SAFE),
        Outcome.ACCEPTED,
        Verdict.ACCEPTED,
    ),
    "without a forecast, no more unstable steps than the control, wherever they are": (
        evidence(CLIP, [trial("c000", 50, 2.5, spikes=(120, 121))], control(spikes=(123, 99, 140))),
        Outcome.ACCEPTED,
        Verdict.ACCEPTED,
    ),
    "without a forecast, more unstable steps than the control": (
        evidence(CLIP, [trial("c000", 50, 2.5, spikes=(120, 121))], control(spikes=(122, 99))),
        Outcome.NO_ACTION,
        Verdict.RISK,
    ),
    "without a forecast an event in the rollout refuses": (
        evidence(CLIP, [trial("c000", 50, 2.5, spikes=(120,))], control()),
        Outcome.NO_ACTION,
        Verdict.RISK,
    ),
    "diverged": (
        evidence(CLIP, [trial("c000", 50, None, status=TrialStatus.DIVERGED)], control()),
        Outcome.NO_ACTION,
        Verdict.DIVERGED,
    ),
    "the control diverged, the candidate did not": (
        evidence(
            CLIP,
            [trial("c000", 50, 2.5)],
            control((50,), None, status=TrialStatus.DIVERGED),
        ),
        Outcome.ACCEPTED,
        Verdict.ACCEPTED,
    ),
    "a transient cause: the replay escapes what hit the main run": (
        evidence(CLIP, [trial("c000", 50, 3.1)], control(), over=True, main={T: 9.0}),
        Outcome.CONTROL_ADOPTED,
        Verdict.NO_BETTER,
    ),
    "the replay repeats the spike: no transient cause": (
        evidence(CLIP, [trial("c000", 50, 3.1)], control(), over=True, main={T: 3.0}),
        Outcome.NO_ACTION,
        Verdict.NO_BETTER,
    ),
    "every rollout spikes at the same batch": (
        evidence(CLIP, [trial("c000", 50, 3.1, spikes=(120,))], control(spikes=(120, 130))),
        Outcome.DATA_CAUSED,
        Verdict.NO_BETTER,
    ),
    "the deadline came first": (
        evidence(LOWER, [trial("c000", 10, 2.9)], control((10,)), cut_short=True),
        Outcome.NO_ACTION,
        Verdict.UNFINISHED,
    ),
    "no control, no verdict": (
        evidence(CLIP, [trial("c000", 50, 2.5)], []),
        Outcome.NO_ACTION,
        Verdict.UNFINISHED,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_default_rule(name):
    given, outcome, verdict = CASES[name]
    result = conclude(given, AcceptanceRules())
    assert (result.outcome, result.judgements[0].verdict) == (outcome, verdict), result


def test_the_literal_rule_accepts_what_merely_anneals():
    given = CASES["a healthy lower rate anneals: better at +50, never confirmed"][0]
    result = conclude(given, AcceptanceRules(preset=Preset.LITERAL))
    assert result.outcome is Outcome.ACCEPTED


def test_early_rungs_drop_only_what_is_clearly_worse():
    trials = {
        CONTROL: trial(CONTROL, 10, 3.0),
        "c000": trial("c000", 10, 3.03),
        "c001": trial("c001", 10, 3.05),
        "c002": trial("c002", 10, None, status=TrialStatus.FAILED),
    }
    assert survivors(trials, 10, AcceptanceRules()) == {CONTROL, "c000"}


def test_only_the_best_go_on_to_the_confirm_rung():
    trials = {CONTROL: trial(CONTROL, 50, 3.0)}
    trials |= {f"c00{n}": trial(f"c00{n}", 50, 2.9 - n / 100) for n in range(4)}
    actions = dict.fromkeys(trials, LOWER)
    chosen = to_confirm(trials, actions, 50, 2, AcceptanceRules())
    assert chosen == {CONTROL, "c003", "c002"}
    assert to_confirm(trials, dict.fromkeys(trials, CLIP), 50, 2, AcceptanceRules()) == set()
