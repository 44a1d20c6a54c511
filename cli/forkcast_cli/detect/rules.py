"""The detector's rules as a command's options give them: of a manifest, a preset, or one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError

_OPTION = "--rule"


def with_rules(rules: Uncertainty, given: Iterable[str]) -> Uncertainty:
    """The rules with ``trigger.singleZ=4`` and the like in place of what they say. Raises ManifestError."""
    document = rules.model_dump(mode="json", by_alias=True, exclude_none=True)
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ManifestError(f"{_OPTION} {text}", "is no rule", f"write {_OPTION} NAME=VALUE")
        part: dict[str, Any] = document
        *outer, last = name.strip().split(".")
        for one in outer:
            inner = part.setdefault(one, {})
            if not isinstance(inner, dict):
                raise ManifestError(f"{_OPTION} {text}", f"{one} has no parts", _known())
            part = inner
        part[last] = _scalar(value.strip())
    try:
        return Uncertainty.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ManifestError(f"{_OPTION} {name}", "no such rule", _known()) from None
        message = first["msg"].removeprefix("Value error, ")
        rule, _, remedy = message.partition("; ")
        rule = rule[:1].lower() + rule[1:]
        raise ManifestError(f"{_OPTION} {name}", rule, remedy or "correct it") from None


def _scalar(text: str) -> int | str:
    """A whole number as such; a decimal stays text, as a manifest may write it."""
    return int(text) if text.isdecimal() and len(text) < 10 else text


def _known() -> str:
    names = [field.alias or name for name, field in Uncertainty.model_fields.items()]
    return f"known: {', '.join(names)}; parts are written like trigger.singleZ"
