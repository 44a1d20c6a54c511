"""The definitions as files: up to date, bounded, described, and their rules right without a server."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import celpy
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from forkcast_wire.crd import SchemaError, branch, part_schema, training_run
from forkcast_wire.fields import Decimal, Part
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import BranchCondition, RunCondition

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "charts" / "forkcast" / "files" / "crds"
DEFINITIONS = {"TrainingRun": training_run(), "Branch": branch()}


def _root(definition: dict[str, Any]) -> dict[str, Any]:
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _walk(schema: dict[str, Any], path: str = ""):
    """Every schema below, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _walk(inner, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in schema:
            yield from _walk(schema[part], f"{path}[]")


SCHEMAS = [
    pytest.param(path, schema, id=f"{kind}{path}")
    for kind, definition in DEFINITIONS.items()
    for root in ("spec", "status")
    for path, schema in _walk(_root(definition)["properties"][root], f".{root}")
]


def test_files_are_what_the_models_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_crds.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_a_file_fits_into_an_annotation_and_reads_back(kind):
    name = DEFINITIONS[kind]["metadata"]["name"]
    text = (CRDS / f"{name}.yaml").read_text()
    assert len(text.encode()) < 256 << 10
    assert yaml.safe_load(text) == DEFINITIONS[kind]


def test_every_field_is_described_and_bounded():
    for _path, schema in (p.values for p in SCHEMAS):
        for name, inner in schema.get("properties", {}).items():
            assert inner.get("description", "").strip(), f"{_path}.{name}"
        kind = schema.get("type")
        if kind in ("string", None) and "enum" not in schema:
            assert "maxLength" in schema, _path
        if kind == "integer":
            assert {"minimum", "maximum"} <= set(schema), _path
        if kind == "array":
            assert "maxItems" in schema, _path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, _path
        assert ("x-kubernetes-preserve-unknown-fields" in schema) == (kind is None), _path


def test_no_number_is_a_float():
    assert not [
        path for path, schema in (p.values for p in SCHEMAS) if schema.get("type") == "number"
    ]


def test_columns_name_what_there_is():
    for definition in DEFINITIONS.values():
        fields = {path for path, _ in _walk(_root(definition))}
        for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]:
            path = column["jsonPath"]
            if path == ".metadata.creationTimestamp":
                continue
            plain = path.split("[?")[0]
            rest = path.rpartition(")]")[2] if "[?" in path else ""
            assert (f"{plain}[]{rest}" if rest else plain) in fields, path


def test_conditions_fit_into_the_list():
    assert len(RunCondition) <= 16
    assert len(BranchCondition) <= 16


def test_a_field_without_words_or_bounds_is_refused():
    class Wordless(Part):
        one: bool = True

    class Boundless(Part):
        one: int
        """One."""

    class Endless(Part):
        one: Annotated[list[bool], Field()]
        """One."""

    class Mixed(Part):
        one: bool | str
        """One."""

    for model, said in (
        (Wordless, "description"),
        (Boundless, "ge and le"),
        (Endless, "max_length"),
        (Mixed, "union"),
    ):
        with pytest.raises(SchemaError, match=rf"{model.__name__}\.one: .*{said}"):
            part_schema(model)


#: Ranges of decimals by pydantic's names; all that the manifest has, and more.
RANGES: list[dict[str, float]] = [
    {},
    {"gt": 0},
    {"ge": 0},
    {"ge": 0, "le": 1},
    {"ge": 0, "lt": 1},
    {"gt": 0, "lt": 1},
    {"gt": 0, "le": 10},
    {"gt": 0, "le": 600},
    {"gt": 0, "lt": 600},
    {"gt": 0, "le": 1000},
    {"ge": 0, "lt": 1000},
    {"le": 3},
]
_DIGITS = st.text("0123456789", max_size=5)
_NEAR = ["", "0", "1", "5", "6", "9", "10", "99", "100", "599", "600", "601", "999", "1000", "1001"]
_TEXTS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "", "+", "-"]),
        st.sampled_from(["", "0", "00"]),
        st.sampled_from(_NEAR) | _DIGITS,
        st.sampled_from(["", ".", ".0", ".00", ".1", ".01"]) | _DIGITS.map(".".__add__),
        st.sampled_from(
            ["", "", "e0", "E-0", "e+0", "e1", "e2", "e3", "e+02", "e-1", "e-10", "e307"]
        )
        | st.integers(-400, 400).map("e{}".format),
    ),
)


