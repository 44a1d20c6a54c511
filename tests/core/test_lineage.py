"""The lineage log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forkcast.actions import Action
from forkcast.lineage import LineageEntry, head, key
from forkcast.records import StateKind, StateRef

STATE = StateRef(
    key="s", kind=StateKind.ROLLOUT, epoch=0, attempt=0, step=9, digest="d", size_bytes=1
)
FIRST = LineageEntry(
    epoch=1,
    run_uid="u",
    branch="b",
    decision_digest="d",
    action=Action(),
    state=STATE,
    base_step=5,
    trigger_step=7,
)


def test_the_head_is_the_highest_epoch_in_any_order() -> None:
    second = replace(FIRST, epoch=2)
    assert head([]) is None
    assert head([second, FIRST]) == second


@pytest.mark.parametrize("epochs", [(2,), (1, 3), (1, 1), (0, 1)])
def test_a_gap_or_a_repeated_epoch_is_damage(epochs) -> None:
    with pytest.raises(ValueError, match="lineage"):
        head([replace(FIRST, epoch=epoch) for epoch in epochs])


def test_keys() -> None:
    assert key(3) == "lineage/3.json"
