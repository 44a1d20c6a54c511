"""Parts to structural schemas, and the custom resource definitions `TrainingRun` and `Branch`.

The models are the only truth: types, ranges, defaults, descriptions and rules come from them, and
a field without a description or without a maximum is refused here.

A decimal of a manifest is a number or a text (`3e-4` is a number to kubectl, a text to PyYAML, which
therefore writes such texts without quotes). A structural schema has no such type, so the field has
none and is `x-kubernetes-preserve-unknown-fields`; its pattern bounds the text, `minimum` and
`maximum` the number, and `not` refuses everything else. CEL sees no such field: no rule may read one.
"""

from __future__ import annotations

import datetime as dt
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, WithJsonSchema
from pydantic.fields import FieldInfo

from forkcast_wire.fields import API_GROUP, DECIMAL_PATTERN, POWER_PATTERN, Part, Rule, Spelling
from forkcast_wire.manifest import Metadata, TrainingRunSpec
from forkcast_wire.resources import BranchSpec, BranchStatus, TrainingRunStatus
from forkcast_wire.shelves import Shelf

Schema = dict[str, Any]
_LIST_KEYS: Final = "x-kubernetes-list-map-keys"
_RULES: Final = "x-kubernetes-validations"
_INT32: Final = 2**31 - 1
_SIGNS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TIME_LENGTH, _KEY_LENGTH = 64, 316


class SchemaError(TypeError):
    """A model says too little (or more than a structural schema can) about a field."""


# ------------------------------------------------------------------------------------------ schemas


def part_schema(model: type[Part], description: str = "") -> Schema:
    """The structural schema of a part. Raises SchemaError naming the field that is wrong."""
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for name, info in model.model_fields.items():
        alias = info.alias or name
        try:
            properties[alias] = _field_schema(info)
        except SchemaError as error:
            raise SchemaError(f"{model.__name__}.{name}: {error}") from None
        if info.is_required():
            required.append(alias)
    schema: Schema = {
        "type": "object",
        "description": description or _one_line(model.__doc__ or ""),
        "properties": properties,
    }
    if required:
        schema["required"] = required
    schema |= model.SCHEMA
    if model.RULES:
        schema[_RULES] = [_validation(rule) for rule in model.RULES]
    return schema


def _field_schema(info: FieldInfo) -> Schema:
    if not info.description:
        raise SchemaError("has no description; put a docstring under it")
    schema = _schema(info.annotation, info.metadata)
    extra = info.json_schema_extra
    for one in (extra, *(getattr(m, "json_schema_extra", None) for m in info.metadata)):
        if isinstance(one, Mapping) and _LIST_KEYS in one:
            schema |= {"x-kubernetes-list-type": "map", _LIST_KEYS: one[_LIST_KEYS]}
    schema["description"] = _one_line(info.description)
    if not info.is_required() and info.default is not None:
        schema["default"] = _default(info)
    return schema


def _default(info: FieldInfo) -> Any:
    """As it stands in a document. A part without rules says {}, since its fields have their own
    defaults; one with rules says all of it, since its default must satisfy them as it stands.
    """
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Part):
        if value != type(value)():
            raise SchemaError("its default is not the part's own")
        return (
            value.model_dump(mode="json", by_alias=True, exclude_none=True) if value.RULES else {}
        )
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return TypeAdapter(kind).dump_python(value, mode="json", by_alias=True)


def _schema(annotation: Any, metadata: Iterable[Any]) -> Schema:
    facts = _facts(metadata)
    if isinstance(given := facts.get("schema"), dict):
        return _given(given, facts)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _schema(inner, [*more, *metadata])
    if origin in (Union, types.UnionType):
        kinds = [one for one in get_args(annotation) if one is not type(None)]
        if len(kinds) != 1:
            raise SchemaError("a union is not structural")
        return _schema(kinds[0], metadata)
    if origin is Literal:
        return {"type": "string", "enum": list(get_args(annotation))}
    if origin in (list, tuple, dict):
        return _container(origin, get_args(annotation), facts)
    return _plain(annotation, facts)


