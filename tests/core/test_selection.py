"""Actions, ranking, retention, and the bases a branch forks from."""

import pytest

from forkcast.actions import Action, Lattice
from forkcast.canonical import canonical_json, digest
from forkcast.decision import Candidate, DraftSource
from forkcast.ranking import rank
from forkcast.records import Forecast, Interval
from forkcast.retention import choose_bases, keep
from tests.make import state_ref


def ref(step, *, good=False, epoch=0):
    return state_ref(step, key=f"k{epoch}-{step}", epoch=epoch, good=good)


def test_the_lattice_holds_no_identity_and_counts_right():
    lattice = Lattice(rewind_steps=(10, 60))
    actions = list(lattice.actions())
    assert len(actions) == len(set(actions)) == lattice.size() == (4 * 3 * 5 * 2 - 1) * 2
    assert not any(a.is_identity for a in actions)
    assert all(lattice.contains(a) for a in actions)


def test_impossible_actions_are_refused():
    with pytest.raises(ValueError, match="scales must be > 0"):
        Action(learning_rate_scale=0.0)


def forecast(name, loss, risk):
    return Forecast(
        candidate=name,
        loss=Interval(loss, loss - 1, loss + 1),
        p_divergence=None,
        risk=risk,
        recovery_steps=None,
    )


def test_ranking_gates_by_risk_then_orders_by_loss():
    made = [("a", 3.0, 0.1), ("b", 2.0, 0.5), ("c", 2.5, 0.1)]
    candidates = [
        Candidate(name=n, action=Action(learning_rate_scale=0.8), forecast=forecast(n, loss, risk))
        for n, loss, risk in made
    ]
    assert rank(candidates, top_k=2, max_risk=0.2) == (("c", "a"), DraftSource.PROXY)


def test_without_forecasts_the_portfolio_is_diverse_and_deterministic():
    actions = list(Lattice(rewind_steps=(10, 60)).actions())
    candidates = [Candidate(name=f"c{n:03d}", action=a) for n, a in enumerate(actions)]
    names, source = rank(candidates, top_k=6, max_risk=0.2)
    assert source is DraftSource.HEURISTIC
    assert len(set(names)) == 6
    assert names == rank(candidates, top_k=6, max_risk=0.2)[0]
    chosen = [c.action for c in candidates if c.name in names]
    assert {a.rewind_steps for a in chosen} == {10, 60}
    assert any(a.learning_rate_scale < 1 for a in chosen)
    assert any(a.changes_only_clipping for a in chosen)


def test_retention_keeps_last_good_pinned_and_a_few_old():
    states = [ref(s, good=s == 300) for s in range(100, 3000, 100)]
    stay = keep(states, keep_last=8, pins={"k0-500"}, pinned_steps=[700])
    assert {f"k0-{s}" for s in range(2200, 3000, 100)} <= stay
    assert {"k0-300", "k0-500", "k0-700"} <= stay
    assert len(stay) <= 8 + 3 + 4


def test_bases_lie_before_the_departure_at_the_wanted_depths():
    states = [ref(s) for s in range(0, 300, 25)]
    bases = choose_bases(states, before_step=137, depths=[0, 50, 100], oldest=0)
    assert [b.step for b in bases] == [125, 75, 25]
    deepest = choose_bases(states, before_step=137, depths=[0, 200], oldest=0)
    assert [b.step for b in deepest] == [125, 0]
    assert choose_bases(states, before_step=137, depths=[0], oldest=130) == ()


def test_canonical_json_is_stable_and_refuses_nan():
    assert canonical_json({"b": 1.0, "a": (1, None)}) == b'{"a":[1,null],"b":1.0}'
    assert digest({"a": 1}) == digest({"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})
