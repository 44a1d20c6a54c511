"""Token reviews in a queue that strangers cannot fill for others.

A review costs a round trip to the API server, and anybody who can reach the port can ask for one with an
invented token. So few run at once, each peer has few waiting, peers take turns, whose token was good
before goes first, and a review that nobody waits for any longer is not made.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from forkcast_wire.token_review import Reviewed, Reviewer


class CrowdedError(RuntimeError):
    """Too many reviews wait already; another try may find room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewLimits:
    """at_once: reviews in flight, of which ``kept`` are for tokens that were good before. waiting,
    per_peer: reviews of other tokens that may wait, in all and of one peer.
    """

    at_once: int = 8
    kept: int = 2
    waiting: int = 64
    per_peer: int = 8


@dataclass(eq=False)
class _Ask:
    key: bytes
    token: str
    peer: str
    answer: asyncio.Future[Reviewed] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    callers: int = 0
    started: bool = False


class Reviews:
    """Asks a reviewer, in threads; the same token once at a time. answered: is told every answer."""

    def __init__(
        self,
        reviewer: Reviewer,
        answered: Callable[[bytes, Reviewed], None],
        limits: ReviewLimits | None = None,
    ) -> None:
        self._reviewer, self._answered = reviewer, answered
        self.limits = limits or ReviewLimits()
        self._pool = ThreadPoolExecutor(self.limits.at_once, thread_name_prefix="token-review")
        self._asked: dict[bytes, _Ask] = {}
        self._known: deque[_Ask] = deque()
        self._strangers: OrderedDict[str, deque[_Ask]] = OrderedDict()  # by peer, in turn
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Reviews of strangers' tokens that have not begun."""
        return sum(map(len, self._strangers.values()))

    async def ask(self, key: bytes, token: str, peer: str, *, known: bool) -> Reviewed:
        """key: the token's digest. known: it was good before. Raises CrowdedError,
        ReviewUnavailableError.
        """
        asked = self._asked.get(key)
        if asked is None:
            asked = self._queue(_Ask(key, token, peer), known=known)
            self._start()
        asked.callers += 1
        try:
            return await asyncio.shield(asked.answer)
        finally:
            asked.callers -= 1
            if not asked.callers and not asked.started:
                self._drop(asked)

    def _queue(self, asked: _Ask, *, known: bool) -> _Ask:
        if known:  # at most as many as the cache holds
            self._known.append(asked)
        else:
            mine = self._strangers.get(asked.peer, ())
            if len(mine) >= self.limits.per_peer:
                raise CrowdedError
            if self.waiting >= self.limits.waiting:
                longest = max(self._strangers.values(), key=len)
                if len(longest) <= len(mine) + 1:
                    raise CrowdedError
                last = longest[-1]  # the peer with the most waiting makes room
                self._drop(last)
                last.answer.set_exception(CrowdedError())
                last.answer.exception()  # its callers may be gone
            self._strangers.setdefault(asked.peer, deque()).append(asked)
        self._asked[asked.key] = asked
        return asked

    def _drop(self, asked: _Ask) -> None:
        self._asked.pop(asked.key, None)
        if asked in self._known:
            self._known.remove(asked)
            return
        mine = self._strangers.get(asked.peer)
        if mine is not None and asked in mine:
            mine.remove(asked)
            if not mine:
                del self._strangers[asked.peer]

    def _start(self) -> None:
        while (asked := self._next()) is not None:
            asked.started = True
            task = asyncio.create_task(self._run(asked))
            self._running.add(task)

    def _next(self) -> _Ask | None:
        free = self.limits.at_once - len(self._running)
        if free > 0 and self._known:
            return self._known.popleft()
        if free > self.limits.kept and self._strangers:
            peer, mine = self._strangers.popitem(last=False)
            asked = mine.popleft()
            if mine:
                self._strangers[peer] = mine  # behind all others
            return asked
        return None

    async def _run(self, asked: _Ask) -> None:
        loop = asyncio.get_running_loop()
        try:
            reviewed = await loop.run_in_executor(self._pool, self._reviewer, asked.token)
        except Exception as error:  # noqa: BLE001  the callers get it
            asked.answer.set_exception(error)
            asked.answer.exception()  # all of them may be gone
        else:
            self._answered(asked.key, reviewed)
            asked.answer.set_result(reviewed)
        finally:
            self._asked.pop(asked.key, None)
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self._start()
