"""One value, one byte string: canonical JSON, and the digest that names it.

Keys sorted, no spaces, shortest round-trip floats, enums by value, tuples as arrays. NaN and the
infinities have no JSON form and are refused: a record that holds one is a defect of its writer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def plain(value: object) -> Json:
    """The JSON form of a record: dataclasses as objects, a class tag added to none of them.

    Raises TypeError for anything that is not a record, a mapping, a sequence or a scalar.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(said)
            for f in dataclasses.fields(value)
            # a field that came later is not there while it says nothing: digests stay what they were
            if (said := getattr(value, f.name)) != f.default or not f.metadata.get("later")
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    raise TypeError(f"no canonical JSON for {type(value).__name__}: {value!r}")


def canonical_json(value: object) -> bytes:
    """UTF-8 canonical JSON of a record. Raises ValueError on NaN or an infinity."""
    text = json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode()


def digest(value: object) -> str:
    """sha256, hex, of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
