"""A manifest file to a TrainingRun, or what is wrong with it: for each fault the field, the rule and
the remedy.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from forkcast_wire.echo import shown
from forkcast_wire.fields import NAME_PATTERN, PLAIN_PATTERN
from forkcast_wire.manifest import HUGGING_FACE, TrainingRun, TrainingRunSpec
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.manifest_yaml import read_documents, unusable

__all__ = [
    "ManifestError",
    "absent_secrets",
    "load_manifest",
    "looks_like_path",
    "read_manifest",
    "refuse_cluster_only",
]

_MOST_FAULTS: Final = 20
_MOST_DEPTH: Final = 64
_INNER = re.compile(r"([a-z][A-Za-z.]*): (.*)", re.DOTALL)
_LOCAL = ("python-stdlib:",)
#: What an API server sets, so that `kubectl get -o yaml` can be given back as it is.
_SET_BY_SERVER: Final = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


def load_manifest(path: Path) -> TrainingRun:
    """The manifest in a file; relative data paths become absolute. Raises ManifestError."""
    return _anchored(read_manifest(path), path.resolve().parent)


def read_manifest(path: Path) -> TrainingRun:
    """The manifest in a file, by its text alone: what `kubectl apply` takes, with the same values.

    Raises ManifestError with every fault.
    """
    document = _without_nulls(_the_run(read_documents(path)), 0)
    document.pop("status", None)
    _drop_what_the_server_sets(document)
    try:
        return TrainingRun.model_validate_json(
            json.dumps(document), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise _together([_explained(one) for one in error.errors()]) from None


def absent_secrets(spec: TrainingRunSpec, environment: Mapping[str, str]) -> list[str]:
    """What a run on one machine misses: variables that a cluster takes from Secrets."""
    wanted = [one for one in spec.pod_patch.env if one.value_from is not None]
    return [
        f"spec.podPatch.env: {one.name} comes from a Secret, which only a cluster has; "
        "set it in this shell if the run needs it"
        for one in wanted
        if one.name not in environment
    ]


def _the_run(documents: Sequence[Any]) -> dict[str, Any]:
    """The one TrainingRun among the documents of a file; lists of objects are opened, and objects
    of other kinds are left to kubectl.
    """
    found: list[Any] = []
    for one in documents:
        items = one.get("items") if isinstance(one, dict) and one.get("kind") == "List" else None
        found += items if isinstance(items, list) else [one]
    runs = [one for one in found if isinstance(one, dict) and one.get("kind") == "TrainingRun"]
    chosen = runs or found
    if len(chosen) != 1:
        what = "TrainingRuns" if runs else "documents"
        rule = f"holds {len(chosen)} {what}" if chosen else "is empty"
        raise ManifestError("document", rule, "write exactly one TrainingRun")
    if not isinstance(chosen[0], dict):
        raise ManifestError("document", "is not a mapping", "begin with apiVersion: and kind:")
    return chosen[0]


def _without_nulls(value: Any, depth: int) -> Any:
    """Without the fields that are null: an API server drops them, too, and Helm and kustomize leave
    them behind.
    """
    if depth > _MOST_DEPTH:
        raise ManifestError("document", "too deep", "write it flatter")
    if isinstance(value, dict):
        return {
            _whole(key): _without_nulls(one, depth + 1)
            for key, one in value.items()
            if one is not None
        }
    if isinstance(value, list):
        return [_without_nulls(one, depth + 1) for one in value]
    return _whole(value) if isinstance(value, str) else value


def _whole(text: str) -> str:
    """A text that is one: JSON can spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        rule = f"half a character in {shown(text)}"
        raise ManifestError("document", rule, "write the character itself") from None
    return text


def _drop_what_the_server_sets(document: dict[str, Any]) -> None:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return
    for name in _SET_BY_SERVER:
        metadata.pop(name, None)
    if isinstance(annotations := metadata.get("annotations"), dict):
        annotations.pop(_LAST_APPLIED, None)


