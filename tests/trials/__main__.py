"""`python -m tests.trials [--list] [NAME ...]`: replays what trials of the product once broke, case by case.

Each case is a command, a file or an attack that somebody tried, and names the tests that carry it out;
they run once, and the cases are told one a line. Without names: all cases. With --list nothing runs:
each case with its tests, or with the reason why it has none.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.case_tables import Case, read, wrong

_TABLE = Path(__file__).with_name("table.yaml")


class Outcomes:
    """What became of each test, by the name it has without its parameters."""

    def __init__(self) -> None:
        self.of: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for every phase of every test."""
        name = report.nodeid.partition("[")[0].partition("@")[0]
        if report.failed:
            self.of[name].add("failed")
        elif report.skipped:
            self.of[name].add("skipped")
        elif report.when == "call":
            self.of[name].add("passed")

    def told(self, case: Case) -> str:
        """One word."""
        if not case.tests:
            return "no test"
        seen = [self.of[node] for node in case.node_ids()]
        if any("failed" in one for one in seen):
            return "FAILED"
        if not all("passed" in one for one in seen):
            return "not run"
        return "ok"


def main(arguments: list[str]) -> int:
    """0 if no case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.trials", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a case of table.yaml")
    parser.add_argument("--list", action="store_true", help="run nothing")
    given = parser.parse_args(arguments)
    names = given.names
    cases = read(_TABLE)
    if faults := wrong(cases):
        sys.stderr.write("\n".join([*faults, ""]))
        return 2
    if unknown := set(names) - {case.name for case in cases}:
        sys.stderr.write(f"no such case: {', '.join(sorted(unknown))}\n")
        return 2
    wanted = [case for case in cases if not names or case.name in names]
    if given.list:
        for case in wanted:
            lines = case.node_ids() or [f"no test: {case.why}"]
            sys.stdout.write("\n    ".join([f"{case.name}  {case.what}", *lines]) + "\n")
        return 0
    nodes = list(dict.fromkeys(node for case in wanted for node in case.node_ids()))
    outcomes = Outcomes()
    code = pytest.main(["-n", "2", "--dist", "loadfile", "-m", "", *nodes], plugins=[outcomes])
    width = max(len(case.name) for case in wanted)
    for case in wanted:
        word = outcomes.told(case)
        reason = f"  ({case.why})" if case.why else ""
        sys.stdout.write(f"{case.name:{width}}  {word:8}{case.what}{reason}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
