"""The only interfaces between the loop and the world. Everything behind them can be replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from forkcast.actions import Action, Lattice
from forkcast.commands import Command
from forkcast.departures import Said
from forkcast.level import Level
from forkcast.phases import Phase
from forkcast.records import StepStats, Window
from forkcast.seen import Seen


class World(Protocol):
    """Where branches live: a cluster, one machine, or the simulator."""

    def observe(self, phase: Phase) -> Seen:
        """What the world shows of this branch now."""

    def do(self, command: Command) -> None:
        """Carry out one command. Idempotent: "already there" is success."""

    def save(self, phase: Phase) -> None:
        """Make the phase durable."""


class Signal(Said, Protocol):
    """One source of uncertainty. A signal sees one record at a time, and where the loss stands.

    weight: its share of the index beside the other signals' shares, >= 0, unless a manifest gives
        weights; a signal of weight 0 is neither computed nor recorded.
    rule: what its triggers are recorded as; None: Single or Consecutive, by what u exceeded. A signal with
        a rule of its own speaks of a state that a base may have had already.
    patient: whether what it sees may heal by itself, so that a branch waits for that.
    severe, healed: of the last row: whether it asks for a branch at once; whether what departed is back.
    """

    @property
    def weight(self) -> float:
        """Its share of the index."""

    def update(self, stats: StepStats, level: Level) -> float | None:
        """U of this row, in [0, 8]: 0 for nothing unusual; 3.2 for what about one healthy row in
        100,000 reaches, or what no healthy run did. None if it has nothing to say. level: as of
        this row, folded already.
        """

    def cause(self) -> str:
        """What the last row showed, in a few words: statistic, size, layer; data or state."""

    def splice(self) -> None:
        """What comes next does not follow what came: a gap, or a collapse."""

    def state(self) -> Mapping[str, object]:
        """All that a restart needs, as JSON-ready plain values; restoring it is bit-equal."""

    def restore(self, state: Mapping[str, object]) -> None:
        """Become what `state` was taken from."""


class Search(Protocol):
    """Draws candidate actions from a lattice."""

    def propose(
        self,
        window: Window,
        lattice: Lattice,
        history: Sequence[tuple[Action, float]],
        rng: np.random.Generator,
        count: int,
    ) -> list[Action]:
        """min(count, lattice.size()) distinct actions of the lattice, never the identity.

        history: verified actions of this run's earlier branches with their improvement over the
        control, nats/token. The same rng state gives the same list.
        """


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object: its key, size in bytes and entity tag (opaque, changes with the bytes).
    modified: when it was written, Unix seconds by the store's clock; None: not known.
    """

    key: str
    size: int
    etag: str
    modified: float | None = None


class Store(Protocol):
    """Named bytes with create-only and compare-and-swap writes. Keys are relative, '/'-separated.

    Errors (forkcast_wire.store): KeyMissing, AlreadyExists, Conflict, StoreUnavailable, BadKey.
    """

    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing."""

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write and return the etag. ``create``: raises AlreadyExists where the key exists.
        ``match``: raises Conflict unless the present etag is this one.
        """

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """Upload a file; as `put`."""

    def get_file(self, key: str, path: Path) -> None:
        """Download to ``path`` (replaced atomically). Raises KeyMissing."""

    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None if it does not exist."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""

    def delete(self, key: str) -> None:
        """Delete; a missing key is success."""
