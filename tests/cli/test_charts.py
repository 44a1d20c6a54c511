"""Charts: what of a curve is drawn, and how its axes are written."""

import re

import pytest

from forkcast_cli.charts import Chart, Line, svg, within


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([(0, 1), (1, 2)], [[(0, 1), (1, 2)]]),
        ([(0, 9), (1, 9), (2, 1)], [[(1.75, 3), (2, 1)]]),
        ([(0, 1), (2, 5), (3, 5), (5, 1)], [[(0, 1), (1, 3)], [(4, 3), (5, 1)]]),
        ([(0, 9), (1, 9)], []),
        ([(0, -1), (4, 7)], [[(0.5, 0), (2, 3)]]),
        ([(0, 3), (1, 3)], [[(0, 3), (1, 3)]]),
        ([], []),
    ],
)
def test_a_curve_ends_at_the_edge_through_which_it_leaves(points, wanted):
    """Regression: it went on along the edge, as if the loss had been level there."""
    assert within(points, 0, 3) == wanted


def test_steps_on_an_axis_are_written_as_in_the_text():
    """Regression: 1e+06."""
    chart = Chart(lines=[Line(points=[(0, 0.5), (2_000_000, 2.5)], style="main")])
    ticks = re.findall(r'class="tick"[^>]*>([^<]+)<', svg(chart))
    assert "1,000,000" in ticks
    assert not any("e+" in tick for tick in ticks)
