"""How many cores this process may use."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def bound_cores() -> int:
    """Those that the process is bound to."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def usable_cores() -> int:
    """Those that the process is bound to, and its control group's share of them."""
    return max(1, min(bound_cores(), quota(Path("/sys/fs/cgroup"))))


def quota(root: Path) -> int:
    """The limit of a container, cores, in both versions of control groups; sys.maxsize if there is none."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (root / "cpu.max").exists():
            share, period = (root / "cpu.max").read_text().split()
        else:
            share = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        if int(share) > 0:
            return max(1, int(share) // int(period))
    return sys.maxsize
