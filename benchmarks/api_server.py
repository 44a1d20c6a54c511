"""A cluster for a benchmark, started by the command that CLUSTER names; what it was asked, by its log.

Only etcd, the API server and the controllers: nodes, where they are needed, are simulated.
"""

from __future__ import annotations

import calendar
import json
import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CRDS = ROOT / "charts" / "forkcast" / "files" / "crds"
_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.1
#: (verb, resource) -> how many.
Calls = Counter[tuple[str, str]]


class NoClusterError(RuntimeError):
    """There is nothing that could start a cluster here; the message says what is missing."""


def command() -> Path:
    """The program that starts a cluster. Raises NoClusterError."""
    named = os.environ.get("CLUSTER")
    found = Path(named) if named else ROOT.parent / "shared" / "cluster" / "cluster"
    if not os.access(found, os.X_OK):
        raise NoClusterError(f"no cluster command at {found}; name one by the variable CLUSTER")
    if os.geteuid() != 0:
        raise NoClusterError("starting a cluster needs root")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class ApiServer:
    """A running API server. environment: KUBECONFIG and PATH of its programs."""

    folder: Path
    environment: dict[str, str]

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl prints. Raises RuntimeError with what it complains of."""
        done = subprocess.run(
            ["kubectl", *arguments],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def program(self, name: str) -> str:
        """The path of a program that comes with the cluster. Raises NoClusterError."""
        found = shutil.which(name, path=self.environment["PATH"])
        if found is None:
            raise NoClusterError(f"the cluster brings no {name}")
        return found

    def access_as(self, namespace: str, account: str, file: Path) -> str:
        """Write a kubeconfig of a new service account that may do everything; its user name."""
        self.kubectl("create", "serviceaccount", account, "-n", namespace)
        self.kubectl(
            *("create", "clusterrolebinding", account, "--clusterrole=cluster-admin"),
            f"--serviceaccount={namespace}:{account}",
        )
        token = self.kubectl("create", "token", account, "-n", namespace, "--duration=24h").strip()
        config = json.loads(self.kubectl("config", "view", "--raw", "-o", "json"))
        config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
        file.write_text(json.dumps(config))
        return f"system:serviceaccount:{namespace}:{account}"

    def calls(self, user: str, since: float, until: float) -> Calls:
        """What a user asked between two Unix times, by the audit log. A watch counts when it begins."""
        found: Calls = Counter()
        for file in sorted((self.folder / "logs").glob("audit*.log")):
            with file.open() as lines:
                for line in lines:
                    if f'"{user}"' in line and (call := _call(line, user, since, until)):
                        found[call] += 1
        return found


def _call(line: str, user: str, since: float, until: float) -> tuple[str, str] | None:
    """One line of the log as (verb, resource), None where it is not to be counted."""
    try:
        event = json.loads(line)
    except ValueError:  # it is just being written
        return None
    wanted = "ResponseStarted" if event["verb"] == "watch" else "ResponseComplete"
    if event["user"]["username"] != user or event["stage"] != wanted:
        return None
    if not since <= _seconds(event["requestReceivedTimestamp"]) < until:
        return None
    about = event.get("objectRef", {})
    parts = (about.get("resource", "other"), about.get("subresource"))
    return event["verb"], "/".join(part for part in parts if part)


def _seconds(text: str) -> float:
    """Unix seconds of an RFC 3339 time with microseconds, UTC."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    parsed = time.strptime(whole, "%Y-%m-%dT%H:%M:%S")
    return calendar.timegm(parsed) + float(f"0.{fraction or 0}")


@contextmanager
def started(folder: Path) -> Iterator[ApiServer]:
    """An API server of its own in ``folder``, the definitions installed; gone in the end.

    Raises NoClusterError; RuntimeError where it does not start.
    """
    program = command()
    environment = {
        **os.environ,
        "CLUSTER_DIR": str(folder),
        "CLUSTER_API_PORT": str(free_port()),
        "CLUSTER_ETCD_PORT": str(free_port()),
    }

    def cluster(*arguments: str) -> str:
        done = subprocess.run(
            [str(program), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program.name} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    try:
        cluster("up", "--api-only")
        shell = f"{cluster('env')}\nenv -0"
        shown = subprocess.run(
            ["bash", "-c", shell], env=environment, capture_output=True, check=True
        ).stdout.decode()
        found = dict(one.split("=", 1) for one in shown.split("\0") if one)
        server = ApiServer(folder, found)
        _define(server)
        yield server
    finally:
        cluster("down", "--wipe")


def _define(server: ApiServer) -> None:
    server.kubectl("apply", "-f", str(_CRDS))
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    end = time.monotonic() + _READY_SECONDS
    for kind in ("trainingruns", "branches"):  # established is not yet served
        while time.monotonic() < end:
            with suppress(RuntimeError):
                server.kubectl("get", kind)
                break
            time.sleep(_LOOK_SECONDS)
