"""Ends of runs of several processes, one after another: every rank has to leave with exit code 0.

``python tests/trainer/ends.py --device cuda --ends 50`` on a machine with two GPUs; without
arguments on the CPU. A run ends complete, by SIGTERM, or complete after a collapse. Prints one line
for each end; exit code 1 if a rank left otherwise than it should.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from forkcast.actions import Action
from forkcast.lineage import LineageEntry
from forkcast.lineage import key as lineage_key
from forkcast.records import StateKind
from forkcast_wire.documents import RunInfo, dump, saved_states
from forkcast_wire.manifest import TrainingRun
from forkcast_wire.store import FolderStore, put_document
from tests.make import little_text, tiny_run
from tests.ports import free_port

WAYS = ("complete", "sigterm", "collapse")
_STEPS, _BASE = 12, 4


def _manifest(device: str, ranks: int, steps: int) -> TrainingRun:
    document = tiny_run(
        "ends",
        data=little_text(16, maxBatches=1),
        optimizer={"learningRate": "1e-3"},
        training={"totalSteps": steps, "microBatchSize": 2},
        parallelism={"processesPerNode": ranks},
        checkpoint={"everySteps": 10**6, "ringEverySteps": _BASE},
    )
    document["spec"]["model"]["device"] = {"cpu": "Cpu", "cuda": "Cuda"}[device]
    return TrainingRun.model_validate(document)


def _ranks(folder: Path, ranks: int, more: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """The trainer's ranks, each our own child: a launcher hides their exit codes."""
    port = str(free_port())
    started = []
    for rank in range(ranks):
        environment = {
            **{name: value for name, value in os.environ.items() if name != "FORKCAST_PARENT"},
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            **more,
        }
        command = [sys.executable, "-m", "forkcast_trainer", "--manifest", "manifest.json"]
        with (folder / f"rank{rank}.log").open("wb") as log:
            started.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=log))
    return started


def _progress(folder: Path) -> dict[str, object]:
    path = folder / "progress.json"
    found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _order_collapse(folder: Path, former: Path) -> None:
    """An epoch that begins at a state of a former run, in the lineage: the run finds it at its end."""
    store = FolderStore(folder)
    (base,) = [
        ref for ref in saved_states(FolderStore(former), StateKind.RING) if ref.step == _BASE
    ]
    winner = replace(base, key="rollouts/b/c0/end", kind=StateKind.ROLLOUT)
    shutil.copytree(former / base.key, folder / winner.key)
    entry = LineageEntry(
        epoch=1,
        run_uid="u",
        branch="b",
        decision_digest="d",
        action=Action(),
        state=winner,
        base_step=_BASE,
        trigger_step=_BASE,
    )
    put_document(store, lineage_key(1), entry)


def end(way: str, folder: Path, *, former: Path | None, device: str, ranks: int) -> list[int]:
    """One run to its end; the ranks' exit codes. former: a complete run, for its tokens and states.

    Raises RuntimeError if the run did not end as the way says.
    """
    folder.mkdir()
    manifest = _manifest(device, ranks, 10**8 if way == "sigterm" else _STEPS)
    (folder / "manifest.json").write_text(json.dumps(manifest.document()))
    (folder / "run.json").write_bytes(dump(RunInfo(uid="u", name="ends", manifest_digest="")))
    if former is not None:
        shutil.copytree(former / "tokens", folder / "tokens")
        if way == "collapse":
            _order_collapse(folder, former)
            # what is in the lineage at the start is resumed from: it has to come later
            (folder / "lineage").rename(folder / "later")
    waits = {"FORKCAST_WAIT": f"trainer/step/5:{folder}/lineage/1.json"}
    processes = _ranks(folder, ranks, waits if way == "collapse" else {})
    if way != "complete":
        while not _progress(folder).get("step"):
            if any(process.poll() for process in processes):
                break
            if way == "collapse" and (folder / "later").exists():
                (folder / "later").rename(folder / "lineage")
            time.sleep(0.02)
    if way == "sigterm":
        for process in processes:
            process.send_signal(signal.SIGTERM)
    codes = [process.wait() for process in processes]
    word = "stopped" if way == "sigterm" else "finished"
    seen = _progress(folder)
    if seen.get("state") != word or seen["epoch"] != (way == "collapse"):
        logs = "".join((folder / f"rank{rank}.log").read_text()[-2000:] for rank in range(ranks))
        raise RuntimeError(f"{way}: {seen}, exit codes {codes}\n{logs}")
    return codes


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--ends", type=int, default=50, help="in all")
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        former = None
        for number in range(given.ends):
            way = WAYS[number % len(WAYS)]
            folder = Path(scratch) / str(number)
            codes = end(way, folder, former=former, device=given.device, ranks=given.ranks)
            former = former or folder
            bad += any(codes)
            print(f"{number + 1:3} {way:9} exit codes {codes}", flush=True)  # noqa: T201
    print(f"{given.ends - bad} of {given.ends} ends with exit code 0 on every rank")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
