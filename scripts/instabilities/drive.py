"""Workers on each GPU that take units off a plan, and their driver."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

import torch

from instabilities.model import SIZES
from instabilities.play import Clock, play
from instabilities.training import Run, Text
from instabilities.units import Unit


def work(options: argparse.Namespace) -> None:
    """Take units off the plan until time or the plan is over: first the slot's own, then in order."""
    units = [
        Unit(**{**u, "faults": tuple(u["faults"])}) for u in json.loads(options.plan.read_text())
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    vocabulary = max(SIZES[unit.size].vocabulary for unit in units)
    text, end = Text(options.data, device, vocabulary), options.end
    compiled = device == "cuda" and not options.eager
    order = [*units[options.slot : options.slot + 1], *units]
    for unit in order:
        if time.time() > end:
            return
        try:
            os.close(os.open(options.work / f"{unit.name}.claim", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        for tried in (compiled, False) if compiled else (False,):
            clock, run = Clock(end), None
            try:
                run = Run(unit, text, device, tried)
                play(unit, run, options.work, clock)
                break
            except Exception:  # noqa: BLE001 - one unit's failure must not end the others
                print(f"FAILED {unit.name} compiled={tried}\n{traceback.format_exc()}", flush=True)
                del run
                if device == "cuda":
                    torch.cuda.empty_cache()
        took = time.time() - clock.begun
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        print(
            f"slot {options.slot} {unit.name}: {clock.steps} steps in {took:.0f} s, "
            f"{clock.steps / took:.1f} steps/s, peak {peak:.1f} GiB",
            flush=True,
        )


def drive(options: argparse.Namespace) -> None:
    """Start the workers; every 15 seconds bring what they wrote into OUT/<plan>.zip. Exit 1 if a
    unit failed without torch.compile as well.
    """
    end = time.time() + options.seconds
    folder = Path(options.scratch) / f"{options.plan.stem}-{os.getpid()}"
    folder.mkdir(parents=True)
    gpus = max(1, torch.cuda.device_count())
    base = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": f"{options.scratch}/inductor",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
    }
    mine = range(gpus) if options.gpu is None else [options.gpu]
    workers = []
    for place in range(options.processes):
        for gpu in mine:
            command = [
                sys.executable,
                "-m",
                "instabilities",
                "work",
                "--plan",
                str(options.plan.resolve()),
                "--data",
                str(options.data.resolve()),
                "--slot",
                str(place * gpus + gpu),
                "--end",
                str(end),
                "--work",
                str(folder),
                *(["--eager"] if options.eager else []),
            ]
            output = (folder / f"slot{place * gpus + gpu}.log").open("w")
            workers.append(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parents[1],
                    env={**base, "CUDA_VISIBLE_DEVICES": str(gpu)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    options.out.mkdir(parents=True, exist_ok=True)
    bundled = time.time()
    while any(worker.poll() is None for worker in workers) and time.time() < end + 20:
        time.sleep(1)
        if time.time() > bundled + 15:
            _bundle(folder, options.out / f"{options.plan.stem}.zip")
            bundled = time.time()
    for worker in workers:
        worker.kill()
        worker.wait()
    _bundle(folder, options.out / f"{options.plan.stem}.zip")
    told = [line for log in sorted(folder.glob("*.log")) for line in log.read_text().splitlines()]
    for line in told:
        if "slot" in line or "FAILED" in line or "Error" in line:
            print(line[:300])
    print(f"{len(list(folder.glob('*.json')))} records of {options.plan.stem}", flush=True)
    if any(line.startswith("FAILED") and line.endswith("compiled=False") for line in told):
        sys.exit(1)


def _bundle(folder: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".npz", ".json", ".log") and ".part" not in path.name:
                archive.write(path, path.name)
    part.replace(target)
    if target.stat().st_size > 15 * 2**20:
        print(f"{target}: larger than 15 MiB", flush=True)
