"""manifest.json of a saved state, as it is found in a store."""

from forkcast.records import StateKind, StateRef
from forkcast_wire import keys
from forkcast_wire.documents import StateManifest, dump, read_manifest, survey
from tests.fuzz.one_object import OneObject

REFUSALS = ()
_KEY = keys.state(StateKind.RING, 1, 2, 30)


def seeds():
    """A real one."""
    ref = StateRef(
        key=_KEY,
        kind=StateKind.RING,
        epoch=1,
        attempt=2,
        step=30,
        digest="0" * 64,
        size_bytes=1234,
    )
    yield dump(
        StateManifest(
            format_version=1,
            run_uid="u",
            state=ref,
            lossless=True,
            loss=2.5,
            versions={"torch": "2.13.0"},
        )
    )


def feed(data):
    """A manifest is valid, and then it is its folder's; or it does not exist."""
    store = OneObject(keys.state_manifest(_KEY), data)
    found = read_manifest(store, _KEY)
    states, damaged = survey(store, StateKind.RING)
    assert len(states) + len(damaged) == 1
    if found is not None:
        ref = found.state
        assert (ref.key, ref.kind, ref.epoch, ref.attempt, ref.step) == (
            _KEY,
            StateKind.RING,
            1,
            2,
            30,
        )
