"""`python -m forkcast_trainer.rollout_job`: one rollout, in a process (a pod) of its own."""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    # Before the imports below, which take seconds. It stays: nothing of a rollout is worth saving,
    # what it has measured is in the store.
    termination.end_at_once()
# isort: split

import argparse
import sys
import threading
from pathlib import Path

import structlog
import torch

from forkcast_trainer.errors import TrainerError
from forkcast_trainer.rollout import Rollout
from forkcast_wire import keys
from forkcast_wire.documents import RolloutJob
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.newer import read_resolved
from forkcast_wire.process import configure_logging
from forkcast_wire.store import (
    StoreError,
    StoreMisconfigured,
    open_store,
    read_document,
    wait_for,
)

_POLL_SECONDS = 1.0
_log = structlog.get_logger()


def main() -> int:
    """0: it is no longer wanted, or has waited long enough; 1: try again; 2: the manifest cannot
    be carried out.
    """
    parser = argparse.ArgumentParser(prog="rollout_job", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="resolved manifest, JSON")
    parser.add_argument("--workdir", type=Path, default=Path(), help="a folder of its own")
    parser.add_argument("--trigger", required=True, help="the trigger's id, e.g. e0-t288")
    parser.add_argument("--candidate", required=True, help="e.g. c007, or control")
    parser.add_argument(
        "--park-seconds", type=float, default=300.0, help="wait so long at a rung for the next"
    )
    given = parser.parse_args()
    configure_logging("rollout")
    try:
        spec = read_resolved(given.manifest.read_text()).spec
        torch.set_num_threads(spec.training.threads)
        away = threading.Event()  # never set: SIGTERM ends the process
        store = wait_for(lambda: open_store(spec.storage, given.workdir), away)
        key = keys.rollout_job(given.trigger, given.candidate)
        job = wait_for(lambda: read_document(store, RolloutJob, key), away)
        if job is None:
            _log.warning("rollout.no_job", trigger=given.trigger, candidate=given.candidate)
            return 0
        Rollout(
            job,
            spec,
            store,
            given.workdir,
            poll_seconds=_POLL_SECONDS,
            park_seconds=given.park_seconds,
        ).run()
    except (TrainerError, ManifestError, StoreMisconfigured) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  the pod's last words
        return 2
    except (StoreError, ValueError) as error:
        _log.error("rollout.died", error=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    termination.leave(main())
