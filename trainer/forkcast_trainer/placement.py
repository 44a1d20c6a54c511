"""Which process of a run this is, and on what it computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forkcast_trainer.errors import TrainerError
from forkcast_wire.manifest import Device, Dtype, TrainingRunSpec


@dataclass(frozen=True)
class Placement:
    """rank: in [0, world). dtype: of the forward pass; weights are float32."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1


def placement(spec: TrainingRunSpec, rank: int = 0, world: int = 1, local: int = 0) -> Placement:
    """Resolve Auto: the GPU where there is one, bf16 where it has it. The GPU becomes the process's
    own, so that nothing of it ends up on another rank's.

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
    return Placement(device, dtypes[spec.model.dtype], rank, world)
