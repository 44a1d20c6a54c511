"""What the loop costs on this machine: `python benchmarks/loop.py [--only A,B] [--json FILE]`.

Seven sections, each in its own module; all in one run, on one thread a process, in under ten minutes
on two cores. Ratios hold beyond this machine; absolute times do not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import grpc
import machine
import structlog
from figures import Row
from rich.console import Console
from rich.table import Table

#: Section -> module with ``measure(scale) -> list[Row]``, in the order of the table.
SECTIONS = {
    "observation": "observation",
    "stream": "stream",
    "detector": "detector",
    "checkpoint": "checkpoints",
    "proxy": "ranking",
    "decision": "decision",
    "store": "store_requests",
}

#: Of the table where it goes to a file or a pipe.
WIDTH = 150


def measured(section: str, scale: float) -> list[Row]:
    """The rows of one section. Its module is imported here: threads must be pinned before."""
    rows: list[Row] = importlib.import_module(SECTIONS[section]).measure(scale)
    return rows


def table(rows: list[Row], title: str) -> Table:
    """All rows, one line each."""
    made = Table(title=title, title_justify="left")
    for name in ("section", "what"):
        made.add_column(name)
    for name in ("value", "ratio"):
        made.add_column(name, justify="right")
    made.add_column("against, note")
    before = ""
    for row in rows:
        ratio = "" if row.ratio is None else f"x{row.ratio:.3g}"
        said = "; ".join(part for part in (row.against, row.note) if part)
        shown = row.section if row.section != before else ""
        made.add_row(shown, row.name, f"{_number(row.value)} {row.unit}", ratio, said)
        before = row.section
    return made


def _number(value: float) -> str:
    """Three significant digits, thousands whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> int:
    """0; 1 where a section failed (the others are shown); 2 for an unknown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, help="write rows and machine there")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="repetitions; below 1 only to try it out"
    )
    given = parser.parse_args()
    chosen = [name for name in given.only.split(",") if name] or list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        print(f"error: --only: {unknown[0]} is not one of {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended
    machine.pin_threads()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console, started, rows = Console(), time.monotonic(), []
    if not console.is_terminal:
        console.width = WIDTH
    loads, failed = {"start": machine.load_average()}, dict[str, str]()
    for section in chosen:
        before = time.monotonic()
        try:
            with console.status(f"{section} ..."):
                rows += measured(section, given.scale)
        except (OSError, RuntimeError, grpc.RpcError) as error:
            failed[section] = f"{type(error).__name__}: {error}"
            console.print(f"[red]{section} failed: {failed[section]}")
        loads[section] = machine.load_average()
        console.print(f"{section}: {time.monotonic() - before:.0f} s, load {loads[section]:.2f}")
    seconds = time.monotonic() - started
    facts = machine.described()
    title = f"{facts['cpu']}, {facts['cores']} cores, load {min(loads.values()):.1f} to "
    console.print(table(rows, title + f"{max(loads.values()):.1f}, {seconds:.0f} s"))
    if given.json:
        document = {
            "machine": facts,
            "load_average": loads,
            "scale": given.scale,
            "seconds": seconds,
            "failed": failed,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
