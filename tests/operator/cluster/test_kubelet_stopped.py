"""The same as test_node_lost.py on a whole cluster: a real kubelet is stopped under a real pod. The
pod's image is busybox with a `python` that sleeps; it trains nothing. One at a time on a machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile

import pytest

from .live import Live
from .processes import Operators, Server
from .test_node_lost import lose_the_node

pytestmark = [pytest.mark.slow, pytest.mark.faults]
_IMAGE = "forkcast/sleeper:1"
_SLEEPER = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 1; done\n"


def _add(archive, name, data, mode=0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))


def pack_image(path) -> None:
    """An image archive as `docker save` writes it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        files.add(shutil.which("busybox"), "bin/busybox")
        for name in ("sh", "sleep", "kill"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            files.addfile(link)
        _add(files, "bin/python", _SLEEPER.encode(), 0o755)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    about = [{"Config": "c.json", "RepoTags": [f"docker.io/{_IMAGE}"], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, "layer.tar", layer.getvalue())
        _add(archive, "c.json", json.dumps(config).encode())
        _add(archive, "manifest.json", json.dumps(about).encode())


class RealKubelet:
    """That of the cluster's one real node."""

    node = "node1"

    def __init__(self, server) -> None:
        self._server = server

    def run(self, pod) -> None:
        """It does so unasked."""

    def stop(self) -> None:
        self._server.part("stop", "kubelet")

    def come_back(self, pod) -> None:
        self._server.part("start", "kubelet")


def test_a_real_kubelet_stops(
    start_cluster, tmp_path_factory, tmp_path, monitor, gateway, monkeypatch
) -> None:
    with start_cluster(tmp_path_factory.mktemp("whole")) as environment:
        server = Server(environment)
        pack_image(tmp_path / "image.tar")
        server.part("load", str(tmp_path / "image.tar"))
        server.part("fake-nodes", "1")
        server.kubectl(
            *("create", "secret", "generic", "forkcast-store", "-n", server.namespace),
            *("--from-literal=accessKeyId=a", "--from-literal=secretAccessKey=b"),
        )
        monkeypatch.setenv("KUBECONFIG", environment["KUBECONFIG"])
        operators = Operators(server, tmp_path)
        live = Live(server, operators, monitor, gateway, tmp_path)
        live.config["trainer"]["image"] = _IMAGE
        try:
            live.play(lambda: lose_the_node(live, RealKubelet(server)))
        finally:
            operators.close()