def _plain(kind: Any, facts: Schema) -> Schema:
    if kind is bool:
        return {"type": "boolean"}
    if kind is int:
        if "ge" not in facts or "le" not in facts:
            raise SchemaError("an integer needs ge and le")
        width = "int32" if facts["le"] <= _INT32 else "int64"
        return {
            "type": "integer",
            "format": width,
            "minimum": facts["ge"],
            "maximum": facts["le"],
        }
    if kind is str:
        if "max_length" not in facts:
            raise SchemaError("a text needs max_length")
        if "names" in facts:
            return {"type": "string", "enum": facts["names"]}
        names = {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern"}
        text = {"type": "string", **{new: facts[old] for old, new in names.items() if old in facts}}
        return text | _spelled(facts, "self")
    if kind is dt.datetime:
        return {"type": "string", "format": "date-time", "maxLength": _TIME_LENGTH}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"type": "string", "enum": [one.value for one in kind]}
    if isinstance(kind, type) and issubclass(kind, Part):
        return part_schema(kind)
    raise SchemaError(f"{kind} has no structural schema")


def _container(origin: Any, inner: tuple[Any, ...], facts: Schema) -> Schema:
    if origin is tuple:
        if len(set(map(str, inner))) != 1:
            raise SchemaError("a tuple of several kinds is not structural")
        size = len(inner)
        items = _schema(inner[0], ())
        return {"type": "array", "items": items, "minItems": size, "maxItems": size}
    if "max_length" not in facts:
        raise SchemaError("a list or mapping needs max_length")
    if origin is dict:
        return _mapping(_facts(getattr(inner[0], "__metadata__", ())), _schema(inner[1], ()), facts)
    schema: Schema = {
        "type": "array",
        "items": _schema(inner[0], ()),
        "maxItems": facts["max_length"],
        "x-kubernetes-list-type": "atomic",
    }
    if "min_length" in facts:
        schema["minItems"] = facts["min_length"]
    return schema


def _mapping(keys: Schema, values: Schema, facts: Schema) -> Schema:
    """Names of a shelf are properties, so that a cluster knows which there are; other names only have
    a length, which is a rule, and a rule needs values of one type.
    """
    if "names" in keys:
        return {
            "type": "object",
            "properties": {
                name: {**values, "description": f"Of {name}."} for name in keys["names"]
            },
        }
    mapping: Schema = {
        "type": "object",
        "additionalProperties": values,
        "maxProperties": facts["max_length"],
    }
    if "type" in values and "spelling" in keys:
        rule = f"self.all(name, {keys['spelling'].expression('name')})"
        mapping[_RULES] = [{"rule": rule, "message": keys["spelling"].message}]
    elif "type" in values:
        longest = keys.get("max_length", _KEY_LENGTH)
        said = f"names must have 1 to {longest} characters"
        rule = f"self.all(name, size(name) > 0 && size(name) <= {longest})"
        mapping[_RULES] = [{"rule": rule, "message": said}]
    return mapping


def _spelled(facts: Schema, name: str) -> Schema:
    """The rule of a text's spelling, if it has one."""
    spelling: Spelling | None = facts.get("spelling")
    if spelling is None:
        return {}
    return {_RULES: [{"rule": spelling.expression(name), "message": spelling.message}]}


def _given(given: Schema, facts: Schema) -> Schema:
    """A schema that the kind brings along, with the range that the field adds."""
    schema = dict(given)
    bounds = {name: float(facts[name]) for name in _SIGNS if name in facts}
    if schema.get("type") == ["number", "string"]:
        return number_or_text(schema, bounds)
    if schema.get("pattern") == DECIMAL_PATTERN and bounds:
        schema[_RULES] = [
            {
                "rule": " && ".join(f"double(self) {_SIGNS[n]} {x!r}" for n, x in bounds.items()),
                "message": "must be "
                + " and ".join(f"{_SIGNS[n]} {x:g}" for n, x in bounds.items()),
            }
        ]
    return schema


# --------------------------------------------------------------------------------- numbers or texts

