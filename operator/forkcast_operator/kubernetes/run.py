"""A TrainingRun object as the operator reads it, and the names of what it makes for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from forkcast_operator.kubernetes.config import OperatorConfig, StoreConfig
from forkcast_wire.fields import API_VERSION
from forkcast_wire.manifest import (
    DataStorage,
    Metadata,
    SecretRef,
    Storage,
    TrainingRun,
    TrainingRunSpec,
)
from forkcast_wire.newer import Unknown, known_part, resolved_document
from forkcast_wire.resources import FINALIZER
from forkcast_wire.store.errors import is_key

LABEL_CANDIDATE: Final = "forkcast.dev/candidate"
LABEL_RUNG: Final = "forkcast.dev/rung"
LABEL_START: Final = "forkcast.dev/start"
LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
#: On a trainer's workload: digest of the pods that it was made with.
ANNOTATION_PODS: Final = "forkcast.dev/pods"
#: On a TrainingRun that has failed: a new value lets it go on.
ANNOTATION_RETRY: Final = "forkcast.dev/retry"
#: On a TrainingRun that trains: a new value has a checkpoint saved now.
ANNOTATION_CHECKPOINT: Final = "forkcast.dev/checkpoint"
#: A Job's pods carry its name as a label (63) and a suffix in their host name.
MOST_NAME: Final = 52


class SpecError(ValueError):
    """A run that the API server took and that cannot be carried out; `reason` is one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def child_name(*parts: str) -> str:
    """The parts joined by dashes; where that is too long it is cut and carries a digest of the
    whole, so that two long names stay two.
    """
    name = "-".join(parts)
    if len(name) <= MOST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MOST_NAME - 9].rstrip('-.')}-{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One TrainingRun as it stands in the API. uid: metadata.uid, and the run's identity in all
    records. records_uid: uid in its records and at the monitor, if it has adopted those of another
    run; else empty. retry: value of the annotation by which a user asks a failed run to go on;
    checkpoint: a running one to save now.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created: str
    deleting: bool
    finalizers: tuple[str, ...]
    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    retry: str = ""
    checkpoint: str = ""
    records_uid: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Run:
        """From the object as the API server gives it."""
        meta = body["metadata"]
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            generation=int(meta.get("generation", 0)),
            created=meta.get("creationTimestamp", ""),
            deleting="deletionTimestamp" in meta,
            finalizers=tuple(meta.get("finalizers", ())),
            spec=body.get("spec", {}),
            status=body.get("status", {}),
            checkpoint=str(meta.get("annotations", {}).get(ANNOTATION_CHECKPOINT, "")),
            retry=str(meta.get("annotations", {}).get(ANNOTATION_RETRY, "")),
        )

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.namespace, self.name

    @property
    def identity(self) -> str:
        """The uid in its records and at the monitor."""
        return self.records_uid or self.uid

    @property
    def holds_finalizer(self) -> bool:
        """Whether the operator's finalizer stands on it."""
        return FINALIZER in self.finalizers

    def owner(self) -> dict[str, Any]:
        """The owner reference of its children."""
        return owner_reference("TrainingRun", self.name, self.uid)

    def parsed(self) -> TrainingRunSpec:
        """The spec, all of which must be known. Raises SpecError."""
        spec, unknown = self.read()
        if unknown:
            raise SpecError("InvalidSpec", f"spec.{unknown[0]}: unknown field; remove it")
        return spec

    def read(self) -> tuple[TrainingRunSpec, list[Unknown]]:
        """What this operator knows of the spec, and the fields that it does not know. Raises
        SpecError if the spec contradicts itself.
        """
        try:
            return known_part(TrainingRunSpec, self.spec)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["spec", *map(str, first["loc"])])
            raise SpecError("InvalidSpec", f"{where}: {first['msg']}") from None


