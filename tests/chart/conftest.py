"""A real API server for the definitions, and Helm for the chart."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .values_matrix import MATRIX

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kubectl:
    """`kubectl` against the test's API server."""

    environment: dict[str, str]

    def __call__(
        self, *arguments: str, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", *arguments],
            input=given,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ok(self, *arguments: str, given: str | None = None) -> str:
        done = self(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, document: Any, *more: str) -> subprocess.CompletedProcess[str]:
        text = document if isinstance(document, str) else json.dumps(document)
        return self("apply", *more, "-f", "-", given=text)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.ok("get", *arguments, "-o", "json"))


@pytest.fixture(scope="session")
def kubectl(api_server: dict[str, str]) -> Kubectl:
    """An API server with etcd and controllers, the definitions installed."""
    return Kubectl(api_server)


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker of rules and expressions."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; it comes with the package prometheus")
    return program


@pytest.fixture(scope="session")
def render(helm, tmp_path_factory):
    """The objects of a case of the matrix, rendered once."""
    folder = tmp_path_factory.mktemp("values")
    known: dict[str, list[dict[str, Any]]] = {}

    def rendered(name: str) -> list[dict[str, Any]]:
        if name not in known:
            done = template(helm, folder, MATRIX[name])
            assert done.returncode == 0, done.stderr
            known[name] = [one for one in yaml.safe_load_all(done.stdout) if one]
        return known[name]

    return rendered


def template(
    helm: str,
    folder: Path,
    values: dict[str, Any],
    *more: str,
    namespace: str = "forkcast-system",
) -> subprocess.CompletedProcess[str]:
    """What `helm template` says of the chart with these values."""
    path = folder / f"{abs(hash(json.dumps(values)))}.yaml"
    path.write_text(yaml.safe_dump(values))
    return subprocess.run(
        [
            helm,
            "template",
            "demo",
            str(ROOT / "charts" / "forkcast"),
            "-n",
            namespace,
            "-f",
            str(path),
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
