"""The real intake of triggers over a store in memory, with the operator killed at any access."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast.decision import Outcome, Reason
from forkcast.phases import Finished
from forkcast.records import Trigger
from forkcast_operator.intake import Intake, Received
from forkcast_wire import keys
from forkcast_wire.documents import dump
from forkcast_wire.manifest import TrainingRunSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))
from memory_store import Died, MemoryStore, at_once

from tests.make import trigger

SPEC = TrainingRunSpec.model_validate(
    {
        "data": {"train": {"uri": "python-stdlib:"}},
        "training": {"totalSteps": 1000},
        "branching": {"budget": {"maxBranches": 3}},
    }
)
TRIGGER = trigger()


def opened(store: MemoryStore) -> set[str]:
    return {key.split("/")[1] for key in store.objects if key.endswith("/branch.json")}


def ended(store: MemoryStore) -> set[str]:
    return {key.split("/")[1] for key in store.objects if key.endswith("/phase.json")}


def suppressed(store: MemoryStore) -> dict[str, str]:
    found = {k: v for k, v in store.objects.items() if k.startswith(keys.SUPPRESSED_PREFIX)}
    return {json.loads(v)["trigger"]["step"]: json.loads(v)["reason"] for v in found.values()}


def end(store: MemoryStore, trigger_id: str) -> None:
    """What a branch leaves that found no action."""
    done = Finished(
        branch="b", trigger=TRIGGER, outcome=Outcome.NO_ACTION, reason=Reason.RUN_FINISHED
    )
    record = {"kind": "Finished", "phase": done}
    store.objects[keys.branch_file(trigger_id, "phase")] = dump(record)


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.2]))
def test_a_killed_operator_doubles_and_loses_no_trigger(seed, death_rate) -> None:
    chaos, store = random.Random(seed), MemoryStore()
    intake = Intake("r", store, hold_main=True)
    fired: list[Trigger] = []
    pending: list[Trigger] = []

    def access(_access: str, _key: str) -> None:
        if chaos.random() < death_rate:
            raise Died

    for _ in range(12):
        if chaos.random() < 0.6:
            step = 1000 - len(fired) if len(fired) > 5 else 100 * (1 + len(fired))
            fired.append(replace(TRIGGER, step=step))
            pending.append(fired[-1])
        store.before = access
        try:
            intake.receive(SPEC, pending)
            pending = []
        except Died:  # and started again: it knows nothing, and the stream begins anew
            intake, pending = Intake("r", store, hold_main=True), list(fired)
        store.before = at_once
        assert len(opened(store) - ended(store)) <= 1  # I5
        active = sorted(opened(store) - ended(store))
        if active and chaos.random() < 0.4:
            end(store, active[0])
    intake.receive(SPEC, fired)
    steps = {one.step for one in fired}
    assert {int(name.rpartition("t")[2]) for name in opened(store)} | suppressed(
        store
    ).keys() == steps
    assert len(opened(store)) + len(suppressed(store)) == len(steps)  # I4: one verdict each


def test_the_reason_is_recorded_and_told() -> None:
    store = MemoryStore()
    intake = Intake("r", store, hold_main=True)

    def receive(*steps: int) -> list[tuple[Received, str]]:
        return intake.receive(SPEC, [replace(TRIGGER, step=step) for step in steps])

    assert receive(100, 200) == [
        (Received.OPENED, "r-e0-t100"),
        (Received.SUPPRESSED, "BranchActive"),
    ]
    end(store, "e0-t100")
    assert [received for received, _ in receive(300, 995)] == [Received.OPENED, Received.SUPPRESSED]
    end(store, "e0-t300")
    assert receive(995, 996) == [(Received.KNOWN, ""), (Received.SUPPRESSED, "EndOfRun")]
    assert opened(store) == {"e0-t100", "e0-t300"}
    assert suppressed(store) == {200: "BranchActive", 995: "BranchActive", 996: "EndOfRun"}
