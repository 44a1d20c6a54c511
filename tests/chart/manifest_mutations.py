"""Seeded mutations of manifests, as text: each changes a good one in one or a few places."""

from __future__ import annotations

import random
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.alias_generators import to_snake

from forkcast_wire.manifest import TrainingRunSpec


@dataclass(frozen=True)
class Raw:
    """A value as it is spelled in YAML."""

    text: str


Document = dict[str, Any]
#: Spellings on which YAML readers disagree, and some that none of them takes.
_SPELLINGS = """
3e-4 1e3 3.0e-4 0.0003 1E+2 1.e2 .5 5. +5 -.5 .5e1 1e1_0 1_000 1__0 _1 0_7 00 017 0o17 0O17 0o8 08 09
0x1F 0x_F 0X1F 0xffffffffffffffff 0x10000000000000000 0b11 -0b11 0B11 0b 0x -0 -0.0 3.0 10.0 1e400 1e21
99999999999999999999 18446744073709551615 9223372036854775808 9007199254740993 0.1 1e-7 1e-400 1:30
190:20:30 2001-01-01 2001-12-14t21:59:43.10-05:00 y n yes no on off Yes NO tRUE true false ~ null Null
nULL "" '' "null" "true" "10" "3e-4" '3e-4' "0x1F" .nan .inf -.inf NaN inf . - + = << abc "a\\tb" "a\\0b"
"\\u00e9" "1_0" "·1" "1·" "+.5" "-0" "10e-1" "1e999" !!str·5 !!int·"5" !!float·3 !!float·x !!bool·x
!!bool·"yes" !!int·"" !!null·"" !!binary·aGVsbG8= !!timestamp·x !!timestamp·2001-01-01 !foo·3
[] {} [1] [1,·2] {a:·1} [null] ["0.5",·1] [[1]] {a:·null}
"""
ODD = [one.replace("·", " ") for one in _SPELLINGS.split()]
_DECIMALS = [
    '"0.5"',
    "0.5",
    "5e-1",
    "0.25",
    '"3e-4"',
    "3e-4",
    "1",
    "0",
    "1e-9",
    '"1"',
    "2.5",
    '"10"',
    "7.5e2",
]
_INTEGERS = [
    "1",
    "8",
    "10",
    "16",
    "100",
    "1e3",
    "3.0",
    "0x10",
    "020",
    "0b111",
    "1_000",
    "0",
    "-1",
    "2e2",
]


#: Keys of labels, annotations and selectors, and some that are none; a manifest's other names too.
_KEYS = [
    *(
        "a",
        "a.b/c",
        "A/b",
        '"a b"',
        '"a/b/c"',
        '"/a"',
        '"-a"',
        "a-",
        "a..b/c",
        "A.b_c",
        '"\\u00e9"',
    ),
    *("a" * 63, "a" * 64, "x" * 253 + "/a", "x" * 254 + "/a"),
]


def good(name: str) -> Document:
    """A manifest with something of each part."""
    return {
        "apiVersion": Raw("forkcast.dev/v1alpha1"),
        "kind": Raw("TrainingRun"),
        "metadata": {"name": Raw(name)},
        "spec": {
            "model": {"size": {"layers": Raw("2"), "dropout": Raw("0.1")}},
            "data": {"train": {"uri": Raw('"python-stdlib:"'), "maxBytes": Raw("1e6")}},
            "optimizer": {"learningRate": Raw("3e-4"), "betas": [Raw("0.9"), Raw('"0.95"')]},
            "training": {"totalSteps": Raw("1000")},
            "branching": {"rungs": [Raw("10"), Raw("25")], "confirm": {"steps": Raw("100")}},
        },
    }


def emitted(value: Any) -> str:
    """The document in flow style, block style at the top."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, list):
        return f"[{', '.join(emitted(one) for one in value)}]"
    return f"{{{', '.join(f'{key}: {emitted(one)}' for key, one in value.items())}}}"


def text_of(document: Document) -> str:
    """The document as a file."""
    lines: list[str] = []
    for key, value in document.items():
        if key == "spec" and isinstance(value, dict):
            lines.append("spec:")
            lines += [f"  {name}: {emitted(one)}" for name, one in value.items()]
        else:
            lines.append(f"{key}: {emitted(value)}")
    return "\n".join(lines) + "\n"


def fields() -> list[tuple[tuple[str, ...], Any]]:
    """Every field of the spec that is no part: its path and its annotation."""
    return list(_fields(TrainingRunSpec, ("spec",)))


def _fields(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, info in model.model_fields.items():
        here = (*path, info.alias or name)
        kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        yield here, kind
        if (inner := _part(info.annotation)) is not None:
            yield from _fields(inner, here)


def _part(kind: Any) -> type[BaseModel] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    if get_origin(kind) in (Union, types.UnionType):
        return next((found for one in get_args(kind) if (found := _part(one))), None)
    return None


def likely(kind: Any, rng: random.Random) -> Any:
    """A value that the field may well take."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return likely(inner[0], rng)
    if origin in (Union, types.UnionType):
        return likely(inner[0], rng)
    if origin is Literal:
        return Raw(str(rng.choice(inner)))
    if origin in (list, tuple):
        return [likely(inner[0], rng) for _ in range(rng.randint(0, 3))]
    if origin is dict:
        return {rng.choice(_KEYS): likely(inner[1], rng) for _ in range(rng.randint(1, 2))}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {}
    if kind is bool:
        return Raw(rng.choice(["true", "false", "yes", "off", '"true"', "1"]))
    if kind is float:
        return Raw(rng.choice(_DECIMALS))
    if kind is int:
        return Raw(rng.choice(_INTEGERS))
    if hasattr(kind, "__members__"):
        return Raw(rng.choice(list(kind)).value)
    return Raw(
        rng.choice(["abc", '"a b"', "10", "1e3", "0.5", '"10"', "100m", "64Gi", "a/b", "x.y-z"])
    )


