"""The stores that every contract test runs against: a folder, moto's S3 and versitygw's."""

from __future__ import annotations

import lzma
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from forkcast.ports import Store
from forkcast_wire.manifest import Storage
from forkcast_wire.store import FolderStore
from forkcast_wire.store.s3 import S3Store

_CLUSTER = Path(__file__).parents[3] / "shared" / "cluster" / "bin"
_ACCESS, _SECRET = "forkcast", "forkcast-secret"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(scope="session")
def versitygw_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("versitygw")
    program = shutil.which("versitygw")
    if program is None:
        packed = _CLUSTER / "versitygw.xz"
        if not packed.exists():
            pytest.skip("versitygw is neither on PATH nor beside the checkout")
        program = str(folder / "versitygw")
        with lzma.open(packed) as source, Path(program).open("wb") as target:
            shutil.copyfileobj(source, target)
        Path(program).chmod(0o700)
    (folder / "data").mkdir()
    (folder / "meta").mkdir()
    port = free_port()
    command = [program, "--port", f"127.0.0.1:{port}", "--health", "/healthz", "--quiet"]
    command += ["posix", "--sidecar", str(folder / "meta"), str(folder / "data")]
    environment = {**os.environ, "ROOT_ACCESS_KEY": _ACCESS, "ROOT_SECRET_KEY": _SECRET}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_healthy(server, endpoint, folder / "log")
        yield endpoint
    finally:
        server.terminate()
        server.wait(10)


def _wait_healthy(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"versitygw did not start: {log.read_text()}")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "accessKeyId").write_text(f"{_ACCESS}\n")
    (folder / "secretAccessKey").write_text(f"{_SECRET}\n")
    return folder


@pytest.fixture
def make_storage(credentials: Path) -> Callable[..., Storage]:
    """Makes the storage section for a new bucket at an endpoint."""

    def make(endpoint: str, **more: str) -> Storage:
        bucket = f"b{secrets.token_hex(6)}"
        boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=_ACCESS,
            aws_secret_access_key=_SECRET,
        ).create_bucket(Bucket=bucket)
        section = {
            "endpoint": endpoint,
            "bucket": bucket,
            "prefix": "runs/one/",
            "credentialsDir": str(credentials),
            **more,
        }
        return Storage.model_validate(section)

    return make


@pytest.fixture(params=["folder", "moto", "versitygw"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, make_storage: Callable[..., Storage]
) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    return S3Store.connect(make_storage(endpoint, conditionalWrites="Required"))
