"""`python -m forkcast_proxy`: serve forecasts until SIGTERM."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import structlog

from forkcast_proxy.server import SHIPPED, Proxy
from forkcast_wire import channel, crash, crash_calls
from forkcast_wire.forkcast_pb2_grpc import add_ProxyServicer_to_server
from forkcast_wire.process import configure_logging, die_with_parent, stop_event_on_sigterm


def main() -> int:
    """0 after SIGTERM."""
    parser = argparse.ArgumentParser(prog="forkcast_proxy", description=__doc__)
    parser.add_argument("--listen", required=True, help="gRPC address, e.g. unix:PATH")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of a fitted model")
    parser.add_argument("--tls", type=Path, help="folder of ca.crt, tls.crt, tls.key")
    parser.add_argument("--insecure-dev", action="store_true", help="plain text on a TCP port")
    given = parser.parse_args()
    configure_logging("proxy")
    die_with_parent()
    stop = stop_event_on_sigterm()
    server = grpc.server(
        ThreadPoolExecutor(4),
        interceptors=crash_calls.of_server(),
        options=channel.SERVER_OPTIONS,
    )
    proxy = Proxy(given.model)
    add_ProxyServicer_to_server(proxy, server)
    channel.add_health(server, ["forkcast.v1.Proxy"])
    channel.listen(server, given.listen, tls=given.tls, insecure_dev=given.insecure_dev)
    crash.reach("before-serving")
    server.start()
    structlog.get_logger().info("proxy.serving", listen=given.listen, note=proxy.note)
    stop.wait()
    server.stop(grace=1).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
