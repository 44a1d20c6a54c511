"""The file `cp_<step>.ptz`, of either version of the format: version 2 is written, both are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from forkcast_trainer import container_v1, container_v2
from forkcast_trainer.container_v2 import CHUNK_BYTES
from forkcast_trainer.table import MAGIC, Admit, CheckpointError, Shaped, Snapshot, mapped
from forkcast_wire.cores import bound_cores

#: More threads than this gain nothing: memory is then the limit.
_MOST_THREADS = 4


class Container(Protocol):
    """An open file whose table is checked; its bytes are not yet."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON-ready."""

    @property
    def table(self) -> Mapping[str, Shaped]:
        """The tensors by name, in their order."""

    @property
    def coded(self) -> frozenset[str]:
        """Names of the tensors that are near what was saved, not equal to it."""

    def tensors(self, names: Iterable[str], threads: int) -> dict[str, Tensor]:
        """These tensors, verified; no other one's bytes are looked at. Raises CheckpointError."""

    def verify(self, threads: int) -> None:
        """Raises CheckpointError if a tensor's bytes are not what they should be."""


_VERSIONS: Mapping[int, Callable[[memoryview, str, str | None], Container]] = {
    1: container_v1.opened,
    2: container_v2.opened,
}


def default_threads() -> int:
    """The cores this process may use, four at most."""
    return min(bound_cores(), _MOST_THREADS)


def write_container(
    snapshot: Snapshot,
    path: Path,
    level: int,
    *,
    threads: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    int8: bool = False,
) -> str:
    """Write the container; level 0 stores raw frames, otherwise it is zstd's (1 to 19). int8: the
    snapshot's moments of known roles in 8 bits, all else to the bit. threads: None: as many as there
    are cores, four at most. chunk_bytes: a multiple of 8, up to 64 MiB.

    Returns the digest that the manifest holds: the sha256 of the file's index, hex. Raises
    CheckpointError for a dtype that the format has no name for.
    """
    threads = threads or default_threads()
    return container_v2.write(snapshot, path, level, threads, chunk_bytes, int8=int8)


def open_container(path: Path, digest: str | None = None) -> Container:
    """The container with its table read and checked. digest: the manifest's. Raises CheckpointError."""
    data = mapped(path)
    version = data[len(MAGIC)]
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{path.name}: checkpoint format {version}; this version of Forkcast reads "
            f"{' and '.join(map(str, _VERSIONS))}"
        )
    return _VERSIONS[version](data, path.name, digest)


def read_container(
    path: Path,
    digest: str | None = None,
    admit: Admit | None = None,
    *,
    threads: int | None = None,
) -> Snapshot:
    """The snapshot that a container holds, every byte verified.

    admit: may refuse it by its table, so that a file cannot claim more memory than the model that
    is to be restored has. threads: as `write_container`. Raises CheckpointError if a digest, a length
    or a dtype is wrong; the message names the part.
    """
    found = open_container(path, digest)
    if admit is not None:
        admit(found.meta, found.table)
    tensors = found.tensors(found.table, threads or default_threads())
    return Snapshot(found.meta, tensors, coded=found.coded)


def read_tensor(path: Path, name: str, digest: str | None = None) -> Tensor:
    """One tensor, verified, without the bytes of the others. Raises CheckpointError as
    `read_container`, and if there is none of that name.
    """
    found = open_container(path, digest)
    if name not in found.table:
        raise CheckpointError(f"{path.name}: holds no {name}")
    return found.tensors([name], default_threads())[name]


def verify_container(path: Path, digest: str | None = None) -> Mapping[str, Any]:
    """The meta of a container whose every byte is what it should be. Needs some MiB of memory,
    whatever the file claims. Raises CheckpointError as `read_container`.
    """
    found = open_container(path, digest)
    found.verify(default_threads())
    return found.meta
