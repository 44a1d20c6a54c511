"""Records of a former run, found and taken over by a new TrainingRun (`spec.storage.adoptFrom`).

The records keep their identity: states, statistics and decisions name the uid of the run that began
them. What changes hands is who holds them, one field of run.json, by compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import structlog

from forkcast.ports import Store
from forkcast_operator.kubernetes.run import Run, SpecError, StorePlace
from forkcast_wire import keys
from forkcast_wire.documents import DocumentError, RunInfo, dump, load
from forkcast_wire.manifest import Storage
from forkcast_wire.store import Conflict, KeyMissing

_log = structlog.get_logger()
_FIELD = "spec.storage.adoptFrom"


@dataclass(frozen=True, slots=True)
class _Found:
    """A run's records. key: of its run.json; etag: of what was read."""

    key: str
    info: RunInfo
    etag: str


def adopted_place(
    run: Run, place: StorePlace, open_store: Callable[[Storage], Store]
) -> StorePlace:
    """Where the records are that the run adopts; they are its own from now on. Blocking.

    Raises SpecError naming what is wrong; StoreError.
    """
    store = open_store(place.below(place.around).operator)
    found = list(_matching(store, run, place.adopt_from))
    mine = [one for one in found if one.info.holder == run.uid]
    if len(mine or found) != 1:
        raise SpecError("NothingToAdopt", _wrong(place, found))
    (one,) = mine or found
    if not mine:
        _take(store, run, place, one)
    return place.below(place.around + one.key.removesuffix(keys.RUN))


def _matching(store: Store, run: Run, wanted: str) -> Iterator[_Found]:
    """Records in the run's namespace whose run, or whose holder, has that uid or name; the run's
    own, if it holds some already, too.
    """
    for listed in store.list(""):
        if not listed.key.endswith(f"/{keys.RUN}"):
            continue
        try:
            data, etag = store.get(listed.key)
            info = load(RunInfo, data)
        except (KeyMissing, DocumentError):
            continue
        if info.holder == run.uid or wanted in (info.uid, info.name, info.holder, info.held_by):
            yield _Found(listed.key, info, etag)


def _wrong(place: StorePlace, found: list[_Found]) -> str:
    where = f"{place.operator.bucket or place.operator.path}, {place.around}"
    if not found:
        return (
            f"{_FIELD}: no records of a run {place.adopt_from} in {where}; give the name or the uid "
            "of a run of this namespace whose records were retained"
        )
    uids = ", ".join(sorted(one.info.uid for one in found))
    return f"{_FIELD}: {len(found)} runs are meant in {where}; give the uid of one: {uids}"


def _take(store: Store, run: Run, place: StorePlace, one: _Found) -> None:
    if one.info.holder in place.busy:
        raise SpecError(
            "FormerRunActive",
            f"{_FIELD}: TrainingRun {one.info.held_by or one.info.name} still uses these records; "
            "wait for its end, suspend it, or delete it (with lifecycle.onDelete: Retain)",
        )
    taken = replace(one.info, holder_uid=run.uid, held_by=run.name)
    try:
        store.put(one.key, dump(taken), match=one.etag)
    except Conflict:
        raise SpecError(
            "FormerRunActive", f"{_FIELD}: another run adopts these records at this moment"
        ) from None
    _log.info("run.adopted", former=one.info.name, uid=one.info.uid, key=one.key)
