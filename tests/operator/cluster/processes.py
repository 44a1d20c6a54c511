"""The operator as a process against a real API server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.ports import free_port
from tests.waiting import HANG_OPTION, HANG_SECONDS, until

_CLUSTER = Path(__file__).parents[4] / "shared" / "cluster" / "cluster"
CONFIG = {
    "trainer": {"image": "t:1"},
    "stores": [{"endpoint": "https://s3.example", "bucket": "runs"}],
}


class Server:
    """The API server as seen by kubectl, and what it is asked."""

    def __init__(self, environment) -> None:
        self.environment = environment
        self.namespace = f"p{secrets.token_hex(4)}"
        self.kubectl("create", "namespace", self.namespace)

    def kubectl(self, *arguments, given=None) -> str:
        return subprocess.run(
            ["kubectl", *arguments],
            env=self.environment,
            input=given,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def create_run(self, name, **spec) -> None:
        body = {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "data": {"train": {"uri": "python-stdlib:"}},
                "training": {"totalSteps": 100},
                "storage": {"endpoint": "https://unknown.example", "bucket": "unknown"},
                **spec,
            },
        }
        self.kubectl("apply", "-f", "-", given=json.dumps(body))

    def stalled(self, name) -> None:
        """Wait until an operator has looked at the run."""
        until = ("--for=condition=Stalled", HANG_OPTION)
        self.kubectl("wait", f"trun/{name}", "-n", self.namespace, *until)

    def holder(self, namespace=None) -> str:
        """Who holds the lease; nobody while there is none."""
        where = ("-n", namespace or self.namespace, "--ignore-not-found")
        lease = self.kubectl("get", "lease", "op", *where, "-o", "json")
        return json.loads(lease)["spec"]["holderIdentity"] if lease else ""

    def part(self, verb, name) -> None:
        """`stop` or `start` a part of the control plane."""
        command = [str(_CLUSTER), verb, name]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def kill(self, name) -> None:
        """SIGKILL a part of the control plane; returns when nothing of it is left: the command that
        starts it again takes a zombie for a part at work.
        """
        pid = int((Path(self.environment["CLUSTER_DIR"]) / f"{name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {name}")

    def reachable(self) -> bool:
        command = ["kubectl", "get", "--raw", "/readyz"]
        return not subprocess.run(
            command, env=self.environment, capture_output=True, check=False
        ).returncode


class Operators:
    """Starts operators of a namespace, by one lease."""

    def __init__(self, server, folder) -> None:
        self._server, self._folder, self._started = server, folder, []
        #: Ports of /metrics, by name.
        self.metrics: dict[str, int] = {}

    def __call__(
        self, name, *, port=None, config=CONFIG, lease_namespace=None, lease="op", ready=200
    ):
        """A new process, ready or not as `ready` says; returns it with the port of its probes. port: of the API server
        as it shall see it.
        """
        server, health, figures = self._server, free_port(), free_port()
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(config))
        environment = {**server.environment, "POD_NAME": name}
        if port is not None:
            text = Path(server.environment["KUBECONFIG"]).read_text()
            kubeconfig = self._folder / f"{name}.kubeconfig"
            kubeconfig.write_text(text.replace(f":{api_port(text)}", f":{port}"))
            environment["KUBECONFIG"] = str(kubeconfig)
        command = [sys.executable, "-m", "forkcast_operator.kubernetes", "--config", str(path)]
        command += ["--namespace", server.namespace, "--lease-name", lease]
        command += ["--metrics-port", str(figures)]
        command += ["--lease-namespace", lease_namespace or server.namespace]
        command += ["--health-port", str(health)]
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(command, env=environment, stderr=log)
        self._started.append(process)
        self.metrics[name] = figures
        until(lambda: get(health, "/readyz")[0] == ready, f"operator {name}", every=0.1)
        return process, health

    def _log(self, name) -> Path:
        return self._folder / f"{name}.log"

    def close(self, *, clean=True) -> None:
        """End all of them. clean: none may have logged a traceback."""
        for process in self._started:
            process.kill()
            process.wait()
        for log in self._folder.glob("*.log"):
            sys.stderr.write(log.read_text()[-4000:])  # shown where the test fails
            assert not clean or "Traceback" not in log.read_text()


def api_port(kubeconfig) -> str:
    return kubeconfig.split("https://127.0.0.1:")[1].split('"')[0]


def get(port, path):
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}{path}", timeout=HANG_SECONDS
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""