@pytest.mark.parametrize("bounds", RANGES, ids=str)
@settings(max_examples=400)
@given(text=_TEXTS)
def test_the_pattern_of_a_decimal_is_its_range(bounds, text):
    class One(Part):
        share: Annotated[Decimal, Field(**bounds)]
        """A share."""

    schema = part_schema(One)["properties"]["share"]
    fits = re.search(schema["pattern"], text) is not None and len(text) <= schema["maxLength"]
    try:
        One.model_validate({"share": text})
    except ValidationError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("bounds", [{"gt": 0, "le": 12}, {"ge": 1}, {"gt": 0, "le": 0.5}], ids=str)
def test_a_range_that_no_pattern_can_say_is_refused(bounds):
    class One(Part):
        share: Annotated[Decimal, Field(**bounds)]
        """A share."""

    with pytest.raises(SchemaError, match=r"One\.share: a decimal's"):
        part_schema(One)


def test_a_decimal_that_is_a_number_keeps_its_range():
    class One(Part):
        share: Annotated[Decimal, Field(gt=0, le=1)] = 0.5
        """A share."""

    schema = part_schema(One)["properties"]["share"]
    assert schema["default"] == "0.5"
    assert (schema["minimum"], schema["exclusiveMinimum"], schema["maximum"]) == (0, True, 1)
    assert "exclusiveMaximum" not in schema


@pytest.mark.parametrize("value", [1e-307, 3e-4, 0.1, 1 / 3, 1e22, 123456789.123456789, -1.5e-7])
def test_a_number_is_converted_exactly(value):
    class One(Part):
        share: Decimal

    assert One.model_validate({"share": value}).share == value
    assert One.model_validate_json(One(share=value).model_dump_json()).share == value


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e-308, 10**400, True, None, [], {}, "1_0"])
def test_what_is_no_decimal_is_refused(value):
    class One(Part):
        share: Decimal

    with pytest.raises(ValidationError):
        One.model_validate({"share": value})


# ------------------------------------------------------------- the rules, by another CEL interpreter


def _holds(expression: str, value: Any, before: Any = None) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    given = {"self": celpy.json_to_cel(value)}
    if before is not None:
        given["oldSelf"] = celpy.json_to_cel(before)
    return bool(program.evaluate(given))


def _good() -> dict[str, Any]:
    manifest = {"data": {"train": {"uri": "text"}}, "training": {"totalSteps": 10}}
    return TrainingRunSpec.model_validate(manifest).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )


def _changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(_good())
    *parts, last = path.split(".")
    place = document
    for part in parts:
        place = place.setdefault(part, {})
    place[last] = value
    return document


def _rules(path: str) -> list[str]:
    schema = _root(DEFINITIONS["TrainingRun"])["properties"]["spec"]
    for part in path.split(".") if path else ():
        schema = schema["properties"][part]
    return [one["rule"] for one in schema["x-kubernetes-validations"]]


def _at(document: dict[str, Any], path: str) -> Any:
    for part in path.split(".") if path else ():
        document = document[part]
    return document


