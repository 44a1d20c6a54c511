"""Events, as any monitor may tell them to a watched training."""

from google.protobuf.message import DecodeError

from forkcast.records import Event, Tier
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.codec import event_from_wire, event_to_wire

REFUSALS = (DecodeError, ValueError)


def seeds():
    """Two events of one attempt."""
    events = [
        Event(
            run_uid="a",
            epoch=0,
            step=step,
            onset_step=step - 2,
            tier=tier,
            component="volatility",
            cause="volatility 3.5: loss +0.3 nats over 3 rows",
        )
        for step, tier in ((7, Tier.EVENT), (9, Tier.BRANCH))
    ]
    told = [event_to_wire(one, 1) for one in events]
    yield pb.ListEventsResponse(events=told, triggers=1).SerializeToString()


def feed(data):
    """What is taken is a whole event, and the same when it is told again."""
    for message in pb.ListEventsResponse.FromString(data).events:
        event, attempt = event_from_wire(message)
        assert event.onset_step <= event.step
        assert event.cause
        assert event_from_wire(event_to_wire(event, attempt)) == (event, attempt)
