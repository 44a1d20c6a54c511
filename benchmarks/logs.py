"""`forkcast detect` on long logs: rows a second and peak memory by format.

    python benchmarks/logs.py [--megabytes 100] [--only megatron,olmo] [--json FILE]

Each log is written to a temporary folder and read by a process of its own; peak memory is what the kernel
says of it (ru_maxrss), beside that of a log of a few rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from forkcast_wire import tfrecords

_MEGABYTE = 1 << 20
_FEW_ROWS = 30


def _loss(n: int, noise: random.Random) -> float:
    return 3.0 + 2.0 / (1.0 + n / 1000) + noise.gauss(0, 0.02)


def nanogpt(n: int, loss: float) -> bytes:
    """The n-th entry."""
    return f"iter {n}: loss {loss:.4f}, time 135.20ms, mfu 38.51%\n".encode()


def llmc_log(n: int, loss: float) -> bytes:
    """The n-th entry."""
    return f"s:{n} trl:{loss:.4f} lr:0.000600 norm:0.90\n".encode()


def json_lines(n: int, loss: float) -> bytes:
    """The n-th entry."""
    row = {"step": n, "loss": loss, "grad_norm": 0.9, "lr": 6e-4, "tokens": n << 19}
    return json.dumps(row).encode() + b"\n"


def csv_table(n: int, loss: float) -> bytes:
    """The n-th entry."""
    header = b"step,loss,grad_norm,lr\n" if n == 0 else b""
    return header + f"{n},{loss:.6f},0.9,0.0006\n".encode()


def trainer_output(n: int, loss: float) -> bytes:
    """The n-th entry."""
    row = {"loss": round(loss, 4), "grad_norm": 0.9, "learning_rate": 6e-4, "epoch": n / 1e6}
    return f"  1%|          | {n}/10000000 [00:01<02:45]\r{row}\n".encode()


def trainer_state(n: int, loss: float) -> bytes:
    """The n-th entry."""
    row = {"epoch": n / 1e6, "grad_norm": 0.9, "learning_rate": 6e-4, "loss": loss, "step": n}
    return (b'{"log_history": [' if n == 0 else b",") + json.dumps(row, indent=2).encode()


def megatron(n: int, loss: float) -> bytes:
    """The n-th entry."""
    return (
        f" [2026-01-02 03:04:05] iteration {n:8d}/ 9000000 | consumed samples: {n:12d} | elapsed time per"
        f" iteration (ms): 512.4 | learning rate: 6.0E-04 | lm loss: {loss:.6E} | grad norm: 0.900 |\n"
    ).encode()


def olmo(n: int, loss: float) -> bytes:
    """The n-th entry."""
    return (
        f"2026-01-02 INFO [step={n}/9000000,epoch=0]\n    optim/total_grad_norm=0.9\n"
        f"    train/CrossEntropyLoss={loss:.4f}\n"
    ).encode()


def tensorboard(n: int, loss: float) -> bytes:
    """The n-th entry."""
    value = b"\x0a\x0atrain/loss\x15" + struct.pack("<f", loss)
    step, rest = b"", n
    while rest > 0x7F:
        step, rest = step + bytes([rest & 0x7F | 0x80]), rest >> 7
    step += bytes([rest])
    event = (
        b"\x10" + step + b"\x2a" + bytes([len(value) + 2]) + b"\x0a" + bytes([len(value)]) + value
    )
    return tfrecords.record(event)


FORMATS: tuple[Callable[[int, float], bytes], ...] = (
    nanogpt,
    llmc_log,
    json_lines,
    csv_table,
    trainer_output,
    trainer_state,
    megatron,
    olmo,
    tensorboard,
)


def _write(path: Path, rows: Iterator[bytes], most: int) -> int:
    """Write rows until the file has so many bytes; how many rows it has."""
    size = count = 0
    with path.open("wb") as file:
        for row in rows:
            size += file.write(row)
            count += 1
            if size >= most:
                break
    return count


def _rows(form: Callable[[int, float], bytes], count: int = sys.maxsize) -> Iterator[bytes]:
    noise = random.Random(1)
    return (form(n, _loss(n, noise)) for n in range(count))


def _read(path: Path) -> tuple[float, float]:
    """(seconds, peak memory in MB) of a process that reads the log."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "forkcast_cli", "detect", str(path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{path.name}: exit code {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Measure every format and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--only", default="", help="formats, by comma")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    print(f"{'format':16} {'rows':>10} {'seconds':>8} {'rows/s':>8} {'peak MB':>8} {'few rows':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        for form in FORMATS:
            if given.only and form.__name__ not in given.only.split(","):
                continue
            _write(path, _rows(form, _FEW_ROWS), sys.maxsize)
            _, least = _read(path)
            rows = _write(path, _rows(form), given.megabytes * _MEGABYTE)
            seconds, peak = _read(path)
            name = form.__name__
            print(
                f"{name:16} {rows:10,} {seconds:8.0f} {math.floor(rows / seconds):8,} {peak:8.0f} {least:8.0f}"
            )
            found.append(
                {"format": name, "rows": rows, "seconds": seconds, "peak_mb": peak, "few": least}
            )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
