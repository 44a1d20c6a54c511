"""The definitions in the cluster are newer than the operator, on a real API server."""

from __future__ import annotations

import copy
import json
import subprocess

import pytest
import yaml

from forkcast_operator.kubernetes.cluster import CONFIG_MAP, EVENT, JOB, RUN, ClusterError
from forkcast_wire.crd import training_run
from tests.conftest import define
from tests.waiting import until
from tests.wrong_runs import GOOD

from .test_on_an_api_server import play

pytestmark = pytest.mark.slow
NOISE = {"type": "string", "maxLength": 8, "description": "New.", "default": "1"}
FLAVOUR = {"type": "string", "maxLength": 8, "description": "New.", "default": "Plain"}
MIRROR = {
    "type": "object",
    "description": "New.",
    "default": {},
    "properties": {"copies": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 9,
                              "description": "New.", "default": 2}},
}  # fmt: skip


@pytest.fixture
def newer(api_server, tmp_path):
    """The definition has fields that the operator does not know; afterwards it is ours again."""
    made = copy.deepcopy(training_run())
    root = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    spec, status = root["spec"]["properties"], root["status"]["properties"]
    spec["training"]["properties"]["noise"] = NOISE
    spec["stressors"]["items"]["properties"]["flavour"] = FLAVOUR
    spec["mirror"] = MIRROR
    status["mirrors"] = {**MIRROR["properties"]["copies"]}
    path = tmp_path / "newer.yaml"
    path.write_text(yaml.safe_dump(made))

    def tried(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", *arguments]
        return subprocess.run(command, env=api_server, capture_output=True, text=True, check=False)

    def kubectl(*arguments: str) -> str:
        done = tried(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    given = tmp_path / "given.yaml"
    given.write_text(json.dumps({**GOOD, "metadata": {"name": "probe"}}))
    published = f"/openapi/v3/apis/{RUN[0]}"

    def fills_in() -> bool | None:
        """Whether the server fills the new fields in; None while it changes over."""
        made = tried("create", "--dry-run=server", "-o", "json", "-f", str(given))
        listed = tried("get", "trun")
        return '"mirror"' in made.stdout if made.returncode + listed.returncode == 0 else None

    def served() -> bool:
        return fills_in() is True and '"mirror"' in tried("get", "--raw", published).stdout

    kubectl("apply", "-f", str(path))
    until(served)
    yield kubectl
    define(api_server)
    until(lambda: fills_in() is False)


STRESSORS = [{"type": "LongSequence"}]


def test_new_fields_at_their_defaults_hold_no_run(newer, stage) -> None:
    async def scene():
        await stage.create(stressors=STRESSORS)
        await stage.look()
        assert await stage.names(JOB) == ["gpt-trainer-0"]
        assert await stage.condition("Stalled") is None
        events = await stage.cluster.list(EVENT, stage.namespace, "")
        (told,) = [one for one in events if one["reason"] == "NewerDefinition"]
        for field in ("spec.training.noise", "spec.stressors.0.flavour", "spec.mirror"):
            assert field in told["message"]
        settings = await stage.cluster.get(CONFIG_MAP, stage.namespace, "gpt-run")
        assert "mirror" not in json.loads(settings["data"]["manifest.json"])["spec"]

    play(stage, scene)


def test_a_new_field_that_says_something_holds_the_run_and_its_trainer_is_left_alone(
    newer, stage
) -> None:
    async def scene():
        await stage.create(training={"totalSteps": 1000, "noise": "2"}, suspend=True)
        await stage.look()
        assert await stage.names(JOB) == []
        assert await stage.condition("Stalled") == ("True", "NewerManifest")
        await stage.set(training={"noise": "1"}, suspend=False)
        await stage.until(lambda: stage.names(JOB))
        assert await stage.condition("Stalled") is None
        await stage.set(mirror={"copies": 5})
        await stage.look()
        body = await stage.run()
        (ready,) = [c for c in body["status"]["conditions"] if c["type"] == "Ready"]
        assert (ready["status"], ready["reason"]) == ("False", "NewerManifest")
        assert "spec.mirror: this version does not know the field" in ready["message"]
        assert "written for a newer Forkcast" in ready["message"]
        assert "NewerManifest" in await stage.events()
        assert await stage.names(JOB) == ["gpt-trainer-0"]  # it trains on
        assert (
            "deletionTimestamp"
            not in (await stage.cluster.get(JOB, stage.namespace, "gpt-trainer-0"))["metadata"]
        )
        await stage.cluster.delete(RUN, stage.namespace, "gpt")
        await stage.until_gone()

    play(stage, scene)


def test_a_failed_run_whose_status_has_new_fields_stays_failed(newer, stage) -> None:
    async def scene():
        await stage.create(lifecycle={"maxRestarts": 0})
        await stage.look()
        await stage.finish_job("gpt-trainer-0", "Failed", "BackoffLimitExceeded")
        await stage.look()
        assert (await stage.condition("Failed"))[0] == "True"
        assert (await stage.run())["status"]["mirrors"] == 2
        for _ in range(2):
            stage.start_operator()
            await stage.look()
        assert (await stage.condition("Failed"))[0] == "True"
        assert await stage.names(JOB) == ["gpt-trainer-0"]

    play(stage, scene)


def test_every_account_may_read_the_published_schema(newer, stage) -> None:
    async def scene():
        schema = await stage.cluster.schema(RUN)
        assert schema["properties"]["spec"]["properties"]["mirror"]["default"] == {}
        with pytest.raises(ClusterError, match="publishes no schema"):
            await stage.cluster.schema((RUN[0], "Nothing"))

    play(stage, scene)
    path = f"/openapi/v3/apis/{RUN[0]}"
    groups = [f"--as-group=system:{one}" for one in ("authenticated", "serviceaccounts")]
    account = f"--as=system:serviceaccount:{stage.namespace}:default"
    assert newer("auth", "can-i", "get", path, account, *groups).strip() == "yes"
