"""I6, pinned implies present: a saver that prunes and a branch that pins, interleaved access by
access, both killed and started again at any of them.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.branch_rules import BranchRules
from forkcast.commands import PinBases
from forkcast.records import StateKind, StateRef
from forkcast_operator.local import LocalWorld
from forkcast_wire import catalogue, keys
from forkcast_wire.branches import Bases, BranchRecord
from forkcast_wire.documents import read_manifest
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import read_document

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
from memory_store import Interleaving, MemoryStore, at_once

from tests import make
from tests.make import saved_state, state_ref

SPEC = TrainingRunSpec.model_validate(
    {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 1000}}
)
TRIGGERS = [make.trigger(step=step, onset_step=step) for step in (40, 70)]


def save(store: MemoryStore, attempt: int, step: int) -> None:
    saved_state(store, state_ref(step, attempt=attempt))


class Saver:
    """Saves and prunes to its last step; a restarted one goes on with another attempt's folder."""

    def __init__(self, attempt: int, steps: range) -> None:
        self.attempt, self.left = attempt, list(steps)

    def __call__(self, store: MemoryStore) -> None:
        self.attempt += 2
        while self.left:
            save(store, self.attempt, self.left[0])
            self.left.pop(0)
            catalogue.prune(store, StateKind.RING, keep_last=2, pinned_steps=())


class Brancher:
    """Opens a branch for each trigger in turn: pins, records the bases, uses them, unpins."""

    def __init__(self) -> None:
        self.uses: tuple[StateRef, ...] = ()
        self.bases: list[int] = []

    def __call__(self, store: MemoryStore) -> None:
        self.uses = ()
        for trigger in TRIGGERS:
            record = BranchRecord(
                name=f"r-{trigger.id}", trigger=trigger, rules=BranchRules(), opened_at=0.0
            )
            world = LocalWorld(SPEC, store, record, None, None, Path())
            key = keys.branch_file(trigger.id, "bases")
            ending = keys.branch_file(trigger.id, "phase")
            if store.head(ending) is not None:  # died while it ended: nothing is used any more
                catalogue.unpin(store, trigger.id)
                continue
            while (known := read_document(store, Bases, key)) is None:
                world.do(PinBases(branch="b", before_step=trigger.onset_step, depths=(0, 20)))
            self.uses = known.bases
            for _ in range(4):  # rollouts that restore them
                store.head("somewhere")
            self.bases.append(len(known.bases))
            self.uses = ()
            store.put(ending, b"{}")
            catalogue.unpin(store, trigger.id)


@settings(max_examples=500)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.02]), st.booleans())
def test_what_a_branch_uses_is_never_deleted(seed, death_rate, two_savers) -> None:
    game = Interleaving(random.Random(seed), death_rate)
    brancher = Brancher()
    game.actor("saver", Saver(0, range(0, 100, 10)))
    if two_savers:  # one that is leaving, while its successor saves already
        game.actor("leaving", Saver(1, range(60, 80, 10)))
    game.actor("operator", brancher)

    def check() -> None:
        for ref in brancher.uses:
            assert read_manifest(game.store, ref.key) is not None, ref.key
            assert keys.ptz(ref.key, ref.step) in game.store.objects, ref.key

    game.run(check)
    assert catalogue.read(game.store).pins == {}
    for _ in range(2):  # the first may still find something to delete
        catalogue.prune(game.store, StateKind.RING, keep_last=2, pinned_steps=())
    assert catalogue.read(game.store).tombstones == ()


class Slow(Exception):
    """The actor is stopped here for long."""


def test_a_tombstone_stands_until_its_state_is_gone() -> None:
    """One saver is stopped between its tombstone and its deletion, and another one, which would
    keep that state, prunes meanwhile: nobody may pin what the first one deletes when it wakes.
    """
    store = MemoryStore()
    for step in (0, 10, 20, 30):
        save(store, 1, step)

    def stop(access: str, _key: str) -> None:
        if access == "delete":
            raise Slow

    store.before = stop
    with pytest.raises(Slow):
        catalogue.prune(store, StateKind.RING, keep_last=1, pinned_steps=())
    store.before = at_once
    doomed = catalogue.read(store).tombstones
    assert doomed
    catalogue.prune(store, StateKind.RING, keep_last=10, pinned_steps=())
    assert catalogue.pin(store, "branch", doomed) == () or all(
        read_manifest(store, key) is None for key in doomed
    )
    catalogue.prune(store, StateKind.RING, keep_last=10, pinned_steps=())
    assert catalogue.read(store).tombstones == ()


def test_the_random_cases_find_bases() -> None:
    found = 0
    for seed in range(20):
        game = Interleaving(random.Random(seed), 0.02)
        brancher = Brancher()
        game.actor("saver", Saver(0, range(0, 100, 10)))
        game.actor("operator", brancher)
        game.run(lambda: None)
        found += sum(brancher.bases)
    assert found > 20
