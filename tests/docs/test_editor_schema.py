"""The JSON Schema that editors read: it takes what the manifest's reader takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from forkcast_wire.manifest_file import ManifestError, read_manifest
from forkcast_wire.manifest_yaml import read_documents
from tests.wrong_runs import GOOD, changed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trainingrun.schema.json"
SCHEMA = jsonschema.Draft7Validator(json.loads(PAGE.read_text()))
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_names_the_schema_and_satisfies_it(path):
    first = path.read_text().splitlines()[0]
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", first)
    assert (path.parent / named).resolve() == PAGE
    for document in read_documents(path):
        SCHEMA.validate(document)


@pytest.mark.parametrize(
    ("path", "value", "taken"),
    [
        ("spec.optimizer.learningRate", "3e-4", True),
        ("spec.optimizer.learningRate", 3e-4, True),
        ("spec.optimizer.learningRate", 0, False),
        ("spec.optimizer.learningRate", "0", False),
        ("spec.optimizer.learningRate", True, False),
        ("spec.optimizer.betas", [0.9, "0.95"], True),
        ("spec.optimizer.betas", [0.9, 1], False),
        ("spec.optimizer.betas", [0.9], False),
        ("spec.training.totalSteps", 0, False),
        ("spec.training.totalSteps", "10", False),
        ("spec.training.total_steps", 10, False),
        ("spec.branching.mode", "Enforce", True),
        ("spec.branching.mode", "Enforced", False),
        ("spec.branching.topk", 4, False),
        ("spec.stressors", [{"type": "LongSequence", "magnitude": 3}], False),
        ("spec.resources", {"perNode": {"limits": {"cpu": 0.5}}}, True),
        ("metadata.name", "A", False),
        ("kind", "Job", False),
    ],
)
def test_it_judges_as_the_reader_does(tmp_path, path, value, taken):
    document = changed(path, value)
    assert SCHEMA.is_valid(document) == taken
    (tmp_path / "m.json").write_text(json.dumps(document))
    try:
        read_manifest(tmp_path / "m.json")
    except ManifestError:
        assert not taken
    else:
        assert taken


def test_null_stands_for_an_absent_field():
    document = json.loads(json.dumps(GOOD))
    document["spec"] |= {"stressors": None, "model": {"source": None, "dtype": None}}
    SCHEMA.validate(document)
