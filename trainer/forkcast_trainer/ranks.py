"""The process group of a run's ranks: joined before the first step, left in a fixed order."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import torch
import torch.distributed as dist

from forkcast_wire import beats


def join() -> None:
    """Meet the other ranks. The environment says who they are, as torchrun sets it."""
    # Functions of this module have the default group as a default argument. If it is imported
    # later (the first step of an optimizer does so), they keep the group, and so Gloo's threads,
    # beyond `leave`: a thread that releases a tensor while the interpreter ends aborts the process
    # ("terminate called without an active exception").
    import torch.distributed.nn.functional

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """The end of a rank that has closed its files and streams: what its device still computes is
    waited for, then the ranks meet a last time, so that none takes its connections away from
    another's collective, then the group and its threads end. All ranks call it, or none.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    with beats.during(beats.Phase.MEET):
        dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()


def abandon(code: int) -> NoReturn:
    """The end of a rank that failed, perhaps alone: the others cannot be met, and neither NCCL nor
    the interpreter may wait for them or turn the exit code into a death by signal.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
