"""Forecasts to finalists: a calibrated gate, then an order; without forecasts, a portfolio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from forkcast.actions import KEEP, Action
from forkcast.decision import Candidate, DraftSource

#: The portfolio of the heuristic, in order: the first lattice action that satisfies each line. How
#: far back is the strongest action of all, and a lower rate the second (docs/experiments.md); the
#: rest is there so that one branch tries unlike things.
_PORTFOLIO: tuple[Callable[[Action], bool], ...] = (
    lambda a: _only(a, rate=True) and a.learning_rate_scale < 0.85,
    lambda a: a.clipping == "ZClip" and a.changes_only_clipping,
    lambda a: a.momentum_reset and a.learning_rate_scale < 1.0 and a.clipping == KEEP,
    lambda a: _only(a, rate=True, clip=True) and a.learning_rate_scale < 0.85,
    lambda a: _only(a, rate=True) and a.learning_rate_scale > 0.85,
    lambda a: a.clipping == "ARC" and a.changes_only_clipping,
    lambda a: a.clipping == "SPAM" and a.changes_only_clipping,
    lambda a: a.momentum_reset and a.learning_rate_scale == 1.0,
    lambda a: a.weight_decay_scale > 1.0,
)


def _only(action: Action, *, rate: bool = False, clip: bool = False) -> bool:
    """Whether the action changes just the named things."""
    return (
        (action.learning_rate_scale != 1.0) == rate
        and (action.clipping != KEEP) == clip
        and action.weight_decay_scale == 1.0
        and not action.momentum_reset
        and not action.data_reorder
        and not action.skip_batches
    )


def rank(
    candidates: Sequence[Candidate], *, top_k: int, max_risk: float
) -> tuple[tuple[str, ...], DraftSource]:
    """The names of at most ``top_k`` distinct finalists, best first, and who ordered them.

    Candidates with a calibrated risk of at least ``max_risk`` are dropped, whichever ranker is used:
    a model may know the risk and not the loss, or the loss and not the risk (docs/decisions/010). If
    all that are left have an expected loss, and all or none of them a risk, expected loss orders
    them, then risk, then name; no kind of action takes more than half of the places while others are
    left, because what finalists have in common is what the branch bets on. Otherwise the heuristic
    portfolio orders them: a partial order would favour the candidates that the model dares to judge.
    """
    left = [c for c in candidates if (risk := _risk(c)) is None or risk < max_risk]
    losses = [loss for c in left if (loss := _expected(c)) is not None]
    risks = [risk for c in left if (risk := _risk(c)) is not None]
    if candidates and len(losses) == len(left) and len(risks) in (0, len(left)):
        keys = zip(losses, risks or [0.0] * len(left), (c.name for c in left), strict=True)
        kinds = {c.name: c.action.kind for c in left}
        return _mixed([name for _, _, name in sorted(keys)], kinds, top_k), DraftSource.PROXY
    return _portfolio(left, top_k), DraftSource.HEURISTIC


def _mixed(ordered: Sequence[str], kinds: Mapping[str, str], top_k: int) -> tuple[str, ...]:
    """The first ``top_k`` of the order, at most half of them of one kind while others are left."""
    most = (top_k + 1) // 2
    counts: Counter[str] = Counter()
    chosen: list[str] = []
    spare: list[str] = []
    for name in ordered:
        counts[kinds[name]] += 1
        (chosen if counts[kinds[name]] <= most else spare).append(name)
    place = {name: n for n, name in enumerate(ordered)}
    return tuple(sorted([*chosen, *spare][:top_k], key=place.__getitem__))


def by_portfolio(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """All names in the heuristic's order: what a model's order is measured against."""
    return _portfolio(candidates, len(candidates))


def _risk(candidate: Candidate) -> float | None:
    """The calibrated risk, None if the model has none or abstained."""
    forecast = candidate.forecast
    return None if forecast is None or forecast.abstained is not None else forecast.risk


def _expected(candidate: Candidate) -> float | None:
    """The expected loss, None if the model has none or abstained."""
    forecast = candidate.forecast
    if forecast is None or forecast.abstained is not None or forecast.loss is None:
        return None
    return forecast.loss.point


def _portfolio(candidates: Sequence[Candidate], top_k: int) -> tuple[str, ...]:
    """Walk the portfolio over the depths in turn, deepest base first; fill up in draft order."""
    depths = sorted({c.action.rewind_steps for c in candidates}, reverse=True)
    chosen: dict[str, None] = {}
    for turn in range(len(depths)):
        for line, wanted in enumerate(_PORTFOLIO):
            depth = depths[(line + turn) % len(depths)]
            fitting = [
                c
                for c in candidates
                if c.action.rewind_steps == depth and wanted(c.action) and c.name not in chosen
            ]
            if fitting and len(chosen) < top_k:
                chosen[min(fitting, key=lambda c: c.action).name] = None
    for candidate in candidates:
        if len(chosen) < top_k:
            chosen.setdefault(candidate.name)
    return tuple(chosen)
