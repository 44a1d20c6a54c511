"""Keys that want a look."""

from __future__ import annotations

import asyncio

from forkcast_operator.kubernetes.queue import WorkQueue
from tests.waiting import HANG_SECONDS


def drive(look, *keys, until):
    async def main():
        queue = WorkQueue()
        for key in keys:
            queue.add(key)
        workers = [asyncio.create_task(queue.work(lambda k: look(queue, k))) for _ in range(3)]
        async with asyncio.timeout(HANG_SECONDS):
            await until.wait()
        for worker in workers:
            worker.cancel()

    asyncio.run(main())


def test_a_key_is_looked_at_once_at_a_time_and_once_more_where_it_was_added_meanwhile() -> None:
    done, running, seen = asyncio.Event(), set(), []

    async def look(queue, key):
        assert key not in running
        running.add(key)
        seen.append(key)
        if len(seen) == 1:
            queue.add(key)
            queue.add(key)
        await asyncio.sleep(0)
        running.discard(key)
        if len(seen) == 2:
            done.set()

    drive(look, "a", "a", until=done)
    assert seen == ["a", "a"]


def test_a_look_that_fails_comes_again_and_so_does_one_that_asks_for_it() -> None:
    done, seen = asyncio.Event(), []

    async def look(queue, key):
        seen.append(key)
        if len(seen) == 1:
            raise RuntimeError("the API server is away")
        if len(seen) == 2:
            return 0.01
        done.set()
        return None

    drive(look, "a", until=done)
    assert len(seen) == 3
