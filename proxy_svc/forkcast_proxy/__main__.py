"""`python -m forkcast_proxy`: serve forecasts until SIGTERM."""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import argparse
import asyncio
import sys
from pathlib import Path

import structlog

from forkcast_proxy import metrics
from forkcast_proxy.server import SHIPPED, Proxy
from forkcast_wire import serving
from forkcast_wire.forkcast_pb2_grpc import add_ProxyServicer_to_server
from forkcast_wire.guard import Places
from forkcast_wire.process import configure_logging, die_with_parent, raise_file_limit

#: Of one request: a window of 65,536 steps fits no more than one of the shipped size needs to.
RECEIVE_BYTES = 4 << 20
#: A request in service takes some 50 MiB at most; nobody but an operator asks for forecasts.
PLACES = Places(at_once=4, waiting=64, operators_only=True)


def main() -> int:
    """0 after SIGTERM. 2: the arguments are wrong."""
    parser = argparse.ArgumentParser(prog="forkcast_proxy", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of a fitted model")
    serving.add_arguments(parser, "forkcast-proxy")
    given = parser.parse_args()
    configure_logging("proxy")
    die_with_parent()
    raise_file_limit()
    stop = termination.stop_event_on_sigterm()
    try:
        asyncio.run(_serve(given, stop))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(given: argparse.Namespace, stop: termination.Stop) -> None:
    proxy = Proxy(given.model)
    service = serving.Service(
        name="forkcast.v1.Proxy",
        add=lambda server: add_ProxyServicer_to_server(proxy, server),
        registry=metrics.REGISTRY,
        refused=lambda reason: metrics.REFUSED.labels(reason).inc(),
        receive_bytes=RECEIVE_BYTES,
        drain=proxy.drain,
        expiry=metrics.EXPIRY,
        places=PLACES,
    )
    structlog.get_logger().info("proxy.model", note=proxy.note)
    await serving.serve_until(stop, serving.from_arguments(given), service)


if __name__ == "__main__":
    termination.leave(main())
