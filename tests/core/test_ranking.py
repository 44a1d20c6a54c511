"""Finalists: the gate, the order, and the portfolio without forecasts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.actions import Lattice
from forkcast.decision import Candidate, DraftSource
from forkcast.ranking import by_portfolio, rank
from forkcast.records import Forecast, Interval

ACTIONS = list(Lattice(rewind_steps=(20, 220)).actions())
PLAIN = [Candidate(name=f"c{n:03d}", action=a) for n, a in enumerate(ACTIONS)]


def told(candidate: Candidate, loss: float, risk: float | None, why: str | None = None):
    forecast = Forecast(
        candidate=candidate.name,
        loss=Interval(loss, loss - 1, loss + 1),
        p_divergence=None,
        risk=risk,
        recovery_steps=None,
        abstained=why,
    )
    return replace(candidate, forecast=forecast)


def test_the_gate_comes_first_then_the_expected_loss() -> None:
    three = [told(PLAIN[0], 1.0, 0.2), told(PLAIN[1], 3.0, 0.1), told(PLAIN[2], 2.0, 0.19)]
    assert rank(three, top_k=6, max_risk=0.2) == (("c002", "c001"), DraftSource.PROXY)


def test_nobody_is_left_where_everybody_is_gated() -> None:
    assert rank([told(PLAIN[0], 1.0, 0.9)], top_k=6, max_risk=0.2) == ((), DraftSource.PROXY)


def test_equal_forecasts_are_ordered_by_risk_then_name() -> None:
    four = [told(c, 1.0, risk) for c, risk in zip(PLAIN, (0.1, 0.05, 0.1, 0.05), strict=False)]
    expected = ("c001", "c003", "c000", "c002")
    assert rank(four, top_k=4, max_risk=0.2)[0] == expected
    assert rank(four[::-1], top_k=4, max_risk=0.2)[0] == expected


def test_one_abstention_hands_the_order_to_the_heuristic_but_not_the_gate() -> None:
    mixed = [told(c, 1.0, 0.9) for c in PLAIN[:10]] + [told(PLAIN[10], 1.0, 0.9, "far from data")]
    assert rank(mixed, top_k=6, max_risk=0.2) == (("c010",), DraftSource.HEURISTIC)


def test_no_kind_of_action_takes_more_than_half_of_the_places() -> None:
    resets = [c for c in PLAIN if c.action.kind == "momentum"][:8]
    others = [c for c in PLAIN if c.action.kind == "clipping"][:2]
    drawn = [told(c, 1.0 + n, None) for n, c in enumerate([*resets, *others])]
    named = [c.name for c in drawn]
    # three resets, both others, and the next reset: nothing else is left
    assert rank(drawn, top_k=6, max_risk=0.2)[0] == (*named[:4], *named[8:])
    assert rank(drawn, top_k=4, max_risk=0.2)[0] == (*named[:2], *named[8:])


def test_a_forecast_without_a_risk_is_not_taken_for_a_safe_one() -> None:
    mixed = [told(PLAIN[0], 1.0, None), told(PLAIN[1], 2.0, 0.1)]
    assert rank(mixed, top_k=1, max_risk=0.2)[1] is DraftSource.HEURISTIC


def test_expected_loss_orders_where_no_risk_is_known_at_all() -> None:
    three = [told(PLAIN[n], loss, None) for n, loss in enumerate((2.0, 3.0, 1.0))]
    assert rank(three, top_k=2, max_risk=0.2) == (("c002", "c000"), DraftSource.PROXY)


def test_a_risk_without_a_loss_gates_and_the_heuristic_orders() -> None:
    def risky(candidate: Candidate, risk: float) -> Candidate:
        forecast = told(candidate, 1.0, risk).forecast
        assert forecast is not None
        return replace(candidate, forecast=replace(forecast, loss=None))

    order = by_portfolio(PLAIN)
    gated = [risky(c, 0.9 if c.name == order[0] else 0.1) for c in PLAIN]
    names, source = rank(gated, top_k=6, max_risk=0.2)
    assert source is DraftSource.HEURISTIC
    assert order[0] not in names
    assert len(names) == 6


def test_the_portfolio_leads_with_the_deepest_rate_cut_and_is_diverse() -> None:
    names, source = rank(PLAIN, top_k=6, max_risk=0.2)
    actions = [ACTIONS[int(name[1:])] for name in names]
    assert source is DraftSource.HEURISTIC
    assert (actions[0].rewind_steps, actions[0].learning_rate_scale) == (220, 0.8)
    assert {a.kind for a in actions} >= {"lower-rate", "clipping", "momentum"}
    assert {a.rewind_steps for a in actions} == {20, 220}


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PLAIN), unique=True), st.integers(1, 16))
def test_the_portfolio_has_min_k_m_distinct_names(candidates, top_k) -> None:
    names, _ = rank(candidates, top_k=top_k, max_risk=0.2)
    assert len(set(names)) == len(names) == min(top_k, len(candidates))
    assert set(names) <= {c.name for c in candidates}
