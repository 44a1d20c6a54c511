"""The operator under load: `python benchmarks/reconcile.py [--idle N] [--active N] [--json FILE]`.

A real API server with etcd and controllers, a real object store, monitor and proxy; pods run in
name. The variable CLUSTER names the command that starts the cluster. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import machine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reconcile.py", description="The operator under load.")
    parser.add_argument("--idle", type=int, default=200, help="runs that train and need nothing")
    parser.add_argument("--active", type=int, default=20, help="runs with a branch nearly always")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each phase")
    parser.add_argument("--json", type=Path, help="write rows and machine there")
    return parser.parse_args()


def main() -> int:
    """0; 1 where nothing could be measured: no cluster, or a part of it failed."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended
    machine.pin_threads()
    import structlog
    from figures import Row
    from loop import WIDTH, table
    from reconcile_load import Size, measure
    from rich.console import Console

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console, began, load = Console(), time.monotonic(), machine.load_average()
    if not console.is_terminal:
        console.width = WIDTH
    rows, failed = list[Row](), ""
    try:
        measure(Size(idle=given.idle, active=given.active, seconds=given.seconds), rows)
    except (OSError, RuntimeError) as error:  # NoClusterError, too
        failed = str(error)
        print(f"error: {failed}", file=sys.stderr)
    if not rows:
        return 1
    loads = {"start": load, "end": machine.load_average()}
    seconds, facts = time.monotonic() - began, machine.described()
    title = f"{facts['cpu']}, {facts['cores']} cores, load {loads['start']:.1f} to "
    console.print(table(rows, f"{title}{loads['end']:.1f}, {seconds:.0f} s"))
    if given.json:
        document = {
            "machine": facts,
            "load_average": loads,
            "idle": given.idle,
            "active": given.active,
            "phase_seconds": given.seconds,
            "seconds": seconds,
            "failed": failed,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
