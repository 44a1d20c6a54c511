"""A real monitor process, and clients that speak to it as trainers and operators do."""

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest

from forkcast.records import StepStats
from forkcast_monitor.history import History
from forkcast_monitor.registration import Registration
from forkcast_monitor.run import WatchedRun
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.forkcast_pb2_grpc import MonitorStub

RULES = json.dumps({"window": 32, "warmupSteps": 40, "cooldownSteps": 30})


def statistics(uid, steps, seed=0, spike=None):
    """A falling, noisy loss; at ``spike`` it jumps for thirty steps, and the gradient norm with it."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(steps):
        departed = spike is not None and spike <= step < spike + 30
        high = 2.0 if departed else 0.0
        norm = math.exp(0.2 * rng.standard_normal()) * (4.0 if departed else 1.0)
        found.append(
            StepStats(
                run_uid=uid,
                epoch=0,
                attempt=0,
                rank=0,
                step=step,
                loss=3 + 2 * math.exp(-step / 100) + 0.1 * rng.standard_normal() + high,
                grad_norm=norm,
                grad_norm_clipped=min(norm, 1.0),
                learning_rate=1e-3,
                tokens=step * 64,
                attention_entropy=(0.6 + 0.01 * rng.standard_normal(),) if step % 10 == 0 else None,
            )
        )
    return found


def registration(uid, namespace="team", mode="Enforce", **more):
    given = {"uncertainty_json": RULES, "total_steps": 1000, **more}
    return pb.RegisterRunRequest(
        run_uid=uid, name=f"run-{uid}", namespace=namespace, mode=mode, **given
    )


def alone(folder, uid, rows):
    """What a monitor with this run alone makes of it: its triggers and its detector's state."""
    given = Registration(
        run_uid=uid, name="x", namespace="y", uncertainty=RULES, mode="Enforce", total_steps=0
    )
    run = WatchedRun(given.config(), uid, folder / "monitor", History(folder / "statistics"))
    run.hello(0, 0, 0, 1000)
    for one in rows:
        run.accept(one)
    run.close()
    return [one.id for one in run.triggers], newest_snapshot(folder / "monitor")


def newest_snapshot(folder):
    path = max((folder / "snapshots").glob("e*.json"))
    document = json.loads(path.read_bytes().partition(b"\n")[2])
    return {name: document[name] for name in ("step", "detector")}


#: What a trainer tries again after.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.FAILED_PRECONDITION,
)


class Process:
    """`python -m forkcast_monitor`; stopped by SIGTERM, or killed."""

    def __init__(self, folder, *arguments, environment=()):
        self.folder, self.arguments = folder, arguments
        self.environment = {**os.environ, **dict(environment)}
        self.process = None
        self.prefix = ()

    def start(self):
        self.log = (self.folder / "monitor.log").open("ab")
        command = [*self.prefix, sys.executable, "-m", "forkcast_monitor", *self.arguments]
        self.process = subprocess.Popen(
            command, cwd=self.folder, stderr=self.log, env=self.environment
        )
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process is not None:
            self.process.send_signal(number)
            code, self.process = self.process.wait(), None
            self.log.close()
            return code
        return None

    def kill(self):
        return self.stop(signal.SIGKILL)

    def logged(self):
        return (self.folder / "monitor.log").read_text()


@pytest.fixture
def start_monitor(tmp_path):
    """Starts `--state` monitors, by default on a Unix socket; ends them."""
    started = []

    def start(*arguments, listen=f"unix:{tmp_path}/m.sock", folder=tmp_path):
        one = Process(folder, "--state", "state", "--listen", listen, *arguments).start()
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def target(tmp_path):
    return f"unix:{tmp_path}/m.sock"


class Talker:
    """One run's trainer: sends its records in batches of changing size, resumes after a break."""

    def __init__(self, channel, uid, rows, seed=0):
        self.stub, self.uid, self.rows = MonitorStub(channel), uid, rows
        self.random = random.Random(seed)
        self.breaks = 0

    async def talk(self, until=None):
        """Until the monitor has all records up to ``until``, whatever happens to it."""
        end = len(self.rows) if until is None else until
        while True:
            try:
                return await self._once(end)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    raise
                self.breaks += 1
                await asyncio.sleep(0.02)

    async def _once(self, end):
        call = self.stub.Report(wait_for_ready=True)
        total = max(1000, len(self.rows))
        hello = pb.Hello(run_uid=self.uid, start_step=0, total_steps=total)
        await call.write(pb.StatsBatch(hello=hello))
        step, seq = (await answer(call)).resume_from, 0
        while step < end:
            size = self.random.randint(1, 20)
            seq += 1
            batch = [stats_to_wire(one) for one in self.rows[step : min(step + size, end)]]
            await call.write(pb.StatsBatch(seq=seq, stats=batch))
            while (await answer(call)).seq < seq:
                pass
            step += len(batch)
        await call.done_writing()
        with contextlib.suppress(asyncio.CancelledError):
            assert await call.read() is grpc.aio.EOF


async def answer(call):
    """The next ack. Raises AioRpcError where the stream has ended instead."""
    ack = await call.read()
    if ack is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), None, await call.details()
        )
    return ack


@pytest.fixture
def connect(target):
    """An aio channel and the stub on it, inside a running loop."""

    @contextlib.asynccontextmanager
    async def open_(where=target, **more):
        async with open_channel(where, aio=True, **more) as channel:
            yield channel, MonitorStub(channel)

    return open_
