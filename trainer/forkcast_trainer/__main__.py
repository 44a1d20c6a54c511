"""`python -m forkcast_trainer`: one attempt of a run; under torchrun, one rank of it."""

from __future__ import annotations

from forkcast_wire import termination

if __name__ == "__main__":
    termination.end_at_once()  # before the imports below, which take a while
# isort: split

import argparse
import os
import sys
import threading
from pathlib import Path

import structlog
from pydantic import ValidationError

from forkcast_trainer import ranks
from forkcast_trainer.errors import NoUsableStateError, TrainerError
from forkcast_trainer.starts import adopt_identity, attempt_of_all
from forkcast_trainer.train import TrainingRun
from forkcast_wire import beats, hang, last_words
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.newer import read_resolved
from forkcast_wire.process import (
    configure_logging,
    die_with_parent,
    stop_when_orphaned,
)
from forkcast_wire.store import StoreError, StoreMisconfigured, StoreUnavailable

#: A rank whose torchrun has died saves and leaves in so much time, or is ended.
_LEAVE_SECONDS = 30.0
#: Exit codes, beside last_words.NOT_RECORDED. Only the last of these is final: the process must not
#: be started again.
DONE, AGAIN, UNUSABLE = 0, 1, 2
_log = structlog.get_logger()


def main() -> int:
    """0: complete, or stopped with everything saved; 1: another start may succeed (the store did
    not take the last state, or something failed); 2: the manifest cannot be carried out; 4: trained
    and saved to the end, which the store does not take down now: another start has only that to do.
    """
    parser = argparse.ArgumentParser(prog="forkcast_trainer", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="resolved manifest, JSON")
    parser.add_argument("--workdir", type=Path, default=Path(), help="the run's folder")
    parser.add_argument("--monitor", default="", help="gRPC target of the monitor; '' for none")
    parser.add_argument("--attempt", type=int, default=0, help="starts of this run before this one")
    parser.add_argument("--run", type=Path, help="run.json, where it is not in the work directory")
    parser.add_argument(
        "--claim-attempt", action="store_true", help="count starts in the store, not by --attempt"
    )
    given = parser.parse_args()
    configure_logging("trainer")
    stop = termination.stop_event_on_sigterm()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        stop_when_orphaned(stop, _LEAVE_SECONDS)
        ranks.join()
    else:
        die_with_parent()
    code, in_order = _train(given, stop, world)
    if world > 1:
        if not in_order:
            ranks.abandon(code)
        ranks.leave()
    return code


def _beat(spec: TrainingRunSpec, place: tuple[int, int, int]) -> None:
    """Beat from here on, for the process that watches this one. A lone process that has none, as in
    a pod, watches itself. What cannot beat trains on, unwatched.
    """
    rank, world, _ = place
    try:
        hang.dump_when_asked()
        pulse = beats.start(rank, spec.training.hang_seconds)
    except OSError as error:
        _log.warning("trainer.not_watched", error=str(error))
        return
    if world == 1 and beats.FOLDER_VARIABLE not in os.environ:
        hang.watch_myself(pulse)


def _train(given: argparse.Namespace, stop: threading.Event, world: int) -> tuple[int, bool]:
    """The exit code, and whether this rank has come to the run's end together with the others."""
    place = (int(os.environ.get("RANK", "0")), world, int(os.environ.get("LOCAL_RANK", "0")))
    if given.run is not None:
        adopt_identity(given.run, given.workdir)
    try:
        manifest = read_resolved(given.manifest.read_text())
        _beat(manifest.spec, place)
        if given.claim_attempt:
            given.attempt = attempt_of_all(manifest.spec.storage, given.workdir, place, stop)
        run = TrainingRun(
            manifest.spec,
            given.workdir,
            monitor=given.monitor,
            attempt=given.attempt,
            stop=stop,
            ranks=place,
        )
        run.run()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        print(f"error: {field}: {first['msg']}; correct it", file=sys.stderr)
        return UNUSABLE, False
    except (TrainerError, ManifestError, StoreMisconfigured) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE, False
    except StoreUnavailable as error:
        _log.warning("train.left_while_store_away", error=str(error))
        return (DONE if stop.is_set() else AGAIN), False
    except NoUsableStateError as error:
        last_words.say(last_words.Ended.NO_USABLE_STATE, str(error))
        return AGAIN, False
    except (StoreError, ValueError) as error:
        _log.error("train.died", error=f"{type(error).__name__}: {error}")
        return AGAIN, False
    if run.end.unrecorded is not None:
        if run.leads:
            last_words.say(last_words.Ended.END_NOT_RECORDED, run.end.unrecorded)
        return last_words.NOT_RECORDED, True
    return (AGAIN if run.end.unsaved else DONE), True


if __name__ == "__main__":
    termination.leave(main())
