"""`python -m tests.faults`: writes the fault table into docs/faults.md, from table.yaml beside this file.
`--check`: fails if the page is not what it would write, if a row names a test that does not exist, or has
neither tests nor a reason.
"""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

from tests.case_tables import Case, read, wrong

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "faults.md"
_BEGIN, _END = "<!-- fault table: begin -->\n", "<!-- fault table: end -->\n"


def table(cases: list[Case]) -> str:
    """The table as Markdown."""
    tested = sum(bool(case.tests) for case in cases)
    lines = [f"{len(cases)} faults, {tested} with tests; the rest say why they have none.", ""]
    for part, rows in groupby(cases, lambda case: case.part):
        lines += [
            f"### {part.capitalize()}",
            "| | fault | what holds | tests |",
            "|---|---|---|---|",
        ]
        for case in rows:
            shown = "<br>".join(f"`{file}`: {test.replace('_', ' ')}" for file, test in case.tests)
            lines.append(
                f"| {case.name} | {case.what} | {case.holds} | {shown or f'none: {case.why}'} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write the page, or check it."""
    cases = read(Path(__file__).with_name("table.yaml"))
    if faults := wrong(cases):
        sys.stderr.write("\n".join([*faults, ""]))
        return 1
    page = _PAGE.read_text()
    pattern = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    written, places = pattern.subn(lambda _: _BEGIN + table(cases) + _END, page)
    if places != 1:
        where = _PAGE.relative_to(_ROOT)
        sys.stderr.write(f"{where}: {places} places for the table; mark one by {_BEGIN}{_END}")
        return 1
    if "--check" not in sys.argv:
        _PAGE.write_text(written)
    elif written != page:
        sys.stderr.write(f"{_PAGE.relative_to(_ROOT)}: run python -m tests.faults\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
