"""What a container says of itself before a tensor's bytes are looked at, whatever its version."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

#: The first seven bytes of every container; the eighth is the format's version.
MAGIC = b"FCPTZ\x00\x00"
#: Of a header or an index, bytes.
MAX_HEADER = 64 << 20
MAX_BYTES = 1 << 48
#: A table of more rows is no model's: AdamW keeps four tensors a parameter.
MAX_TENSORS = 1 << 16
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another run, or not a checkpoint."""


class Role(Enum):
    """What a tensor is to the optimizer, as far as it may be saved in 8 bits."""

    FIRST_MOMENT = "first moment"
    SECOND_MOMENT = "second moment"


@dataclass(frozen=True)
class Snapshot:
    """A whole training state on the CPU. ``meta`` is JSON-ready; tensors are owned by it.

    roles: of tensors that may be saved in 8 bits, by name. coded: the tensors that were, if it was read
    from a container: what they hold is near what was saved, not equal to it.
    """

    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    roles: Mapping[str, Role] = field(default_factory=dict)
    coded: frozenset[str] = frozenset()


class Shaped(Protocol):
    """What is known of a tensor before its bytes are read."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes, ``[]`` for a single number."""


#: Refuses a container by its meta and its table, before a frame is unpacked: raises CheckpointError.
Admit: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Shaped]], None]


def mapped(path: Path) -> memoryview:
    """The file, without a copy of it in memory. Raises CheckpointError if it is no container."""
    with path.open("rb") as file:
        if path.stat().st_size <= len(MAGIC):
            raise no_container(path.name)
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if data[: len(MAGIC)] != MAGIC:
        raise no_container(path.name)
    return data


def no_container(file: str) -> CheckpointError:
    """The file is not one of ours, or is cut within its first bytes."""
    return CheckpointError(f"{file}: not a Forkcast checkpoint")


def is_size(number: object) -> bool:
    """Whether it can be a length in bytes or of a dimension."""
    return type(number) is int and 0 <= number <= MAX_BYTES


def refuse_no_bool(flat: Tensor, file: str, name: str) -> None:
    """Raises CheckpointError unless every byte of a bool tensor is 0 or 1."""
    if bool((flat > 1).any()):
        raise CheckpointError(f"{file}: {name}: a bool is neither 0 nor 1")
