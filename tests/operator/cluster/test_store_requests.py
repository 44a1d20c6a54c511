"""What a pass costs at a real S3 server, counted at the HTTP client."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3

from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import BRANCH
from forkcast_operator.kubernetes.config import OperatorConfig
from forkcast_operator.kubernetes.run import Run, store_place
from forkcast_wire.store import open_store

from .test_on_an_api_server import BRANCH_NAME, conditions, play

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(monkeypatch):
    """Requests by kind: LIST, GET, HEAD, PUT, DELETE."""
    counts = Counter()
    urlopen = urllib3.PoolManager.urlopen

    def counted(self, method, url, *arguments, **more):
        lists = method == "GET" and "list-type" in parse_qs(urlsplit(url).query)
        counts["LIST" if lists else method] += 1
        return urlopen(self, method, url, *arguments, **more)

    monkeypatch.setattr(urllib3.PoolManager, "urlopen", counted)
    return counts


def test_a_pass_of_a_branching_run_lists_once_and_reads_only_what_is_new(
    stage, gateway, asked
) -> None:
    gateway.make_bucket("runs")
    store = {
        "endpoint": gateway.endpoint,
        "bucket": "runs",
        "credentialsDir": str(gateway.credentials),
    }
    config = OperatorConfig.model_validate(
        {
            "monitor": {"target": "monitor.system.svc:50051", "insecureDev": True},
            "trainer": {"image": "forkcast/trainer:1"},
            "stores": [store],
        }
    )

    def opened(storage):
        return open_store(storage, Path("/nowhere"))

    passes = []

    async def look():
        asked.clear()
        await stage.look()
        passes.append(Counter(asked))

    async def scene():
        stage.start_operator(config=config, open_store=opened)
        await stage.create()
        await stage.look()
        run = Run.of(await stage.run())
        stage.store = opened(store_place(run, run.parsed(), config).operator)
        for step in (25, 50, 75, 98, 100):
            stage.save_state(StateKind.RING, step)
        stage.link.hear(stage.trigger())
        await stage.look()
        for _ in range(60):
            await look()  # with two rollouts' measurements, or an adoption, that are new
            await look()  # nothing is new
            await stage.roll_out()
            stage.adopt()
            branch = await stage.cluster.get(BRANCH, stage.namespace, BRANCH_NAME)
            if conditions(branch).get("Finished") == "True":
                break
        assert conditions(branch)["Collapsed"] == "True"
        assert len(passes) > 10
        assert max(one["LIST"] for one in passes) == 1
        assert max(one["GET"] for one in passes) <= 3
        assert [one for one in passes[1::2] if one != {"LIST": 1}] == []
        assert max(one["HEAD"] for one in passes) == 0

    play(stage, scene)
