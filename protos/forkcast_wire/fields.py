"""The kinds of field that manifests and resources are made of, and the base of all their parts.

Integers carry a maximum and texts a length, so that a cluster can bound what it stores and what a
rule over them may cost.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from forkcast_wire.echo import shown

API_GROUP: Final = "forkcast.dev"
API_VERSION: Final = "forkcast.dev/v1alpha1"
#: A plain decimal, or digits with a power of ten behind a first digit that is not 0: what is
#: greater than a bound can be told from such a text by its pattern alone, see `crd.py`.
POWER_PATTERN = r"[eE][+-]?([0-9]{1,2}|[12][0-9]{2}|30[0-7])"
DECIMAL_PATTERN = rf"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+|[1-9](\.[0-9]*)?{POWER_PATTERN})$"
_DECIMAL_LENGTH = 32
#: What the pattern can spell, but for 0.
_LEAST, _MOST = 1e-307, 1e308
_LIKE = "write one like 0.98 or 3e-4"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
MOST_STEPS = 100_000_000
#: Lineage epochs of a run: each is a branch's collapse, and as many branches a manifest may allow.
MOST_EPOCHS = 10_000


def _decimal(value: object) -> float:
    """A number as it is, or a text that spells one. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"not a decimal: {shown(value)}; {_LIKE}")
    if isinstance(value, str) and not re.fullmatch(DECIMAL_PATTERN, value):
        raise ValueError(f"not a decimal: {shown(value)}; {_LIKE}")
    if isinstance(value, str) and len(value) > _DECIMAL_LENGTH:
        raise ValueError(f"longer than {_DECIMAL_LENGTH} characters: {shown(value)}; {_LIKE}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number and not _LEAST <= abs(number) < _MOST:
        rule = f"not between {_LEAST:g} and {_MOST:g}: {shown(value)}"
        raise ValueError(f"{rule}; {_LIKE}")
    return number


def decimal_text(value: float) -> str:
    """The shortest of %g and 17 digits that gives the same number again."""
    return f"{value:.17g}" if value != float(f"{value:g}") else f"{value:g}"


#: A decimal of the manifest: a number, or a text, for YAML tools disagree on which of the two
#: `3e-4` is. It is written as a text, since tools print floats differently.
Decimal = Annotated[
    float,
    BeforeValidator(_decimal),
    PlainSerializer(decimal_text),
    WithJsonSchema(
        {"type": ["number", "string"], "pattern": DECIMAL_PATTERN, "maxLength": _DECIMAL_LENGTH}
    ),
]
#: A decimal that only our own services write: always a text.
WrittenDecimal = Annotated[
    float,
    BeforeValidator(_decimal),
    PlainSerializer(decimal_text),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": _DECIMAL_LENGTH}),
]
Positive = Annotated[Decimal, Field(gt=0)]
NonNegative = Annotated[Decimal, Field(ge=0)]
Fraction = Annotated[Decimal, Field(ge=0, le=1)]
Decay = Annotated[Decimal, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS, strict=True)]
StepsOrZero = Annotated[int, Field(ge=0, le=MOST_STEPS, strict=True)]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1, strict=True)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1, strict=True)]
#: One line of text.
PLAIN_PATTERN = r"^[^\x00-\x1f\x7f]*$"
Uri = Annotated[str, Field(min_length=1, max_length=1024, pattern=PLAIN_PATTERN)]
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
class Spelling:
    """How a text is spelled, with a reason that can be read; a bare pattern's error shows only itself.
    An annotation of a text, or of the keys of a mapping. A cluster says it by a CEL rule.

    patterns: each must match the whole text; nothing in them that Python and RE2 read differently,
    and neither quotes nor backslashes, which CEL would take for its own.
    message: the rule and the remedy, separated by "; ".
    """

    patterns: tuple[str, ...]
    message: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The text's own schema, and then the patterns."""
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def expression(self, name: str) -> str:
        """The rule in CEL, about the text ``name``."""
        return " && ".join(f"{name}.matches('^({one})$')" for one in self.patterns)

    def _checked(self, text: str) -> str:
        if not all(re.fullmatch(one, text) for one in self.patterns):
            raise ValueError(self.message)
        return text


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
    #: What else a cluster checks, as a schema: of decimals, which no rule can read.
    SCHEMA: ClassVar[dict[str, Any]] = {}

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )
