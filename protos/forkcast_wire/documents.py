"""Records as documents of the store: canonical JSON out, validated records in.

Reading goes through pydantic, so a document with a missing, surplus or ill-typed field is refused
by name instead of becoming a half-filled record.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from forkcast.actions import Action
from forkcast.canonical import Json, canonical_json, plain
from forkcast.lineage import LineageEntry, head
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_wire import keys, schema_1

T = TypeVar("T")
#: The version of the checkpoint format that is written, and those that are read.
STATE_FORMAT = 2
_STATE_FORMATS = (1, STATE_FORMAT)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """run.json: the run's identity. uid: drawn once, when the work directory is created.
    first_total_steps: `training.totalSteps` of the first start, the learning rate's default
    schedule; None in a run from before it was recorded. holder_uid, held_by: uid and name of the
    TrainingRun that has adopted the records, "" while they are the run's own.
    """

    uid: str
    name: str
    manifest_digest: str
    first_total_steps: int | None = None
    holder_uid: str = ""
    held_by: str = ""

    @property
    def holder(self) -> str:
        """Uid of the TrainingRun whose records these are."""
        return self.holder_uid or self.uid


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutJob:
    """job.json of a rollout. publish_from: the first rung whose end state can be adopted; a state is
    not published at an earlier one, where writing it would cost more than the rung.
    """

    run_uid: str
    trigger_id: str
    candidate: str
    action: Action
    base: StateRef
    trigger_step: int
    rungs: tuple[int, ...]
    publish_from: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutUntil:
    """until.json of a rollout: run to this rung, then wait; None: stop and exit."""

    until: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateManifest:
    """manifest.json of a saved state: the proof that it exists. See docs/checkpoint-format.md.

    lossless: whether restoring gives the saved bits. versions: of what wrote it.
    """

    format_version: int
    run_uid: str
    state: StateRef
    lossless: bool
    loss: float | None
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryGap:
    """history-gap.json of a saved state: how many of the steps before it the history lacked when it
    was published, and why.
    """

    steps: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """catalogue.json: who pins which state (pin name -> keys) and which keys are being deleted.
    Changed by compare-and-swap only, so that a pinned state is never deleted.
    """

    pins: dict[str, tuple[str, ...]]
    tombstones: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """complete.json: the last step that was reached; see `forkcast_wire.completion` for whether the
    run has ended with it. Losses are validation losses, nats/token.
    """

    epoch: int
    step: int
    tokens: int
    validation_loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextIdentity:
    """text.json: the tokens that the run trains on, as they are in its token files. tokens: ids, one
    end-of-text behind each document among them. validation_*: of the held-out text, the same file's
    where it has none of its own.
    """

    tokens: int
    sha256: str
    validation_tokens: int
    validation_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCommits:
    """text-commits.json: which commit of each data set of the hub the run reads, by `name@revision` as the
    manifest gives them.
    """

    commits: dict[str, str]


class DocumentError(ValueError):
    """A stored document is not what its name says."""


#: What is parsed takes many times the memory of its text.
_MOST_BYTES = 8 << 20


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", kind))


def dump(record: object) -> bytes:
    """Canonical JSON bytes of a record."""
    return canonical_json(record)


def load(kind: type[T], data: bytes) -> T:
    """The record that the bytes hold. Raises DocumentError naming the field that is wrong."""
    if len(data) > _MOST_BYTES:
        raise DocumentError(f"{kind.__name__}: {len(data)} bytes are too many for a record")
    try:
        record: T = _adapter(cast("Hashable", kind)).validate_json(data, extra="forbid")
    except ValidationError as error:
        former = schema_1.upgraded(data)
        if former is not None:
            return load(kind, former)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise DocumentError(f"{kind.__name__}: {where}: {first['msg']}") from error
    if where := ".".join(_not_finite(plain(record))):
        raise DocumentError(f"{kind.__name__}: {where}: Input should be a finite number")
    return record


def _not_finite(value: Json) -> list[str]:
    """The path to the first number that is NaN or infinite, which `dump` would refuse."""
    parts: Iterable[tuple[object, Json]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for name, part in parts:
        if isinstance(part, float) and not math.isfinite(part):
            return [str(name)]
        if found := _not_finite(part):
            return [str(name), *found]
    return []


def load_at(store: Store, kind: type[T], key: str) -> T:
    """The record under a key. Raises KeyMissing, and DocumentError naming the key."""
    try:
        return load(kind, store.get(key)[0])
    except DocumentError as error:
        raise DocumentError(f"{key}: is damaged ({error}); restore it from a copy") from error


def read_manifest(store: Store, folder: str) -> StateManifest | None:
    """The manifest of a saved state, None if there is none, or it is damaged, or is not this
    folder's: a state without a valid manifest does not exist.
    """
    try:
        manifest = load(StateManifest, store.get(keys.state_manifest(folder))[0])
    except (LookupError, DocumentError):
        return None
    return manifest if _belongs(manifest, folder) else None


def _belongs(manifest: StateManifest, folder: str) -> bool:
    """Whether a manifest says of its state what the folder's name says."""
    ref = manifest.state
    place = folder
    if ref.kind is not StateKind.ROLLOUT:
        place = keys.state(ref.kind, ref.epoch, ref.attempt, ref.step)
    return manifest.format_version in _STATE_FORMATS and ref.key == folder == place


def survey(store: Store, kind: StateKind) -> tuple[list[StateRef], list[str]]:
    """The main run's durable states of one kind, oldest first by (epoch, step, attempt), and the
    folders whose manifest is damaged.
    """
    found, damaged = [], []
    names = {info.key for info in store.list(keys.state_prefix(kind))}
    for name in sorted(names):
        folder, _, last = name.rpartition("/")
        if last != "manifest.json":
            continue
        manifest = read_manifest(store, folder)
        if manifest is not None:
            found.append(replace(manifest.state, good=f"{folder}/good" in names))
        elif store.head(name) is not None:  # not deleted meanwhile
            damaged.append(folder)
    return sorted(found, key=lambda ref: (ref.epoch, ref.step, ref.attempt)), damaged


def saved_states(store: Store, kind: StateKind) -> list[StateRef]:
    """The main run's durable states of one kind, oldest first by (epoch, step, attempt)."""
    return survey(store, kind)[0]


def history_gaps(store: Store, kind: StateKind) -> dict[str, int]:
    """By the folder of a saved state, how many steps the history lacked when it was published; only
    states with a gap.
    """
    found = {}
    for info in store.list(keys.state_prefix(kind)):
        folder = info.key.rpartition("/")[0]
        if info.key == keys.state_gap(folder):
            with suppress(LookupError):  # deleted meanwhile
                found[folder] = load_at(store, HistoryGap, info.key).steps
    return found


def lineage_entries(store: Store) -> list[LineageEntry]:
    """The whole lineage log, by epoch."""
    found = [load_at(store, LineageEntry, i.key) for i in store.list(keys.LINEAGE_PREFIX)]
    return sorted(found, key=lambda entry: entry.epoch)


def lineage_head(store: Store) -> LineageEntry | None:
    """The lineage entry of the highest epoch, None in epoch 0. Raises ValueError on a gap."""
    return head(lineage_entries(store))