_ZERO: Final = r"0+\.?0*|\.0+"
_NOT_ZERO: Final = r"0*[1-9][0-9]*(\.[0-9]*)?|[0-9]*\.[0-9]*[1-9][0-9]*"
_WITH_POWER: Final = rf"[1-9](\.[0-9]*)?{POWER_PATTERN}"
#: Neither a number nor a text satisfies it; everything else does, for nothing in it is about it.
_NEITHER: Final[Schema] = {"pattern": "^$", "minimum": 1, "maximum": 0}


def number_or_text(given: Schema, bounds: Mapping[str, float]) -> Schema:
    """The structural schema of a number or a text of a pattern; a decimal's text within ``bounds``
    (by pydantic's names: gt, ge, lt, le). Raises SchemaError for bounds that no pattern can say.
    """
    schema: Schema = {
        "x-kubernetes-preserve-unknown-fields": True,
        "pattern": _decimal_pattern(bounds) if bounds else given["pattern"],
        "maxLength": given["maxLength"],
        "not": dict(_NEITHER),
        **{name: given[name] for name in ("minimum",) if name in given},
    }
    for name, bound in bounds.items():
        side = "minimum" if name in ("gt", "ge") else "maximum"
        schema[side] = bound
        if name in ("gt", "lt"):
            schema[f"exclusive{side.capitalize()}"] = True
    return schema


def _decimal_pattern(bounds: Mapping[str, float]) -> str:
    """What spells a decimal within the bounds: at least 0, at most a digit and zeros."""
    if any(bounds.get(name, 0) != 0 for name in ("gt", "ge")):
        raise SchemaError("a decimal's least value is 0, or there is none")
    texts = [_NOT_ZERO, _WITH_POWER]
    if (most := bounds.get("le", bounds.get("lt"))) is not None:
        texts = _up_to(most, itself="le" in bounds)
    texts = [rf"\+?({'|'.join(texts)})"]
    if "gt" not in bounds:
        texts.append(rf"[+-]?({_ZERO})")
    if not {"gt", "ge"} & set(bounds):
        texts.append(rf"-({_NOT_ZERO}|{_WITH_POWER})")
    return f"^({'|'.join(texts)})$"


def _up_to(most: float, *, itself: bool) -> list[str]:
    """Patterns of decimals in (0, most), with most itself if ``itself``."""
    digit, _, exponent = f"{most:.0e}".partition("e")
    first, zeros = int(digit), int(exponent)
    if float(f"{first}e{zeros}") != most or zeros < 0:
        raise SchemaError(f"a decimal's greatest value is a digit and zeros, not {most:g}")
    power = rf"\+?0?{zeros}" if zeros else "[+-]?00?"
    texts = [r"0*\.[0-9]*[1-9][0-9]*"]  # below 1
    if zeros:  # below 10 to the zeros
        texts.append(rf"0*[1-9][0-9]{{0,{zeros - 1}}}(\.[0-9]*)?")
    if first > 1:
        texts.append(rf"0*[1-{first - 1}][0-9]{{{zeros}}}(\.[0-9]*)?")
        texts.append(rf"[1-{first - 1}](\.[0-9]*)?[eE]{power}")
    if itself:
        texts.append(rf"0*{first}0{{{zeros}}}(\.0*)?")
        texts.append(rf"{first}(\.0*)?[eE]{power}")
    if zeros:
        texts.append(rf"[1-9](\.[0-9]*)?[eE](\+?0?[0-{zeros - 1}]|-00?)")
    texts.append(r"[1-9](\.[0-9]*)?[eE]-(0?[1-9]|[1-9][0-9]|[12][0-9]{2}|30[0-7])")
    return texts


def _facts(metadata: Iterable[Any]) -> Schema:
    """The constraints in annotations, by pydantic's names for them."""
    found: Schema = {}
    for one in metadata:
        if isinstance(one, FieldInfo):
            found |= _facts(one.metadata)
        elif isinstance(one, WithJsonSchema):
            found["schema"] = one.json_schema
        elif isinstance(one, Shelf):
            found["names"] = list(one.names)
        elif isinstance(one, Spelling):
            found["spelling"] = one
        for name in (*_SIGNS, "min_length", "max_length", "pattern"):
            if (value := getattr(one, name, None)) is not None and not isinstance(one, FieldInfo):
                found[name] = value
    return found


