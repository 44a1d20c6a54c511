"""Installed again elsewhere, after an uninstall that keeps the definitions and the runs, as docs/helm.md
says, on a real API server of its own.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from forkcast_wire.fields import API_VERSION
from tests.waiting import HANG_OPTION

from .conftest import Kubectl

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "forkcast"
PREVIOUS = min((Path(__file__).parent / "previous").glob("*.tgz"))
VALUES = {
    "objectStore": {"mode": "Bundled", "bundled": {"persistence": {"enabled": False}}},
    "watchNamespaces": ["lab"],
}
OWNER = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"


@pytest.fixture(scope="module")
def kept(helm, start_cluster, tmp_path_factory):
    """An API server on which an earlier release `demo` in `first` was uninstalled: its definitions
    and a run are left; and a function that calls Helm.
    """
    folder = tmp_path_factory.mktemp("reinstall")
    with start_cluster(folder, "--api-only", defined=False) as environment:
        kubectl = Kubectl(environment)
        for name in ("first", "second", "lab"):
            kubectl.ok("create", "namespace", name)
        values = folder / "values.yaml"
        values.write_text(yaml.safe_dump(VALUES))

        def call(*arguments):
            return subprocess.run(
                [helm, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        def install(name, namespace, *more, chart=CHART):
            return call("install", name, str(chart), "-n", namespace, "-f", str(values), *more)

        done = install("demo", "first", chart=PREVIOUS)
        assert done.returncode == 0, done.stderr
        kubectl.ok("wait", "--for=condition=Established", "crd", "--all", HANG_OPTION)
        run = {
            "apiVersion": API_VERSION,
            "kind": "TrainingRun",
            "metadata": {"name": "gpt", "namespace": "lab"},
            "spec": {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 10}},
        }
        assert kubectl.apply(run).returncode == 0
        uninstall(call, "demo", "first")
        assert kubectl.get("trun", "gpt", "-n", "lab")
        yield kubectl, call, install


def uninstall(call, name, namespace):
    # no pod runs here, so its hook cannot; test_uninstall.py runs that
    done = call("uninstall", name, "-n", namespace, "--no-hooks")
    assert done.returncode == 0, done.stderr


def schemas(kubectl):
    found = kubectl.get("crd")["items"]
    return {one["metadata"]["name"]: one["spec"]["versions"][0]["schema"] for one in found}


def shipped():
    found = [yaml.safe_load(path.read_text()) for path in (CHART / "files" / "crds").glob("*.yaml")]
    return {one["metadata"]["name"]: one["spec"]["versions"][0]["schema"] for one in found}


def test_elsewhere_the_definitions_are_left_alone_or_taken_over(kept) -> None:
    """In the order of the page; nothing of the run changes on the way."""
    kubectl, call, install = kept
    before = kubectl.get("trun", "gpt", "-n", "lab")
    refused = install("demo", "second")
    assert refused.returncode != 0
    assert "invalid ownership metadata" in refused.stderr

    done = install("fc", "second", "--set", "crds.enabled=false")
    assert done.returncode == 0, done.stderr
    old = schemas(kubectl)
    assert old != shipped()
    page = (ROOT / "docs" / "helm.md").read_text()
    documented = re.search(
        r"kubectl (apply --server-side [^`]*) charts/forkcast/files/crds/`", page
    )
    kubectl.ok(*documented[1].split(), str(CHART / "files" / "crds"))
    assert schemas(kubectl) == shipped()
    uninstall(call, "fc", "second")

    done = install("other", "second", "--take-ownership")
    assert done.returncode == 0, done.stderr
    for one in kubectl.get("crd")["items"]:
        notes = one["metadata"]["annotations"]
        assert [notes[key] for key in OWNER] == ["other", "second"]
    assert schemas(kubectl) == shipped()
    uninstall(call, "other", "second")
    done = install("other", "second")  # the same again needs nothing
    assert done.returncode == 0, done.stderr
    after = kubectl.get("trun", "gpt", "-n", "lab")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