@pytest.mark.parametrize(
    ("part", "field", "bad", "good"),
    [
        ("branching", "branching.topK", 16, 6),
        ("branching", "branching.rungs", [10, 10, 50], [10, 20, 30, 40, 50, 60, 70, 80]),
        ("branching", "branching.confirm.steps", 50, 51),
        ("branching", "branching.actions.skipBatch", True, False),
        ("model", "model.source", "somewhere", None),
        ("storage", "storage.bucket", "bucket", None),
        ("optimizer.schedule", "optimizer.schedule.decaySteps", 3, None),
        ("optimizer.schedule", "optimizer.schedule.decayShape", "Linear", None),
    ],
)
def test_rules_without_a_server(part, field, bad, good):
    def verdicts(value: Any) -> list[bool]:
        document = _good() if value is None else _changed(field, value)
        document["branching"]["candidates"] = 15
        return [_holds(rule, _at(document, part)) for rule in _rules(part)]

    assert not all(verdicts(bad))
    assert all(verdicts(good))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("training.totalSteps", 11, True),
        ("training.totalSteps", 9, False),
        ("training.threads", 2, True),
        ("training.scheduleSteps", 5, False),
        ("training.seed", 7, False),
        ("model.architecture", "gpt2-medium", False),
        ("optimizer.learningRate", "1e-3", False),
        ("parallelism.nodes", 2, False),
        ("storage.prefix", "elsewhere/", False),
        ("data.shuffleSeed", 3, False),
        ("branching.mode", "Observe", True),
        ("resources.scratch", "20Gi", False),
        ("suspend", True, True),
    ],
)
def test_changes_without_a_server(field, value, allowed):
    after, before = _changed(field, value), _good()
    rules = [rule for rule in _rules("") if "oldSelf" in rule]
    assert all(_holds(rule, after, before) for rule in rules) is allowed


def _verdict(document: dict[str, Any], part: str = "") -> bool:
    """The rules' of a part of a spec, as it stands; the model must say the same."""
    own = _at(document, part)
    said = all(_holds(rule, own) for rule in _rules(part) if "oldSelf" not in rule)
    try:
        TrainingRunSpec.model_validate(document)
    except ValueError:
        assert not said
    else:
        assert said
    return said


@pytest.mark.parametrize(
    ("kind", "fits"), [("Cosine", True), ("Linear", True), ("WSD", True), ("Constant", False)]
)
def test_a_schedule_has_a_length_only_if_it_ends(kind, fits):
    document = _changed("training.scheduleSteps", 5)
    document["optimizer"]["schedule"]["type"] = kind
    assert _verdict(document) is fits


@pytest.mark.parametrize(
    ("length", "decay", "fits"), [(None, 6, True), (None, 7, False), (9, 5, True), (9, 6, False)]
)
def test_a_decay_fits_between_the_warm_up_and_the_end(length, decay, fits):
    document = _changed("optimizer.schedule", {"type": "WSD", "warmupSteps": 4})
    document["optimizer"]["schedule"]["decaySteps"] = decay
    if length is not None:
        document["training"]["scheduleSteps"] = length
    assert _verdict(document) is fits


@pytest.mark.parametrize(
    ("name", "clipping", "fits"),
    [
        ("AdamW", "SPAM", True),
        ("AdamW8bit", "SPAM", True),
        ("Muon", "SPAM", False),
        ("Muon", "ZClip", True),
    ],
)
def test_a_policy_has_the_moments_that_it_needs(name, clipping, fits):
    document = _changed("optimizer.name", name)
    document["optimizer"]["clipping"] = {"policy": clipping, "params": {}}
    assert _verdict(document, "optimizer") is fits


def test_the_schedules_length_changes_while_suspended():
    before = _changed("suspend", value=True)
    after = copy.deepcopy(before)
    after["training"]["scheduleSteps"] = 5
    assert all(_holds(rule, after, before) for rule in _rules(""))


def test_resources_change_while_suspended():
    before = _changed("suspend", value=True)
    after = copy.deepcopy(before)
    after["resources"]["scratch"] = "20Gi"
    assert all(_holds(rule, after, before) for rule in _rules(""))
