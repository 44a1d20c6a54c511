"""A real S3 server as a process of the test's own, that can be killed and started on its data."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

import boto3
import pytest

from tests.ports import free_port
from tests.waiting import HANG_SECONDS, until

_PACKED = Path(__file__).parents[2] / "shared" / "cluster" / "bin" / "versitygw.xz"
ACCESS, SECRET = "forkcast", "forkcast-secret"


class Versitygw:
    """versitygw over a folder. Skips the test where the program is not at hand."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._program = shutil.which("versitygw") or self._unpack()
        self._server: subprocess.Popen[bytes] | None = None
        for name in ("data", "meta", "credentials"):
            (folder / name).mkdir()
        #: The folder that a manifest's or an operator's `credentialsDir` names.
        self.credentials = folder / "credentials"
        (self.credentials / "accessKeyId").write_text(f"{ACCESS}\n")
        (self.credentials / "secretAccessKey").write_text(f"{SECRET}\n")

    def _unpack(self) -> str:
        if not _PACKED.exists():
            pytest.skip("versitygw is neither on PATH nor beside the checkout")
        program = self._folder / "versitygw"
        with lzma.open(_PACKED) as source, program.open("wb") as target:
            shutil.copyfileobj(source, target)
        program.chmod(0o700)
        return str(program)

    def start(self) -> None:
        """Start it, on the data of before; returns when it answers."""
        meta, data = self._folder / "meta", self._folder / "data"
        command = [self._program, "--port", f"127.0.0.1:{self._port}", "--health", "/healthz"]
        command += ["--quiet", "posix", "--sidecar", str(meta), str(data)]
        environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until(lambda: self._answers() or self._server.poll() is not None, "versitygw")
        assert self._server.poll() is None, (self._folder / "log").read_text()

    def _answers(self) -> bool:
        url = f"{self.endpoint}/healthz"
        with suppress(OSError), urllib.request.urlopen(url, timeout=HANG_SECONDS):
            return True
        return False

    def kill(self) -> None:
        """SIGKILL; a second time it does nothing."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def make_bucket(self, name: str) -> None:
        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
        ).create_bucket(Bucket=name)
