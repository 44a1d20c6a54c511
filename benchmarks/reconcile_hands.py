"""What stands in for kubelets and training: pods that run in name, statistics, states and trials.

The API server, its controllers, the object store, the monitor and the operator are real. Pods are
said to run as soon as they are there; a trainer streams made statistics to the monitor, keeps
states and adopts what the lineage says; a rollout answers every rung that is wished of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import kubernetes.aio.client as kube

from forkcast.decision import CONTROL
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, Trial, TrialStatus
from forkcast_operator.kubernetes.run import LABEL_CANDIDATE
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire import keys
from forkcast_wire.documents import (
    RolloutJob,
    RolloutUntil,
    StateManifest,
    dump,
    lineage_head,
)
from forkcast_wire.forkcast_pb2_grpc import MonitorStub
from forkcast_wire.resources import LABEL_COMPONENT, LABEL_RUN
from forkcast_wire.store import AlreadyExists, put_document, read_document

_KUBELET_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 1.0
_BATCH_SECONDS: Final = 1.0
#: A rollout looks for its next wish so often, and takes so long for a rung.
_WISH_SECONDS: Final = 1.0
_RUNG_SECONDS: Final = 2.0
_LOSS, _BETTER_LOSS = 3.0, 2.8


@dataclass(frozen=True)
class Pace:
    """Of a trainer. steps_per_second; ring_every, save_every: steps between its states, 0 for none."""

    steps_per_second: float
    ring_every: int = 0
    save_every: int = 0


@dataclass
class Trainer:
    """One run's trainer. store: None where it keeps nothing."""

    uid: str
    store: Store | None
    pace: Pace
    total_steps: int
    epoch: int = 0
    step: int = 0
    base_step: int = 0
    adopted: int = 0
    noise: random.Random = field(default_factory=lambda: random.Random(0))

    async def run(self, stub: MonitorStub) -> None:
        """Stream until cancelled; a stream that ends is opened again."""
        if self.store is not None:
            await asyncio.to_thread(self._save, StateKind.RING)
        while True:
            with suppress(grpc.RpcError):
                await self._stream(stub)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _stream(self, stub: MonitorStub) -> None:
        """One stream, to its end or to an adoption."""
        call = stub.Report()
        await call.write(pb.StatsBatch(hello=self._hello()))
        if (await call.read()) is grpc.aio.EOF:
            return
        seq, owed = 0, 0.0
        try:
            while True:
                await asyncio.sleep(_BATCH_SECONDS)
                owed += self.pace.steps_per_second * _BATCH_SECONDS
                if owed < 1:
                    continue
                steps, owed, seq = int(owed), owed - int(owed), seq + 1
                await call.write(pb.StatsBatch(seq=seq, stats=self._steps(steps)))
                ack = await call.read()
                if ack is grpc.aio.EOF:
                    return
                await self._keep(steps)
                if any(one.HasField("collapse") for one in ack.directives):
                    await asyncio.to_thread(self._adopt)
                    return
        finally:
            call.cancel()

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            run_uid=self.uid,
            epoch=self.epoch,
            attempt=0,
            start_step=self.step,
            total_steps=self.total_steps,
            base_step=self.base_step,
        )

    def _steps(self, count: int) -> list[pb.StepStats]:
        made = []
        for _ in range(count):
            self.step += 1
            norm = 1 + 0.05 * self.noise.gauss(0, 1)
            made.append(
                pb.StepStats(
                    run_uid=self.uid,
                    epoch=self.epoch,
                    step=self.step - 1,
                    loss=_LOSS + 0.02 * self.noise.gauss(0, 1),
                    grad_norm=norm,
                    grad_norm_clipped=norm,
                    learning_rate=1e-3,
                    tokens=self.step * 1024,
                )
            )
        return made

    async def _keep(self, steps: int) -> None:
        """The states that fell due within the last ``steps``."""
        for kind, every in (
            (StateKind.RING, self.pace.ring_every),
            (StateKind.CHECKPOINT, self.pace.save_every),
        ):
            if every and self.step // every > (self.step - steps) // every:
                await asyncio.to_thread(self._save, kind)

    def _save(self, kind: StateKind) -> None:
        key = keys.state(kind, self.epoch, 0, self.step)
        save_state(self.store, self.uid, kind, key, self.epoch, self.step)

    def _adopt(self) -> None:
        """Go on from where the lineage says; the new epoch is made durable."""
        entry = lineage_head(self.store) if self.store is not None else None
        if entry is None or entry.epoch <= self.epoch:
            return
        self.epoch, self.step, self.base_step = entry.epoch, entry.state.step, entry.base_step
        self.adopted += 1
        self._save(StateKind.CHECKPOINT)


