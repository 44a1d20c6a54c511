"""The tables of faults and of trials name tests that exist: one that is renamed takes its row along."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.case_tables import read, wrong


@pytest.mark.parametrize("table", ["faults", "trials"])
def test_every_case_has_tests_that_exist_or_a_reason(table):
    cases = read(Path(__file__).parent / table / "table.yaml")
    assert cases
    assert wrong(cases) == []
