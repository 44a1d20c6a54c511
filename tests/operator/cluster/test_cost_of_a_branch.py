"""What branches of one departure may cost, on a real API server: in objects, events and words."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from forkcast.admission import Refusal
from forkcast.records import StateKind
from forkcast_cli.cluster_view import BranchObject, RunObject, run_lines, sentences
from forkcast_operator.kubernetes.cluster import BRANCH, EVENT

pytestmark = pytest.mark.slow
CAUSE = "volatility 4.0 since step 98: the loss is 0.8 above its level"


async def fire(stage, trigger) -> None:
    stage.link.hear(trigger)
    await stage.look()


async def to_the_end(stage, trigger):
    """Of a branch whose candidates all fail: nothing is adopted, and the departure lasts."""
    losers = {f"c{n:03d}" for n in range(16)}
    for _ in range(40):
        await stage.roll_out(fail=losers, branch=f"gpt-{trigger.id}")
        await stage.look()
        body = await stage.cluster.get(BRANCH, stage.namespace, f"gpt-{trigger.id}")
        branch = BranchObject.of(body)
        if branch.status.completion_time is not None:
            return branch
    raise AssertionError("the branch has not ended")


def test_a_departure_that_asks_again_gets_smaller_branches_and_then_none(stage) -> None:
    async def notes(reason):
        found = await stage.cluster.list(EVENT, stage.namespace, "")
        return [one["message"] for one in found if one["reason"] == reason]

    async def scene():
        stage.start_operator()
        await stage.create()  # topK: 2
        await stage.look()
        for step in (25, 50, 75, 98, 100):
            stage.save_state(StateKind.RING, step)
        first = replace(stage.trigger(), cause=CAUSE)
        fired = [replace(first, step=step) for step in (100, 300, 700)]
        branches = []
        for trigger in fired[:2]:
            await fire(stage, trigger)
            stage.start_operator()  # another process: nothing is remembered
            branches.append(await to_the_end(stage, trigger))
        assert [one.spec.top_k for one in branches] == [2, 1]
        assert [len(one.status.rollouts) for one in branches] == [3, 2]  # with the control
        assert sentences(branches[1])[:2] == [
            f"At step 300: {CAUSE}.",
            "It may try 1 of 2 candidates: this departure has had a branch already.",
        ]
        assert any("all 2 candidates" in note for note in await notes("BranchTriggered"))

        await fire(stage, fired[2])
        assert await notes("TriggerSuppressed") == [
            f"triggers open no branch: {Refusal.TRIED.words}"
        ]
        run = RunObject.of(await stage.run())
        assert (run.status.branches.total, run.status.branches.suppressed) == (2, 1)
        said = "\n".join(line.plain for line in run_lines(run))
        assert "the last: Single at step 700 opened no branch: its departure has had" in said

        severe = replace(first, step=900, severe=True)
        await fire(stage, severe)  # it has become severe: it is looked at anew
        body = await stage.cluster.get(BRANCH, stage.namespace, f"gpt-{severe.id}")
        assert (body["spec"]["topK"], body["spec"]["allowance"]["grounds"]) == (2, "Severe")

    async def main():
        await stage.connect()
        try:
            await scene()
        finally:
            await stage.cluster.close()

    asyncio.run(main())
