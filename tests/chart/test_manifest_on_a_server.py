"""One format, two readers: what `forkcast run` takes is what `kubectl apply` takes, with the same
values.

An operator that cannot read the spec which the server took refuses it with InvalidSpec: rules over
several decimals, which no rule of the server can read.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.manifest_file import ManifestError, read_manifest
from tests.chart.manifest_mutations import good, mutations, text_of
from tests.wrong_runs import changed

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))
COUNT = 800


def _apply(folder: Path, environment: dict[str, str]) -> tuple[set[str], dict[str, Any], str]:
    """Names of the files that were refused; by name of the run the specs of the others."""

    def apply(*more: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "apply", "--dry-run=server", "-f", str(folder), *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    said = apply().stderr
    refused = set(re.findall(rf"{re.escape(str(folder))}/([\w.-]+)\.yaml", said))
    for name in refused:
        (folder / f"{name}.yaml").unlink()
    done = apply("-o", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    items = found["items"] if found["kind"] == "List" else [found]
    return refused, {one["metadata"]["name"]: one["spec"] for one in items}, said


def _locally(path: Path) -> tuple[TrainingRunSpec | None, str]:
    try:
        return read_manifest(path).spec, ""
    except ManifestError as error:
        return None, "; ".join(error.lines())


def _as_stored(spec: dict[str, Any]) -> TrainingRunSpec | None:
    try:
        return TrainingRunSpec.model_validate(spec)
    except ValidationError:
        return None


def test_mutated_manifests_are_taken_by_both_readers_or_by_none(api_server, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    texts = dict(mutations(COUNT))
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_bytes(text.encode())
    ours = {name: _locally(folder / f"{name}.yaml") for name in texts}
    refused, stored, said = _apply(folder, api_server)
    assert set(stored) == set(texts) - refused
    assert min(len(refused), len(stored)) >= COUNT // 5  # a generator worth its time
    differing = []
    for name, text in texts.items():
        spec, why = ours[name]
        theirs = _as_stored(stored[name]) if name in stored else None
        if spec != theirs:
            lines = [line for line in said.splitlines() if f"/{name}.yaml" in line]
            differing.append(f"{text}ours: {why or spec}\ntheirs: {lines or theirs}")
    assert not differing, f"{len(differing)} differ:\n" + "\n\n".join(differing[:12])


#: A field, and what is no value of it.
SPELLED = {
    "metadata.name": ["a.b", "a" * 41],
    "spec.podPatch.labels": [{"a b": "c"}, {"a" * 64: "c"}],
    "spec.podPatch.annotations": [{"a/b/c": "d"}],
    "spec.podPatch.nodeSelector": [{"/a": "b"}],
    "spec.podPatch.tolerations": [
        [{"key": "a b"}],
        [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 9}],
    ],
    "spec.podPatch.claims": [[{"claimName": "a", "mountPath": "/work"}]],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in SPELLED.items() for value in values],
    ids=lambda one: json.dumps(one)[:40],
)
def test_both_readers_give_the_reason_and_the_remedy_in_the_same_words(
    kubectl, tmp_path, field, value
):
    document = changed(field, value)
    path = tmp_path / "given.yaml"
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError) as ours:
        read_manifest(path)
    theirs = kubectl.apply(document, "--dry-run=server").stderr
    assert ours.value.field.startswith(field)
    assert f"invalid: {field}" in theirs
    assert f"{ours.value.rule}; {ours.value.remedy}" in theirs


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_the_same_values_for_both_readers(api_server, tmp_path, path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / path.name).write_bytes(path.read_bytes())
    refused, stored, said = _apply(tmp_path / "given", api_server)
    assert not refused, said
    spec = read_manifest(path).spec
    assert [_as_stored(one) for one in stored.values()] == [spec]


def test_what_the_server_gives_back_is_a_manifest(api_server, tmp_path):
    """`kubectl get trun -o yaml`, with what a server and an operator add."""
    path = tmp_path / "given.yaml"
    path.write_text(text_of(good("given-back")))
    kubectl = ["kubectl", "--request-timeout=20s"]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*kubectl, *arguments], env=api_server, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("apply", "-f", str(path))
    try:
        status = json.dumps({"status": {"progress": {"step": 5, "totalSteps": 10}}})
        run("patch", "trun", "given-back", "--subresource=status", "--type=merge", "-p", status)
        for listed in (("given-back",), ()):
            (tmp_path / "back.yaml").write_text(run("get", "trun", *listed, "-o", "yaml"))
            back = read_manifest(tmp_path / "back.yaml")
            assert "progress" in (tmp_path / "back.yaml").read_text()
            assert back.spec == read_manifest(path).spec
            assert back.metadata.annotations == {}
    finally:
        run("delete", "trun", "given-back")
