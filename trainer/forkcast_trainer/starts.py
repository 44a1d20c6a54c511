"""How a start of the trainer gets its number where no supervisor counts: from the store."""

from __future__ import annotations

import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from forkcast.ports import Store
from forkcast_wire import beats, keys
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import Storage
from forkcast_wire.store import AlreadyExists, open_store, put_document, wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """attempts/<n>.json: who took the number. claim: drawn for it, so that no two are alike."""

    attempt: int
    host: str
    claim: str


def claim_attempt(store: Store) -> int:
    """Claims the next attempt number; concurrent starters get different ones.

    Raises StoreUnavailable.
    """
    taken = [info.key for info in store.list(keys.ATTEMPTS_PREFIX)]
    attempt = max((keys.attempt_of(key) for key in taken), default=-1) + 1
    while True:
        start = Start(attempt=attempt, host=socket.gethostname(), claim=secrets.token_hex(8))
        try:
            put_document(store, keys.attempt(attempt), start)
        except AlreadyExists:
            attempt += 1
        else:
            return attempt


def attempt_of_all(
    storage: Storage, workdir: Path, ranks: tuple[int, int, int], stop: threading.Event
) -> int:
    """The number of this start, the same on all ranks: rank 0 takes it, and waits for the store if
    it is away. ranks: (rank, world, local).

    Raises StoreMisconfigured; StoreUnavailable once ``stop`` is set.
    """
    rank, world, _ = ranks
    claimed = 0
    if rank == 0:
        claimed = wait_for(lambda: claim_attempt(open_store(storage, workdir)), stop)
    attempt = torch.tensor(claimed)
    if world > 1:
        with beats.during(beats.Phase.MEET):
            dist.broadcast(attempt, src=0)
    return int(attempt.item())


def adopt_identity(run_file: Path, workdir: Path) -> None:
    """Put run.json into the work directory, where everything looks for it."""
    workdir.mkdir(parents=True, exist_ok=True)
    replace_bytes(workdir / keys.RUN, run_file.read_bytes())
