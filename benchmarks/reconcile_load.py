"""The phases of the operator's benchmark: start, idle, active, takeover; and what they cost."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import kubernetes.aio.client as kube
import served
from api_server import ApiServer, Calls, started
from figures import Row
from kubernetes.aio.config import load_kube_config
from reconcile_hands import Hands, Pace, Trainer
from reconcile_process import (
    Figures,
    ObjectStore,
    Operator,
    histogram_quantile,
    write_configuration,
)

from forkcast_operator.kubernetes.config import OperatorConfig, load_config
from forkcast_operator.kubernetes.run import Run, store_place
from forkcast_wire.channel import open_channel
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.store import open_store

_NAMESPACE = "load"
_WAIT_SECONDS = 600.0
_SAMPLE_SECONDS, _LOOK_SECONDS = 1.0, 0.2
#: To the monitor: a server takes only so many calls over one connection.
_CHANNELS = 20
_IDLE = Pace(steps_per_second=0.5)
_ACTIVE = Pace(steps_per_second=10.0, ring_every=50, save_every=500)
#: A trigger so often; the active trainers' pace makes that every 20 seconds.
_FORCE_EVERY = 200
_WRITES = {"create", "update", "patch", "delete"}
_SECONDS_OF_A_WRITE = 30.0


@dataclass
class Phase:
    """What was measured between two moments."""

    name: str
    runs: int
    before: Figures
    cpu_before: float
    after: Figures = field(default_factory=lambda: Figures(0.0))
    cpu_seconds: float = 0.0
    resident_mb: list[float] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.after.at - self.before.at


@dataclass(frozen=True)
class Size:
    """How much is measured. seconds: of a phase."""

    idle: int = 200
    active: int = 20
    seconds: float = 120.0


def _spec(name: str, *, active: bool) -> dict[str, object]:
    """A run's manifest. Statistics trigger nothing: only the manifest does, where it is active."""
    trigger = {"z": "1000", "singleZ": "1000", "forceEverySteps": _FORCE_EVERY if active else 0}
    return {
        "apiVersion": "forkcast.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": _NAMESPACE},
        "spec": {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": 1_000_000},
            "uncertainty": {"trigger": trigger, "warmupSteps": 20, "cooldownSteps": 0},
            "branching": {
                "maxConcurrentRollouts": 7,
                "budget": {"maxBranches": 10_000, "maxPerHundredThousandSteps": 100_000},
            },
        },
    }


