"""Pins and deletions of saved states, through one compare-and-swapped document.

A state is deleted in two moves: a tombstone enters the catalogue in the same swap that checks the
pins, then the objects go. A pin of a state with a tombstone is refused, and the tombstone stays
until its state is gone, whatever other process prunes. So a pinned state is never deleted, whichever
process crashes when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from forkcast import retention
from forkcast.ports import ObjectInfo, Store
from forkcast.records import StateKind, StateRef
from forkcast_wire import keys
from forkcast_wire.documents import Catalogue, saved_states
from forkcast_wire.store import read_document, update_document

_EMPTY = Catalogue(pins={}, tombstones=())
#: A part of a state without a manifest is left alone for so long: it may be a save under way in another
#: process, whose store counts from when its upload began, by a clock that is not ours.
ORPHAN_SECONDS = 24 * 3600.0


def read(store: Store) -> Catalogue:
    """The catalogue as it is now."""
    return read_document(store, Catalogue, keys.CATALOGUE) or _EMPTY


def pin(store: Store, name: str, states: Sequence[str]) -> tuple[str, ...]:
    """Add the states to the pin called ``name``; returns those it holds now, without any that are
    being deleted.
    """

    def change(before: Catalogue) -> Catalogue:
        held = dict.fromkeys((*before.pins.get(name, ()), *states))
        alive = tuple(key for key in held if key not in before.tombstones)
        return replace(before, pins={**before.pins, name: alive})

    return update_document(store, Catalogue, keys.CATALOGUE, _EMPTY, change).pins[name]


def unpin(store: Store, name: str) -> None:
    """Remove the pin; a missing one is success."""

    def change(before: Catalogue) -> Catalogue:
        return replace(before, pins={n: held for n, held in before.pins.items() if n != name})

    if name in read(store).pins:
        update_document(store, Catalogue, keys.CATALOGUE, _EMPTY, change)


def prune(
    store: Store,
    kind: StateKind,
    *,
    keep_last: int,
    pinned_steps: Sequence[int],
    log_spaced_from: int = 0,
) -> int:
    """Delete the main run's states of one kind that retention lets go; returns how many."""
    keep = partial(
        retention.keep,
        keep_last=keep_last,
        pinned_steps=pinned_steps,
        log_spaced_from=log_spaced_from,
    )
    states = saved_states(store, kind)
    known = {ref.key for ref in states}
    chosen: set[str] = set()

    def stands(key: str) -> bool:
        """Whether a tombstone must stay: somebody may be about to delete its state."""
        if key in known:
            return False  # chosen again, see below
        of_this_kind = key.startswith(keys.state_prefix(kind))
        return not of_this_kind or store.head(keys.state_manifest(key)) is not None

    def change(before: Catalogue) -> Catalogue:
        pins = {key for held in before.pins.values() for key in held}
        stay = keep(states, pins=pins)
        chosen.clear()
        # what another process has let go does not come back
        chosen.update((known - stay) | (known & {*before.tombstones}))
        left = [key for key in before.tombstones if stands(key)]
        return replace(before, tombstones=(*left, *sorted(chosen)))

    stay = keep(states)
    if all(ref.key in stay for ref in states) and not read(store).tombstones:
        return 0
    update_document(store, Catalogue, keys.CATALOGUE, _EMPTY, change)
    for ref in states:
        if ref.key in chosen:
            delete_state(store, ref)
    return len(chosen)


def delete_state(store: Store, ref: StateRef) -> None:
    """Delete a state, its manifest first, so that no reader sees it half gone."""
    store.delete(keys.state_manifest(ref.key))
    store.delete(keys.ptz(ref.key, ref.step))
    store.delete(f"{ref.key}/good")
    rollout = ref.kind is StateKind.ROLLOUT
    store.delete(keys.state_history(ref.key) if rollout else keys.state_gap(ref.key))


def sweep(store: Store, now: float) -> list[str]:
    """Delete the parts of states that have no manifest, ORPHAN_SECONDS after the last of them was
    written: a save, or a deletion, was killed in the middle. now: Unix seconds. Returns the folders.
    """
    swept = []
    for prefix in keys.STATE_PREFIXES:
        parts: dict[str, list[ObjectInfo]] = {}
        for info in store.list(prefix):
            folder = keys.state_of(info.key)
            if folder is not None:
                parts.setdefault(folder, []).append(info)
        for folder, found in sorted(parts.items()):
            if keys.state_manifest(folder) in {info.key for info in found}:
                continue
            written = [info.modified for info in found]
            if any(at is None or now - at < ORPHAN_SECONDS for at in written):
                continue
            if store.head(keys.state_manifest(folder)) is not None:  # published since
                continue
            for info in found:
                store.delete(info.key)
            swept.append(folder)
    return swept
