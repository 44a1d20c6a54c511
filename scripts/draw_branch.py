"""Draws the branch machine's moves as a Mermaid diagram in docs/concepts.md, from MOVES itself.

``python scripts/draw_branch.py`` writes it, with ``--check`` it only says whether it is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from forkcast.phases import MOVES

PAGE = Path(__file__).parents[1] / "docs/concepts.md"
BEGIN, END = "<!-- branch machine: scripts/draw_branch.py -->\n", "<!-- end -->\n"


def diagram() -> str:
    """The moves, phase to phase, in the order of the table."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(MOVES)).__name__}"]
    for phase, following in MOVES.items():
        lines += [f"    {phase.__name__} --> {one.__name__}" for one in following]
        lines += [] if following else [f"    {phase.__name__} --> [*]"]
    return "\n".join([*lines, "```", ""])


def drawn(page: str) -> str:
    """The page with the diagram of today. Raises ValueError if its place is not marked."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: no place for the diagram: {BEGIN.strip()} ... {END.strip()}")
    return before + begin + diagram() + end + after


def main() -> int:
    """0 where the page is up to date or was written, 1 where ``--check`` finds it is not."""
    page = PAGE.read_text()
    if "--check" in sys.argv[1:]:
        return int(drawn(page) != page)
    PAGE.write_text(drawn(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
