"""The records of a cluster's run, read from its store with the rights of the user who asks.

Where the store is says the run's ConfigMap; its keys are in the Secret that the pods mount, or, if that
may not be read, wherever an S3 client finds them (`AWS_*`, profile, role).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forkcast_cli.cluster_view import RunObject
from forkcast_cli.facts import RunFacts, gather
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import Storage, TrainingRun
from forkcast_wire.newer import read_resolved, resolved_document
from forkcast_wire.resources import LABEL_COMPONENT, LABEL_RUN

#: Asks the cluster for an object, as JSON; None if there is none, or it may not be read.
Get = Callable[..., Mapping[str, Any] | None]


class NoRecordsError(Exception):
    """Why the run's records cannot be found."""


def records(run: RunObject, get: Get, folder: Path, endpoint: str | None) -> RunFacts:
    """What the store has of the run: its history, branches and end. folder: an empty one, for keys and
    certificates. endpoint: of the store as it is reached from here, if that is another.

    Raises NoRecordsError, StoreError, ManifestError, ValueError.
    """
    manifest = _settings(run.name, get)
    storage = _as_seen_from_here(manifest.spec.storage, get, folder, endpoint)
    spec = manifest.spec.model_copy(update={"storage": storage})
    document = resolved_document(manifest.model_copy(update={"spec": spec}))
    replace_bytes(folder / "manifest.json", json.dumps(document).encode())
    replace_bytes(folder / "progress.json", json.dumps(_progress(run)).encode())
    return gather(folder)


def _settings(name: str, get: Get) -> TrainingRun:
    found = get("configmaps", "-l", f"{LABEL_RUN}={name},{LABEL_COMPONENT}=run") or {}
    for one in found.get("items", []):
        if "manifest.json" in one.get("data", {}):
            return read_resolved(one["data"]["manifest.json"])
    raise NoRecordsError("no ConfigMap of the run can be read; it is made with the first trainer")


def _as_seen_from_here(given: Storage, get: Get, folder: Path, endpoint: str | None) -> Storage:
    update: dict[str, Any] = {"credentials_dir": None, "ca_file": None}
    if endpoint is not None:
        update["endpoint"] = endpoint
    if (ref := given.secret_ref) is not None and (secret := get("secret", ref.name)) is not None:
        keys = folder / "keys"
        keys.mkdir(mode=0o700)
        for file, key in (
            ("accessKeyId", ref.access_key_id_key),
            ("secretAccessKey", ref.secret_access_key_key),
        ):
            replace_bytes(keys / file, base64.b64decode(secret.get("data", {}).get(key, "")))
        update["credentials_dir"] = str(keys)
    if (ca := given.ca_ref) is not None and (held := get(ca.kind.lower(), ca.name)) is not None:
        text = held.get("data", {}).get(ca.key, "")
        data = base64.b64decode(text) if ca.kind == "Secret" else text.encode()
        replace_bytes(folder / "ca.crt", data)
        update["ca_file"] = str(folder / "ca.crt")
    return Storage.model_validate(given.model_copy(update=update).model_dump(by_alias=True))


def _progress(run: RunObject) -> dict[str, Any]:
    progress = run.status.progress
    return {"step": progress.step, "state": run.state} if progress is not None else {}
