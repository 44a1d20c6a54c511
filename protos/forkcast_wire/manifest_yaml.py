"""The bytes of a manifest file to JSON-like documents, as kubectl reads them.

kubectl turns YAML into JSON with go-yaml version 2: YAML 1.1 with the numbers of Go. `3e-4`, `1e3`
and `0o17` are numbers, `1:30` and dates are texts, `yes` is a truth, a number without a fraction is
an integer, and keys are texts. PyYAML's own rules differ in each of these, so only its parser is
used (libyaml, of which go-yaml is a port), and scalars are resolved here.

What is refused although kubectl takes it: keys that come twice, of which kubectl keeps the last, and
a merge key (`<<`) behind a key that kubectl would overwrite with it.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from forkcast_wire.echo import shown
from forkcast_wire.manifest_error import ManifestError

#: A larger one cannot be applied by `kubectl apply`, whose annotation holds a copy.
MOST_BYTES: Final = 256 << 10
_MOST_NODES: Final = 20_000
_MOST_DEPTH: Final = 64
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SYNTAX: Final = "fix the syntax"

_CONSTANTS: Final[dict[str, Any]] = {
    **dict.fromkeys(
        ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True
    ),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE"), False),
    **dict.fromkeys(("off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LONGEST_INTEGER: Final = 64
_TAG: Final = "tag:yaml.org,2002:"


def read_documents(path: Path) -> list[Any]:
    """The documents of a manifest file. Raises ManifestError."""
    return documents(_text(path))


def _text(path: Path) -> str:
    """The text of a regular file, bounded before it is read."""
    name = str(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for a writer
        with os.fdopen(descriptor, "rb") as file:
            kind = os.fstat(descriptor)
            if stat.S_ISDIR(kind.st_mode):
                raise ManifestError(name, "is a folder", "give the manifest file in it")
            if not stat.S_ISREG(kind.st_mode):
                raise ManifestError(name, "is no regular file", "write the manifest to a file")
            data = file.read(MOST_BYTES + 1)
    except IsADirectoryError:
        raise ManifestError(name, "is a folder", "give the manifest file in it") from None
    except (OSError, ValueError) as error:
        raise unusable(name, error) from None
    if len(data) > MOST_BYTES:
        rule = f"larger than {MOST_BYTES >> 10} KiB"
        raise ManifestError(name, rule, "a manifest is a few kilobytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(name, f"byte {error.start} is not UTF-8", "save it as UTF-8") from None


def unusable(field: str, error: OSError | ValueError) -> ManifestError:
    """What a path is not good for, in one line: no such file, no permission, a loop of links, a
    name that no file can have.
    """
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    denied = isinstance(error, PermissionError)
    return ManifestError(field, reason, "make it readable" if denied else "check the path")


def documents(text: str) -> list[Any]:
    """The documents in a text that are not empty. Raises ManifestError."""
    if text.lstrip().startswith("{") and (found := _json(text)) is not None:
        return [found]
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip(" ").startswith("\t") and line.strip():
            raise ManifestError(f"line {number}", "indented with a tab", "indent with spaces")
    try:
        return [one for one in _Reader(text).documents() if one is not None]
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark) if error.problem_mark else "document"
        raise ManifestError(place, f"not YAML: {error.problem}", _SYNTAX) from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0] if str(error) else "unreadable"
        raise ManifestError("document", f"not YAML: {shown(first)}", _SYNTAX) from None


def _json(text: str) -> Any:
    """A text that is JSON, as kubectl tries first; None if it is not."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        for at, (key, _) in enumerate(found):
            if key in dict(found[:at]):
                raise ManifestError("document", f"duplicate key {shown(key)}", "remove one of them")
        return dict(found)

    def no_constant(name: str) -> float:
        raise ValueError(name)

    try:
        return json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=no_constant,
            parse_int=_number,
            parse_float=_number,
        )
    except ManifestError:
        raise
    except (ValueError, RecursionError):
        return None


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}"


