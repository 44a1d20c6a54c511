"""What is answered without a model: every candidate abstains, with the reason and no numbers.

The order of the candidates is then the portfolio's (`forkcast.ranking`), and the record of the
branch says that no risk was available.
"""

from __future__ import annotations

from collections.abc import Iterable

from forkcast.decision import Candidate
from forkcast.records import Forecast


def abstain(candidates: Iterable[Candidate], reason: str) -> list[Forecast]:
    """One abstaining forecast a candidate, in order."""
    return [abstained(one.name, reason) for one in candidates]


def abstained(name: str, reason: str) -> Forecast:
    """A forecast without numbers."""
    return Forecast(
        candidate=name,
        loss=None,
        p_divergence=None,
        risk=None,
        recovery_steps=None,
        abstained=reason,
    )
