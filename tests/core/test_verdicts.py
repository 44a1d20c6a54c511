"""The verdict as tables of named cases."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest

from forkcast.acceptance import (
    AcceptanceRules,
    Evidence,
    Preset,
    conclude,
    improvement,
    survivors,
    to_confirm,
    volatility,
)
from forkcast.actions import Action
from forkcast.canonical import canonical_json
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
from forkcast.records import (
    Forecast,
    Interval,
    StateKind,
    StateRef,
    Trial,
    TrialStatus,
)
from tests.make import state_ref, trigger

T, BASE, RUNG, CONFIRM = 100, 50, 50, 200
CLIP = Action(clipping="ZClip", rewind_steps=50)
CUT = Action(learning_rate_scale=0.8, rewind_steps=50)
TRIGGER = trigger(step=T, onset_step=T - 2)


def state(name: str) -> StateRef:
    return state_ref(1, StateKind.ROLLOUT, key=name, digest=name)


def trial(
    name: str = "c000",
    rung: int = RUNG,
    *,
    mean: float | None = 3.0,
    raw: float | None = 3.0,
    sd: float = 0.01,
    status: TrialStatus = TrialStatus.OK,
    spikes: tuple[int, ...] = (),
    published: bool = True,
) -> Trial:
    noise = random.Random(7)
    steps = T + rung - BASE
    return Trial(
        candidate=name,
        rung=rung,
        step=T + rung,
        status=status,
        validation_loss=raw,
        mean_weights_loss=mean,
        losses_from=BASE,
        losses=tuple(3.0 + sd * noise.gauss(0, 1) for _ in range(steps)),
        spike_steps=spikes,
        steps_run=steps,
        seconds=1.0,
        state=state(f"{name}-{rung}") if published and status is TrialStatus.OK else None,
    )


def evidence(
    action: Action,
    mine: list[Trial],
    control: list[Trial],
    *,
    risk: float | None = None,
    over: bool = False,
    main: float = 3.0,
    cut_short: bool = False,
) -> Evidence:
    forecast = None
    if risk is not None:
        point = Interval(3.0, 2.9, 3.1)
        forecast = Forecast(
            candidate="c000", loss=point, p_divergence=None, risk=risk, recovery_steps=None
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
        trigger=TRIGGER,
        draft=draft,
        trials={"c000": {t.rung: t for t in mine}, CONTROL: {t.rung: t for t in control}},
        circumstances=Circumstances.of(
            main, over_threshold=over, cut_short=cut_short, run_finished=False
        ),
        rung=RUNG,
        confirm_rung=CONFIRM,
    )


def at(rungs: tuple[int, ...], name: str = "c000", **values) -> list[Trial]:
    return [trial(name, rung, **values) for rung in rungs]


@dataclass(frozen=True)
class Case:
    name: str
    evidence: Evidence
    verdict: Verdict
    outcome: Outcome = Outcome.NO_ACTION
    preset: Preset = Preset.DEFAULT


BOTH = (RUNG, CONFIRM)
GOOD_CUT, CONTROLS = at(BOTH, mean=2.9, raw=2.9), at(BOTH, CONTROL)
OK_CLIP = at((RUNG,), mean=2.9, raw=2.9)
HEALTHY_CUT = at(BOTH, mean=2.995, raw=2.97)  # anneals: raw gain .03, mean-weights gain .005
GONE = at(BOTH, CONTROL, status=TrialStatus.DIVERGED, mean=None, raw=None)
SPIKES = {"spikes": (T + 7,)}

CASES = [
    Case("a confirmed gain is accepted", evidence(CUT, GOOD_CUT, CONTROLS), Verdict.ACCEPTED, Outcome.ACCEPTED),
    Case("a healthy anneal is refused by the default", evidence(CUT, HEALTHY_CUT, CONTROLS), Verdict.NO_BETTER),
    Case("a healthy anneal is accepted by literal", evidence(CUT, HEALTHY_CUT[:1], CONTROLS[:1]), Verdict.ACCEPTED, Outcome.ACCEPTED, Preset.LITERAL),
    Case("literal accepts what is only calmer", evidence(CUT, at((RUNG,), raw=3.2, sd=0.005), CONTROLS), Verdict.ACCEPTED, Outcome.ACCEPTED, Preset.LITERAL),
    Case("literal refuses what is neither", evidence(CUT, at((RUNG,), raw=3.2, sd=0.02), CONTROLS), Verdict.NO_BETTER, preset=Preset.LITERAL),
    Case("a cut that was not confirmed is refused", evidence(CUT, GOOD_CUT[:1], CONTROLS), Verdict.NOT_CONFIRMED),
    Case("a clip-only change needs no confirmation", evidence(CLIP, OK_CLIP, CONTROLS), Verdict.ACCEPTED, Outcome.ACCEPTED),
    Case("a gain of exactly the margin is none", evidence(CLIP, at((RUNG,), mean=3.0 - 0.0199), CONTROLS), Verdict.NO_BETTER),
    Case("what ended at an early rung is refused", evidence(CLIP, at((10,), mean=2.0), at((10, RUNG), CONTROL)), Verdict.DROPPED_AT_RUNG),
    Case("the deadline leaves a cut unfinished", evidence(CUT, GOOD_CUT[:1], CONTROLS[:1], cut_short=True), Verdict.UNFINISHED),
    Case("the deadline leaves an early rung unfinished", evidence(CLIP, at((10,), mean=2.0), at((10,), CONTROL), cut_short=True), Verdict.UNFINISHED),
    Case("more volatile than the control is refused", evidence(CLIP, at((RUNG,), mean=2.9, sd=0.02), CONTROLS), Verdict.VOLATILE),
    Case("a control without any volatility has no ratio", evidence(CLIP, OK_CLIP, at(BOTH, CONTROL, sd=0.0)), Verdict.VOLATILE),
    Case("a calibrated risk at the limit is refused", evidence(CLIP, OK_CLIP, CONTROLS, risk=0.2), Verdict.RISK),
    Case("a calibrated risk below it passes in spite of a spike", evidence(CLIP, at((RUNG,), mean=2.9, **SPIKES), CONTROLS, risk=0.1), Verdict.ACCEPTED, Outcome.ACCEPTED),
    Case("without a risk, unstable beside a calm control is refused", evidence(CLIP, at((RUNG,), mean=2.9, **SPIKES), CONTROLS), Verdict.RISK),
    Case("literal has the same risk gate", evidence(CLIP, at((RUNG,), raw=2.9, **SPIKES), CONTROLS), Verdict.RISK, preset=Preset.LITERAL),
    Case("a diverged candidate is out", evidence(CLIP, at((RUNG,), status=TrialStatus.DIVERGED, mean=None), CONTROLS), Verdict.DIVERGED),
    Case("a failed candidate is its own failure", evidence(CLIP, at((RUNG,), status=TrialStatus.FAILED, mean=None), CONTROLS), Verdict.FAILED),
    Case("no trial at all", evidence(CLIP, [], CONTROLS), Verdict.UNFINISHED),
    Case("no control, no verdict", evidence(CLIP, OK_CLIP, []), Verdict.UNFINISHED),
    Case("a failed control, no verdict", evidence(CLIP, OK_CLIP, at((RUNG,), CONTROL, status=TrialStatus.FAILED)), Verdict.UNFINISHED),
    Case("no validation loss, no gain", evidence(CLIP, at((RUNG,), mean=None), CONTROLS), Verdict.NO_BETTER),
    Case("no end state, nothing to adopt", evidence(CLIP, at((RUNG,), mean=2.9, published=False), CONTROLS), Verdict.FAILED),
    Case("a diverged control: who is confirmed and below passes", evidence(CUT, GOOD_CUT, GONE), Verdict.ACCEPTED, Outcome.ACCEPTED),
    Case("a diverged control: confirmation is still needed", evidence(CUT, GOOD_CUT[:1], GONE), Verdict.NOT_CONFIRMED),
    Case("a diverged control: literal has no confirm rung", evidence(CUT, GOOD_CUT[:1], GONE), Verdict.ACCEPTED, Outcome.ACCEPTED, Preset.LITERAL),
    Case("a diverged control: an early rung is not enough", evidence(CLIP, at((10,), mean=2.0), at((10,), CONTROL, status=TrialStatus.DIVERGED), cut_short=True), Verdict.UNFINISHED),
    Case("a diverged control: not below where it stood", evidence(CLIP, at((RUNG,), mean=3.5), GONE), Verdict.NO_BETTER),
    Case("a transient cause adopts the control", evidence(CLIP, at((RUNG,)), CONTROLS, over=True, main=5.0), Verdict.NO_BETTER, Outcome.CONTROL_ADOPTED),
    Case("a transient cause, non-finite", evidence(CLIP, at((RUNG,)), CONTROLS, over=True, main=math.inf), Verdict.NO_BETTER, Outcome.CONTROL_ADOPTED),
    Case("main is calm again: its own state goes on", evidence(CLIP, at((RUNG,)), CONTROLS, over=False, main=5.0), Verdict.NO_BETTER),
    Case("main and control agree at the trigger", evidence(CLIP, at((RUNG,)), CONTROLS, over=True), Verdict.NO_BETTER),
    Case("a control that spiked has not escaped", evidence(CLIP, at((RUNG,)), at(BOTH, CONTROL, **SPIKES), over=True, main=5.0), Verdict.NO_BETTER),
    Case("every rollout spikes at one batch: the data", evidence(CLIP, at((RUNG,), **SPIKES), at((RUNG,), CONTROL, **SPIKES)), Verdict.NO_BETTER, Outcome.DATA_CAUSED),
    Case("as many unstable steps as the control", evidence(CLIP, at((RUNG,), mean=2.9, **SPIKES), at((RUNG,), CONTROL, spikes=(T + 3,))), Verdict.ACCEPTED, Outcome.ACCEPTED),
    Case("more unstable steps than the control are refused", evidence(CLIP, at((RUNG,), mean=2.9, spikes=(T + 7, T + 9)), at((RUNG,), CONTROL, **SPIKES)), Verdict.RISK, Outcome.DATA_CAUSED),
    Case("an unstable step before the trigger is history", evidence(CLIP, at((RUNG,), mean=2.9, spikes=(T - 3,)), CONTROLS), Verdict.ACCEPTED, Outcome.ACCEPTED),
    Case("literal allows none", evidence(CLIP, at((RUNG,), raw=2.9, **SPIKES), at((RUNG,), CONTROL, **SPIKES)), Verdict.RISK, Outcome.DATA_CAUSED, Preset.LITERAL),
    Case("different batches are no shared cause", evidence(CLIP, at((RUNG,), **SPIKES), at((RUNG,), CONTROL, spikes=(T + 8,))), Verdict.NO_BETTER),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict_and_outcome(case: Case) -> None:
    end = conclude(case.evidence, AcceptanceRules(preset=case.preset))
    assert (end.judgements[0].verdict, end.outcome) == (case.verdict, case.outcome)
    assert (end.winner is not None) == end.outcome.adopts
    canonical_json(end)  # what cannot be recorded cannot be decided


def test_the_better_of_two_is_accepted_and_the_other_has_passed() -> None:
    base = evidence(CLIP, OK_CLIP, CONTROLS)
    other = Candidate(name="c001", action=replace(CLIP, clipping="SPAM"))
    two = replace(
        base,
        draft=replace(
            base.draft,
            candidates=(*base.draft.candidates, other),
            finalists=("c000", "c001"),
        ),
        trials={**base.trials, "c001": {RUNG: trial("c001", mean=2.8)}},
    )
    end = conclude(two, AcceptanceRules())
    assert end.winner == "c001"
    assert [j.verdict for j in end.judgements] == [Verdict.PASSED, Verdict.ACCEPTED]


def test_the_margin_of_a_class_is_read_at_the_largest_rung_not_beyond() -> None:
    rules = AcceptanceRules(margins={"lower-rate": {50: 0.01, 200: 0.05}})
    assert [rules.margin("lower-rate", r) for r in (10, 50, 199, 200)] == [0.02, 0.01, 0.01, 0.05]
    assert rules.margin("momentum", 200) == rules.unknown_margin


def test_early_rungs_drop_only_what_diverged_or_is_far_worse() -> None:
    trials = {
        CONTROL: trial(CONTROL, 10),
        "same": trial("same", 10),
        "bit-worse": trial("bit-worse", 10, mean=3.039),
        "far-worse": trial("far-worse", 10, mean=3.05),
        "gone": trial("gone", 10, status=TrialStatus.DIVERGED),
        "dead": trial("dead", 10, status=TrialStatus.FAILED),
    }
    assert survivors(trials, 10, AcceptanceRules()) == {CONTROL, "same", "bit-worse"}


def test_two_best_go_on_to_the_confirm_rung_with_the_control() -> None:
    trials = {CONTROL: trial(CONTROL)} | {
        f"c{i}": trial(f"c{i}", mean=3.0 - i / 100) for i in range(4)
    }
    actions = dict.fromkeys(("c0", "c1", "c2", "c3"), CUT)
    rules = AcceptanceRules()
    assert to_confirm(trials, actions, RUNG, 2, rules) == {CONTROL, "c3", "c2"}
    assert to_confirm(trials, actions, RUNG, 2, replace(rules, preset=Preset.LITERAL)) == set()
    clips = dict.fromkeys(actions, CLIP)
    assert to_confirm(trials, clips, RUNG, 2, rules) == set()


def test_losses_of_different_steps_are_never_compared() -> None:
    with pytest.raises(ValueError, match="not one lineage step"):
        improvement(trial(CONTROL, 10), trial("c000", 25), Preset.DEFAULT)


def test_volatility_is_the_spread_about_the_baselines_expectation() -> None:
    calm, rough = trial(sd=0.01), trial(sd=0.04)
    assert volatility(rough, calm, 0.98) == pytest.approx(0.04, rel=0.5)
    assert volatility(replace(calm, losses=calm.losses[:3]), calm, 0.98) is None
