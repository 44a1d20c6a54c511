"""The shipped margins are sane: known kinds, never under the floor, never falling with the rung."""

import pytest

from forkcast.acceptance import DEFAULT_MARGINS, UNKNOWN_MARGIN, AcceptanceRules
from forkcast.actions import Lattice

KINDS = {action.kind for action in Lattice().actions()}


@pytest.mark.parametrize("kind", sorted(DEFAULT_MARGINS))
def test_a_margin_never_lies_under_the_floor_nor_falls_with_the_rung(kind):
    rules = AcceptanceRules()
    margins = [rules.margin(kind, rung) for rung in (10, 25, 50, 100, 199, 200, 2000)]
    assert kind in KINDS
    assert min(margins) >= UNKNOWN_MARGIN
    assert margins == sorted(margins)
    assert max(margins) < 0.2  # beyond that nothing would ever be accepted


def test_the_manifests_margin_holds_only_where_the_table_is_silent():
    rules = AcceptanceRules(unknown_margin=0.5)
    assert rules.margin("clipping", 50) == 0.5
    assert rules.margin("lower-rate", 25) == 0.5
    assert rules.margin("lower-rate", 50) == DEFAULT_MARGINS["lower-rate"][50]
