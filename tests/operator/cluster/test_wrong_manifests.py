"""Wrong manifests, applied while an operator looks on: the API server refuses each by name, or the
operator answers with a condition and an event. It lives on, without a traceback.
"""

from __future__ import annotations

import json
import subprocess

import pytest
from pydantic import ValidationError

from forkcast_wire.manifest import TrainingRun
from tests.versitygw import Versitygw
from tests.waiting import HANG_OPTION, until
from tests.wrong_runs import ANSWERED, GOOD, REFUSED, changed

from .processes import Operators, Server, get

pytestmark = pytest.mark.slow


def wrong(name):
    path, value, *_ = REFUSED.get(name) or ANSWERED[name]
    manifest = changed(path, value)
    if manifest["metadata"] == GOOD["metadata"]:
        manifest["metadata"] = {"name": name.replace("_", "-")}
    return manifest


class Watched:
    """A namespace that an operator looks after."""

    def __init__(self, server, process, health) -> None:
        self.server, self.process, self.health = server, process, health

    def apply(self, manifest):
        command = ["kubectl", "apply", "-n", self.server.namespace, "-f", "-"]
        return subprocess.run(
            command,
            env=self.server.environment,
            input=json.dumps(manifest),
            capture_output=True,
            text=True,
            check=False,
        )

    def get(self, *what):
        said = self.server.kubectl("get", *what, "-n", self.server.namespace, "-o", "json")
        return json.loads(said)


@pytest.fixture(scope="module")
def watched(api_server, tmp_path_factory):
    """An operator at work; what it has to answer is there already, for some of it takes a while."""
    server, gateway = Server(api_server), Versitygw(tmp_path_factory.mktemp("s3"))
    gateway.start()
    gateway.make_bucket("runs")
    store = {
        "endpoint": gateway.endpoint,
        "bucket": "runs",
        "credentialsDir": str(gateway.credentials),
    }
    operators = Operators(server, tmp_path_factory.mktemp("operator"))
    made = Watched(server, *operators("a", config={"trainer": {"image": "t:1"}, "stores": [store]}))
    done = made.apply({"apiVersion": "v1", "kind": "List", "items": [wrong(n) for n in ANSWERED]})
    assert done.returncode == 0, done.stderr
    yield made
    operators.close()  # no traceback
    gateway.kill()


def test_there_are_forty_and_more() -> None:
    assert len({json.dumps(wrong(n)["spec"], sort_keys=True) for n in [*REFUSED, *ANSWERED]}) >= 40


@pytest.mark.parametrize("name", [*REFUSED, *ANSWERED])
def test_a_wrong_manifest_is_refused_or_answered(watched, name) -> None:
    manifest = wrong(name)
    if name in REFUSED:
        with pytest.raises(ValidationError):  # one format, two readers
            TrainingRun.model_validate(manifest)
        done = watched.apply(manifest)
        assert done.returncode != 0, done.stdout
        for word in REFUSED[name][2]:
            assert word in done.stderr, done.stderr
    else:
        answered(watched, manifest["metadata"]["name"], *ANSWERED[name][2:])
    assert watched.process.poll() is None
    assert get(watched.health, "/healthz")[0] == 200


def answered(watched, name, reason, words) -> None:
    """Ready is False, and its message and an event say why."""

    def failure():
        return watched.get("trun", name).get("status", {}).get("lastFailure", {})

    until(lambda: failure().get("reason") == reason, every=0.1)
    conditions = watched.get("trun", name)["status"]["conditions"]
    (ready,) = [one for one in conditions if one["type"] == "Ready"]
    assert ready["status"] == "False"
    for word in words:
        assert word in ready["message"], ready["message"]
    chosen = f"--field-selector=involvedObject.name={name},reason={reason}"
    (event,) = watched.get("events", chosen)["items"]
    assert event["type"] == "Warning"
    assert event["message"] == ready["message"]


def test_a_good_one_is_carried_out_after_all_of_them(watched) -> None:
    assert watched.apply(GOOD).returncode == 0
    namespace = watched.server.namespace
    command = ("wait", "job/one-trainer-0", "-n", namespace, "--for=create", HANG_OPTION)
    watched.server.kubectl(*command)
