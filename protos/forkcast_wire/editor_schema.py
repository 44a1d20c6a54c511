"""The manifest's structural schema as a JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any, Final

from forkcast_wire.crd import training_run
from forkcast_wire.fields import API_VERSION
from forkcast_wire.manifest import RUN_NAME

Schema = dict[str, Any]
_KEPT: Final = (
    "description",
    "type",
    "enum",
    "default",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "anyOf",
)


def editor_schema() -> Schema:
    """The JSON Schema (draft 7) of a TrainingRun. What CEL rules say across fields is not in it."""
    version = training_run()["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    text = {"type": "object", "additionalProperties": {"type": "string"}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "TrainingRun",
        "description": root["description"],
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": "TrainingRun"},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {
                        "type": "string",
                        "allOf": [{"pattern": f"^({one})$"} for one in RUN_NAME.patterns],
                    },
                    "namespace": {"type": "string", "maxLength": 63},
                    "labels": text,
                    "annotations": text,
                },
            },
            "spec": _converted(root["properties"]["spec"]),
            "status": {"type": "object"},
        },
    }


def _converted(given: Schema) -> Schema:
    made: Schema = {name: given[name] for name in _KEPT if name in given}
    if "x-kubernetes-preserve-unknown-fields" in given:
        made["type"] = ["number", "string"]
    for side in ("minimum", "maximum"):
        if side in given:
            exclusive = f"exclusive{side.capitalize()}"
            made[exclusive if given.get(exclusive) else side] = given[side]
    if "properties" in given:
        made["properties"] = {n: _optional(_converted(s)) for n, s in given["properties"].items()}
        made["additionalProperties"] = False
        for name in given.get("required", ()):
            made["properties"][name] = _converted(given["properties"][name])
    for name in ("items", "additionalProperties"):
        if name in given:
            made[name] = _converted(given[name])
    return made


def _optional(schema: Schema) -> Schema:
    """Null stands for an absent field."""
    kind = schema.get("type")
    if kind is None:
        return schema
    made = {**schema, "type": [*(kind if isinstance(kind, list) else [kind]), "null"]}
    if "enum" in made:
        made["enum"] = [*made["enum"], None]
    return made
