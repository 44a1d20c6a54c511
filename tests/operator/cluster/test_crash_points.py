"""The operator dies before and after every write to API server and store of a whole run, one after
another; a new one takes over, and the end is always the same.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import secrets

import pytest

from forkcast.records import StateKind
from forkcast_operator.kubernetes.cluster import BRANCH, CONFIG_MAP, JOB, RUN
from forkcast_wire import catalogue, crash, keys
from forkcast_wire.documents import lineage_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
#: By default every fifth point is tried: odd, so that points before and after a write take turns.
#: `make faults` tries every one.
STRIDE = int(os.environ.get("FORKCAST_CRASH_STRIDE", "5"))


class Killed(BaseException):
    """SIGKILL, as far as one process can play it."""


class Reaper:
    """Counts the points, and kills at one of them, once."""

    def __init__(self, at: int | None) -> None:
        self.at, self.points, self.armed = at, [], False

    def reach(self, point: str) -> None:
        if not self.armed:  # a hand's write, not the operator's
            return
        self.points.append(point)
        if len(self.points) == self.at:
            raise Killed(point)


def conditions(body):
    found = body.get("status", {}).get("conditions", [])
    return {c["type"]: (c["status"], c["reason"]) for c in found}


def _any_candidate(names):
    """The draft is seeded by the run's uid: which candidate won differs from run to run."""
    return sorted(re.sub(r"c\d{3}", "cNNN", name) for name in names)


async def play(stage, reaper) -> dict:
    """A whole run; what is left at its end."""
    stage.start_operator()
    fired = []

    async def look():
        reaper.armed = True
        try:
            await stage.look()
        except Killed:
            stage.start_operator()
            for one in fired:  # the monitor tells every trigger again
                stage.link.hear(one)
        finally:
            reaper.armed = False

    await stage.create(
        branching={
            "candidates": 4,
            "topK": 1,
            "rungs": [10],
            "confirm": {"steps": 0},
            "maxConcurrentRollouts": 2,
        }
    )
    for _ in range(3):
        await look()
    for step in (50, 75, 98, 100):
        stage.save_state(StateKind.RING, step)
    fired.append(stage.trigger())
    stage.link.hear(fired[0])
    for _ in range(30):
        await look()
        await stage.roll_out()
        stage.adopt()
        branches = await stage.cluster.list(BRANCH, stage.namespace, "")
        if branches and conditions(branches[0]).get("Finished", ("",))[0] == "True":
            break
    stage.complete()
    await stage.finish_job("gpt-trainer-0", "Complete")
    for _ in range(3):
        await look()
    run = await stage.run()
    (branch,) = await stage.cluster.list(BRANCH, stage.namespace, "")
    head = lineage_head(stage.store)
    return {
        "run": conditions(run),
        "counts": run["status"]["branches"],
        "branch": conditions(branch),
        "decision": branch["status"]["decision"]["outcome"],
        "jobs": _any_candidate(await stage.names(JOB)),
        "settings": await stage.names(CONFIG_MAP),
        "epoch": head.epoch,
        "adopted": _any_candidate([head.state.key]),
        "pins": catalogue.read(stage.store).pins,
        "records": _any_candidate(
            info.key
            for info in stage.store.list("")
            if not info.key.startswith(("ring/", keys.ATTEMPTS_PREFIX))
        ),
        "events": sorted(set(await stage.events())),
    }


def test_the_end_is_the_same_wherever_it_died(stages, monkeypatch) -> None:
    async def scene(at):
        reaper = Reaper(at)
        stage = stages(secrets.token_hex(3))
        await stage.connect()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(crash, "reach", reaper.reach)
                end = await play(stage, reaper)
            await stage.cluster.delete(RUN, stage.namespace, "gpt")
        finally:
            await stage.cluster.close()
        return end, reaper.points

    expected, points = asyncio.run(scene(None))
    assert len(points) > 60
    assert expected["counts"]["accepted"] == 1
    assert expected["branch"]["Collapsed"] == ("True", "Adopted")
    for at in itertools.islice(range(1, len(points) + 1), 0, None, STRIDE):
        end, _ = asyncio.run(scene(at))
        assert end == expected, f"died at {at}: {points[at - 1]}"
