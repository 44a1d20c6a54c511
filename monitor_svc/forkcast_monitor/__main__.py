"""`python -m forkcast_monitor`: serve one run until SIGTERM."""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import structlog
from prometheus_client import start_http_server

from forkcast_monitor import metrics
from forkcast_monitor.config import configure
from forkcast_monitor.history import History
from forkcast_monitor.run import WatchedRun
from forkcast_monitor.server import Monitor
from forkcast_wire import channel, crash, crash_calls
from forkcast_wire.documents import RunInfo, load
from forkcast_wire.forkcast_pb2_grpc import add_MonitorServicer_to_server
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.process import (
    alone,
    configure_logging,
    die_with_parent,
    stop_event_on_sigterm,
)

_THREADS = 64


def main() -> int:
    """0 after SIGTERM; the history is closed into Parquet."""
    parser = argparse.ArgumentParser(prog="forkcast_monitor", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="resolved manifest, JSON")
    parser.add_argument("--run", type=Path, default=Path("run.json"), help="the run's identity")
    parser.add_argument("--state-dir", type=Path, default=Path("monitor"))
    parser.add_argument("--statistics-dir", type=Path, default=Path("statistics"))
    parser.add_argument("--listen", required=True, help="gRPC address, e.g. unix:PATH")
    parser.add_argument("--metrics-port", type=int, default=0, help="Prometheus port; 0 = off")
    parser.add_argument("--tls", type=Path, help="folder of ca.crt, tls.crt, tls.key")
    parser.add_argument("--insecure-dev", action="store_true", help="plain text on a TCP port")
    parser.add_argument("--reflection", action="store_true", help="gRPC reflection")
    given = parser.parse_args()
    configure_logging("monitor")
    die_with_parent()
    stop = stop_event_on_sigterm()
    given.state_dir.mkdir(parents=True, exist_ok=True)
    if not alone(given.state_dir / "lock", stop):
        return 0
    manifest = TrainingRun.model_validate(json.loads(given.manifest.read_text()))
    info = load(RunInfo, given.run.read_bytes())
    history = History(given.statistics_dir)
    run = WatchedRun(configure(manifest.spec.uncertainty), info.uid, given.state_dir, history)
    server = grpc.server(
        ThreadPoolExecutor(_THREADS),
        interceptors=crash_calls.of_server(),
        options=channel.SERVER_OPTIONS,
    )
    add_MonitorServicer_to_server(Monitor(run, info.name), server)
    channel.add_health(server, ["forkcast.v1.Monitor"], reflect=given.reflection)
    channel.listen(server, given.listen, tls=given.tls, insecure_dev=given.insecure_dev)
    crash.reach("before-serving")
    server.start()
    if given.metrics_port:
        start_http_server(given.metrics_port, registry=metrics.REGISTRY)
    structlog.get_logger().info("monitor.serving", listen=given.listen)
    stop.wait()
    server.stop(grace=1).wait()
    run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
