"""The kubelet of the trainer's node stops. Here the test is the kubelet: it made the node, binds the
pod, reports it running, and falls silent. That the node is NotReady, that its pods are not Ready,
that they are evicted and what is made in their place is the work of the real controllers.
"""

from __future__ import annotations

import datetime as dt
import json
import threading

import pytest

from forkcast_operator.kubernetes.cluster import EVENT, POD
from forkcast_wire.resources import LABEL_COMPONENT

pytestmark = pytest.mark.slow
#: A node is lost after 20 s without a beat.
_BEAT_SECONDS = 2
_TAINTS = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
#: Evicted after 5 s instead of Kubernetes' 300.
_TOLERATIONS = [
    {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    for key in _TAINTS
]


class Kubelet:
    """What a kubelet tells of one node and its pods, the node's part from a thread of its own."""

    def __init__(self, server, name) -> None:
        self._kubectl, self.node = server.kubectl, f"{server.namespace}-{name}"
        self._namespace = server.namespace
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}}
        room = {"cpu": "8", "memory": "32Gi", "pods": "10", "ephemeral-storage": "99Gi"}
        node["status"] = {"allocatable": room, "capacity": room}
        self._kubectl("create", "-f", "-", given=json.dumps(node))
        self._silent = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._silent.clear()
        self._beat()
        self._beating = threading.Thread(target=self._beats)
        self._beating.start()

    def _beats(self) -> None:
        while not self._silent.wait(_BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        now = _now()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "m"}
        ready |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
        self._patch("node", self.node, {"conditions": [ready]})

    def run(self, pod) -> None:
        """Take the pod and report it running."""
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        meta = {"name": name, "namespace": self._namespace}
        bound = {"apiVersion": "v1", "kind": "Binding", "metadata": meta, "target": target}
        path = f"/api/v1/namespaces/{self._namespace}/pods/{name}/binding"
        self._kubectl("create", "--raw", path, "-f", "-", given=json.dumps(bound))
        self._report(pod, "Running", {"running": {"startedAt": _now()}})

    def stop(self) -> None:
        """Nothing is told any more."""
        self._silent.set()
        self._beating.join()

    def come_back(self, pod) -> None:
        """Tell of the node again, and end the pod that was deleted meanwhile."""
        self._begin()
        ended = {"exitCode": 137, "reason": "Error", "startedAt": _now(), "finishedAt": _now()}
        self._report(pod, "Failed", {"terminated": ended})
        name = pod["metadata"]["name"]
        self._kubectl("delete", "pod", name, "-n", self._namespace, "--force", "--wait=false")

    def _report(self, pod, phase, state) -> None:
        running = phase == "Running"
        kinds = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        said = {one: str(running or one in ("Initialized", "PodScheduled")) for one in kinds}
        conditions = [
            {"type": one, "status": status, "lastTransitionTime": _now()}
            for one, status in said.items()
        ]
        container = pod["spec"]["containers"][0]
        status = {"name": container["name"], "image": container["image"], "imageID": ""}
        status |= {"ready": running, "started": running, "restartCount": 0, "state": state}
        known = {"phase": phase, "startTime": _now(), "conditions": conditions}
        known["containerStatuses"] = [status]
        self._patch("pod", pod["metadata"]["name"], known)

    def _patch(self, kind, name, status) -> None:
        self._kubectl(
            *("patch", kind, name, "-n", self._namespace, "--subresource=status"),
            *("--type=strategic", "-p", json.dumps({"status": status})),
        )


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def kubelets(server):
    """The trainer's, and a neighbour's: where no node answers at all, Kubernetes evicts nothing."""
    made = [Kubelet(server, "one"), Kubelet(server, "two")]
    yield made
    for one in made:
        one.stop()
        server.kubectl("delete", "node", one.node)


def test_a_lost_trainer_is_said_and_has_no_double(live, kubelets) -> None:
    live.play(lambda: lose_the_node(live, kubelets[0]))


async def lose_the_node(live, kubelet) -> None:
    """A run whose trainer's node falls silent and comes back, from its beginning to its end."""

    async def pods():
        labels = f"{LABEL_COMPONENT}=trainer"
        return await live.stage.cluster.list(POD, live.server.namespace, labels)

    async def running():
        return (await live.ready()).get("status") == "True"

    async def said():
        ready = await live.ready()
        return ready["status"] == "False" and f"node {kubelet.node} does not" in ready["message"]

    async def evicted():
        return all("deletionTimestamp" in pod["metadata"] for pod in await pods())

    live.start_operator()
    await live.train(podPatch={"tolerations": _TOLERATIONS})
    (pod,) = await live.until(pods)
    kubelet.run(pod)
    await live.until(running)
    kubelet.stop()
    await live.until(said)  # the node's controller waits for 20 s
    await live.until(evicted)
    seen = live.looks()

    async def looked_at():
        assert [one["metadata"]["uid"] for one in await pods()] == [pod["metadata"]["uid"]]
        assert await live.trainers() == ["gpt-trainer-0"]
        return live.looks() >= seen + 3

    await live.until(looked_at)
    kubelet.come_back(pod)

    async def replaced():
        now = await pods()
        return [one for one in now if one["metadata"]["uid"] != pod["metadata"]["uid"]]

    (second,) = await live.until(replaced)
    kubelet.run(second)
    await live.until(running)
    told = await live.stage.cluster.list(EVENT, live.server.namespace, "")
    assert [e["type"] for e in told if e["reason"] == "NodeLost"] == ["Warning"]
    run = await live.end()
    assert run["status"]["trainer"]["restarts"] == 0
    assert len(await live.trainers()) == 1  # the next start, where the pod left with 0
