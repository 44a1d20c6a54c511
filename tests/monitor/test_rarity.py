"""How unusual a value of volatility is, in words."""

import re

from forkcast_monitor.rarity import how_rare
from forkcast_monitor.signals.base import EVENT


def _rows(u: float) -> int:
    return int("".join(re.findall(r"\d", how_rare(u))))


def test_the_larger_a_value_the_rarer_it_is():
    rows = [_rows(u / 20) for u in range(32, 80)]
    assert rows == sorted(rows)


def test_an_event_is_about_one_in_a_hundred_thousand_rows():
    assert 80_000 <= _rows(EVENT) <= 200_000


def test_what_lies_outside_of_the_table_is_not_made_up():
    assert how_rare(0.5) == "nothing unusual"
    assert how_rare(8.0) == "about once in more than 1,000,000 healthy steps"
