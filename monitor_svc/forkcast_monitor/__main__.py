"""`python -m forkcast_monitor`: serve one run, or with --state any number, until SIGTERM."""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import argparse
import asyncio
import sys
from pathlib import Path

from forkcast_monitor import metrics
from forkcast_monitor.budget import RUN_DISK_BYTES
from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import WatchedRun
from forkcast_monitor.runs import Runs
from forkcast_monitor.server import Monitor
from forkcast_monitor.streams import Limits
from forkcast_wire import serving
from forkcast_wire.documents import RunInfo, load
from forkcast_wire.forkcast_pb2_grpc import add_MonitorServicer_to_server
from forkcast_wire.newer import read_resolved
from forkcast_wire.process import (
    alone,
    configure_logging,
    die_with_parent,
    raise_file_limit,
)

#: Of one batch.
RECEIVE_BYTES = 256 << 10
#: A thread that computes (a run being opened) gives way to the loop after this; Python's default is
#: ten times as long, and four such threads would stretch every turn of the loop to 20 ms.
_SWITCH_SECONDS = 0.0005


def main() -> int:
    """0 after SIGTERM; the histories are closed into Parquet. 2: the arguments are wrong."""
    parser = argparse.ArgumentParser(prog="forkcast_monitor", description=__doc__)
    one, many = parser.add_argument_group("one run"), parser.add_argument_group("many runs")
    one.add_argument("--manifest", type=Path, help="resolved manifest, JSON")
    one.add_argument("--registration", type=Path, help="of a run without a manifest, JSON")
    one.add_argument("--run", type=Path, default=Path("run.json"), help="the run's identity")
    one.add_argument("--state-dir", type=Path, default=Path("monitor"))
    one.add_argument("--statistics-dir", type=Path, default=Path("statistics"))
    many.add_argument("--state", type=Path, help="folder of all runs; they are registered by RPC")
    parser.add_argument(
        "--streams-per-peer", type=int, default=Limits().per_peer, help="of one address over TCP"
    )
    many.add_argument(
        "--run-disk-mib",
        type=int,
        default=RUN_DISK_BYTES >> 20,
        help="of one run's history, MiB; beyond it nothing more of the run is taken",
    )
    serving.add_arguments(parser, "forkcast-monitor")
    given = parser.parse_args()
    if sum(one is not None for one in (given.manifest, given.registration, given.state)) != 1:
        parser.error("give --manifest or --registration for one run, or --state for many")
    configure_logging("monitor")
    die_with_parent()
    raise_file_limit()
    sys.setswitchinterval(_SWITCH_SECONDS)
    stop = termination.stop_event_on_sigterm()
    folder = given.state or given.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not alone(folder / "lock", stop):
            return 0
        asyncio.run(_serve(given, stop))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(given: argparse.Namespace, stop: termination.Stop) -> None:
    runs = Runs(given.state, disk_bytes=given.run_disk_mib << 20)
    if given.state is None:
        runs.host(*_only(given))
    monitor = Monitor(runs, Limits(per_peer=given.streams_per_peer))
    service = serving.Service(
        name="forkcast.v1.Monitor",
        add=lambda server: add_MonitorServicer_to_server(monitor, server),
        registry=metrics.REGISTRY,
        refused=lambda reason: metrics.REFUSED.labels(reason).inc(),
        receive_bytes=RECEIVE_BYTES,
        drain=monitor.drain,
        expiry=metrics.EXPIRY,
    )
    try:
        await serving.serve_until(stop, serving.from_arguments(given), service)
    finally:
        await runs.close()


def _only(given: argparse.Namespace) -> tuple[Registration, WatchedRun]:
    """The run of a manifest or a registration. Raises ValueError, OSError."""
    if given.registration is not None:
        registration = load(Registration, given.registration.read_bytes())
    else:
        registration = _registered(given)
    history = History(given.statistics_dir)
    uid = registration.run_uid
    return registration, WatchedRun(registration.config(), uid, given.state_dir, history)


def _registered(given: argparse.Namespace) -> Registration:
    manifest = read_resolved(given.manifest.read_text())
    info = load(RunInfo, given.run.read_bytes())
    spec = manifest.spec
    return Registration(
        run_uid=info.uid,
        name=info.name,
        namespace=manifest.metadata.namespace or "",
        uncertainty=spec.uncertainty.model_dump_json(by_alias=True, exclude_none=True),
        mode=spec.branching.mode.value,
        total_steps=spec.training.total_steps,
    )


if __name__ == "__main__":
    termination.leave(main())
