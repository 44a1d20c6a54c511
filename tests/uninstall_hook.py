"""The hook before `helm uninstall`, run as its pod would run it: same program, account and rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.waiting import HANG_OPTION


def start_hook(
    kubectl: Callable[..., str], kubeconfig: str, job: dict[str, Any], folder: Path, *more: str
) -> subprocess.Popen[str]:
    """Start it. kubectl: gives what the command says. job: the hook's. more: arguments that count
    before those of the job.
    """
    namespace = job["metadata"]["namespace"]
    pod = job["spec"]["template"]["spec"]
    token = kubectl("create", "token", pod["serviceAccountName"], "-n", namespace)
    (folder / "token").write_text(token)
    published = "configmap/kube-root-ca.crt"
    kubectl("wait", published, "-n", namespace, "--for=create", HANG_OPTION)
    said = kubectl("get", published, "-n", namespace, "-o", "yaml")
    (folder / "ca.crt").write_text(yaml.safe_load(said)["data"]["ca.crt"])
    server = yaml.safe_load(Path(kubeconfig).read_text())["clusters"][0]["cluster"]["server"]
    environment = {
        **os.environ,
        "KUBERNETES_SERVICE_HOST": "localhost",  # what its certificate names
        "KUBERNETES_SERVICE_PORT": str(urlsplit(server).port),
    }
    container = pod["containers"][0]
    command = [*container["command"][1:], *container["args"], "--account", str(folder), *more]
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True
    )
