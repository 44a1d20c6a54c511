"""decision.json of a branch."""

import json
from pathlib import Path

from forkcast.decision import Decision
from forkcast_wire.documents import DocumentError, dump, load

REFUSALS = (DocumentError,)
_RECORDED = Path(__file__).parents[2] / "wire" / "schema_1"


def seeds():
    """Recorded decisions of both schemas, and one that holds nothing."""
    for path in sorted(_RECORDED.glob("*.json")):
        yield path.read_bytes()
        yield dump(load(Decision, path.read_bytes()))
    yield json.dumps({"schema_version": 1}).encode()


def feed(data):
    """What is read can be written and is read again as the same."""
    decision = load(Decision, data)
    assert load(Decision, dump(decision)) == decision
    assert decision.digest
