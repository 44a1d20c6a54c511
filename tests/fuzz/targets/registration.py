"""A registration, as an operator sends it."""

from google.protobuf.message import DecodeError

from forkcast_monitor.registration import Registration
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.documents import dump, load

REFUSALS = (DecodeError, ValueError)
_RULES = '{"window": 32, "warmupSteps": 40, "cooldownSteps": 30, "trigger": {"z": "2.5"}}'


def seeds():
    """With the shipped rules, and with a run's own."""
    for rules in ("", _RULES):
        yield pb.RegisterRunRequest(
            run_uid="a",
            name="run",
            namespace="team",
            uncertainty_json=rules,
            mode="Enforce",
            total_steps=1000,
        ).SerializeToString()


def feed(data):
    """What is taken is found again after a restart, with the same rules."""
    asked = pb.RegisterRunRequest.FromString(data)
    given = Registration(
        run_uid=asked.run_uid,
        name=asked.name,
        namespace=asked.namespace,
        uncertainty=asked.uncertainty_json,
        mode=asked.mode,
        total_steps=asked.total_steps,
    )
    given.check()
    found = load(Registration, dump(given))
    assert found == given
    assert found.config() == given.config()
