"""`forkcast checkpoint ls|verify|export`: the saved states of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_wire import keys
from forkcast_wire.documents import Catalogue, history_gaps, saved_states, survey
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.run_folder import read_identity, read_manifest, storage_of
from forkcast_wire.store import open_store, read_document


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved state and the names of the pins that hold it. unrecorded: how many of the steps before
    it the history lacked when it was saved.
    """

    state: StateRef
    pins: tuple[str, ...]
    unrecorded: int = 0

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        ref = self.state
        return {
            "key": ref.key,
            "kind": ref.kind.value,
            "epoch": ref.epoch,
            "attempt": ref.attempt,
            "step": ref.step,
            "bytes": ref.size_bytes,
            "good": ref.good,
            "digest": ref.digest,
            "pins": list(self.pins),
            "unrecordedSteps": self.unrecorded,
        }


@dataclass(frozen=True, slots=True)
class Verified:
    """What reading a state back gave; error: empty where every byte is what it should be."""

    key: str
    error: str


def listing(folder: Path) -> list[Saved]:
    """All saved states of the main run, oldest first. Raises FileNotFoundError."""
    store = _store(folder)
    catalogue = read_document(store, Catalogue, keys.CATALOGUE)
    pins = catalogue.pins if catalogue is not None else {}
    found = []
    for kind in (StateKind.CHECKPOINT, StateKind.RING):
        gaps = history_gaps(store, kind)
        for ref in saved_states(store, kind):
            held = sorted(name for name, states in pins.items() if ref.key in states)
            found.append(Saved(ref, tuple(held), gaps.get(ref.key, 0)))
    return found


def _store(folder: Path) -> Store:
    return open_store(storage_of(folder), folder)


def verify(folder: Path, run_uid: str, scratch: Path) -> list[Verified]:
    """Read every state of the main run back, every tensor, and check it against its digests. A
    folder whose manifest is damaged is one of them. Raises FileNotFoundError.
    """
    store = _store(folder)
    found: list[Verified] = []
    for kind in (StateKind.CHECKPOINT, StateKind.RING):
        states, damaged = survey(store, kind)
        found += [Verified(key, "its manifest is damaged") for key in damaged]
        found += [Verified(ref.key, _error(store, ref, run_uid, scratch)) for ref in states]
    return found


def _error(store: Store, ref: StateRef, run_uid: str, scratch: Path) -> str:
    from forkcast_trainer import checkpoint

    try:
        checkpoint.verify(store, ref, scratch, run_uid)
    except checkpoint.CheckpointError as error:
        return str(error)
    return ""


def export(folder: Path, step: int | None, kind: str, place: Path, scratch: Path) -> StateRef:
    """The weights of a state of the main run into a file or a folder at ``place``; returns the state.

    step: of the state; None: the newest. kind: as `forkcast_trainer.export.FORMATS` names it. Raises
    ManifestError naming the option that cannot be, or what is wrong with the state.
    """
    from forkcast_trainer import checkpoint
    from forkcast_trainer.errors import TrainerError
    from forkcast_trainer.export import FORMATS

    if kind not in FORMATS:
        raise ManifestError("--as", f"unknown: {kind}", f"one of {', '.join(FORMATS)}")
    if place.exists():
        raise ManifestError(str(place), "exists already", "give a new place")
    if not place.absolute().parent.is_dir():
        raise ManifestError(str(place), "no such folder for it", "make the folder first")
    store = _store(folder)
    kinds = (StateKind.CHECKPOINT, StateKind.RING)
    found = [ref for each in kinds for ref in saved_states(store, each)]
    fitting = [ref for ref in found if step in {None, ref.step}]
    if not fitting:
        steps = ", ".join(map(str, sorted({ref.step for ref in found}))) or "none is saved"
        raise ManifestError("--step", f"no saved state of step {step}", f"one of {steps}")
    newest = max(fitting, key=lambda ref: (ref.epoch, ref.step, ref.attempt))
    try:
        uid, spec = read_identity(folder).uid, read_manifest(folder).spec
        weights = checkpoint.fetch_weights(store, newest, scratch, uid)
        FORMATS[kind](spec, weights, place)
    except (checkpoint.CheckpointError, TrainerError) as error:
        raise ManifestError(newest.key, str(error), "export another state: `--step`") from error
    return newest
