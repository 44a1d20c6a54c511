"""Tables of cases, each with the tests that show it: what happens, what holds, by which tests."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

_TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """part: the heading it stands under. why: the reason if there is no test."""

    part: str
    name: str
    what: str
    holds: str
    tests: tuple[tuple[str, str], ...]
    why: str = ""

    def node_ids(self) -> list[str]:
        """Its tests as pytest takes them, from the root of the tree."""
        return [f"tests/{file}::test_{test}" for file, test in self.tests]


def read(path: Path) -> list[Case]:
    """The cases of a table: {part: {name: {what, holds, tests: [file::test, ...], why}}}."""
    return [
        Case(
            part=part,
            name=name,
            what=row["what"],
            holds=row.get("holds", ""),
            tests=tuple(tuple(one.split("::")) for one in row.get("tests", [])),
            why=row.get("why", ""),
        )
        for part, rows in yaml.safe_load(path.read_text()).items()
        for name, row in rows.items()
    ]


@cache
def _tests_of(file: str) -> frozenset[str]:
    tree = ast.parse((_TESTS / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in ast.walk(tree) if isinstance(node, functions)]
    return frozenset(name.removeprefix("test_") for name in names if name.startswith("test_"))


def wrong(cases: Iterable[Case]) -> list[str]:
    """What is wrong with a table, a line each: no test and no reason, or a test that is not there."""
    found = []
    for case in cases:
        if not case.tests and not case.why:
            found.append(f"{case.name}: neither tests nor a reason (`why`)")
        for file, test in case.tests:
            if not (_TESTS / file).is_file() or test not in _tests_of(file):
                found.append(f"{case.name}: no test {file}::{test}")
    return found
