"""The shipped state_schema_v1.yaml, and whether a state keeps to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from forkcast_trainer.checkpoint import CheckpointError, Shaped

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list, tuple),
    "null": (type(None),),
}


@cache
def schema() -> Mapping[str, Any]:
    """The schema as it is shipped."""
    text = files("forkcast_trainer").joinpath("state_schema_v1.yaml").read_text()
    loaded: Mapping[str, Any] = yaml.safe_load(text)
    return loaded


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Mapping[str, Any]], ...]:
    """The tensor patterns, the longest first: of two that match, the one that says more."""
    found = []
    for name, rule in sorted(schema()["tensors"].items(), key=lambda item: -len(item[0])):
        text = re.escape(name).replace(r"<n>", r"[1-9]\d*")
        text = re.sub(r"<(parameter|buffer)>", r".+", text).replace("<slot>", r"\w+")
        found.append((re.compile(text), rule))
    return tuple(found)


def check(meta: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> None:
    """Raises CheckpointError naming the first field or tensor that breaks the schema. It needs the
    tensors' table only, not their bytes.
    """
    fields = schema()["meta"]
    for name, rule in fields.items():
        if name not in meta:
            if rule.get("required", True):
                raise CheckpointError(f"the state lacks {name}")
            continue
        wanted = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        kinds = tuple(kind for word in wanted for kind in _TYPES[word])
        if not isinstance(meta[name], kinds) or isinstance(meta[name], bool):
            raise CheckpointError(f"{name}: must be {' or '.join(wanted)}")
    if unknown := sorted(set(meta) - set(fields)):
        raise CheckpointError(f"{unknown[0]}: unknown field; a newer version wrote this state")
    if "rng.torch" not in tensors:
        raise CheckpointError("the state lacks rng.torch")
    for name, tensor in tensors.items():
        rule = next((r for pattern, r in _patterns() if pattern.fullmatch(name)), None)
        if rule is None:
            raise CheckpointError(f"{name}: unknown tensor; a newer version wrote this state")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if rule["dtype"] != "any" and dtype not in rule["dtype"]:
            raise CheckpointError(f"{name}: dtype {dtype} is none of {', '.join(rule['dtype'])}")
