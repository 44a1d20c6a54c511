"""The kinds of field that manifests and resources are made of, and the base of all their parts.

Integers carry a maximum and texts a length, so that a cluster can bound what it stores and what a
rule over them may cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

API_GROUP: Final = "forkcast.dev"
API_VERSION: Final = "forkcast.dev/v1alpha1"
DECIMAL_PATTERN = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
MOST_STEPS = 100_000_000
#: Lineage epochs of a run: each is a branch's collapse, and as many branches a manifest may allow.
MOST_EPOCHS = 10_000


def _decimal(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str):
        raise ValueError(f'a decimal is a quoted string; write "{value}"')
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f'not a decimal: "{value}"; write one like "0.98" or "3e-4"') from None
    if number != number or number in (float("inf"), float("-inf")):  # noqa: PLR0124
        raise ValueError(f'not a finite decimal: "{value}"')
    return number


def decimal_text(value: float) -> str:
    """The shortest of %g and 17 digits that gives the same number again."""
    return f"{value:.17g}" if value != float(f"{value:g}") else f"{value:g}"


Decimal = Annotated[
    float,
    BeforeValidator(_decimal),
    PlainSerializer(decimal_text),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 32}),
]
Positive = Annotated[Decimal, Field(gt=0)]
NonNegative = Annotated[Decimal, Field(ge=0)]
Fraction = Annotated[Decimal, Field(ge=0, le=1)]
Decay = Annotated[Decimal, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS, strict=True)]
StepsOrZero = Annotated[int, Field(ge=0, le=MOST_STEPS, strict=True)]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1, strict=True)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1, strict=True)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
#: A DNS subdomain: the name of a Secret, a claim, a class, a queue.
ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule across fields as a cluster checks it: a CEL expression over ``self``, and ``oldSelf``
    where it is about a change. The model's own validators say the same; a test compares them.

    field: what the rule names, relative to the part, e.g. ``.topK``; empty for the part itself.
    message: the rule and the remedy, after the field's name.
    """

    field: str
    expression: str
    message: str

    @property
    def is_transition(self) -> bool:
        """Whether it compares with what stood there before."""
        return "oldSelf" in self.expression


class Part(BaseModel):
    """A part of the manifest: unknown fields are refused, nothing changes after loading."""

    #: Rules across this part's fields.
    RULES: ClassVar[tuple[Rule, ...]] = ()

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )
