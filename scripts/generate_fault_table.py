"""Writes the fault table into docs/faults.md, from tests/faults/table.yaml. --check: fails if the page is
not what it would write, if a row names a test that does not exist, or has neither tests nor a reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_ROOT = Path(__file__).parents[1]
_TABLE = _ROOT / "tests" / "faults" / "table.yaml"
_PAGE = _ROOT / "docs" / "faults.md"
_BEGIN, _END = "<!-- fault table: begin -->\n", "<!-- fault table: end -->\n"


@cache
def tests_of(file: str) -> frozenset[str]:
    """The names of a test file's tests, without `test_`. Raises FileNotFoundError."""
    tree = ast.parse((_ROOT / "tests" / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in ast.walk(tree) if isinstance(node, functions)]
    return frozenset(name.removeprefix("test_") for name in names if name.startswith("test_"))


def faults_of(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the table, a line each."""
    found = []
    for row, fields in (item for rows in parts.values() for item in rows.items()):
        if not fields["tests"] and not fields.get("why"):
            found.append(f"{row}: neither tests nor a reason (`why`)")
        for name in fields["tests"]:
            file, _, test = name.partition("::")
            if not (_ROOT / "tests" / file).is_file() or test not in tests_of(file):
                found.append(f"{row}: no test {name}")
    return found


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    lines = []
    for part, rows in parts.items():
        lines += [
            f"### {part.capitalize()}",
            "| | fault | what holds | tests |",
            "|---|---|---|---|",
        ]
        for row, fields in rows.items():
            tests = "<br>".join(
                f"`{file}`: {test.replace('_', ' ')}"
                for file, _, test in (name.partition("::") for name in fields["tests"])
            )
            shown = tests or f"none: {fields.get('why', '')}"
            lines.append(f"| {row} | {fields['fault']} | {fields['holds']} | {shown} |")
        lines.append("")
    rows = [fields for part in parts.values() for fields in part.values()]
    tested = sum(bool(fields["tests"]) for fields in rows)
    return "\n".join([f"{len(rows)} faults, {tested} with tests.", "", *lines])


def main() -> int:
    """Write the page, or check it."""
    parts = yaml.safe_load(_TABLE.read_text())
    if wrong := faults_of(parts):
        sys.stderr.write("\n".join([*wrong, ""]))
        return 1
    page = _PAGE.read_text()
    pattern = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    written = pattern.sub(lambda _: _BEGIN + table(parts) + _END, page)
    if "--check" not in sys.argv:
        _PAGE.write_text(written)
    elif written != page:
        sys.stderr.write(
            f"{_PAGE.relative_to(_ROOT)} is not up to date: run {Path(__file__).name}\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
