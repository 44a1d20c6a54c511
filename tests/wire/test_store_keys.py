"""Every key that is built is known as a record, so that deleting a run with its records leaves none."""

from __future__ import annotations

import inspect

import pytest

from forkcast.records import StateKind
from forkcast_wire import keys
from tests.make import trigger

TRIGGER = trigger(epoch=1, step=120, onset_step=118, index=1.0)
GIVEN = {
    "epoch": [1],
    "attempt": [3],
    "number": [3],
    "first": [0, 1024],
    "last": [2047],
    "step": [120],
    "rung": [10, 200],
    "trigger": [TRIGGER],
    "trigger_id": [TRIGGER.id],
    "candidate": ["control", "c007"],
    "name": ["branch", "phase", "bases", "draft", "decision", "outcome"],
    "text": ["0123456789abcdef" * 2],
    "kind": [StateKind.CHECKPOINT, StateKind.RING],
    "folder": [
        keys.state(StateKind.RING, 1, 2, 3),
        keys.state(StateKind.CHECKPOINT, 0, 0, 3),
        keys.rollout_state(TRIGGER.id, "c001", 10),
    ],
}
#: They give a folder or a beginning, or read a key.
NOT_KEYS = {
    "attempt_of",
    "branch_of",
    "suppressed_at",
    "rollout_of",
    "rollouts",
    "history_of",
    "is_first",
    "state_of",
    "is_record",
    "state_prefix",
    "state",
    "branch",
    "rollout",
    "rollout_state",
}


def _built():
    for name, build in inspect.getmembers(keys, inspect.isfunction):
        if name in NOT_KEYS or build.__module__ != keys.__name__:
            continue
        calls: list[dict[str, object]] = [{}]
        for parameter in inspect.signature(build).parameters:
            calls = [{**call, parameter: value} for call in calls for value in GIVEN[parameter]]
        for call in calls:
            yield build(**call)
    for name, value in vars(keys).items():
        if name.isupper() and isinstance(value, str) and not name.startswith("_"):
            yield value if not value.endswith("/") else None


@pytest.mark.parametrize("key", sorted(filter(None, _built())))
def test_a_key_that_is_built_is_a_record(key) -> None:
    assert keys.is_record(key)


@pytest.mark.parametrize(
    "key",
    [
        "notes.txt",
        "ml/gpt-1/run.json",
        "branches/e0-t1-abcdef01/run.json/x",
        "branches/e0-t1/photo.png",
        "checkpoints/e0/a0/000000000005/weights.bin",
        "runs.json",
        "x/run.json",
    ],
)
def test_any_other_key_is_none(key) -> None:
    assert not keys.is_record(key)


def test_a_key_of_a_branch_is_read_back_and_no_other_is() -> None:
    for name in GIVEN["name"]:
        assert keys.branch_of(keys.branch_file(TRIGGER.id, name)) == (TRIGGER.id, name)
    place = (TRIGGER.id, "c007")
    assert keys.rollout_of(keys.rollout_job(*place)) == (*place, "job")
    assert keys.rollout_of(keys.rollout_until(*place)) == (*place, "until")
    assert keys.rollout_of(keys.rollout_trial(*place, 25)) == (*place, "trial-000025")
    for key in ("branches/x", "branches/x/a.txt", "branches/x/y/a.json", "rollouts/x/c/end-1/good"):
        assert keys.branch_of(key) is None
        assert keys.rollout_of(key) is None