class Load:
    """A cluster with everything on it but the operator."""

    def __init__(
        self, server: ApiServer, folder: Path, hands: Hands, config: OperatorConfig
    ) -> None:
        self.server, self.folder, self.hands, self._config = server, folder, hands, config
        self.kubeconfig = folder / "operator.kubeconfig"
        self.user = server.access_as(_NAMESPACE, "operator", self.kubeconfig)

    async def create(self, count: int, *, active: bool) -> None:
        """That many runs, each with a trainer that waits for its pod."""
        word = "active" if active else "idle"
        bodies = [_spec(f"{word}-{number:03d}", active=active) for number in range(count)]
        listed = {"apiVersion": "v1", "kind": "List", "items": bodies}
        await asyncio.to_thread(self.server.kubectl, "create", "-f", "-", given=json.dumps(listed))
        shown = await asyncio.to_thread(
            self.server.kubectl, "get", "trun", "-n", _NAMESPACE, "-o", "json"
        )
        for body in json.loads(shown)["items"]:
            run = Run.of(body)
            if run.name in self.hands.trainers:
                continue
            store = None
            if active:
                place = store_place(run, run.parsed(), self._config)
                store = await asyncio.to_thread(open_store, place.operator, self.folder)
            self.hands.trainers[run.name] = Trainer(
                run.uid, store, _ACTIVE if active else _IDLE, run.parsed().training.total_steps
            )

    def operator(self, name: str) -> Operator:
        """Start an operator."""
        return Operator(name, self.folder, _NAMESPACE, self.kubeconfig)

    async def phase(self, name: str, operator: Operator, seconds: float) -> Phase:
        """Watch the operator for so long."""
        made = Phase(name, len(self.hands.trainers), operator.scrape(), operator.cpu_seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(_SAMPLE_SECONDS)
            made.resident_mb.append(operator.resident_mb)
        print(f"{name}: measured for {seconds:.0f} s", file=sys.stderr, flush=True)
        made.cpu_seconds = operator.cpu_seconds - made.cpu_before
        made.after = await asyncio.to_thread(operator.scrape)
        made.calls = await asyncio.to_thread(
            self.server.calls, self.user, made.before.at, made.after.at
        )
        return made


@contextmanager
def _services(folder: Path) -> Iterator[tuple[served.Served, served.Served]]:
    """The real monitor and the real proxy."""
    monitor = served.Served(
        folder / "m", ["-m", "forkcast_monitor", "--state", "state", "--insecure-dev"]
    )
    try:
        proxy = served.Served(folder / "p", ["-m", "forkcast_proxy", "--insecure-dev"])
        try:
            yield monitor, proxy
        finally:
            proxy.close()
    finally:
        monitor.close()


@asynccontextmanager
async def _loaded(server: ApiServer, folder: Path) -> AsyncIterator[Load]:
    server.kubectl("create", "namespace", _NAMESPACE)
    store = ObjectStore(server, folder / "s3")
    try:
        with _services(folder) as (monitor, proxy):
            write_configuration(folder, store, monitor.target, proxy.target)
            await load_kube_config(config_file=server.environment["KUBECONFIG"])
            channels = [open_channel(monitor.target, aio=True) for _ in range(_CHANNELS)]
            async with kube.ApiClient() as client:
                stubs = [MonitorStub(one) for one in channels]
                hands = Hands(kube.CoreV1Api(client), _NAMESPACE, stubs)
                config = load_config(folder / "operator.yaml")
                load = await asyncio.to_thread(Load, server, folder, hands, config)
                kubelet = asyncio.create_task(hands.kubelet(), name="kubelet")
                kubelet.add_done_callback(hands.ended)
                try:
                    yield load
                finally:
                    kubelet.cancel()
                    await asyncio.wait({kubelet})
                    for one in channels:
                        await one.close()
    finally:
        store.close()


async def _until(hands: Hands, holds: Callable[[], bool], what: str) -> float:
    """How long it took, seconds. Raises TimeoutError; RuntimeError where the hands fail meanwhile."""
    began = time.monotonic()
    while not await asyncio.to_thread(holds):
        hands.check()
        if time.monotonic() - began > _WAIT_SECONDS:
            raise TimeoutError(f"{what}: not within {_WAIT_SECONDS:.0f} s")
        await asyncio.sleep(_LOOK_SECONDS)
    took = time.monotonic() - began
    print(f"{what}: {took:.1f} s", file=sys.stderr, flush=True)
    return took


async def _play(load: Load, size: Size, rows: list[Row]) -> None:
    """All phases; what was measured before one fails stays in ``rows``."""
    operators = [load.operator("first")]
    try:
        await _phases(load, size, rows, operators)
    finally:
        for one in operators:
            one.kill()
            _complain(one)
    load.hands.check()


async def _phases(load: Load, size: Size, rows: list[Row], operators: list[Operator]) -> None:
    hands, (first,), count = load.hands, operators, size.idle
    ready = await _until(hands, first.ready, "caches filled")
    empty = first.resident_mb
    await load.create(count, active=False)
    begun = time.monotonic()
    await _until(hands, lambda: first.runs() == count, f"all {count} runs seen")
    seen = time.monotonic() - begun
    await _until(hands, lambda: hands.running == count, f"all {count} trainers started")
    everything = time.monotonic() - begun
    await _until(hands, lambda: _state(first, "Running") == count, "all runs Running")
    rows += [
        _row("start", "caches filled", ready, "s"),
        _row("start", f"all {count} new runs seen", seen, "s", "from the last one's creation"),
        _row("start", f"all {count} trainers made, their pods running", everything, "s"),
    ]
    rows += _rows(await load.phase("idle", first, size.seconds), empty)
    await load.create(size.active, active=True)
    await _until(hands, lambda: _opened(first) >= size.active, f"{size.active} branches")
    measured = hands.rungs
    active = await load.phase("active", first, size.seconds)
    rows += _rows(active, empty)
    note = f"{hands.rungs - measured} rungs measured"
    rows.append(_row("active", "branches ended", _ended(active), "", note))
    standby = load.operator("standby")
    operators.append(standby)
    await _until(hands, standby.ready, "a standby is ready")
    first.kill()
    dead, every = time.monotonic(), count + size.active
    await _until(hands, lambda: standby.scrape().sum("forkcast_operator_leader") == 1, "it leads")
    rows.append(
        _row("takeover", "after SIGKILL a standby leads", time.monotonic() - dead, "s", "goal 20 s")
    )
    await _until(hands, lambda: standby.runs() == every, f"it has seen all {every} runs")
    rows.append(_row("takeover", f"and has seen all {every} runs", time.monotonic() - dead, "s"))


def _complain(operator: Operator) -> None:
    said = operator.log.read_text()
    if "Traceback" in said:
        print(said[said.index("Traceback") :][:2000], file=sys.stderr)


def _state(operator: Operator, state: str) -> int:
    return int(operator.scrape().sum("forkcast_operator_runs", state=state))


def _opened(operator: Operator) -> float:
    """Branches that are open or have ended."""
    figures = operator.scrape()
    active = figures.sum("forkcast_operator_branches_active")
    return active + figures.sum("forkcast_operator_branches_total")


def _ended(phase: Phase) -> float:
    name = "forkcast_operator_branches_total"
    return phase.after.sum(name) - phase.before.sum(name)


def _row(section: str, name: str, value: float, unit: str, note: str = "") -> Row:
    return Row(section=section, name=name, value=value, unit=unit, note=note)


def _rows(phase: Phase, empty_mb: float) -> list[Row]:
    """Latency, memory, CPU and calls of one phase."""
    name, rows = "forkcast_operator_reconcile_seconds", []
    for kind in ("TrainingRun", "Branch"):
        before, after = phase.before.buckets(name, kind=kind), phase.after.buckets(name, kind=kind)
        passes = after.get(float("inf"), 0.0) - before.get(float("inf"), 0.0)
        if not passes:
            continue
        for q in (0.5, 0.99):
            value = histogram_quantile(before, after, q)
            note = f"{passes:,.0f} passes" + ("; goal 1 s" if q > 0.5 else "")
            rows.append(_row(phase.name, f"reconcile {kind}, p{q * 100:.0f}", value, "s", note))
    errors = "forkcast_operator_reconcile_errors_total"
    failed = phase.after.sum(errors) - phase.before.sum(errors)
    rows.append(_row(phase.name, "passes that failed", failed, ""))
    most = max(phase.resident_mb)
    each = (most - empty_mb) / phase.runs * 1000
    note = f"{empty_mb:.0f} MB without runs, {each:.0f} kB a run; goal 250 MB at 1,000 runs"
    rows.append(_row(phase.name, "memory, RSS", most, "MB", note))
    rows.append(_row(phase.name, "CPU", phase.cpu_seconds / phase.seconds, "cores"))
    passes = phase.after.sum(f"{name}_count", kind="TrainingRun") - phase.before.sum(
        f"{name}_count", kind="TrainingRun"
    )
    if passes:
        each = phase.cpu_seconds / passes * 1e3
        rows.append(_row(phase.name, "CPU of a pass", each, "ms", "with watches and lists"))
    return [*rows, *_call_rows(phase)]


def _call_rows(phase: Phase) -> list[Row]:
    total = sum(phase.calls.values())
    rows = [_row(phase.name, "API calls", total / phase.seconds, "calls/s")]
    for (verb, resource), count in phase.calls.most_common():
        rows.append(_row(phase.name, f"  {verb} {resource}", count / phase.seconds, "calls/s"))
    writes = sum(
        count
        for (verb, resource), count in phase.calls.items()
        if verb in _WRITES and resource != "leases"
    )
    each = writes / phase.runs / phase.seconds * _SECONDS_OF_A_WRITE
    goal = "goal 1 when idle; the lease apart"
    rows.append(_row(phase.name, "writes per run and 30 s", each, "", goal))
    return rows


def measure(size: Size, rows: list[Row]) -> None:
    """All phases, on a cluster of its own. Raises NoClusterError, RuntimeError, TimeoutError; what
    was measured before stays in ``rows``.
    """

    async def whole(server: ApiServer, folder: Path) -> None:
        async with _loaded(server, folder) as load:
            await _play(load, size, rows)

    with served.folder() as folder, started(folder / "cluster") as server:
        asyncio.run(whole(server, folder))
