"""Tokenising in several processes: the ids of every batch, in the order of the text."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from queue import SimpleQueue
from typing import IO, Final, cast

import structlog

from forkcast_trainer.data.batch import Batch, encode, pack, read_frame, write_frame
from forkcast_trainer.data.text import Piece
from forkcast_trainer.data.tokenizer import Tokenizer
from forkcast_wire.cores import usable_cores

_log = structlog.get_logger()
_BATCH_CHARACTERS: Final = 1 << 18
#: Batches before the first worker is started.
_ALONE: Final = 4
_MOST_WORKERS: Final = 16
_AHEAD: Final = 2


def default_workers() -> int:
    """As many as there are cores, at most 16."""
    return min(usable_cores(), _MOST_WORKERS)


def batches(pieces: Iterable[Piece]) -> Iterator[Batch]:
    """Pieces in batches of some hundred thousand characters."""
    batch, held, goes_on = Batch([], [], []), 0, False
    for text, ends in pieces:
        batch.texts.append(text)
        batch.goes_on.append(goes_on)
        batch.ends.append(ends)
        goes_on, held = not ends, held + len(text)
        if held >= _BATCH_CHARACTERS or len(batch.texts) >= _BATCH_CHARACTERS >> 4:
            yield batch
            batch, held = Batch([], [], []), 0
    if batch.texts:
        yield batch


def encoded(
    found: Iterable[Batch], tokenizer: Tokenizer, workers: int
) -> Generator[tuple[Batch, bytes]]:
    """Each batch with its ids, in the order of the batches whatever the number of workers; at most a few
    are held at a time. workers: processes; with 1, and for a little text, this process alone.
    """
    found = iter(found)
    alone = _ALONE if workers > 1 and tokenizer.described is not None else sys.maxsize
    for batch in _first(found, alone):
        yield batch, encode(batch, tokenizer.encode, tokenizer.end_of_text, tokenizer.dtype)
    if alone == sys.maxsize:
        return
    with ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        waiting: deque[tuple[Batch, Future[bytes]]] = deque()
        for batch in found:
            if pool is None:
                encoders = stack.enter_context(closing(_Workers(tokenizer, workers)))
                pool = ThreadPoolExecutor(workers)
                stack.callback(pool.shutdown, cancel_futures=True)
            waiting.append((batch, pool.submit(encoders.encode, batch)))
            if len(waiting) > _AHEAD * workers:
                first, ids = waiting.popleft()
                yield first, ids.result()
        while waiting:
            first, ids = waiting.popleft()
            yield first, ids.result()


def _first(found: Iterator[Batch], most: int) -> Iterator[Batch]:
    for number, batch in enumerate(found, start=1):
        yield batch
        if number >= most:
            return


class _Workers:
    """Processes of `encode_worker`. What a worker does not do, because it dies, is done here."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self._tokenizer = tokenizer
        self._free: SimpleQueue[_Worker | None] = SimpleQueue()
        self._all = [_Worker(tokenizer) for _ in range(count)]
        self._own = threading.Lock()
        for worker in self._all:
            self._free.put(worker)

    def encode(self, batch: Batch) -> bytes:
        """The ids of a batch."""
        worker = self._free.get()
        try:
            if worker is not None:
                return worker.encode(batch)
        except (OSError, EOFError):
            _log.warning("data.worker_died", code=worker.ended() if worker else None)
            worker = None
        finally:
            self._free.put(worker)
        with self._own:
            own = self._tokenizer
            return encode(batch, own.encode, own.end_of_text, own.dtype)

    def close(self) -> None:
        """End them all."""
        for worker in self._all:
            worker.ended()


class _Worker:
    def __init__(self, tokenizer: Tokenizer) -> None:
        command = [sys.executable, "-m", "forkcast_trainer.data.encode_worker"]
        self._process = subprocess.Popen(  # noqa: S603  our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        facts = (tokenizer.described or "", str(tokenizer.end_of_text), tokenizer.dtype)
        with suppress(OSError):  # it is dead; the first batch tells
            write_frame(self._stdin, [fact.encode() for fact in facts])

    @property
    def _stdin(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdin)

    @property
    def _stdout(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdout)

    def encode(self, batch: Batch) -> bytes:
        """Raises OSError or EOFError if the process has died."""
        write_frame(self._stdin, pack(batch))
        (ids,) = read_frame(self._stdout)
        return ids

    def ended(self) -> int:
        """Its exit status, when it has ended."""
        self._process.terminate()
        code = self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with suppress(OSError):  # what was not yet written is flushed
                pipe.close()
        return code
