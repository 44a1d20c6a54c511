"""A saved state in the store: the container `cp_<step>.ptz` and, last, the manifest with which it exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from forkcast.ports import Store
from forkcast.records import StateKind, StateRef
from forkcast_trainer.container import (
    default_threads,
    open_container,
    read_container,
    verify_container,
    write_container,
)
from forkcast_trainer.table import Admit, CheckpointError, Shaped, Snapshot
from forkcast_wire import keys
from forkcast_wire.documents import STATE_FORMAT, StateManifest, dump, read_manifest
from forkcast_wire.store import AlreadyExists, BadKey, KeyMissing, StoreUnavailable

__all__ = [
    "CheckpointError",
    "Encoding",
    "Shaped",
    "Snapshot",
    "Upload",
    "Uploaded",
    "fetch",
    "fetch_weights",
    "other_versions",
    "publish",
    "read_container",
    "refuse_not_finite",
    "sweep",
    "upload",
    "verify",
    "verify_container",
    "write_container",
]

T = TypeVar("T")
#: Writes and uploads a container, as `upload` does.
Upload: TypeAlias = Callable[[Store, Snapshot, str, StateKind, Path, "Encoding"], "Uploaded"]
_WEIGHT = "model."


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a container is written, see `write_container`."""

    level: int
    int8: bool = False


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A container that the store has taken. etag: the store's for it; None if this very state stands
    there already, manifest and all. lossless: as a manifest has it.
    """

    ref: StateRef
    etag: str | None
    lossless: bool


def publish(
    store: Store,
    snapshot: Snapshot,
    folder: str,
    kind: StateKind,
    scratch: Path,
    level: int,
    *,
    int8: bool = False,
    before_manifest: Callable[[], None] = lambda: None,
    by: Upload | None = None,
) -> StateRef:
    """Write container and manifest under ``folder``, the manifest last; returns the reference. int8:
    see `write_container`. before_manifest: called when all but the manifest is written, with which the
    state exists. by: what writes and uploads the container, None for `upload` in this process.

    Publishing the same state again is success. Raises CheckpointError where another state stands
    under the folder already, StoreUnavailable if the store does not show the container that it has
    taken.
    """
    uploaded = (by or upload)(store, snapshot, folder, kind, scratch, Encoding(level, int8))
    ref = uploaded.ref
    if uploaded.etag is None:
        return ref
    before_manifest()
    _verify_stored(store, ref, uploaded.etag)
    manifest = StateManifest(
        format_version=STATE_FORMAT,
        run_uid=snapshot.meta["run_uid"],
        state=ref,
        lossless=uploaded.lossless,
        loss=snapshot.meta.get("loss"),
        versions=_versions(),
    )
    try:
        store.put(keys.state_manifest(folder), dump(manifest), create=True)
    except AlreadyExists:
        return _same(read_manifest(store, folder), ref)
    return ref


def upload(
    store: Store,
    snapshot: Snapshot,
    folder: str,
    kind: StateKind,
    scratch: Path,
    encoding: Encoding,
) -> Uploaded:
    """Write the container and upload it. Raises CheckpointError where another state stands under the
    folder already, StoreError.
    """
    meta = snapshot.meta
    path = _scratch_file(scratch, folder)
    try:
        digest = write_container(snapshot, path, encoding.level, int8=encoding.int8)
        lossless = not open_container(path).coded
        ref = StateRef(
            key=folder,
            kind=kind,
            epoch=meta["epoch"],
            attempt=meta["attempt"],
            step=meta["step"],
            digest=digest,
            size_bytes=path.stat().st_size,
        )
        if (standing := read_manifest(store, folder)) is not None:  # its bytes must stay its own
            return Uploaded(_same(standing, ref), None, lossless)
        return Uploaded(ref, store.put_file(keys.ptz(folder, ref.step), path), lossless)
    finally:
        path.unlink(missing_ok=True)


def _verify_stored(store: Store, ref: StateRef, etag: str) -> None:
    """What the store took is what it shows: a state whose container was lost, or cut, must not come to
    exist. Raises StoreUnavailable.
    """
    key = keys.ptz(ref.key, ref.step)
    found = store.head(key)
    if found is None or (found.size, found.etag) != (ref.size_bytes, etag):
        shown = "nothing" if found is None else f"{found.size} bytes ({found.etag})"
        why = f"it has taken {ref.size_bytes} bytes ({etag}) and shows {shown}"
        raise StoreUnavailable(f"{key}: {why}", why=why)


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": version("transformers")}


def other_versions(store: Store, ref: StateRef) -> dict[str, str]:
    """The libraries that wrote the state in another version than this process has, by name. With
    those a resume is as good as ever, but no longer exact to the bit.
    """
    manifest, ours = read_manifest(store, ref.key), _versions()
    theirs = manifest.versions if manifest is not None else {}
    return {name: version for name, version in theirs.items() if ours.get(name) != version}


def _same(standing: StateManifest | None, ref: StateRef) -> StateRef:
    if standing is None or standing.state.digest != ref.digest:
        raise CheckpointError(f"{ref.key}: another state stands there")
    return ref


def _scratch_file(scratch: Path, folder: str) -> Path:
    """A temporary file of this process for one state; `sweep` knows whose it is."""
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch / f"{os.getpid()}.{folder.replace('/', '_')}"


def sweep(scratch: Path) -> None:
    """Remove what killed processes have left in a scratch folder of this machine."""
    for path in scratch.glob("*.*"):
        owner = path.name.lstrip(".").partition(".")[0]  # a dot before it: not yet whole
        if owner.isdecimal() and not Path("/proc", owner).exists() and Path("/proc/self").exists():
            path.unlink(missing_ok=True)


def fetch(
    store: Store, ref: StateRef, scratch: Path, run_uid: str, admit: Admit | None = None
) -> Snapshot:
    """The verified state behind a reference; admit: see `read_container`.

    Raises CheckpointError if it is missing, damaged, of another run, or not the state that the
    reference says.
    """

    def read(path: Path) -> tuple[Mapping[str, Any], Snapshot]:
        saved = read_container(path, ref.digest, admit)
        return saved.meta, saved

    return _fetched(store, ref, scratch, run_uid, read)


def refuse_not_finite(ref: StateRef, saved: Snapshot) -> None:
    """Raises CheckpointError if a weight is an infinity or a NaN: training goes nowhere from there."""
    for name, tensor in saved.tensors.items():
        floating = name.startswith(_WEIGHT) and tensor.is_floating_point()
        if floating and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{ref.key}: {name} holds a value that is no number")


def fetch_weights(store: Store, ref: StateRef, scratch: Path, run_uid: str) -> Mapping[str, Tensor]:
    """The model's weights in a state by the model's own names, verified; the optimizer's bytes, twice
    as many, are not read. Raises CheckpointError as `fetch`.
    """

    def read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        found = open_container(path, ref.digest)
        names = [name for name in found.table if name.startswith(_WEIGHT)]
        tensors = found.tensors(names, default_threads())
        return found.meta, {name.removeprefix(_WEIGHT): t for name, t in tensors.items()}

    return _fetched(store, ref, scratch, run_uid, read)


def verify(store: Store, ref: StateRef, scratch: Path, run_uid: str) -> None:
    """Read a state back, every byte, in a MiB of memory. Raises CheckpointError as `fetch`."""
    _fetched(store, ref, scratch, run_uid, lambda p: (verify_container(p, ref.digest), None))


def _fetched(
    store: Store,
    ref: StateRef,
    scratch: Path,
    run_uid: str,
    read: Callable[[Path], tuple[Mapping[str, Any], T]],
) -> T:
    path = _scratch_file(scratch, f"{ref.key}.in")
    try:
        store.get_file(keys.ptz(ref.key, ref.step), path)
        if (size := path.stat().st_size) != ref.size_bytes:
            raise CheckpointError(f"{ref.key}: {size} bytes; its manifest says {ref.size_bytes}")
        meta, found = read(path)
    except (KeyMissing, BadKey) as error:
        raise CheckpointError(f"{ref.key}: missing") from error
    finally:
        path.unlink(missing_ok=True)
    if (owner := meta.get("run_uid")) != run_uid:
        raise CheckpointError(f"{ref.key}: belongs to run {owner}")
    for name in ("epoch", "attempt", "step"):
        if meta.get(name) != getattr(ref, name):
            raise CheckpointError(
                f"{ref.key}: is of {name} {meta.get(name)}; its manifest says {getattr(ref, name)}"
            )
    return found
