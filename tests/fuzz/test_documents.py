"""The documents of a run's store: decision, lineage, state manifest."""

from forkcast.decision import Decision
from forkcast.lineage import LineageEntry, head, in_force, limits
from forkcast_wire.documents import DocumentError, StateManifest, dump, load

from .harness import fuzz


def test_any_decision_is_read_or_refused_by_name():
    def read(data):
        decision = load(Decision, data)
        assert load(Decision, dump(decision)) == decision

    fuzz("decision", read, DocumentError)


def test_any_lineage_is_read_or_refused_by_name():
    found = []

    def read(data):
        entry = load(LineageEntry, data)
        found.append(entry)
        entries = found[-5:]
        limits(entries, entry.epoch)
        head(entries)
        in_force(entries, entry.epoch)

    fuzz("lineage", read, (DocumentError, ValueError))


def test_any_state_manifest_is_read_or_refused_by_name():
    fuzz("state_manifest", lambda data: load(StateManifest, data), DocumentError)
