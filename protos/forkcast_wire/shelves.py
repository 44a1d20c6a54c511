"""The shelves a manifest names things of: what is on each, as data, and the field that takes a name.

A shelf's things live where they are used: schedules in the core, optimizers and clipping policies in
the trainer, searches in the operator, signals in the monitor. A manifest is checked in every service and by the cluster,
so `scripts/generate_crds.py` writes their names into shelves.json, and CI fails where it is stale.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Annotated, Any, Final

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

#: By shelf, by name: what a manifest's reader has to know of the thing beside its name.
SHELVES: Final[dict[str, dict[str, dict[str, int]]]] = json.loads(
    files(__package__).joinpath("shelves.json").read_text(encoding="utf-8")
)


@dataclass(frozen=True, slots=True)
class Shelf:
    """Marks a text as a name of a shelf, or of ``beside``: names that mean none of its things."""

    name: str
    beside: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that is taken, in the shelf's order."""
        return (*self.beside, *SHELVES[self.name])

    def check(self, value: str) -> str:
        """The name itself. Raises ValueError with all names where it is none of them."""
        if value in self.names:
            return value
        near = get_close_matches(value, self.names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"one of {', '.join(self.names)}; got {value!r}{hint}")

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}


def having(shelf: str, what: str) -> list[str]:
    """The names of a shelf's things of which ``what`` holds."""
    return [name for name, of in SHELVES[shelf].items() if of[what]]


@dataclass(frozen=True, slots=True)
class Shares:
    """Marks a mapping as one of names of a shelf to shares, which sum to 1."""

    shelf: str

    @property
    def names(self) -> list[str]:
        """Every name that may be given."""
        return list(SHELVES[self.shelf])

    def check(self, value: dict[str, float]) -> dict[str, float]:
        """The shares themselves. Raises ValueError naming the sum."""
        total = sum(value.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"must sum to 1, not {total:g}; change one of them")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


_NAME = Field(min_length=1, max_length=64)
SearchName = Annotated[str, _NAME, Shelf("search")]
ClippingName = Annotated[str, _NAME, Shelf("clipping")]
ClippingChoice = Annotated[str, _NAME, Shelf("clipping", beside=("Keep",))]
OptimizerName = Annotated[str, _NAME, Shelf("optimizers")]
ScheduleName = Annotated[str, _NAME, Shelf("schedules")]
SignalName = Annotated[str, _NAME, Shelf("signals")]
PresetName = Annotated[str, _NAME, Shelf("presets")]
