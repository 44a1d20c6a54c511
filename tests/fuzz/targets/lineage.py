"""A record of the lineage log."""

from forkcast.actions import Action
from forkcast.lineage import LineageEntry, head, in_force, limits
from forkcast.records import StateKind, StateRef
from forkcast_wire.documents import DocumentError, dump, load

REFUSALS = (DocumentError,)


def entry(epoch):
    """The record of an epoch."""
    state = StateRef(
        key="rollouts/b/c0/end-000010",
        kind=StateKind.ROLLOUT,
        epoch=epoch - 1,
        attempt=0,
        step=130,
        digest="0" * 64,
        size_bytes=1,
    )
    return LineageEntry(
        epoch=epoch,
        run_uid="u",
        branch="b",
        decision_digest="d",
        action=Action(learning_rate_scale=0.5),
        state=state,
        base_step=100,
        trigger_step=120,
    )


def seeds():
    """A real one."""
    yield dump(entry(1))


def feed(data):
    """What is read can be asked about, in a log with another; a gap is said as a ValueError."""
    entries = [entry(1), load(LineageEntry, data)]
    for ask in (head, lambda log: in_force(log, 2), lambda log: limits(log, 2)):
        try:
            ask(entries)
        except ValueError:
            continue
