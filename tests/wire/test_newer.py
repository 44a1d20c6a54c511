"""Manifests of a newer Forkcast: what is at its default is left out, and anything else is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from forkcast_wire.manifest import TrainingRun, TrainingRunSpec
from forkcast_wire.newer import (
    ANNOTATION_DEFAULTS,
    NewerManifestError,
    Unknown,
    has_default,
    known_part,
    read_resolved,
    resolved_document,
)
from tests.make import tiny_run

GIVEN = tiny_run(
    "newer",
    data={"train": {"uri": "python-stdlib:", "maxBytes": 20000}, "sequenceLength": 16},
    training={"totalSteps": 2, "microBatchSize": 1},
    stressors=[{"type": "LongSequence", "toStep": 3}],
    branching={"mode": "Disabled"},
)
MANIFEST = TrainingRun.model_validate(GIVEN)
#: What a structural schema of a newer definition says.
NEWER = {
    "properties": {
        "training": {"properties": {"noise": {"default": "1"}, "seed": {"default": 1}}},
        "stressors": {"items": {"properties": {"flavour": {"default": "Plain"}}}},
        "mirror": {
            "default": {},
            "properties": {
                "copies": {"default": 2},
                "to": {"default": {}, "properties": {"rack": {"default": "b"}}},
                "why": {},
            },
        },
    }
}
FILLED = {"copies": 2, "to": {"rack": "b"}}


@pytest.mark.parametrize(
    ("path", "value", "default"),
    [
        (("training", "noise"), "1", True),
        (("training", "noise"), "2", False),
        (("training", "noise"), 1, False),
        (("stressors", 0, "flavour"), "Plain", True),
        (("stressors", 0, "flavour"), "Hot", False),
        (("mirror",), FILLED, True),
        (("mirror",), {**FILLED, "copies": 3}, False),
        (("mirror",), {**FILLED, "why": "x"}, False),
        (("mirror", "why"), "x", False),
        (("nothing",), None, False),
        (("nothing", "below"), 3, False),
    ],
)
def test_a_field_has_the_definitions_default_or_says_something(path, value, default):
    assert has_default(NEWER, Unknown(path, value)) is default


def _with(document, path, value):
    made = copy.deepcopy(document)
    place = made["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return made


FIELDS = [
    (("training", "noise"), "1"),
    (("stressors", 0, "flavour"), "Plain"),
    (("mirror",), FILLED),
    (("data", "validation", "also"), [1]),
]


@pytest.mark.parametrize(("path", "value"), FIELDS)
def test_what_is_unknown_is_parted_from_what_is_known(path, value):
    document = _with(GIVEN, path, value) if path[0] != "data" else None
    document = document or _with(MANIFEST.document(), path, value)
    spec, unknown = known_part(TrainingRunSpec, document["spec"])
    assert spec == MANIFEST.spec
    assert unknown == [Unknown(path, value)]


def test_what_is_wrong_with_the_rest_is_still_an_error():
    document = _with(_with(GIVEN, ("mirror",), {}), ("training", "totalSteps"), 0)
    with pytest.raises(ValidationError, match="totalSteps"):
        known_part(TrainingRunSpec, document["spec"])


def test_a_resolved_manifest_reads_back_as_it_was():
    document = resolved_document(MANIFEST)
    assert read_resolved(json.dumps(document)) == MANIFEST
    assert (
        read_resolved(json.dumps(MANIFEST.document())) == MANIFEST
    )  # of a version without the list
    listed = document["metadata"]["annotations"][ANNOTATION_DEFAULTS].split()
    assert "spec.proxy" in listed
    assert "spec.stressors.0.seed" in listed
    assert not {"spec.training", "spec.training.totalSteps", "spec.branching"} & set(listed)


def _of_a_newer_version(path, value, *, default):
    document = _with(resolved_document(MANIFEST), path, value)
    if default:
        marks = document["metadata"]["annotations"]
        marks[ANNOTATION_DEFAULTS] += " " + ".".join(map(str, ("spec", *path)))
    return document


@pytest.mark.parametrize(("path", "value"), FIELDS)
def test_a_resolved_manifest_of_a_newer_version_is_read_if_its_new_fields_have_their_defaults(
    path, value
):
    assert read_resolved(json.dumps(_of_a_newer_version(path, value, default=True))) == MANIFEST
    if path[:2] != ("data", "validation"):  # this whole part is at its default, and stays so
        with pytest.raises(NewerManifestError, match="written for a newer Forkcast") as refused:
            read_resolved(json.dumps(_of_a_newer_version(path, value, default=False)))
        assert refused.value.field == ".".join(map(str, ("spec", *path)))


@pytest.mark.parametrize("default", [True, False])
def test_an_older_trainer_trains_without_new_defaults_and_not_without_what_was_meant(
    tmp_path, default
):
    document = _of_a_newer_version(("mirror",), FILLED, default=default)
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "forkcast_trainer", f"--workdir={tmp_path}", "--monitor="]
    command += [f"--manifest={tmp_path}/manifest.json", "--attempt=0"]
    run = {"uid": "u", "name": "newer", "manifest_digest": "0" * 64}
    (tmp_path / "run.json").write_text(json.dumps(run))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if default:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "complete.json").exists()
    else:
        assert done.returncode == 2, done.stderr
        assert "spec.mirror" in done.stderr
        assert "newer Forkcast" in done.stderr
        assert not (tmp_path / "checkpoints").exists()
