"""Documents of a newer Forkcast: which of their fields this version does not know.

A manifest that a user gives is read strictly: an unknown field is a slip of the pen, or wanted, and
nothing is trained on silently without it. A stored one has every default filled in, also those of
fields that came later than the reader. A new field's default is what was done before there was the
field, so one that has its default can be left out, and any other holds the run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from forkcast_wire.fields import Part
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.manifest_error import ManifestError

P = TypeVar("P", bound=Part)
Schema = Mapping[str, Any]
#: On a resolved manifest: the paths of what has its default, with spaces between them.
ANNOTATION_DEFAULTS: Final = "forkcast.dev/defaults"
RULE: Final = "this version does not know the field: written for a newer Forkcast"


class NewerManifestError(ManifestError):
    """A stored manifest says something that this version does not know."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A field that the model does not know. path: names and indices from the document's root."""

    path: tuple[str | int, ...]
    value: Any

    def __str__(self) -> str:
        return ".".join(map(str, self.path))


def known_part(model: type[P], document: Any) -> tuple[P, list[Unknown]]:
    """The document as the model, without the fields that it does not know; and those.

    Raises ValidationError for what is wrong with the rest.
    """
    left, unknown = copy.deepcopy(document), list[Unknown]()
    while True:
        try:
            return model.model_validate(left), unknown
        except ValidationError as error:
            extra = [one["loc"] for one in error.errors() if one["type"] == "extra_forbidden"]
            if not extra:
                raise
            unknown += [Unknown(path, _taken(left, path)) for path in extra]


def _taken(document: Any, path: Sequence[str | int]) -> Any:
    for part in path[:-1]:
        document = document[part]
    return document.pop(path[-1])


# ----------------------------------------------------------------- by the definition of a cluster


def has_default(schema: Schema, field: Unknown) -> bool:
    """Whether a field has the default that a structural schema gives it. False for a field that the
    schema does not know, or to which it gives none.
    """
    found: Schema | None = schema
    for part in field.path:
        if found is None:
            return False
        if isinstance(part, int):
            found = found.get("items")
        else:
            found = found.get("properties", {}).get(part, found.get("additionalProperties"))
    if found is None or "default" not in found:
        return False
    return bool(field.value == _filled(found, found["default"]))


def _filled(schema: Schema, value: Any) -> Any:
    """The value with the defaults below it, as an API server fills them in."""
    if isinstance(value, Mapping):
        made = dict(value)
        for name, inner in schema.get("properties", {}).items():
            if name not in made and "default" in inner:
                made[name] = inner["default"]
            if name in made:
                made[name] = _filled(inner, made[name])
        return made
    if isinstance(value, list) and "items" in schema:
        return [_filled(schema["items"], one) for one in value]
    return value


# -------------------------------------------------------------------------- by the document itself


def resolved_document(manifest: TrainingRun) -> dict[str, Any]:
    """The manifest with every default filled in, and a list of what has its default."""
    document = manifest.document()
    marks = document["metadata"].setdefault("annotations", {})
    marks[ANNOTATION_DEFAULTS] = " ".join(_defaults(manifest.spec, ("spec",)))
    return document


def read_resolved(data: str | bytes) -> TrainingRun:
    """What `resolved_document` has written, whatever version did. Raises NewerManifestError for a
    field that this version does not know and that has no default; ValidationError, ValueError.
    """
    document = json.loads(data)
    manifest, unknown = known_part(TrainingRun, document)
    annotations = dict(manifest.metadata.annotations)
    listed = frozenset(annotations.pop(ANNOTATION_DEFAULTS, "").split())
    for one in unknown:
        above = (one.path[: end + 1] for end in range(len(one.path)))
        if not any(".".join(map(str, path)) in listed for path in above):
            remedy = "upgrade to the version that wrote it, or remove the field"
            raise NewerManifestError(str(one), RULE, remedy)
    metadata = manifest.metadata.model_copy(update={"annotations": annotations})
    return manifest.model_copy(update={"metadata": metadata})


def _defaults(part: Part, path: tuple[str, ...]) -> Iterator[str]:
    for name, info in type(part).model_fields.items():
        here, value = (*path, info.alias or name), getattr(part, name)
        if not info.is_required() and value == info.get_default(call_default_factory=True):
            yield ".".join(here)
        elif isinstance(value, Part):
            yield from _defaults(value, here)
        elif isinstance(value, list):
            for number, one in enumerate(value):
                if isinstance(one, Part):
                    yield from _defaults(one, (*here, str(number)))
