"""`python -m forkcast_wire.health_check TARGET...`: 0 where all of them answer that they serve.

Targets: http://HOST:PORT/PATH (any 2xx), grpc://HOST:PORT/SERVICE (health v1 in plain text). A
freshly installed Service takes a moment to have endpoints, so each target is asked until the
deadline.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_ONCE_SECONDS, _PAUSE_SECONDS = 5.0, 1.0


def ask(target: str) -> str:
    """Empty where the target serves, else what is wrong. Raises ValueError for another scheme."""
    url = urlsplit(target)
    if url.scheme == "http":
        return _http(target)
    if url.scheme == "grpc":
        return _grpc(url.netloc, url.path.strip("/"))
    raise ValueError(f"{target}: must begin with http:// or grpc://; correct it")


def _http(target: str) -> str:
    try:
        with urllib.request.urlopen(target, timeout=_ONCE_SECONDS):  # noqa: S310  checked by `ask`
            return ""
    except (urllib.error.URLError, OSError) as error:
        return str(error)


def _grpc(address: str, service: str) -> str:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_ONCE_SECONDS)
        except grpc.RpcError as error:
            return str(error.code())
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else f"status {answer.status}"


def main(arguments: list[str] | None = None) -> int:
    """0: all serve. 1: one does not. 2: a target is wrong."""
    parser = argparse.ArgumentParser(prog="forkcast_wire.health_check", description=__doc__)
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=60.0, help="deadline of each; 60")
    given = parser.parse_args(arguments)
    failed = False
    for target in given.targets:
        deadline = time.monotonic() + given.seconds
        try:
            while (wrong := ask(target)) and time.monotonic() < deadline:
                time.sleep(_PAUSE_SECONDS)
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        failed |= bool(wrong)
        sys.stdout.write(f"{target}: {wrong or 'serves'}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
