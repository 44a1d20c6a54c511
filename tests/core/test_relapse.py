"""What came after a collapse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from forkcast.records import Trigger, TriggerRule
from forkcast.relapse import Aftermath, aftermaths

sys.path.insert(0, str(Path(__file__).parent))
from test_loan import entry

from tests import make

FIRST = entry(1, 0.8, base=100, end=200)


def trigger(epoch: int, step: int, rule: TriggerRule = TriggerRule.SINGLE) -> Trigger:
    return make.trigger(epoch=epoch, step=step, onset_step=step, rule=rule)


@pytest.mark.parametrize(
    ("after", "watched", "label"),
    [
        (500, 600, True),
        (501, 600, False),
        (None, 500, False),
        (None, 499, None),
        (3, 3, True),  # the run ended there
    ],
)
def test_labels(after, watched, label) -> None:
    one = Aftermath(epoch=1, watched=watched, relapsed_after=after)
    assert one.relapsed_within(500) is label


def test_only_a_departure_after_the_collapse_and_on_its_lineage_counts() -> None:
    triggers = [
        trigger(0, 150),
        trigger(0, 900),  # of the course that was left
        trigger(1, 300, TriggerRule.FORCED),
        trigger(1, 400, TriggerRule.CALM),
        trigger(1, 700),
        trigger(1, 800),
    ]
    expected = Aftermath(epoch=1, watched=1000, relapsed_after=500)
    assert aftermaths([FIRST], triggers, {0: 900, 1: 1200}) == (expected,)


def test_the_watch_goes_on_through_a_later_collapse_that_rests_on_it() -> None:
    loan = entry(2, 1.25, base=600, end=800)
    one, two = aftermaths([loan, FIRST], [trigger(2, 1000)], {1: 620, 2: 1500})
    assert (one.watched, one.relapsed_after) == (1300, 800)
    assert (two.watched, two.relapsed_after) == (700, 200)


def test_one_that_goes_back_behind_it_ends_the_watch() -> None:
    deeper = entry(2, 0.7, base=90, end=500)
    triggers = [trigger(2, 600)]
    one, two = aftermaths([FIRST, deeper], triggers, {1: 450, 2: 1500})
    assert (one.watched, one.relapsed_after) == (250, None)
    assert two.relapsed_after == 100


def test_an_epoch_without_steps_was_not_watched() -> None:
    assert aftermaths([FIRST], [], {0: 150})[0].relapsed_within(500) is None
