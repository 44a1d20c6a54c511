"""The stores that every contract test runs against: a folder, moto's S3 and versitygw's."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from forkcast.ports import Store
from forkcast_wire.manifest import Storage
from forkcast_wire.store import FolderStore
from forkcast_wire.store.s3 import S3Store
from tests.ports import free_port
from tests.versitygw import ACCESS, SECRET, Versitygw


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(scope="session")
def versitygw_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Versitygw(tmp_path_factory.mktemp("versitygw"))
    server.start()
    yield server.endpoint
    server.kill()


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "accessKeyId").write_text(f"{ACCESS}\n")
    (folder / "secretAccessKey").write_text(f"{SECRET}\n")
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
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
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