def save_state(
    store: Store | None, uid: str, kind: StateKind, key: str, epoch: int, step: int
) -> StateRef:
    """A state of one byte with a valid manifest; one that stands stays."""
    state = StateRef(
        key=key, kind=kind, epoch=epoch, attempt=0, step=step, digest="0" * 64, size_bytes=1
    )
    if store is not None:
        store.put(keys.ptz(key, step), b"x")
        manifest = StateManifest(
            format_version=1, run_uid=uid, state=state, lossless=True, loss=_LOSS, versions={}
        )
        store.put(keys.state_manifest(key), dump(manifest))
    return state


@dataclass
class Hands:
    """Every pod of a namespace. trainers: by the run's name."""

    core: kube.CoreV1Api
    namespace: str
    stubs: Sequence[MonitorStub]
    trainers: dict[str, Trainer] = field(default_factory=dict)
    rungs: int = 0
    running: int = 0
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    async def kubelet(self) -> None:
        """Let every pod that waits run, until cancelled."""
        try:
            while True:
                with suppress(kube.ApiException):
                    for pod in await self._pending():
                        if pod.metadata.labels[LABEL_RUN] in self.trainers:
                            await self._start(pod)
                await asyncio.sleep(_KUBELET_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()

    def check(self) -> None:
        """Raises RuntimeError where something has failed."""
        if self.failed:
            raise RuntimeError(f"the hands failed: {self.failed[0]}")

    async def _pending(self) -> list[Any]:
        listed = await self.core.list_namespaced_pod(
            self.namespace, field_selector="status.phase=Pending"
        )
        pods: list[Any] = listed.items
        return pods

    async def _start(self, pod: Any) -> None:
        marks, name = pod.metadata.labels, pod.metadata.name
        if not await self._say(name, "Running"):
            return
        run = marks[LABEL_RUN]
        if marks[LABEL_COMPONENT] == "rollout":
            arguments = dict(
                part[2:].split("=", 1)
                for part in pod.spec.containers[0].command
                if part.startswith("--")
            )
            where = (arguments["trigger"], marks[LABEL_CANDIDATE])
            park = float(arguments["park-seconds"])
            self._begin(name, self._roll_out(name, self.trainers[run], where, park))
        elif run not in self._tasks:
            self.running += 1
            stub = self.stubs[self.running % len(self.stubs)]
            self._begin(run, self.trainers[run].run(stub))

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        """A task is over; what it failed with is kept."""
        self._tasks.pop(task.get_name(), None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed.append(f"{task.get_name()}: {type(error).__name__}: {error}")

    async def _say(self, pod: str, phase: str) -> bool:
        """The pod's status, as its kubelet would write it; False where the pod is gone."""
        runs = phase == "Running"
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        status = {
            "phase": phase,
            "conditions": [{"type": kind, "status": "True" if runs else "False"} for kind in kinds],
        }
        try:
            await self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": status})
        except kube.ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _roll_out(
        self, pod: str, trainer: Trainer, where: tuple[str, str], park: float
    ) -> None:
        """Measure what is wished, until nothing is, or nothing was for ``park`` seconds."""
        store, idle = trainer.store, 0.0
        assert store is not None
        while idle <= park:
            wish = await asyncio.to_thread(
                read_document, store, RolloutUntil, keys.rollout_until(*where)
            )
            if wish is None or wish.until is None:
                break
            trial = keys.rollout_trial(*where, wish.until)
            if await asyncio.to_thread(store.head, trial) is None:
                await asyncio.sleep(_RUNG_SECONDS)
                await asyncio.to_thread(measure, store, trainer.uid, where, wish.until)
                self.rungs, idle = self.rungs + 1, 0.0
            else:
                await asyncio.sleep(_WISH_SECONDS)
                idle += _WISH_SECONDS
        await self._say(pod, "Succeeded")


def measure(store: Store, uid: str, where: tuple[str, str], rung: int) -> None:
    """The trial of a candidate at a rung: calm, and better than the control where it is not it."""
    job = read_document(store, RolloutJob, keys.rollout_job(*where))
    if job is None:
        return
    step = job.trigger_step + rung
    losses = tuple(_LOSS + 0.1 * (-1) ** one for one in range(job.base.step, step))
    loss = _LOSS if job.candidate == CONTROL else _BETTER_LOSS
    state = None
    if rung >= job.publish_from:
        key = keys.rollout_state(*where, rung)
        state = save_state(store, uid, StateKind.ROLLOUT, key, job.base.epoch, step)
    trial = Trial(
        candidate=job.candidate,
        rung=rung,
        step=step,
        status=TrialStatus.OK,
        validation_loss=loss,
        mean_weights_loss=loss,
        losses_from=job.base.step,
        losses=losses,
        spike_steps=(),
        steps_run=len(losses),
        seconds=_RUNG_SECONDS,
        state=state,
    )
    with suppress(AlreadyExists):
        put_document(store, keys.rollout_trial(*where, rung), trial)
