"""`python -m forkcast_operator.kubernetes`: the operator of a cluster, until SIGTERM."""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import argparse
import asyncio
import datetime as dt
import itertools
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import grpc
import kopf
import structlog
from kubernetes.aio.client import Configuration

from forkcast.ports import Store
from forkcast_operator.kubernetes import health, metrics, watch
from forkcast_operator.kubernetes.cluster import (
    BRANCH,
    JOB,
    JOBSET,
    LEASE,
    POD,
    RUN,
    Body,
    Cluster,
    ClusterError,
    Kind,
    configuration,
)
from forkcast_operator.kubernetes.config import ConfigError, OperatorConfig, Service, load_config
from forkcast_operator.kubernetes.events import Recorder
from forkcast_operator.kubernetes.lease import LeaseLock, lead
from forkcast_operator.kubernetes.monitor_link import MonitorLink
from forkcast_operator.kubernetes.queue import WorkQueue
from forkcast_operator.kubernetes.runs import Key, Runs
from forkcast_operator.kubernetes.scope import SELECTOR, Scope, rival
from forkcast_operator.kubernetes.view import View
from forkcast_wire.certificates import Expiries, expiries_of
from forkcast_wire.channel import open_channel
from forkcast_wire.client_security import ClientSecurity
from forkcast_wire.forkcast_pb2_grpc import ProxyStub
from forkcast_wire.manifest import Storage
from forkcast_wire.process import configure_logging
from forkcast_wire.store import open_store

_log = structlog.get_logger()
_WORKERS: Final = 16
_TICK_SECONDS: Final = 0.5
#: The event loop has not turned for so long: it hangs.
_STUCK_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 2.0
_DEFINITION_SECONDS: Final = 10.0
#: The watches and the lease have this long to end by themselves, and again after being cancelled.
_LEAVE_SECONDS: Final = 5.0
_USAGE: Final = 2
#: So often the files of certificates are looked at; they are used once two looks agree.
_CERTIFICATE_SECONDS: Final = 10.0
#: So often it is looked for another operator of the same runs.
_RIVAL_SECONDS: Final = 5.0
_FORBIDDEN: Final = 403
_REMEDY: Final = "give one of the releases another managedBy, or other watchNamespaces"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="forkcast_operator.kubernetes", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="operator.yaml")
    parser.add_argument("--namespace", action="append", default=[], help="repeatable; none: all")
    parser.add_argument("--lease-namespace", default=os.environ.get("POD_NAMESPACE", "default"))
    parser.add_argument("--lease-name", default="forkcast-operator")
    parser.add_argument("--metrics-port", type=int, default=9090, help="0 = off")
    parser.add_argument("--health-port", type=int, default=8081, help="0 = off")
    return parser.parse_args()


def security_of(service: Service) -> ClientSecurity:
    """What the operator trusts and shows when it calls a service."""

    def file(name: str) -> Path | None:
        return service.tls / name if service.tls and (service.tls / name).exists() else None

    return ClientSecurity(
        ca=file("ca.crt"),
        certificate=file("tls.crt"),
        key=file("tls.key"),
        token=service.token_file,
        insecure_dev=service.insecure_dev,
    )


