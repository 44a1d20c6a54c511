"""What this machine has of what Forkcast needs, and how to get the rest."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from forkcast_wire.cores import bound_cores

_NEEDED = {
    "the core and the wire": (
        "numpy",
        "pydantic",
        "PyYAML",
        "grpcio",
        "protobuf",
        "pyarrow",
        "minio",
    ),
    "trainer": ("torch", "transformers", "zstandard", "blake3"),
    "proxy": ("onnxruntime",),
    "cli": ("typer", "rich", "jinja2", "psutil"),
}
_LEAST_DISK = 2 << 30
#: sun_path holds 108 bytes with the closing zero (Linux, unix(7)).
_LONGEST_SOCKET = 107


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. remedy: empty if ``ok``. needed: a run cannot start without it."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def examine(folder: Path) -> list[Check]:
    """All checks; ``folder`` is where runs would be written."""
    return [*_python(), *_packages(), *_device(), *_disk(folder), _sockets(), *_memory()]


def _python() -> Iterator[Check]:
    found = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Check("python", good, found, "" if good else "install Python 3.11, 3.12 or 3.13")
    linux = sys.platform.startswith("linux")
    remedy = "" if linux else "children outlive a killed `forkcast run` here; Linux ends them"
    yield Check("system", linux, platform.platform(terse=True), remedy, needed=False)


def _packages() -> Iterator[Check]:
    for extra, names in _NEEDED.items():
        found, missing = [], []
        for name in names:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                missing.append(name)
        remedy = f"missing: {', '.join(missing)}; pip install 'forkcast[local]'" if missing else ""
        yield Check(extra, not missing, ", ".join(found), remedy)


def _device() -> Iterator[Check]:
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        name, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
        yield Check("gpu", ok=True, found=f"{count} x {name}", needed=False)
    elif shutil.which("nvidia-smi"):
        remedy = "a driver is here but this torch cannot use it: install torch built for CUDA"
        yield Check(
            "gpu", ok=False, found=f"torch {torch.__version__}", remedy=remedy, needed=False
        )
    else:
        yield Check("gpu", ok=True, found="none; runs use the CPU", needed=False)


def _disk(folder: Path) -> Iterator[Check]:
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    good = free >= _LEAST_DISK
    remedy = "" if good else "free some space or choose another --workdir"
    yield Check("disk", good, f"{free / 2**30:.1f} GiB free at {place}", remedy)
    writable = os.access(place, os.W_OK)
    yield Check("workdir", writable, str(folder), "" if writable else "choose a writable --workdir")


def _sockets() -> Check:
    """Whether a Unix socket can be bound; the children use short relative paths."""
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name) / "s")
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
        except OSError as error:
            return Check(
                "sockets", ok=False, found=str(error), remedy="allow Unix sockets in TMPDIR"
            )
    return Check("sockets", ok=True, found=f"Unix sockets, paths up to {_LONGEST_SOCKET} bytes")


def _memory() -> Iterator[Check]:
    try:
        import psutil
    except ImportError:
        return
    free = psutil.virtual_memory().available
    good = free >= 3 << 30
    remedy = "" if good else "the quickstart takes about 3 GiB; lower maxConcurrentRollouts"
    found = f"{free / 2**30:.1f} GiB free, {bound_cores()} cores"
    yield Check("memory", good, found, remedy, needed=False)
