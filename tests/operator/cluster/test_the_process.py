"""The operator as a process against a real API server: its watches, its lease, its probes."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from forkcast_wire.resources import FINALIZER

pytestmark = pytest.mark.slow
#: A watch whose connection is dead is to be noticed within this, seconds.
_NOTICED_SECONDS = 30


class Line:
    """A TCP proxy whose present connections can be made silent, both ways, while new ones pass."""

    def __init__(self, port: int) -> None:
        self._to, self._silent, self._open = port, set(), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                key = object()
                self._open.append(key)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._pump, args=(key, source, sink), daemon=True
                    ).start()

    def _pump(self, key, source, sink) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if key not in self._silent:
                    sink.sendall(data)
            if key not in self._silent:
                sink.shutdown(socket.SHUT_WR)

    def silence(self) -> int:
        """Drop what the present connections carry; nobody is told. Returns how many there are."""
        self._silent.update(self._open)
        return len(self._silent)

    def close(self) -> None:
        self._listener.close()


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

    def create_run(self, name) -> None:
        body = {
            "apiVersion": "forkcast.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "data": {"train": {"uri": "python-stdlib:"}},
                "training": {"totalSteps": 100},
                "storage": {"endpoint": "https://unknown.example", "bucket": "unknown"},
            },
        }
        self.kubectl("apply", "-f", "-", given=json.dumps(body))

    def stalled(self, name, seconds) -> float:
        """How long it took until an operator has looked at the run."""
        started = time.monotonic()
        self.kubectl(
            "wait",
            f"trun/{name}",
            "-n",
            self.namespace,
            "--for=condition=Stalled",
            f"--timeout={seconds}s",
        )
        return time.monotonic() - started

    def holder(self) -> str:
        lease = self.kubectl("get", "lease", "op", "-n", self.namespace, "-o", "json")
        return json.loads(lease)["spec"]["holderIdentity"]


@pytest.fixture
def server(api_server):
    return Server(api_server)


@pytest.fixture
def operators(server, tmp_path):
    """Starts operators; they end with the test."""
    config = tmp_path / "operator.yaml"
    config.write_text(
        json.dumps(
            {
                "trainer": {"image": "t:1"},
                "stores": [{"endpoint": "https://s3.example", "bucket": "runs"}],
            }
        )
    )
    started = []

    def start(name, *, port=None, kubeconfig=None):
        health = _free_port()
        environment = {**server.environment, "POD_NAME": name, "POD_NAMESPACE": server.namespace}
        if port is not None:
            text = Path(server.environment["KUBECONFIG"]).read_text()
            kubeconfig = tmp_path / f"{name}.kubeconfig"
            kubeconfig.write_text(text.replace(f":{_api_port(text)}", f":{port}"))
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        log = (tmp_path / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "forkcast_operator.kubernetes",
                "--config",
                str(config),
                "--namespace",
                server.namespace,
                "--lease-name",
                "op",
                "--metrics-port",
                "0",
                "--health-port",
                str(health),
            ],
            env=environment,
            stderr=log,
        )
        started.append(process)
        _wait(lambda: _get(health, "/readyz")[0] == 200, 60)
        return process, health

    yield start
    for process in started:
        process.kill()
        process.wait()
    for log in tmp_path.glob("*.log"):
        sys.stderr.write(log.read_text()[-4000:])  # shown where the test fails
        assert "Traceback" not in log.read_text()


def _api_port(kubeconfig) -> str:
    return kubeconfig.split("https://127.0.0.1:")[1].split('"')[0]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def _wait(holds, seconds) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.1)


def test_a_run_keeps_its_finalizer_and_is_left_alone(server, operators) -> None:
    """The library that keeps the watches has finalizers, too, and takes away what it thinks its."""
    operators("one")
    server.create_run("a")
    server.stalled("a", 60)
    versions = set()
    for _ in range(20):
        meta = json.loads(server.kubectl("get", "trun/a", "-n", server.namespace, "-o", "json"))[
            "metadata"
        ]
        assert FINALIZER in meta.get("finalizers", [])
        versions.add(meta["resourceVersion"])
    assert len(versions) <= 2, "it is written again and again"
    server.kubectl("delete", "trun/a", "-n", server.namespace, "--timeout=60s")


def test_a_watch_that_is_silently_dead_is_noticed_in_time(server, operators) -> None:
    port = int(_api_port(Path(server.environment["KUBECONFIG"]).read_text()))
    line = Line(port)
    _, health = operators("a", port=line.port)
    server.create_run("before")
    server.stalled("before", 30)
    assert line.silence() >= 4
    server.create_run("after")
    took = server.stalled("after", 60)
    assert took < _NOTICED_SECONDS
    assert _get(health, "/healthz") == (200, "ok")
    line.close()


def test_of_two_operators_one_acts_and_the_other_takes_over(server, operators) -> None:
    first, _ = operators("a")
    _wait(lambda: server.holder() == "a", 30)
    _, health = operators("b")
    assert _get(health, "/readyz")[0] == 200
    server.create_run("one")
    server.stalled("one", 30)
    first.send_signal(signal.SIGKILL)
    server.create_run("two")
    assert server.stalled("two", 60) < 40  # the lease runs out first
    assert server.holder() == "b"


def test_one_that_leaves_in_order_gives_its_lease_back(server, operators) -> None:
    first, _ = operators("a")
    _wait(lambda: server.holder() == "a", 30)
    operators("b")
    first.terminate()
    assert first.wait(30) == 0
    _wait(lambda: server.holder() == "b", 10)


def test_a_stopped_leader_that_wakes_finds_itself_replaced(server, operators) -> None:
    first, _ = operators("a")
    _wait(lambda: server.holder() == "a", 30)
    second, _ = operators("b")
    first.send_signal(signal.SIGSTOP)
    _wait(lambda: server.holder() == "b", 60)
    first.send_signal(signal.SIGCONT)
    server.create_run("now")
    server.stalled("now", 30)
    assert server.holder() == "b"
    second.terminate()  # the first one is a standby by now
    _wait(lambda: server.holder() == "a", 30)


def test_the_api_server_may_be_away(server, operators) -> None:
    _, health = operators("a")
    folder = Path(server.environment["CLUSTER_DIR"])
    cluster = Path(__file__).parents[4] / "shared" / "cluster" / "cluster"
    for part in ("stop", "start"):
        subprocess.run(
            [str(cluster), part, "apiserver"],
            env=server.environment,
            check=True,
            capture_output=True,
        )
    assert folder.exists()
    _wait(lambda: _reachable(server), 60)
    server.create_run("later")
    server.stalled("later", 60)
    assert _get(health, "/healthz")[0] == 200


def _reachable(server) -> bool:
    return (
        subprocess.run(
            ["kubectl", "get", "--raw", "/readyz"],
            env=server.environment,
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