def _together(faults: Sequence[ManifestError]) -> ManifestError:
    """All faults as one error; it is the first of them."""
    unique = list({str(one): one for one in faults}.values())
    first, *rest = unique[:_MOST_FAULTS]
    if len(unique) > _MOST_FAULTS:
        rule = f"{len(unique) - _MOST_FAULTS} more faults"
        rest.append(ManifestError("document", rule, "correct these first"))
    return ManifestError(first.field, first.rule, first.remedy, rest)


def refuse_cluster_only(spec: TrainingRunSpec) -> None:
    """Raises ManifestError where one machine cannot do what the manifest asks for. The fields that
    only describe pods are no reason: they are ignored here.
    """
    if spec.suspend:
        raise ManifestError("spec.suspend", "the run is suspended", "set false to run it")
    if spec.parallelism.nodes > 1:
        rule = f"{spec.parallelism.nodes} nodes need a cluster"
        raise ManifestError("spec.parallelism.nodes", rule, "set 1, or use kubectl apply")
    if spec.storage.adopt_from is not None:
        rule = "records are adopted on a cluster only"
        remedy = "leave it out, and give the former run's --workdir"
        raise ManifestError("spec.storage.adoptFrom", rule, remedy)
    if spec.branching.executor == "Pod":
        raise ManifestError("spec.branching.executor", "Pod needs a cluster", "set Auto")


def _explained(error: ErrorDetails) -> ManifestError:
    location = error["loc"]
    field = _path(location)
    kind, context = error["type"], error.get("ctx", {})
    given = "***" if "env" in location and location[-1] == "value" else shown(error["input"])
    if kind == "extra_forbidden":
        return ManifestError(field, "unknown field", _nearest(location))
    if kind == "missing":
        return ManifestError(field, "is required", "add it")
    if kind in ("literal_error", "enum"):
        known = str(context.get("expected"))
        close = difflib.get_close_matches(str(error["input"]), re.findall(r"'([^']*)'", known), n=1)
        mean = f"did you mean {close[0]}? " if close else ""
        return ManifestError(field, f"{given} is not allowed", f"{mean}use one of {known}")
    if kind == "value_error":
        said = str(context.get("error", error["msg"]))
        if (inner := _INNER.match(said)) is not None:  # a rule across fields names its own
            field, said = f"{field}.{inner[1]}", inner[2]
        rule, _, remedy = said.partition("; ")
        return ManifestError(field, rule, remedy or "correct it")
    if kind == "string_pattern_mismatch":
        pattern = context.get("pattern")
        if pattern == NAME_PATTERN:
            remedy = "use lower-case letters, digits and '-' inside"
            return ManifestError(field, f"not a name: {given}", remedy)
        if pattern == PLAIN_PATTERN:
            return ManifestError(field, f"control characters in {given}", "remove them")
    message = error["msg"][0].lower() + error["msg"][1:]
    return ManifestError(field, f"{message}, got {given}", "correct it")


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if part == "[key]":  # the part before it is the key itself
            continue
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
    """Local paths made absolute against the manifest's folder; checks that local text exists.

    Raises ManifestError with everything that is missing.
    """
    document = manifest.document()
    spec = document["spec"]
    faults: list[ManifestError] = []
    sources = [("spec.data.train", spec["data"]["train"])] if "train" in spec["data"] else []
    sources += [(f"spec.data.mixture[{n}]", one) for n, one in enumerate(spec["data"]["mixture"])]
    if held := spec["data"]["validation"].get("source"):
        sources.append(("spec.data.validation.source", held))
    for field, source in sources:
        if source["uri"] in _LOCAL or source["uri"].startswith("s3://"):
            continue
        if source["format"] != "Dataset":
            with _noted(f"{field}.uri", faults):
                source["uri"] = str(_readable_text(f"{field}.uri", _found(folder, source["uri"])))
    for part, name in ((spec["data"], "tokenizer"), (spec["model"], "source")):
        field = f"spec.{'data' if name == 'tokenizer' else 'model'}.{name}"
        if part.get(name) not in (None, "bytes"):
            with _noted(field, faults):
                part[name] = _folder_or_hub(field, folder, part[name])
    if (named := spec["model"]["architecture"]).startswith(HUGGING_FACE):
        field = "spec.model.architecture"
        with _noted(field, faults):
            place = _folder_or_hub(field, folder, named.removeprefix(HUGGING_FACE))
            spec["model"]["architecture"] = f"{HUGGING_FACE}{place}"
    storage = spec["storage"]
    for name in ("credentialsDir", "caFile", "path"):
        if storage.get(name):
            with _noted(f"spec.storage.{name}", faults):
                storage[name] = str(_found(folder, storage[name]).resolve())
                if name == "path":
                    _usable_store(Path(storage[name]))
    access = spec["data"].get("s3") or {}
    for name in ("credentialsDir", "caFile"):
        if access.get(name):
            with _noted(f"spec.data.s3.{name}", faults):
                access[name] = str(_found(folder, access[name]).resolve())
    if faults:
        raise _together(faults)
    return TrainingRun.model_validate(document)