class Operator:
    """All that runs in the process."""

    def __init__(
        self, given: argparse.Namespace, config: OperatorConfig, access: Configuration
    ) -> None:
        self._given, self._config, self._access = given, config, access
        self._identity = os.environ.get("POD_NAME") or f"{os.uname().nodename}-{os.getpid()}"
        self._view, self._queue = View(), WorkQueue[Key]()
        self._ready = asyncio.Event()
        self._turned = time.monotonic()
        self._scope = Scope(config.managed_by, tuple(sorted(given.namespace)))
        self._rival = ""
        self._expiries = Expiries(metrics.EXPIRY)
        #: Of the services' certificates as they are used, by service.
        self._opened: dict[str, tuple[ClientSecurity, str]] = {}

    async def run(self) -> int:
        """0 after SIGTERM; 1 where something ended that must not."""
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster = await self._connect(folder)
            stack.push_async_callback(cluster.close)
            jobsets, branches = await cluster.knows(JOBSET), await cluster.knows(BRANCH)
            kinds: list[Kind] = [RUN, JOB, POD]
            kinds += [kind for kind, known in ((BRANCH, branches), (JOBSET, jobsets)) if known]
            pulse = watch.Pulse(kinds)
            lock = LeaseLock(
                *(self._given.lease_name, self._given.lease_namespace, self._identity),
                *(cluster, self._scope),
            )
            checks = health.Health(lambda: self._sick(pulse, lock), self._waits)
            await health.serve(
                checks,
                health_port=self._given.health_port,
                metrics_port=self._given.metrics_port,
                stack=stack,
            )
            runs = self._runs(cluster, jobsets=jobsets, stack=stack)
            tick = asyncio.create_task(self._tick(pulse), name="tick")
            stack.callback(tick.cancel)
            stop = termination.stop_event_on_sigterm()  # until here it had nothing to give back
            leading = asyncio.create_task(self._lead(cluster, lock, runs), name="lease")
            stopped = asyncio.Event()
            watching = asyncio.create_task(self._watch(kinds, pulse, stopped), name="watches")
            stopping = asyncio.create_task(_until(stop, stopped), name="stop")
            replaced = asyncio.create_task(self._replaced(), name="certificates")
            tasks = {leading, watching, stopping, replaced}
            if not branches:
                tasks.add(asyncio.create_task(self._branches_served(folder), name="definitions"))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    _log.error("operator.ended", task=task.get_name(), exc_info=error)
            if stopping in done:
                leading.cancel()  # nothing is written any more: who uninstalls takes finalizers away
                await asyncio.wait({watching}, timeout=_LEAVE_SECONDS)
            for task in tasks:
                task.cancel()
            _, hanging = await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)
            await lock.release()
            code = 0 if stopping in done else 1
            if hanging:  # the library that keeps the watches can hang in its own end; so would ours
                _log.warning("operator.left", hanging=sorted(task.get_name() for task in hanging))
                os._exit(code)
            return code

    async def _connect(self, folder: Path) -> Cluster:
        """To an API server that knows runs; waits for it. If it knows no branches, somebody is
        deleting the definitions: runs that are on their way out still need their finalizer taken.
        """
        return await self._connect_to(RUN, folder, _CONNECT_SECONDS)

    async def _connect_to(self, kind: Kind, folder: Path, pause: float) -> Cluster:
        for number in itertools.count():
            try:
                file = folder / f"{kind[1]}-{number}.json"
                cluster = await Cluster.connect(self._access, file)
                if await cluster.knows(kind):
                    return cluster
                _log.warning("operator.no_crds", kind=kind[1], remedy="install the chart's CRDs")
                await cluster.close()
            except ClusterError as error:
                _log.warning("operator.no_api_server", error=str(error))
            await asyncio.sleep(pause)
        raise AssertionError  # it counts for ever

    async def _branches_served(self, folder: Path) -> None:
        """Wait until branches are known; the operator then begins anew, with their watch."""
        cluster = await self._connect_to(BRANCH, folder, _DEFINITION_SECONDS)
        await cluster.close()

    def _channel_to(self, name: str, service: Service | None) -> grpc.Channel | None:
        """The channel to a service, None if there is none. Raises InsecureRefusedError."""
        if service is None:
            return None
        security = security_of(service)
        self._opened[name] = (security, security.fingerprint())
        files = expiries_of(security.ca, security.certificate, security.key, "client")
        self._expiries.use({(name, *file): expires for file, expires in files.items()})
        return open_channel(service.target, security=security)

    def _own_expired(self) -> list[str]:
        return sorted(file for service, file in self._expiries.expired() if service == "monitor")

    async def _replaced(self) -> None:
        """Wait until the files of a certificate are others; the operator then begins anew with
        them: an open channel keeps those that it was opened with. Meanwhile their end is told.
        """
        before: dict[str, str] = {}
        while True:
            await asyncio.sleep(_CERTIFICATE_SECONDS)
            self._expiries.tell()
            now = {name: one.fingerprint() for name, (one, _) in self._opened.items()}
            changed = [name for name, (_, used) in self._opened.items() if now[name] != used]
            if changed and now == before:  # not amid the change
                _log.info("operator.certificates_replaced", services=changed)
                return
            before = now

    def _runs(self, cluster: Cluster, *, jobsets: bool, stack: AsyncExitStack) -> Runs:
        loop = asyncio.get_running_loop()
        link = proxy = None
        if (channel := self._channel_to("monitor", self._config.monitor)) is not None:

            def wake(uid: str) -> None:
                loop.call_soon_threadsafe(self._wake_uid, uid)

            link = MonitorLink(channel, wake, self._own_expired)
            link.start()
            stack.callback(link.close)
        if (channel := self._channel_to("proxy", self._config.proxy)) is not None:
            proxy = ProxyStub(channel)
            stack.callback(channel.close)
        return Runs(
            cluster,
            self._view,
            self._config,
            link,
            proxy,
            Recorder(cluster, self._identity),
            jobsets=jobsets,
            open_store=_open,
            wake=self._queue.add,
        )

    def _wake_uid(self, uid: str) -> None:
        for body in self._view.all("TrainingRun"):
            meta = body["metadata"]
            if meta["uid"] == uid:
                self._queue.add((meta["namespace"], meta["name"]))

    async def _watch(self, kinds: list[Kind], pulse: watch.Pulse, stopped: asyncio.Event) -> None:
        registry = watch.registry(kinds, self._view, self._queue.add, pulse, self._access)
        await kopf.operator(
            registry=registry,
            settings=watch.settings(),
            namespaces=self._given.namespace,
            clusterwide=not self._given.namespace,
            standalone=True,
            stop_flag=stopped,
            identity=cast(
                "Any", self._identity
            ),  # else it asks for the user's name: a pod has none
        )

    async def _work(self, runs: Runs) -> None:
        """Lead: every known run is looked at, then whatever the queue says."""
        await self._ready.wait()
        for body in self._view.all("TrainingRun"):
            self._queue.add((body["metadata"]["namespace"], body["metadata"]["name"]))
        await asyncio.gather(*(self._queue.work(runs.look) for _ in range(_WORKERS)))

    async def _lead(self, cluster: Cluster, lock: LeaseLock, runs: Runs) -> None:
        """Lead, while no other installation's operator looks after the same runs. Returns if one
        does after all; the process is started again, and waits.
        """
        while await self._find_rival(cluster):
            lock.held = time.monotonic()  # somebody looks after the runs: nothing is wrong here
            await asyncio.sleep(_RIVAL_SECONDS)
        leading = asyncio.create_task(lead(lock, lambda: self._work(runs)), name="leading")
        try:
            while not leading.done():
                await asyncio.wait({leading}, timeout=_RIVAL_SECONDS)
                if not leading.done() and await self._find_rival(cluster):
                    return
            leading.result()
        finally:
            leading.cancel()
            await asyncio.wait({leading})

    async def _find_rival(self, cluster: Cluster) -> str:
        before, own = self._rival, (self._given.lease_namespace, self._given.lease_name)
        try:
            leases: list[Body] = await cluster.list(LEASE, "", SELECTOR)
        except ClusterError as error:
            if error.status != _FORBIDDEN:
                return before
            leases = []
        self._rival = rival(self._scope, own, leases, dt.datetime.now(dt.UTC))
        if self._rival and self._rival != before:
            _log.error("operator.rival", lease=self._rival, remedy=_REMEDY)
        return self._rival

    def _waits(self) -> str:
        """Why this process is not ready, "" if it is."""
        if self._rival:
            return f"the operator of lease {self._rival} looks after the same runs: {_REMEDY}"
        return "" if self._ready.is_set() else "caches are not filled"

    async def _tick(self, pulse: watch.Pulse) -> None:
        while True:
            self._turned = time.monotonic()
            if pulse.filled:
                self._ready.set()
            metrics.EVENT_AGE.set(pulse.age_of(RUN))
            await asyncio.sleep(_TICK_SECONDS)

    def _sick(self, pulse: watch.Pulse, lock: LeaseLock) -> str:
        """Why the liveness probe must fail, or ""."""
        if (age := pulse.age()) > health.DEAD_SECONDS:
            return f"a watch has been silent for {age:.0f} s"
        if (age := time.monotonic() - self._turned) > _STUCK_SECONDS:
            return f"the event loop has not turned for {age:.0f} s"
        if (age := time.monotonic() - lock.held) > health.DEAD_SECONDS:
            return f"nobody has renewed the lease for {age:.0f} s"
        return ""


def _open(storage: Storage) -> Store:
    return open_store(storage, Path(tempfile.gettempdir()))


class _Loop(asyncio.SelectorEventLoop):
    """A loop that leaves SIGTERM and SIGINT to the process: kopf would set handlers of its own,
    which are gone, and SIGTERM deadly again, as soon as the loop closes.
    """

    def add_signal_handler(self, *_handler: object) -> None:
        """Nothing."""


async def _until(stop: termination.Stop, stopped: asyncio.Event) -> None:
    """Until SIGTERM; then the event is set."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(stop.fileno(), heard.set)
    try:
        await heard.wait()
    finally:
        loop.remove_reader(stop.fileno())  # it stays readable
    stopped.set()


async def serve(given: argparse.Namespace, config: OperatorConfig) -> int:
    """Run the operator."""
    return await Operator(given, config, await configuration()).run()


def main() -> int:
    """0 after SIGTERM, 1 where it should be started again, 2 for a configuration that is wrong."""
    given = arguments()
    configure_logging("operator")
    metrics.declare()
    metrics.BUILD.labels(version("forkcast")).set(1)
    try:
        config = load_config(given.config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USAGE
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(serve(given, config))


if __name__ == "__main__":
    termination.leave(main())
