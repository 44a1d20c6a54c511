"""The figures of a run, on a made run whose true values are known."""

from dataclasses import replace

import pytest

from forkcast.decision import Decision
from forkcast.records import Forecast, Interval
from forkcast_cli.facts import gather
from forkcast_cli.metrics import (
    Point,
    lineage_points,
    poisson_interval,
    proxy_gaps,
    rung_passes,
    spearman,
)


def test_made_run(made_run):
    metrics = gather(made_run).metrics
    assert metrics.steps == 156 + 130 + 30  # both epochs, and the 30 adopted rollout steps
    assert [(e.epoch, e.first) for e in metrics.events] == [(0, 150)]
    assert metrics.events[0].recovered is None  # the epoch ends six steps later
    assert metrics.validation_perplexity == pytest.approx(12.18249)
    assert (metrics.branches, metrics.decided, metrics.accepted) == (2, 2, 1)
    assert metrics.accept_rate == 0.5
    assert metrics.discarded_steps == 16  # 140 to 155
    assert metrics.adopted_steps == 30
    assert metrics.verification_steps == 300
    assert [(r.steps, r.watched, r.relapsed) for r in metrics.relapses] == [
        (500, 1, 1),  # adopted at 170, triggered again at 250
        (2000, 1, 1),
    ]
    assert metrics.proxy_gap is None
    tokens, parameters = 256, 834_432
    assert metrics.wasted_flops == pytest.approx(6.0 * parameters * tokens * (16 + 1))
    assert metrics.wasted_flops_with_verification == pytest.approx(
        6.0 * parameters * tokens * (16 + 1 + 300 - 30)
    )


def test_a_calm_trigger_with_nothing_to_pay_back_is_no_refusal(made_run):
    from forkcast.admission import Refusal
    from forkcast.records import TriggerRule
    from forkcast_cli.show import status_document
    from forkcast_cli.view import look
    from forkcast_wire.branches import Suppression
    from forkcast_wire.documents import dump

    fired = look(made_run).branches[0].trigger
    calm = replace(fired, epoch=1, step=270, rule=TriggerRule.CALM)
    (made_run / "suppressed").mkdir()
    for one, why in ((calm, "NoLoan"), (replace(fired, step=155), "BranchActive")):
        record = dump(Suppression(trigger=one, reason=Refusal(why)))
        (made_run / "suppressed" / f"{one.id}.json").write_bytes(record)
    assert gather(made_run).metrics.triggers == 3  # the two branches', and the refused one
    assert status_document(made_run, look(made_run))["suppressed"] == 1


def test_rungs(made_run):
    decisions = [one.decision for one in gather(made_run).view.branches]
    assert [(one.rung, one.measured, one.passed) for one in rung_passes(decisions)] == [
        (10, 4, 2),
        (20, 2, 1),
    ]


@pytest.mark.parametrize("count", [0, 1, 3, 10, 250])
def test_poisson_interval_is_the_chi_square_one(count):
    from scipy.stats import chi2

    low, high = poisson_interval(count)
    assert high == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 2, rel=1e-6)
    assert low == pytest.approx(chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, rel=1e-6)


def test_spearman():
    assert spearman([(1, 10), (2, 20), (3, 30)]) == pytest.approx(1)
    assert spearman([(1, 30), (2, 20), (3, 10)]) == pytest.approx(-1)
    assert spearman([(1, 1), (2, 1), (3, 1)]) is None
    assert spearman([(1, 1), (2, 2)]) is None


def test_abandoned_steps_are_not_of_the_lineage(made_run):
    view = gather(made_run).view
    points = [Point(0, step, 1.0, 1.0) for step in (139, 140, 155)]
    assert [p.step for p in lineage_points(points, view.lineage, 1)] == [139]


def forecast(name: str, loss: float | None, abstained: str | None = None) -> Forecast:
    point = None if loss is None else Interval(loss, loss - 1, loss + 1)
    return Forecast(
        candidate=name,
        loss=point,
        p_divergence=None,
        risk=None,
        recovery_steps=None,
        abstained=abstained,
    )


def forecast_decision(made_run, horizon: int, losses: dict[str, float | None]) -> Decision:
    """The made decision, its candidates forecast so many steps ahead and measured at +20."""
    decision = gather(made_run).view.branches[0].decision
    candidates = tuple(
        replace(one, forecast=forecast(one.name, losses.get(one.name)))
        for one in decision.draft.candidates
    )
    trial = next(one for one in decision.trials if one.candidate == "c000" and one.rung == 20)
    other = replace(
        trial,
        candidate="c001",
        mean_weights_loss=trial.mean_weights_loss + 0.5,
        validation_loss=9.0,
    )
    draft = replace(decision.draft, horizon=horizon, candidates=candidates)
    return replace(decision, draft=draft, trials=(*decision.trials, other))


def test_a_forecast_is_compared_with_the_same_loss_at_the_same_step(made_run):
    probe = forecast_decision(made_run, 20, {})
    measured = {one.candidate: one.mean_weights_loss for one in probe.trials if one.rung == 20}
    told = {"c000": measured["c000"] + 0.1, "c001": measured["c001"] - 0.3}
    gaps, correlations = proxy_gaps([forecast_decision(made_run, 20, told)])
    assert sorted(gaps) == pytest.approx([0.1, 0.3])
    assert correlations == []  # two pairs have no order worth a figure
    assert proxy_gaps([forecast_decision(made_run, 200, told)]) == ([], [])
    assert proxy_gaps([forecast_decision(made_run, 20, {"c000": None})]) == ([], [])