def _validation(rule: Rule) -> Schema:
    made: Schema = {"rule": rule.expression, "message": rule.message}
    if rule.field:
        made["fieldPath"] = rule.field
        # the API server prints the field only beside the message of some versions
        made["message"] = f"{rule.field.removeprefix('.')}: {rule.message}"
    if rule.is_transition:
        made["reason"] = "FieldValueForbidden"
    return made


def _one_line(text: str) -> str:
    return " ".join(text.split())


# -------------------------------------------------------------------------------------- definitions


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False) -> Schema:
    column = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": 1} if wide else column


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_AGE: Final = _column("Age", ".metadata.creationTimestamp", "date")
_RUN_COLUMNS: Final = [
    _column("Ready", _condition("Ready", "status")),
    _column("State", _condition("Ready", "reason")),
    _column("Step", ".status.progress.step", "integer"),
    _column("Of", ".spec.training.totalSteps", "integer"),
    _column("Loss", '.status.metrics[?(@.name=="train_loss")].value'),
    _column("Z", ".status.uncertainty.z"),
    _column("Branches", ".status.branches.total", "integer"),
    _column("Accepted", ".status.branches.accepted", "integer"),
    _AGE,
    _column("Model", ".spec.model.architecture", wide=True),
    _column("Epoch", ".status.lineage.epoch", "integer", wide=True),
    _column("Checkpoint", ".status.checkpoints.latest.step", "integer", wide=True),
    _column("Message", _condition("Ready", "message"), wide=True),
]
_BRANCH_COLUMNS: Final = [
    _column("Run", ".spec.runRef.name"),
    _column("Step", ".spec.trigger.step", "integer"),
    _column("Rule", ".spec.trigger.rule"),
    _column("State", _condition("Ready", "reason")),
    _column("Outcome", ".status.decision.outcome"),
    _column("Winner", ".status.decision.winner"),
    _column("Action", ".status.decision.action"),
    _AGE,
    _column("Z", ".spec.trigger.z", wide=True),
    _column("Cost", ".status.cost.rolloutSteps", "integer", wide=True),
    _column("Message", _condition("Ready", "message"), wide=True),
]


def training_run() -> Schema:
    """The definition of TrainingRun. Its name also names branches, so it is a short DNS label."""
    return _definition(
        names=("TrainingRun", "trainingruns", "trun"),
        description="A training run that is watched and, when it goes wrong, forked.",
        spec=part_schema(TrainingRunSpec),
        status=part_schema(TrainingRunStatus),
        columns=_RUN_COLUMNS,
        name=_facts(Metadata.model_fields["name"].metadata)["spelling"],
    )


def branch() -> Schema:
    """The definition of Branch, which only the operator creates."""
    return _definition(
        names=("Branch", "branches", "fkb"),
        description="One trigger's branch of a TrainingRun: forked, drafted, verified, decided.",
        spec=part_schema(BranchSpec),
        status=part_schema(BranchStatus),
        columns=_BRANCH_COLUMNS,
        selectable=(".spec.runRef.name", ".spec.trigger.rule"),
    )


def _named(spelling: Spelling) -> Schema:
    """The rule of metadata.name; a schema of it could say no reason, and may hold no rule."""
    rule = Rule(".metadata.name", spelling.expression("self.metadata.name"), spelling.message)
    return {_RULES: [_validation(rule)]}


def _definition(
    *,
    names: tuple[str, str, str],
    description: str,
    spec: Schema,
    status: Schema,
    columns: list[Schema],
    name: Spelling | None = None,
    selectable: tuple[str, ...] = (),
) -> Schema:
    kind, plural, short = names
    version: Schema = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": description,
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string", "description": "Version of the format."},
                    "kind": {"type": "string", "description": "What the document is."},
                    "metadata": {
                        "type": "object",
                        **({"properties": {"name": {"type": "string"}}} if name else {}),
                    },
                    "spec": spec,
                    "status": status,
                },
                **(_named(name) if name else {}),
            }
        },
    }
    if selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["forkcast"],
            },
            "versions": [version],
        },
    }
