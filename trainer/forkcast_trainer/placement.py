"""Which process of a run this is, and on what it computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from forkcast_trainer.errors import TrainerError
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import Device, Dtype, TrainingRunSpec


@dataclass(frozen=True)
class Placement:
    """rank: in [0, world). dtype: of the forward pass; weights are float32. compiled: the model, by
    torch.compile.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1
    compiled: bool = False


def _be_deterministic() -> None:
    """CuBLAS reads its variable when its first matrix product is made."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # noqa: FBT003
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  only costs time


@contextmanager
def refusing() -> Iterator[None]:
    """Raises TrainerError for a kernel that torch will not run because its bits may vary."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        rule = first_line(error)
        raise TrainerError("spec.training.deterministic", rule, "set false") from error


def placement(spec: TrainingRunSpec, rank: int = 0, world: int = 1, local: int = 0) -> Placement:
    """Resolve Auto: the GPU where there is one, bf16 where it has it. The GPU becomes the process's
    own, so that nothing of it ends up on another rank's. What is deterministic is so for the process.

    Raises TrainerError if a GPU is asked for that is not there.
    """
    wish, count = spec.model.device, torch.cuda.device_count()
    cuda = wish is Device.CUDA or (wish is Device.AUTO and count > 0)
    if cuda and local >= count:
        raise TrainerError(
            "spec.model.device",
            f"process {local} of this machine finds {count} GPUs",
            "lower parallelism.processesPerNode, or use Cpu",
        )
    if spec.training.deterministic:
        _be_deterministic()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    bf16 = cuda and torch.cuda.is_bf16_supported()
    dtypes = {
        Dtype.AUTO: torch.bfloat16 if bf16 else torch.float32,
        Dtype.BFLOAT16: torch.bfloat16,
        Dtype.FLOAT16: torch.float16,
        Dtype.FLOAT32: torch.float32,
    }
    compiled = cuda if spec.model.compile is None else spec.model.compile
    return Placement(device, dtypes[spec.model.dtype], rank, world, compiled)