@contextmanager
def _noted(field: str, faults: list[ManifestError]) -> Iterator[None]:
    """What is wrong with a path joins the faults: also what no file system can look up."""
    try:
        yield
    except ManifestError as error:
        faults.append(error)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        given = error if isinstance(error, OSError) else ValueError(str(error))
        faults.append(unusable(field, given))


def _found(folder: Path, text: str) -> Path:
    """A path of the manifest. Its text is UTF-8, and so are most names of files; a locale of another
    encoding would look for other bytes.
    """
    path = folder / text
    try:
        named = folder / os.fsdecode(text.encode())
        return named if not os.path.lexists(path) and os.path.lexists(named) else path
    except UnicodeError:
        return path


def looks_like_path(text: str) -> bool:
    """Whether it can only be a path: a hub id is a name, or an owner and a name."""
    return text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1


def _folder_or_hub(field: str, folder: Path, value: str) -> str:
    """A folder made absolute, or a hub id as it is. Raises ManifestError for a path to nothing."""
    target = _found(folder, value).resolve()
    if target.is_dir():
        return str(target)
    if target.exists():
        raise ManifestError(field, f"{target} is a file", "give the folder it stands in")
    if looks_like_path(value):
        raise ManifestError(field, f"no such folder: {target}", "give a folder, or a hub id")
    return value


def _readable_text(field: str, target: Path) -> Path:
    """The resolved path of a text; one that is empty, is no file or cannot be read is refused before
    anything is started.
    """
    if not os.path.lexists(target):
        raise ManifestError(field, f"{target} does not exist", "give a file or folder")
    target = target.resolve(strict=True)
    kind = target.stat()
    if not os.access(target, os.R_OK):
        raise ManifestError(field, f"{target} cannot be read", "make it readable")
    if stat.S_ISDIR(kind.st_mode):
        if not any(path.is_file() for path in target.rglob("*")):
            raise ManifestError(field, f"{target} holds no text files", "put text there")
    elif not stat.S_ISREG(kind.st_mode):
        raise ManifestError(field, f"{target} is no regular file", "give a file or folder")
    elif kind.st_size == 0:
        raise ManifestError(field, f"{target} is empty", "give some text")
    return target


def _usable_store(path: Path) -> None:
    """Refuse a store folder that is a file, or that cannot be read and written."""
    if path.exists() and not path.is_dir():
        raise ManifestError("spec.storage.path", f"{path} is not a folder", "give a folder")
    place = next(one for one in (path, *path.parents) if one.exists())
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise ManifestError(
            "spec.storage.path", f"{place} cannot be read and written", "change its permissions"
        )
