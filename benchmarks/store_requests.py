"""What a run asks of its bucket while nothing happens, and for a save: counted at a gateway before
a real S3 server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from figures import Row

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.s3_gateway import Gateway, gateway_to
from tests.versitygw import Versitygw

SECTION = "store"
#: Counted over so many seconds; no save, no trigger and no branch falls into them.
_SECONDS, _READY_SECONDS = 30.0, 120.0


def measure(scale: float) -> list[Row]:
    """Requests a second of an idle run in mode Enforce, all its processes together."""
    if shutil.which("versitygw") is None and not _packed():
        raise RuntimeError("versitygw is neither on PATH nor beside the checkout")
    seconds = max(5.0, _SECONDS * scale)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "s3").mkdir()
        server = Versitygw(folder / "s3")
        server.start()
        try:
            server.make_bucket("runs")
            with gateway_to(server.endpoint) as gateway:
                return _rows(folder, gateway, server.credentials, seconds)
        finally:
            server.kill()


def _packed() -> bool:
    from tests import versitygw

    return versitygw._PACKED.exists()


def _rows(folder: Path, gateway: Gateway, credentials: Path, seconds: float) -> list[Row]:
    (folder / "m.json").write_text(json.dumps(_manifest(gateway, credentials)))
    command = [sys.executable, "-m", "forkcast_cli", "run", "m.json", "--workdir", "w", "--quiet"]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not any("/good?" in path for _, path in list(gateway.requests)):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("the run did not save its first state")
            time.sleep(0.2)
        started = len(gateway.requests)
        gateway.requests.clear()
        time.sleep(seconds)
        asked = list(gateway.requests)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    kinds = Counter("LIST" if "list-type" in path else method for method, path in asked)
    note = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [
        _row("requests while idle", len(asked) / seconds, "/s", note),
        _row("requests of a start and its first save", started, "", ""),
    ]


def _row(name: str, value: float, unit: str, note: str) -> Row:
    return Row(section=SECTION, name=name, value=value, unit=unit, note=note)


def _manifest(gateway: Gateway, credentials: Path) -> dict[str, object]:
    return {
        "apiVersion": "forkcast.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "idle"},
        "spec": {
            "model": {
                "architecture": "gpt2-tiny",
                "size": {"layers": 1, "heads": 2, "width": 16},
                "dtype": "Float32",
                "device": "Cpu",
            },
            "data": {"train": {"uri": "python-stdlib:", "maxBytes": 100000}, "sequenceLength": 32},
            "optimizer": {"learningRate": "1e-4"},
            "training": {"totalSteps": 10**6, "microBatchSize": 4, "seed": 1},
            "checkpoint": {"everySteps": 10**6, "ringEverySteps": 10**6},
            "uncertainty": {"warmupSteps": 10**6},
            "storage": {
                "endpoint": gateway.endpoint,
                "bucket": "runs",
                "prefix": "idle/",
                "credentialsDir": str(credentials),
            },
            "branching": {"mode": "Enforce"},
        },
    }