class _Reader:
    """Documents from the events of a YAML text. Aliases are followed by value, and every value that
    is made counts, so that what they expand to is bounded like the text itself.
    """

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, Any] = {}
        self._made = 0

    def documents(self) -> Iterator[Any]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if event.version is not None or event.tags:
                    rule = "a directive (%), which kubectl does not read"
                    raise ManifestError(_place(event.start_mark), rule, "remove it")
                self._anchors = {}
                yield self._value(next(self._events), 0)

    def _value(self, event: Any, depth: int) -> Any:
        self._count(event, 1)
        if depth > _MOST_DEPTH:
            raise ManifestError(_place(event.start_mark), "not YAML: too deep", "write it flatter")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = _OPEN
        if isinstance(event, yaml.ScalarEvent):
            made = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            made = self._sequence(depth)
        else:
            made = self._mapping(depth)
        if anchor is not None:
            self._anchors[anchor] = made
        return made

    def _count(self, event: Any, more: int) -> None:
        self._made += more
        if self._made > _MOST_NODES:
            rule = f"more than {_MOST_NODES} values"
            raise ManifestError(_place(event.start_mark), rule, "a manifest has a few hundred")

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            rule = f"no anchor {shown(event.anchor)}"
            raise ManifestError(_place(event.start_mark), rule, "set it before it is used")
        value = self._anchors[event.anchor]
        if value is _OPEN:
            rule = f"anchor {shown(event.anchor)} contains itself"
            raise ManifestError(_place(event.start_mark), rule, "write it out")
        self._count(event, _size(value, _MOST_NODES))
        return value

    def _sequence(self, depth: int) -> list[Any]:
        made: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            made.append(self._value(event, depth + 1))
        return made

    def _mapping(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        own: set[str] = set()
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if _merges(event):
                _merge(made, own, self._value(next(self._events), depth + 1), event)
                continue
            key = self._key(event, depth)
            if key in own:
                rule = f"duplicate key {shown(key)}"
                raise ManifestError(_place(event.start_mark), rule, "remove one of them")
            own.add(key)
            made[key] = self._value(next(self._events), depth + 1)
        return made

    def _key(self, event: Any, depth: int) -> str:
        value = self._value(event, depth + 1)
        if value is None or isinstance(value, dict | list):
            raise ManifestError(_place(event.start_mark), "a key is no text", "write a name")
        return value if isinstance(value, str) else json.dumps(value)

    def _scalar(self, event: Any) -> Any:
        tag = (event.tag or "").removeprefix(_TAG)
        plain = event.implicit[0] and event.tag is None
        try:
            value = _resolved(event.value) if plain else _tagged(tag, event.value)
        except ValueError as error:
            raise ManifestError(_place(event.start_mark), f"not YAML: {error}", _SYNTAX) from None
        if isinstance(value, float) and not math.isfinite(value):
            rule = f"no JSON number: {shown(event.value)}"
            raise ManifestError(_place(event.start_mark), rule, "write a finite number")
        return value


#: An anchor whose value is not complete yet.
_OPEN: Final = object()


def _size(value: Any, most: int) -> int:
    """Values in a value, at most ``most`` and some: what an alias to it stands for."""
    waiting, found = [value], 0
    while waiting and found <= most:
        one = waiting.pop()
        found += 1
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


def _merges(event: Any) -> bool:
    """Whether a key is the merge key."""
    if not isinstance(event, yaml.ScalarEvent) or event.value != "<<":
        return False
    return event.tag == f"{_TAG}merge" or (event.tag is None and bool(event.implicit[0]))


def _merge(made: dict[str, Any], own: set[str], value: Any, event: Any) -> None:
    """Put the keys of a mapping, or of several, the first before the others, into ``made``."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, dict) for part in parts):
        rule = "<< takes a mapping, or a list of them"
        raise ManifestError(_place(event.start_mark), rule, "give an alias of one")
    for part in reversed(parts):
        if behind := own & set(part):
            rule = f"<< behind {shown(min(behind))} would overwrite it"
            raise ManifestError(_place(event.start_mark), rule, "write << first")
        made.update(part)


# ------------------------------------------------------------------------------------------ scalars


def _resolved(text: str) -> Any:
    """The value of a plain scalar."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in "+-.0123456789":
        return text
    plain = text.replace("_", "")
    if text[0] != "." and (number := _integer(plain)) is not None:
        return number
    if _FLOAT.fullmatch(plain):
        number = _number(plain)
        return text if isinstance(number, float) and math.isinf(number) else number
    return text


def _integer(text: str) -> int | float | None:
    """An integer of 64 bits as Go writes it: 12, 0x1F, 0o17, 017, 0b11. None: not one."""
    found = re.fullmatch(
        r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))", text
    )
    if found is None:
        return None
    sign, *digits = found.groups()
    for base, given in zip((16, 2, 8, 10), digits, strict=True):
        short = (given or "").lstrip("0")
        if given is None or len(short) > _LONGEST_INTEGER:
            continue
        number = int(short or "0", base) * (-1 if sign == "-" else 1)
        if -(2**63) <= number < 2**63:
            return number
        if not sign and number < 2**64:
            return float(number)
    return None


def _number(text: str) -> int | float:
    """A decimal as it comes out of JSON again: an integer where it has no fraction and fits."""
    number = float(text)
    if number.is_integer() and abs(number) < 2**63:
        exact = re.fullmatch(r"[+-]?[0-9]{1,19}", text)
        whole = int(text) if exact else int(number)
        return whole if -(2**63) <= whole < 2**63 else number
    return number


def _tagged(tag: str, text: str) -> Any:
    """The value of a quoted scalar, or of one with a tag. Raises ValueError."""
    if tag == "binary":
        return base64.b64decode(text, validate=True).decode("utf-8", "replace")
    wanted: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "null": type(None)}
    if tag == "timestamp":
        if not re.match(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}", text):
            raise ValueError(f"{shown(text)} is no !!timestamp")
        return text
    if tag not in wanted:
        return text
    value = _resolved(text)
    if not isinstance(value, wanted[tag]) or (tag in ("int", "float") and isinstance(value, bool)):
        raise ValueError(f"{shown(text)} is no !!{tag}")
    return value
