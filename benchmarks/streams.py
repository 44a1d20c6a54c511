"""Steps per second of one monitor over many runs, and what it costs.

    python benchmarks/streams.py --streams 500 --steps 100 --batch 10 [--unix] [--json FILE]

The monitor is a process of its own on 127.0.0.1 (or a Unix socket), the clients are one other process:
a stream for each run. CPU time is the monitor's, kernel included; on a machine with other work it says
more than the wall clock. Opening a run (registration, hello) is counted apart from its steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from api_server import free_port

from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.fields import MOST_STEPS
from forkcast_wire.forkcast_pb2_grpc import MonitorStub

_STREAMS_PER_CHANNEL = 100


def rows(steps: int) -> list[pb.StepStats]:
    """A falling, noisy loss."""
    rng = np.random.default_rng(0)
    return [
        pb.StepStats(
            step=step,
            loss=3 + 2 * float(np.exp(-step / 100)) + 0.1 * rng.standard_normal(),
            grad_norm=float(np.exp(0.2 * rng.standard_normal())),
            grad_norm_clipped=1.0,
            learning_rate=1e-3,
            tokens=step * 1024,
        )
        for step in range(steps)
    ]


class Trainer:
    """One run's stream."""

    def __init__(self, stub: MonitorStub, uid: str) -> None:
        self._call, self._uid = stub.Report(), uid

    async def hello(self) -> None:
        """Open the run."""
        hello = pb.Hello(run_uid=self._uid, total_steps=MOST_STEPS)
        await self._call.write(pb.StatsBatch(hello=hello))
        await self._call.read()

    async def report(self, made: list[pb.StepStats], size: int) -> list[float]:
        """Send it all, a batch after the ack of the one before; seconds from each batch to its ack."""
        waited = []
        for seq, start in enumerate(range(0, len(made), size), 1):
            batch = pb.StatsBatch(seq=seq, stats=made[start : start + size])
            for one in batch.stats:
                one.run_uid = self._uid
            before = time.perf_counter()
            await self._call.write(batch)
            await self._call.read()
            waited.append(time.perf_counter() - before)
        return waited

    def leave(self) -> None:
        """End the stream."""
        self._call.cancel()


def spent(pid: int) -> tuple[float, float]:
    """(CPU seconds, resident MB) of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, pages * os.sysconf("SC_PAGESIZE") / 1e6


async def measure(target: str, pid: int, streams: int, steps: int, size: int) -> dict[str, float]:
    """Everything that is printed."""
    channels = [open_channel(target, aio=True) for _ in range(-(-streams // _STREAMS_PER_CHANNEL))]
    stubs = [MonitorStub(one) for one in channels]
    for n in range(streams):
        asked = pb.RegisterRunRequest(
            run_uid=f"r{n}", name=f"r{n}", namespace="bench", mode="Observe"
        )
        await stubs[0].RegisterRun(asked, wait_for_ready=True)
    opening = spent(pid)[0]
    trainers = [Trainer(stubs[n % len(stubs)], f"r{n}") for n in range(streams)]
    await asyncio.gather(*(one.hello() for one in trainers))
    made = rows(steps)
    before, began = spent(pid)[0], time.perf_counter()
    waited = await asyncio.gather(*(one.report(made, size) for one in trainers))
    wall, (after, resident) = time.perf_counter() - began, spent(pid)
    delays = np.array([one for stream in waited for one in stream]) * 1e3
    for one in trainers:
        one.leave()
    for channel in channels:
        await channel.close()
    total, cpu = streams * steps, after - before
    return {
        "streams": streams,
        "steps": total,
        "batch": size,
        "messages": 2 * len(delays),
        "steps_per_second": round(total / wall),
        "steps_per_cpu_second": round(total / cpu),
        "cpu_us_per_step": round(cpu / total * 1e6, 1),
        "cpu_us_per_message": round(cpu / len(delays) / 2 * 1e6, 1),
        "cpu_ms_per_opening": round((before - opening) / streams * 1e3, 2),
        "ack_p50_ms": round(float(np.percentile(delays, 50)), 2),
        "ack_p99_ms": round(float(np.percentile(delays, 99)), 2),
        "resident_mb": round(resident),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100, help="of each stream")
    parser.add_argument("--batch", type=int, default=10, help="records of a batch")
    parser.add_argument("--unix", action="store_true", help="a Unix socket in place of TCP")
    parser.add_argument("--json", type=Path, help="also write it here")
    given = parser.parse_args()
    os.environ["FORKCAST_INSECURE_DEV"] = "1"  # the clients' too: it is this machine alone
    with tempfile.TemporaryDirectory() as folder:
        target = f"unix:{folder}/m.sock" if given.unix else f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "forkcast_monitor", "--state", f"{folder}/state"]
        command += ["--listen", target, "--streams-per-peer", str(given.streams), "--insecure-dev"]
        monitor = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            found = asyncio.run(
                measure(target, monitor.pid, given.streams, given.steps, given.batch)
            )
        finally:
            monitor.kill()
            monitor.wait()
    print(json.dumps(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
