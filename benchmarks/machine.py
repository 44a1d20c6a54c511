"""The guards: one thread for everybody, and what a figure must say of the machine it is from."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PACKAGES = (
    "forkcast",
    "torch",
    "transformers",
    "numpy",
    "grpcio",
    "protobuf",
    "onnxruntime",
    "zstandard",
    "blake3",
    "safetensors",
    "pyarrow",
)
_TICKS = os.sysconf("SC_CLK_TCK")


def pin_threads() -> None:
    """One thread a process, for children too. Call it before numpy or torch is imported."""
    for name in _THREADS:
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def load_average() -> float:
    """Runnable processes, mean of the last minute."""
    return os.getloadavg()[0]


def described() -> dict[str, object]:
    """CPU, cores, kernel and versions, JSON-ready."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "threads": {name: os.environ.get(name, "") for name in _THREADS},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a live process so far; the clock ticks 100 times a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_folder() -> Path:
    """A folder in memory where the system has one, so that no disk is measured."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(os.environ.get("TMPDIR", "/tmp"))
