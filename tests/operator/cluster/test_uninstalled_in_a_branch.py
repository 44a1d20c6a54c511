"""`helm uninstall` of a release with a calm and a branching run, on a real API server.

There is no node, so the test is the kubelet of two pods: it runs the hook that Helm has created and
waits for, and ends the operator when its Deployment is scaled to zero. The operator's pod stands
until its process is gone, as a kubelet would have it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from forkcast_operator.kubernetes.cluster import BRANCH, JOB, POD, RUN
from forkcast_wire.resources import LABEL_RUN
from tests.uninstall_hook import start_hook
from tests.waiting import HANG_OPTION, HANG_SECONDS, until

from .live import conditions

pytestmark = pytest.mark.slow
CHART = Path(__file__).parents[3] / "charts" / "forkcast"


@pytest.fixture
def release(helm, live, tmp_path):
    """The chart's release `demo`; gives its namespace and a function that calls Helm."""
    home = f"{live.server.namespace}-system"
    live.server.kubectl("create", "namespace", home)
    values = tmp_path / "values.yaml"
    external = {"endpoint": live.gateway.endpoint, "bucket": "runs"}
    given = {
        "watchNamespaces": [live.server.namespace],
        "crds": {"enabled": False},  # the session's stand already
        "objectStore": {"external": external},
    }
    values.write_text(yaml.safe_dump(given))

    def call(*arguments):
        command = [helm, "-n", home, *arguments]
        environment = live.server.environment
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    install = call("install", "demo", str(CHART), "-f", str(values))
    said, _ = install.communicate()
    assert install.returncode == 0, said
    yield home, call
    live.server.kubectl("delete", "namespace", home, "--wait=false")


def test_nothing_hangs_and_no_pod_is_left(live, release, tmp_path) -> None:
    home, helm = release
    namespace, kubectl = live.server.namespace, live.server.kubectl

    def scaled_to_zero():
        operator = kubectl("get", "deploy/demo-forkcast-operator", "-n", home, "-o", "json")
        return json.loads(operator)["spec"]["replicas"] == 0

    def hold_operators_pod(*finalizers):
        pods = ("pods", "-n", home, "-l", "app.kubernetes.io/component=operator")
        kubectl("wait", *pods, "--for=create", HANG_OPTION)
        (pod,) = kubectl("get", *pods, "-o", "name").split()
        patch = json.dumps({"metadata": {"finalizers": finalizers or None}})
        kubectl("patch", pod, "-n", home, "--type=merge", "-p", patch)

    async def found(kind, where=namespace, labels=LABEL_RUN):
        return await live.stage.cluster.list(kind, where, labels)

    async def hook_job():
        return next((one for one in await found(JOB, home, "")), None)

    async def scene():
        live.start_operator(lease_namespace=home, lease="demo-forkcast-operator")
        hold_operators_pod("example.com/its-process-runs")
        await live.stage.create("calm")
        await live.branch()
        assert len(await found(JOB)) > len(await live.trainers()) == 2
        uninstall = helm("uninstall", "demo", HANG_OPTION)
        job = await live.until(hook_job)
        hook = start_hook(
            kubectl,
            live.server.environment["KUBECONFIG"],
            job,
            tmp_path,
            "--seconds",
            str(HANG_SECONDS),
        )
        until(scaled_to_zero, every=0.1)
        live.process.terminate()
        live.process.wait()
        hold_operators_pod()
        _, said = hook.communicate()
        assert hook.returncode == 0, said
        assert "not_suspended" not in said
        name = job["metadata"]["name"]
        kubectl("delete", "pods", "-n", home, "-l", f"job-name={name}")  # nobody runs it
        await live.stage.finish_job(name, "Complete", namespace=home)
        said, _ = uninstall.communicate()
        assert uninstall.returncode == 0, said
        assert "uninstalled" in said
        runs = await found(RUN, labels="")
        assert sorted(one["metadata"]["name"] for one in runs) == ["calm", "gpt"]
        for run in runs:
            assert run["spec"]["suspend"]
            assert conditions(run)["Suspended"] == "True"
        branches = await found(BRANCH)
        assert len(branches) == 1
        assert [b["metadata"].get("finalizers") for b in (*runs, *branches)] == [None] * 3

        async def empty():
            return not [*await found(JOB), *await found(POD), *await found(POD, home, "")]

        await live.until(empty)
        kubectl("delete", "namespace", namespace, HANG_OPTION)

    live.play(scene)