def owner_reference(kind: str, name: str, uid: str) -> dict[str, Any]:
    """A controlling owner reference to one of our own kinds."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlace:
    """Where a run's records are stored: as the operator opens it, and as pods do.

    secret: name of the Secret that the pods mount. former: the prefix at which operators up to
    0.1 kept this run's records, "" if that is the same one. around: the prefix of all runs of the
    namespace. adopt_from: uid or name of the run whose records this one adopts. busy: uids of runs
    that are at work on theirs.
    """

    operator: Storage
    pods: Storage
    secret: str
    access_key_id_key: str
    secret_access_key_key: str
    former: str = ""
    around: str = ""
    adopt_from: str = ""
    busy: frozenset[str] = frozenset()

    def below(self, prefix: str) -> StorePlace:
        """The same store below another prefix."""
        return replace(
            self,
            operator=self.operator.model_copy(update={"prefix": prefix}),
            pods=self.pods.model_copy(update={"prefix": prefix}),
            former="",
            adopt_from="",
        )


STORE_FOLDER: Final = "/etc/forkcast/store"
CA_FOLDER: Final = "/etc/forkcast/store-ca"
DATA_FOLDER: Final = "/etc/forkcast/data"
DATA_CA_FOLDER: Final = "/etc/forkcast/data-ca"


def store_place(run: Run, spec: TrainingRunSpec, config: OperatorConfig) -> StorePlace:
    """The store of a run: the one it names, which must be one of the installation's, or the first.

    The operator opens it with its own credentials, so the prefix is not the run's to choose: it is
    ``<prefix of the store><namespace>/<name>-<first 8 of the uid>/``, and a prefix in the spec
    continues below it. Raises SpecError.
    """
    given = spec.storage
    known = _as_asked(_known_store(given, config), given)
    if given.prefix and not is_key(given.prefix.removesuffix("/")):
        raise SpecError(
            "InvalidSpec",
            "spec.storage.prefix: a part begins with a dot or a dash, or holds two dots; begin each "
            "with a letter or digit",
        )
    own = f"{run.namespace}/{run.name}-{run.uid[:8]}/"
    prefix = f"{known.prefix}{own}{given.prefix}"
    former = given.prefix if given.bucket and given.prefix else f"{given.prefix}{own}"
    secret = given.secret_ref or SecretRef(name=known.run_secret_name)
    pods = given.model_copy(
        update={
            "path": None,
            "endpoint": known.endpoint,
            "bucket": known.bucket,
            "region": known.region,
            "conditional_writes": known.conditional_writes,
            "prefix": prefix,
            "credentials_dir": STORE_FOLDER,
            "secret_ref": secret,
            "ca_file": f"{CA_FOLDER}/ca.crt" if given.ca_ref is not None else None,
        }
    )
    return StorePlace(
        operator=known.storage(prefix),
        pods=pods,
        secret=secret.name,
        access_key_id_key=secret.access_key_id_key,
        secret_access_key_key=secret.secret_access_key_key,
        former=former if former != prefix else "",
        around=f"{known.prefix}{run.namespace}/",
        adopt_from=given.adopt_from or "",
    )


def check_account(run: Run, spec: TrainingRunSpec, config: OperatorConfig) -> None:
    """Raises SpecError if the run's pods would have an account of the installation itself: with it
    comes a token that monitor and proxy take for the operator's.
    """
    name = spec.pod_patch.service_account_name or "default"
    if f"{run.namespace}/{name}" in config.reserved_accounts:
        raise SpecError(
            "AccountReserved",
            f"spec.podPatch.serviceAccountName: {name} is an account of the Forkcast installation in "
            f"{run.namespace}; use another account, or another namespace",
        )


def check_executor(spec: TrainingRunSpec) -> None:
    """Raises SpecError if rollouts are to be processes: here they are Jobs."""
    if spec.branching.executor == "Process":
        raise SpecError(
            "InvalidSpec",
            "spec.branching.executor: Process runs rollouts on one machine; on a cluster set Auto or Pod",
        )


def _as_asked(known: StoreConfig, given: Storage) -> StoreConfig:
    """The installation's store, with the region and the writes that the run asks for; the fields'
    defaults ask for nothing.
    """
    asked = {
        name: getattr(given, name)
        for name in ("region", "conditional_writes")
        if getattr(given, name) != Storage.model_fields[name].default
    }
    return known.model_copy(update=asked)


def _known_store(given: Storage, config: OperatorConfig) -> StoreConfig:
    if not config.stores:
        raise SpecError(
            "StoreUnknown", "this operator has no object store; set `stores` in its configuration"
        )
    if given.bucket is None:
        return config.stores[0]
    for store in config.stores:
        if (store.endpoint, store.bucket) == (given.endpoint, given.bucket):
            return store
    raise SpecError(
        "StoreUnknown",
        f"spec.storage: the operator has no credentials for {given.endpoint} {given.bucket}; add "
        "it to `stores` in its configuration, or leave endpoint and bucket out",
    )


def _data_storage(given: DataStorage | None) -> DataStorage | None:
    """As pods see it: keys and certificates where they are mounted."""
    if given is None:
        return None
    return given.model_copy(
        update={
            "credentials_dir": DATA_FOLDER if given.secret_ref is not None else None,
            "ca_file": f"{DATA_CA_FOLDER}/ca.crt" if given.ca_ref is not None else None,
        }
    )


def manifest_json(run: Run, spec: TrainingRunSpec, place: StorePlace) -> str:
    """The resolved manifest that pods read: every default filled in, the store as pods see it."""
    data = spec.data.model_copy(update={"s3": _data_storage(spec.data.s3)})
    resolved = spec.model_copy(update={"storage": place.pods, "data": data, "suspend": False})
    manifest = TrainingRun(
        api_version=API_VERSION,
        kind="TrainingRun",
        metadata=Metadata(name=run.name, namespace=run.namespace),
        spec=resolved,
    )
    return json.dumps(resolved_document(manifest), sort_keys=True, indent=1)
