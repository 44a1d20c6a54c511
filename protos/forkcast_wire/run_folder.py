"""What a run's work directory holds beside its store: manifest, identity, the trainer's last progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forkcast_wire import keys
from forkcast_wire.documents import DocumentError, RunInfo, load
from forkcast_wire.manifest import Storage, TrainingRun, Uncertainty
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.newer import NewerManifestError, read_resolved

MANIFEST = "manifest.json"
#: Of a run without a manifest, whose training is not ours but is watched; see forkcast_watch.
REGISTRATION = "registration.json"


def read_manifest(folder: Path) -> TrainingRun:
    """The resolved manifest of a work directory; a field that is newer than the run has its default.

    Raises FileNotFoundError, NotADirectoryError, and ManifestError if it is damaged, or says what this
    version does not know.
    """
    path = folder / MANIFEST
    data = path.read_bytes()
    try:
        return read_resolved(data)
    except NewerManifestError:
        raise
    except ValueError as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        remedy = f"`forkcast run MANIFEST --workdir {folder}` writes it anew"
        raise ManifestError(str(path), f"is damaged ({why})", remedy) from None


def is_watched(folder: Path) -> bool:
    """Whether the folder is that of a run without a manifest."""
    return (folder / REGISTRATION).exists() and not (folder / MANIFEST).exists()


def rules_of_watched(folder: Path) -> Uncertainty:
    """The detector's rules of a watched run. Raises ManifestError if they cannot be read."""
    path = folder / REGISTRATION
    try:
        given = json.loads(path.read_bytes())["uncertainty"]
        return Uncertainty.model_validate_json(given or "{}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = type(error).__name__
        raise ManifestError(str(path), f"is damaged ({what})", "watch the run again") from None


def storage_of(folder: Path) -> Storage:
    """Where the run's records are: as its manifest says, or in the folder of a watched run. Raises what
    `read_manifest` does.
    """
    return Storage() if is_watched(folder) else read_manifest(folder).spec.storage


def read_identity(folder: Path) -> RunInfo:
    """run.json of a work directory. Raises FileNotFoundError, and ManifestError if it is damaged."""
    path = folder / keys.RUN
    try:
        return load(RunInfo, path.read_bytes())
    except DocumentError as error:
        remedy = f"`forkcast run MANIFEST --workdir {folder}` restores it from what the run saved"
        raise ManifestError(str(path), f"is damaged ({error})", remedy) from None


def read_progress(folder: Path) -> dict[str, Any]:
    """progress.json; {} if there is none or it is damaged: it only informs."""
    found = damaged_as_none(folder / "progress.json")
    return found if isinstance(found, dict) else {}


def damaged_as_none(path: Path) -> Any:
    """The JSON in a local file; None if there is no such file or it holds none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