def put(document: Document, path: tuple[str, ...], value: Any) -> None:
    """Set a field, making the parts above it."""
    place: Any = document
    for part in path[:-1]:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[path[-1]] = value


def _misspelt(name: str, rng: random.Random) -> str:
    return rng.choice(
        [to_snake(name), name.lower(), name + "s", name[:-1], "x" + name, name.upper()]
    )


def _metadata(document: Document, rng: random.Random) -> None:
    word = rng.choice(ODD) if rng.random() < 0.4 else ""
    name, value = rng.choice(
        [
            ("labels", {"a.b/c": Raw(word or "d")}),
            ("labels", {"a b": Raw("c")}),
            ("labels", Raw("null")),
            ("labels", {"a": Raw("a" * 64)}),
            ("labels", {"a": Raw('"-a"')}),
            ("annotations", {rng.choice(_KEYS): Raw("a")}),
            ("name", Raw(rng.choice(["a.b", "a" * 41, "A", '""', "a_b", "a b", "-a"]))),
            ("annotations", {"a/b": Raw(word or '"any text"')}),
            ("annotations", {"a/b/c": Raw("d")}),
            ("annotations", Raw("~")),
            ("creationTimestamp", Raw('"2026-11-27T10:00:00Z"')),
            ("creationTimestamp", Raw("null")),
            ("uid", Raw('"0-1-2"')),
            ("generation", Raw("3")),
            ("finalizers", [Raw("forkcast.dev/finalizer")]),
            ("selfLink", Raw("a")),
            ("generateName", Raw("a-")),
            ("label", {}),
            ("nmae", Raw("a")),
        ]
    )
    document["metadata"][name] = value


_STYLES: list[Callable[[str], str]] = [
    lambda text: "\ufeff" + text,
    lambda text: text.replace("\n", "\r\n"),
    lambda text: "---\n" + text,
    lambda text: "# words\n---\n" + text + "---\n# nothing\n",
    lambda text: text + "...\n",
    lambda text: "%YAML 1.1\n---\n" + text,
    lambda text: "%YAML 1.2\n---\n" + text,
    lambda text: text + "status: {}\n",
    lambda text: text + "more: 1\n",
    lambda text: text.replace("  training: {", "  training: {<<: {seed: 7}, "),
    lambda text: text.replace("  training: {", "  training: {<<: [{seed: 7}, {seed: 8, threads: 2}], "),
    lambda text: text.replace("  training: {", "  training: {<<: 3, "),
    lambda text: text.replace("rungs: [", "rungs: &r [").replace("confirm:", "rollback: {depths: *r}, confirm:"),
    lambda text: text.replace("rungs: [", "rungs: [*none, "),
    lambda text: text.replace("  model: {", "  model: &m {size: *m, "),
    lambda text: text.replace("  training: {", "  training: !!map {"),
    lambda text: text.replace("  training: {", "  training: {? threads : 2, "),
    lambda text: text.replace("  training: {", "  training: {1: 2, "),
    lambda text: text.replace("  training: {", "  training: {true: 2, "),
    lambda text: text.replace("  training: {", "  training: {~: 2, "),
    lambda text: text.replace("  training: {", "  training: {[a]: 2, "),
    lambda text: text.replace("  training: {", "  training:\t{"),
    lambda text: text.replace("\nspec:", "\nspec: # words"),
    lambda text: text.replace("TrainingRun", '"TrainingRun"'),
    lambda text: text.replace("v1alpha1", "v1"),
    lambda text: text.replace("kind: ", "Kind: "),
    lambda text: text.replace("totalSteps", '"totalSteps"'),
    lambda text: text.replace("totalSteps: ", "totalSteps: !!int "),
    lambda text: text.replace("totalSteps: ", "totalSteps: >-\n      "),
    lambda text: re.sub(r"\n  optimizer:.*", "\n  optimizer:", text),
    lambda text: re.sub(r"\n  training:.*", "\n  training:", text),
    lambda text: re.sub(r"\n  data:.*", "", text),
]  # fmt: skip


def mutations(count: int, seed: int = 10) -> Iterator[tuple[str, str]]:
    """(name of the run, text of its file)."""
    rng = random.Random(seed)
    known = fields()
    for number in range(count):
        name = f"m{number}"
        document = good(name)
        for _ in range(rng.choice([1, 1, 1, 2])):
            path, kind = rng.choice(known)
            match rng.choices(["likely", "odd", "null", "misspelt", "metadata"], [9, 5, 2, 2, 1])[
                0
            ]:
                case "likely":
                    put(document, path, likely(kind, rng))
                case "odd":
                    put(document, path, Raw(rng.choice(ODD)))
                case "null":
                    put(document, path, Raw(rng.choice(["null", "~"])))
                case "misspelt":
                    put(document, (*path[:-1], _misspelt(path[-1], rng)), likely(kind, rng))
                case _:
                    _metadata(document, rng)
        text = text_of(document)
        yield name, rng.choice(_STYLES)(text) if rng.random() < 0.3 else text
