"""What an error says, in one line."""

import pytest

from forkcast_wire.echo import first_line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no such file", "no such file"),
        ("a\nb", "a"),
        ("\n  a \nb", "a"),
        ("", "E"),
        (" \n\n", "E"),
    ],
)
def test_an_error_says_its_first_line_or_its_kind(text, said):
    """Regression: an error without a text ended its handler by an IndexError."""

    class E(Exception):
        pass

    assert first_line(E(text)) == said
