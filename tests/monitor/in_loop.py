"""A monitor in the test's own loop, so that a turn of it can be counted."""

import contextlib

import grpc
import pytest
from prometheus_client import CollectorRegistry, Gauge

from forkcast_monitor.__main__ import RECEIVE_BYTES
from forkcast_monitor.runs import Runs
from forkcast_monitor.server import Monitor
from forkcast_monitor.streams import Limits
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.forkcast_pb2_grpc import add_MonitorServicer_to_server
from forkcast_wire.serving import Running, Service, Serving

from .conftest import answer


def serving(listen, **more):
    given = {
        "listen": listen,
        "tls": None,
        "auth": "mtls",
        "operators": frozenset(),
        "trust_domain": "cluster.local",
        "audience": "",
        "review": None,
        "insecure_dev": True,
        "health_port": 0,
        "metrics_port": 0,
        "reflection": False,
        **more,
    }
    return Serving(**given)


@contextlib.asynccontextmanager
async def served(folder, listen=None, **limits):
    """A monitor in this loop: (its runs, a function that opens a stub)."""
    runs = Runs(folder / "state")
    monitor = Monitor(runs, Limits(**limits))
    service = Service(
        name="forkcast.v1.Monitor",
        add=lambda server: add_MonitorServicer_to_server(monitor, server),
        registry=CollectorRegistry(),
        refused=lambda _: None,
        receive_bytes=RECEIVE_BYTES,
        drain=monitor.drain,
        expiry=Gauge("expiry", "of certificates", ["file"], registry=None),
    )
    channels = []
    async with Running(serving(listen or f"unix:{folder}/m.sock"), service) as running:
        target = f"127.0.0.1:{running.port}" if listen else f"unix:{folder}/m.sock"

        def connect():
            channels.append(open_channel(target, aio=True, insecure_dev=True))
            return channels[-1]

        yield runs, connect
        for one in channels:
            await one.close()
    await runs.close()


@contextlib.asynccontextmanager
async def listening(monitor, target):
    """Any monitor at a Unix socket: a channel to it."""
    server = grpc.aio.server()
    add_MonitorServicer_to_server(monitor, server)
    server.add_insecure_port(target)
    await server.start()
    async with open_channel(target, aio=True) as channel:
        yield channel
    await server.stop(None)


async def hello(stub, uid):
    call = stub.Report()
    await call.write(pb.StatsBatch(hello=pb.Hello(run_uid=uid)))
    await answer(call)
    return call


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer(call)
    return refused.value.code().name
