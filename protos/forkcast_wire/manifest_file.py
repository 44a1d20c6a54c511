"""A manifest file to a TrainingRun, or one clear line: the field, the rule, the remedy."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from forkcast_wire.fields import NAME_PATTERN
from forkcast_wire.manifest import TrainingRun, TrainingRunSpec

_MOST_BYTES = 1 << 20
_INNER = re.compile(r"([a-z][A-Za-z.]*): (.*)", re.DOTALL)
_LOCAL = ("python-stdlib:",)


class ManifestError(ValueError):
    """What is wrong with a manifest, in one line."""

    def __init__(self, field: str, rule: str, remedy: str) -> None:
        super().__init__(f"{field}: {rule}; {remedy}")
        self.field, self.rule, self.remedy = field, rule, remedy


class _Loader(yaml.SafeLoader):
    """Safe YAML without duplicate keys and without aliases (which could expand without bound)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
            raise ManifestError(_place(event.start_mark), "aliases are refused", "write it out")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                raise ManifestError(
                    _place(key_node.start_mark), f"duplicate key {key}", "remove one of them"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}"


def load_manifest(path: Path) -> TrainingRun:
    """The manifest in a file; relative data paths become absolute. Raises ManifestError."""
    document = _parse(_read(path))
    try:
        manifest = TrainingRun.model_validate(document)
    except ValidationError as error:
        raise _explained(error.errors()[0]) from None
    return _anchored(manifest, path.resolve().parent)


def refuse_cluster_only(spec: TrainingRunSpec) -> None:
    """Raises ManifestError where one machine cannot do what the manifest asks for. The fields that
    only describe pods are no reason: they are ignored here.
    """
    if spec.suspend:
        raise ManifestError("spec.suspend", "the run is suspended", "set false to run it")
    if spec.parallelism.nodes > 1:
        rule = f"{spec.parallelism.nodes} nodes need a cluster"
        raise ManifestError("spec.parallelism.nodes", rule, "set 1, or use kubectl apply")
    if spec.branching.executor == "Pod":
        raise ManifestError("spec.branching.executor", "Pod needs a cluster", "set Auto")


def _read(path: Path) -> str:
    name = str(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ManifestError(name, "larger than 1 MiB", "a manifest is a few kilobytes")
        data = path.read_bytes()
    except IsADirectoryError:
        raise ManifestError(name, "is a folder", "give the manifest file in it") from None
    except OSError as error:
        remedy = "check the path" if isinstance(error, FileNotFoundError) else "make it readable"
        raise ManifestError(name, (error.strerror or "unreadable").lower(), remedy) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(name, f"byte {error.start} is not UTF-8", "save it as UTF-8") from None


def _parse(text: str) -> Any:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("\t") or (line.lstrip(" ").startswith("\t")):
            raise ManifestError(f"line {number}", "indented with a tab", "indent with spaces")
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark) if error.problem_mark else "document"
        raise ManifestError(place, f"not YAML: {error.problem}", "mend the syntax") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        first = str(error).splitlines()[0] if str(error) else "too deep"
        raise ManifestError("document", f"not YAML: {first}", "mend the syntax") from None
    documents = [one for one in documents if one is not None]
    if len(documents) != 1:
        rule = "is empty" if not documents else f"holds {len(documents)} documents"
        raise ManifestError("document", rule, "write exactly one TrainingRun")
    if not isinstance(documents[0], dict):
        raise ManifestError("document", "is not a mapping", "begin with apiVersion: and kind:")
    return documents[0]


def _explained(error: ErrorDetails) -> ManifestError:
    field = _path(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return ManifestError(field, "unknown field", _nearest(error["loc"]))
    if kind == "missing":
        return ManifestError(field, "is required", "add it")
    if kind in ("literal_error", "enum"):
        return ManifestError(
            field, f"{error['input']!r} is not allowed", f"use one of {context.get('expected')}"
        )
    if kind == "value_error":
        said = str(context.get("error", error["msg"]))
        if (inner := _INNER.match(said)) is not None:  # a rule across fields names its own
            field, said = f"{field}.{inner[1]}", inner[2]
        rule, _, remedy = said.partition("; ")
        return ManifestError(field, rule, remedy or "correct it")
    if kind == "string_pattern_mismatch" and context.get("pattern") == NAME_PATTERN:
        rule = f"not a name: {_short(error['input'])}"
        return ManifestError(field, rule, "use lower-case letters, digits and '-' inside")
    message = error["msg"][0].lower() + error["msg"][1:]
    return ManifestError(field, f"{message}, got {_short(error['input'])}", "correct it")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "document"


def _nearest(location: tuple[int | str, ...]) -> str:
    """The known field that was probably meant."""
    model: Any = TrainingRun
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        fields = {f.alias or n: f for n, f in model.model_fields.items()}
        model = _model_in(fields[part].annotation) if part in fields else None
    names = [f.alias or n for n, f in model.model_fields.items()] if model is not None else []
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it; known: {', '.join(names)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def _anchored(manifest: TrainingRun, folder: Path) -> TrainingRun:
    """Local paths made absolute against the manifest's folder; checks that local text exists."""
    document = manifest.document()
    data = document["spec"]["data"]
    sources = [("spec.data.train", data["train"])]
    if held := data.get("validation", {}).get("source"):
        sources.append(("spec.data.validation.source", held))
    for field, source in sources:
        if source["uri"] in _LOCAL or source.get("format") == "Dataset":
            continue
        target = folder / source["uri"]
        if not target.exists():
            raise ManifestError(f"{field}.uri", f"{target} does not exist", "give a file or folder")
        _readable_text(f"{field}.uri", target)
        source["uri"] = str(target.resolve())
    for owner, name in ((data, "tokenizer"), (document["spec"]["model"], "source")):
        value = owner.get(name)
        if value and (folder / value).exists():
            owner[name] = str((folder / value).resolve())
    storage = document["spec"]["storage"]
    for name in ("credentialsDir", "caFile"):
        if storage.get(name):
            storage[name] = str((folder / storage[name]).resolve())
    if storage.get("path"):
        storage["path"] = str((folder / storage["path"]).resolve())
        _usable_store(Path(storage["path"]))
    return TrainingRun.model_validate(document)


def _readable_text(field: str, target: Path) -> None:
    """Refuse a text that is empty or cannot be read, before anything is started."""
    if not os.access(target, os.R_OK):
        raise ManifestError(field, f"{target} cannot be read", "make it readable")
    if target.is_file() and target.stat().st_size == 0:
        raise ManifestError(field, f"{target} is empty", "give some text")
    if target.is_dir() and not any(path.is_file() for path in target.rglob("*")):
        raise ManifestError(field, f"{target} holds no text files", "put text there")


def _usable_store(path: Path) -> None:
    """Refuse a store folder that is a file, or that cannot be read and written."""
    if path.exists() and not path.is_dir():
        raise ManifestError("spec.storage.path", f"{path} is not a folder", "give a folder")
    place = next(one for one in (path, *path.parents) if one.exists())
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise ManifestError(
            "spec.storage.path", f"{place} cannot be read and written", "change its permissions"
        )
