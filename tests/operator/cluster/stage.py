"""A run on a real API server, with hands that do what pods would do."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np

from forkcast.decision import CONTROL
from forkcast.records import (
    WINDOW_COLUMNS,
    StateKind,
    StateRef,
    Trial,
    TrialStatus,
    Trigger,
    Window,
)
from forkcast_operator.kubernetes.cluster import (
    BRANCH,
    EVENT,
    JOB,
    POD,
    RUN,
    Cluster,
    ClusterError,
    configuration,
)
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.events import Recorder
from forkcast_operator.kubernetes.monitor_link import MonitorLink
from forkcast_operator.kubernetes.runs import Runs
from forkcast_operator.kubernetes.seen import job_seen
from forkcast_operator.kubernetes.view import View
from forkcast_wire import completion, crash, keys
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.channel import open_channel
from forkcast_wire.codec import trigger_to_wire, window_to_wire
from forkcast_wire.documents import (
    Complete,
    RolloutJob,
    RolloutUntil,
    lineage_head,
)
from forkcast_wire.forkcast_pb2_grpc import MonitorServicer
from forkcast_wire.store import FolderStore, put_document, read_document
from tests.make import saved_state, state_ref, trigger
from tests.waiting import until_async


class SmallMonitor(MonitorServicer):
    """Answers as a monitor with a calm run behind it."""

    def __init__(self) -> None:
        self.directives: list[str] = []
        self.runs: dict[str, str] = {}
        self.namespaces: dict[str, str] = {}
        #: (verb, run uid) of whatever was asked about a run.
        self.asked: list[tuple[str, str]] = []
        self.forgotten: list[str] = []
        self.step = 0
        self._fired: list[Trigger] = []
        self._bell = threading.Condition()

    def fire(self, trigger: Trigger) -> None:
        """Whoever watches is told of it, now or when it begins to watch."""
        with self._bell:
            self._fired.append(trigger)
            self._bell.notify_all()

    def WatchTriggers(self, request, context):
        told = 0
        while context.is_active():
            with self._bell:
                self._bell.wait_for(lambda seen=told: len(self._fired) > seen, timeout=0.5)
                fresh = self._fired[told:]
            for one in fresh:
                told += 1
                yield pb.TriggerEvent(seq=told, trigger=trigger_to_wire(one))

    def ListRuns(self, request, context):
        told = [
            pb.RunSummary(
                run_uid=uid,
                namespace=self.namespaces[uid],
                next_step=self.step,
                streams=1,
                seconds_since_report=0.0,
            )
            for uid in list(self.runs)
        ]
        return pb.ListRunsResponse(runs=told)

    def RegisterRun(self, request, context):
        known = self.namespaces.setdefault(request.run_uid, request.namespace)
        if known != request.namespace:
            context.abort(
                grpc.StatusCode.ALREADY_EXISTS, "run_uid: registered in another namespace"
            )
        created = request.run_uid not in self.runs
        self.runs[request.run_uid] = request.mode
        return pb.RegisterRunResponse(created=created)

    def ForgetRun(self, request, context):
        self.forgotten.append(request.run_uid)
        self.asked.append(("ForgetRun", request.run_uid))
        self.namespaces.pop(request.run_uid, None)
        return pb.ForgetRunResponse(existed=self.runs.pop(request.run_uid, None) is not None)

    def GetWindow(self, request, context):
        self.asked.append(("GetWindow", request.run_uid))
        columns = {name: np.arange(300.0) for name in WINDOW_COLUMNS}
        window = Window(run_uid=request.run_uid, epoch=0, total_steps=1000, columns=columns)
        return pb.WindowReply(window=window_to_wire(window))

    def PostDirective(self, request, context):
        self.directives.append(request.directive.id)
        self.asked.append(("PostDirective", request.directive.run_uid))
        return pb.PostDirectiveResponse()


class Stage:
    """A run on a real API server, with hands that do what pods would do."""

    def __init__(self, folder, namespace, monitor, target) -> None:
        self.folder, self.namespace, self.monitor, self._target = folder, namespace, monitor, target
        self.store = FolderStore(folder / "store")
        self.uid = ""
        self.cluster = self.runs = self.link = self._channel = None
        self.view = View()

    # ------------------------------------------------------------------------------- the operator

    async def connect(self, name="kinds.json"):
        self.cluster = await Cluster.connect(await configuration(), self.folder / name)

    def start_operator(self, *, jobsets=False, config=None, open_store=None) -> None:
        """A new process of it: nothing is remembered. open_store: absent, all runs share a folder."""
        if self._channel is not None:
            self._channel.close()
        self.view = View()
        self._channel = open_channel(self._target)
        self.link = MonitorLink(self._channel, lambda _: None)
        store = crash.CrashingStore(self.store)
        self.runs = Runs(
            self.cluster,
            self.view,
            config or CONFIG,
            self.link,
            None,
            Recorder(self.cluster, "test"),
            jobsets=jobsets,
            patience=60.0,  # a pass comes back, however busy the machine is
            open_store=open_store or (lambda _: store),
        )

    async def see(self, name="gpt") -> None:
        """What the watches would tell by now."""
        for kind in (RUN, BRANCH, JOB, POD):
            listed = await self.cluster.list(kind, self.namespace, "")
            for body in listed:
                body.setdefault("apiVersion", kind[0])
            known = [
                b for b in self.view.all(kind[1]) if b["metadata"]["namespace"] == self.namespace
            ]
            names = {b["metadata"]["name"] for b in listed}
            for body in known:
                if body["metadata"]["name"] not in names:
                    self.view.drop(kind[1], (self.namespace, body["metadata"]["name"]))
            for body in listed:
                self.view.put(kind[1], body)

    async def look(self, name="gpt"):
        await self.see()
        return await self.runs.look((self.namespace, name))

    # -------------------------------------------------------------------------------------- users

    async def create(self, name="gpt", **spec):
        given = {
            "data": {"train": {"uri": "python-stdlib:"}},
            "training": {"totalSteps": 1000},
            "branching": {"candidates": 16, "topK": 2, "rungs": [10, 25], "confirm": {"steps": 40}},
            **spec,
        }
        body = {
            "apiVersion": RUN[0],
            "kind": RUN[1],
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": given,
        }
        made = await self.cluster.create(body)
        self.uid = made["metadata"]["uid"]
        return made

    async def set(self, name="gpt", **spec):
        return await self.cluster.merge(RUN, self.namespace, name, {"spec": spec})

    async def annotate(self, name="gpt", **marks):
        marks = {f"forkcast.dev/{key}": value for key, value in marks.items()}
        return await self.cluster.merge(
            RUN, self.namespace, name, {"metadata": {"annotations": marks}}
        )

    async def run(self, name="gpt"):
        return await self.cluster.get(RUN, self.namespace, name)

    async def condition(self, kind, name="gpt"):
        body = await self.run(name)
        found = [c for c in body.get("status", {}).get("conditions", []) if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else None

    async def names(self, kind):
        return sorted(
            b["metadata"]["name"] for b in await self.cluster.list(kind, self.namespace, "")
        )

    async def events(self):
        found = await self.cluster.list(EVENT, self.namespace, "")
        return [e["reason"] for e in found if e["source"].get("component") == "forkcast-operator"]

    # --------------------------------------------------------------------------------------- pods

    def trigger(self, step=100) -> Trigger:
        parts = {"components": {"volatility": 4.0}, "thresholds": {"z": 2.5}}
        return trigger(run_uid=self.uid, step=step, onset_step=step - 2, **parts)

    def save_state(self, kind, step, epoch=0) -> StateRef:
        return self._saved(self._state(kind, keys.state(kind, epoch, 0, step), step, epoch))

    def _state(self, kind, key, step, epoch=0) -> StateRef:
        return state_ref(step, kind, key=key, epoch=epoch, digest="0" * 64)

    def _saved(self, ref) -> StateRef:
        return saved_state(self.store, ref, self.uid)

    async def roll_out(self, *, fail=(), waits=(), branch="") -> None:
        """What rollout pods do: measure what is wished, where there is a Job for it. fail, waits:
        candidates whose pods fail, or have not begun. branch: of this one alone.
        """
        for body in await self.cluster.list(JOB, self.namespace, ""):
            job = job_seen(body)
            if job is None or not job.work.alive or job.candidate in waits:
                continue
            if branch not in ("", job.branch):
                continue
            where = (job.branch.removeprefix("gpt-"), job.candidate)
            wish = read_document(self.store, RolloutUntil, keys.rollout_until(*where))
            given = read_document(self.store, RolloutJob, keys.rollout_job(*where))
            if wish is None or wish.until is None or given is None:
                continue
            if job.candidate in fail:
                await self.finish_job(job.name, "Failed", "BackoffLimitExceeded")
                continue
            if self.store.head(keys.rollout_trial(*where, wish.until)) is None:
                self._measure(given, where, wish.until)
            command = body["spec"]["template"]["spec"]["containers"][0]["command"]
            if "--park-seconds=0" in command:
                await self.finish_job(job.name, "Complete")

    def _measure(self, job, where, rung) -> None:
        step = job.trigger_step + rung
        end = self._state(StateKind.ROLLOUT, keys.rollout_state(*where, rung), step)
        losses = tuple(3.0 + 0.1 * (-1) ** s for s in range(job.base.step, step))
        loss = 3.0 if job.candidate == CONTROL else 2.8
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
            seconds=1.0,
            state=self._saved(end),
        )
        put_document(self.store, keys.rollout_trial(*where, rung), trial)

    async def until_gone(self, name="gpt") -> None:
        """Look until a run that is being deleted has gone."""

        async def gone():
            if await self.run(name) is None:
                return True
            try:
                await self.look(name)
            except ClusterError as error:  # the garbage collector wrote between; look again
                if error.status != 409:
                    raise
            return False

        await until_async(gone, f"the end of {name}", every=0.2)
        await self.look(name)

    async def run_pods(self, *, ready=True, of="trainer") -> int:
        """What a kubelet would say of the pods of a component; returns how many there are."""
        labels = f"app.kubernetes.io/component={of}"
        pods = await self.cluster.list(POD, self.namespace, labels)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for pod in pods:
            conditions = [
                {"type": kind, "status": str(ready), "lastTransitionTime": now}
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ]
            status = {"phase": "Running" if ready else "Pending", "conditions": conditions}
            name = pod["metadata"]["name"]
            await self.cluster.merge(POD, self.namespace, name, {"status": status}, status=True)
        return len(pods)

    async def until(self, holds):
        """Look until an async function says something; returns what it said."""

        async def said():
            await self.look()
            return await holds()

        return await until_async(said, holds.__name__, every=0.1)

    async def finish_job(self, name, kind, reason="", namespace=None) -> None:
        """What the Job controller would say of its pods. kind: Complete or Failed."""
        before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[kind]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        namespace = namespace or self.namespace
        job = await self.cluster.get(JOB, namespace, name)
        started = job.get("status", {}).get("startTime", now)
        conditions = [
            {
                "type": one,
                "status": "True",
                "reason": reason or "x",
                "message": "m",
                "lastTransitionTime": now,
                "lastProbeTime": now,
            }
            for one in (before, kind)
        ]
        status = {
            "conditions": conditions,
            "startTime": started,
            "active": 0,
            "ready": 0,
            "terminating": 0,
        }
        if kind == "Complete":
            status |= {"completionTime": now, "succeeded": 1, "completedIndexes": "0"}
        else:
            status |= {"failed": 1}
        if job["spec"].get("completionMode") != "Indexed":
            status.pop("completedIndexes", None)
        await self.cluster.merge(JOB, namespace, name, {"status": status}, status=True)

    def adopt(self) -> bool:
        """What the trainer does where the lineage has a newer epoch: adopt and save."""
        head = lineage_head(self.store)
        done = self.store.head(keys.state_manifest(keys.state(StateKind.CHECKPOINT, 1, 0, 140)))
        if head is not None and done is None:
            self.save_state(StateKind.CHECKPOINT, 140, epoch=1)
        return head is not None

    def complete(self, step=1000) -> None:
        done = Complete(epoch=0, step=step, tokens=9, validation_loss=2.5, seconds=1.0)
        completion.record(self.store, done)


CONFIG = OperatorConfig.model_validate(
    {
        "monitor": {"target": "monitor.system.svc:50051", "insecureDev": True},
        "trainer": {"image": "forkcast/trainer:1"},
        "stores": [{"endpoint": "https://s3.example", "bucket": "runs"}],
    }
)
