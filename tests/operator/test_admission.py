"""The real operator's admission over a store in memory, with the operator killed at any access."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.branch import Finished
from forkcast.decision import Outcome
from forkcast.records import Trigger, TriggerRule
from forkcast_operator.__main__ import LocalOperator
from forkcast_wire import keys
from forkcast_wire.documents import RunInfo, dump
from forkcast_wire.manifest import TrainingRunSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
from memory_store import Died, MemoryStore, at_once

SPEC = TrainingRunSpec.model_validate(
    {
        "data": {"train": {"uri": "python-stdlib:"}},
        "training": {"totalSteps": 1000},
        "branching": {"budget": {"maxBranches": 3}},
    }
)
TRIGGER = Trigger(
    run_uid="u",
    epoch=0,
    step=100,
    onset_step=98,
    rule=TriggerRule.SINGLE,
    z=4.0,
    index=1.0,
    components={},
    thresholds={},
)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    info = RunInfo(uid="u", name="r", manifest_digest="")
    folder = tmp_path_factory.mktemp("w")
    return LocalOperator(SPEC, info, MemoryStore(), folder, "unix:nobody.sock", "")


def opened(store: MemoryStore) -> set[str]:
    return {key.split("/")[1] for key in store.objects if key.endswith("/branch.json")}


def ended(store: MemoryStore) -> set[str]:
    return {key.split("/")[1] for key in store.objects if key.endswith("/phase.json")}


def suppressed(store: MemoryStore) -> dict[str, str]:
    found = {k: v for k, v in store.objects.items() if k.startswith(keys.SUPPRESSED_PREFIX)}
    return {json.loads(v)["trigger"]["step"]: json.loads(v)["reason"] for v in found.values()}


def end(store: MemoryStore, trigger_id: str) -> None:
    """What a branch leaves that found no action."""
    done = Finished(branch="b", trigger=TRIGGER, outcome=Outcome.NO_ACTION, reason="x")
    record = {"kind": "Finished", "phase": done}
    store.objects[keys.branch_file(trigger_id, "phase")] = dump(record)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.2]))
def test_a_killed_operator_doubles_and_loses_no_trigger(operator, seed, death_rate) -> None:
    chaos, store = random.Random(seed), MemoryStore()
    operator.store, operator._finished, operator._pending = store, set(), []
    fired: list[Trigger] = []

    def access(_access: str, _key: str) -> None:
        if chaos.random() < death_rate:
            raise Died

    for _ in range(12):
        if chaos.random() < 0.6:
            step = 1000 - len(fired) if len(fired) > 5 else 100 * (1 + len(fired))
            fired.append(replace(TRIGGER, step=step))
            operator._pending.append(fired[-1])
        store.before = access
        try:
            if operator._pending:
                operator._admit()
        except Died:  # and started again: it knows nothing, and the stream begins anew
            operator._finished, operator._pending = set(), list(fired)
        store.before = at_once
        assert len(opened(store) - ended(store)) <= 1  # I5
        active = sorted(opened(store) - ended(store))
        if active and chaos.random() < 0.4:
            end(store, active[0])
    operator._pending = list(fired)
    if fired:
        operator._admit()
    steps = {one.step for one in fired}
    assert {int(name.rpartition("t")[2]) for name in opened(store)} | suppressed(
        store
    ).keys() == steps
    assert len(opened(store)) + len(suppressed(store)) == len(steps)  # I4: one verdict each


def test_the_reason_is_recorded(operator) -> None:
    store = operator.store = MemoryStore()
    operator._finished = set()
    operator._pending = [replace(TRIGGER, step=step) for step in (100, 200)]
    operator._admit()
    end(store, "e0-t100")
    operator._pending = [replace(TRIGGER, step=step) for step in (300, 995)]
    operator._admit()
    end(store, "e0-t300")
    operator._pending = [replace(TRIGGER, step=995), replace(TRIGGER, step=996)]
    operator._admit()
    assert opened(store) == {"e0-t100", "e0-t300"}
    assert suppressed(store) == {200: "BranchActive", 995: "BranchActive", 996: "EndOfRun"}
