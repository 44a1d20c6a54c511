"""A Monitor that only acknowledges: what a statistics stream costs where nothing is done with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from forkcast_wire import channel
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.forkcast_pb2_grpc import MonitorServicer, add_MonitorServicer_to_server
from forkcast_wire.process import die_with_parent
from forkcast_wire.termination import stop_event_on_sigterm

_CREDIT = 16


class Acknowledging(MonitorServicer):  # type: ignore[misc]  # generated code is untyped
    """Parses every batch, answers it, forgets it."""

    def Report(  # noqa: N802
        self, request_iterator: Iterator[pb.StatsBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.Ack]:
        """One ack a batch."""
        del context
        for batch in request_iterator:
            ack = pb.Ack(seq=batch.seq, credit=_CREDIT)
            if batch.HasField("hello"):
                ack.resume_from = batch.hello.start_step
            yield ack


def main() -> int:
    """0 after SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, help="gRPC address, e.g. unix:PATH")
    given = parser.parse_args()
    die_with_parent()
    stop = stop_event_on_sigterm()
    server = grpc.server(ThreadPoolExecutor(4), options=channel.SERVER_OPTIONS)
    add_MonitorServicer_to_server(Acknowledging(), server)
    channel.listen(server, given.listen)
    server.start()
    stop.wait()
    server.stop(grace=0).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
