"""What an operator asks of the monitor: registrations and directives."""

from google.protobuf.message import DecodeError

from forkcast_monitor.directives import Waiting, check, deliverable
from forkcast_monitor.registration import Registration, RunFolders
from forkcast_wire import forkcast_pb2 as pb

from .harness import fuzz


def test_any_registration_is_taken_or_refused(tmp_path):
    folders = RunFolders(tmp_path)

    def read(data):
        asked = pb.RegisterRunRequest.FromString(data)
        registration = Registration(
            run_uid=asked.run_uid,
            name=asked.name,
            namespace=asked.namespace,
            uncertainty=asked.uncertainty_json,
            mode=asked.mode,
            total_steps=asked.total_steps,
        )
        registration.check()
        folders.save(registration)

    fuzz("register_run", read, (DecodeError, ValueError))
    assert RunFolders(tmp_path).all()


def test_any_rules_are_taken_or_refused():
    def read(data):
        text = data.decode(errors="replace")
        Registration(
            run_uid="a", name="a", namespace="a", uncertainty=text, mode="Enforce", total_steps=1
        ).check()

    fuzz("uncertainty_json", read, ValueError)


def test_any_directive_waits_or_is_refused():
    waiting = Waiting(clock=lambda: 0.0)

    def read(data):
        directive = pb.PostDirectiveRequest.FromString(data).directive
        check(directive)
        if deliverable(directive, "Enforce"):
            waiting.leave(directive)
            waiting.overtaken(5)
            pb.Ack(directives=waiting.pending()).SerializeToString()

    fuzz("post_directive", read, (DecodeError, ValueError))
