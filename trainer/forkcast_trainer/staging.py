"""Host memory that the state is copied into while training goes on, and that another process reads.

A buffer is an anonymous file in memory (memfd): it has no name, so a process killed at any point leaves
nothing behind, and it is neither bound by the size of /dev/shm nor written to a disk. Who is given its
descriptor maps the same pages. There are two: while a state is written from one, the next is copied into
the other. They are kept for the life of the process; for a GPU they are page-locked, so that the device
copies into them by itself.

On a GPU the copy runs on a stream of its own beside the next forward and backward pass, and `wait` puts
it before what changes weights and moments, on the device: no thread waits for it. On the CPU it is made
at once.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from forkcast_trainer.table import DTYPE_NAMES, DTYPES, Role, Snapshot

_log = structlog.get_logger()
#: The start of each tensor, bytes: as torch allocates them.
_ALIGN = 64
#: cudaHostRegisterPortable: for every context of the process.
_PORTABLE = 1
#: One is written, one waits.
BUFFERS = 2
#: Whether this system has memory without a name. Without it the saver's thread does all the work.
SHARED = hasattr(os, "memfd_create")


class Buffer:
    """Memory of any size; ``fd`` names it to another process. size: bytes that are mapped here."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("forkcast-state")
        self.size = 0
        self._map: mmap.mmap | None = None

    def memory(self, size: int, *, pinned: bool) -> mmap.mmap:
        """At least so many bytes of it. What was got before stays valid as long as somebody uses it."""
        if self._map is None or size > self.size:
            if self._map is not None and pinned:
                _unpin(self._map)
            os.ftruncate(self.fd, max(size, 1))
            self._map, self.size = mmap.mmap(self.fd, max(size, 1)), max(size, 1)
            if pinned:
                _pin(self._map)
        return self._map


def _pin(memory: mmap.mmap) -> None:
    """Page-lock it for the life of the process. A refusal (a limit on locked memory) costs speed only."""
    view = torch.frombuffer(memory, dtype=torch.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(view.data_ptr(), view.numel(), _PORTABLE))
    if code:
        _log.warning("staging.not_pinned", bytes=view.numel(), code=code)


def _unpin(memory: mmap.mmap) -> None:
    view = torch.frombuffer(memory, dtype=torch.uint8)
    torch.cuda.cudart().cudaHostUnregister(view.data_ptr())


@dataclass(frozen=True, slots=True)
class _Place:
    """Of one tensor in a buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Staged(dict[str, Tensor]):
    """Copies of tensors in a buffer. copied: waits until they are whole."""

    def __init__(self, buffer: Buffer, places: list[_Place], copied: Callable[[], None]) -> None:
        super().__init__()
        self.buffer, self.copied, self._places = buffer, copied, places

    def describe(self, snapshot: Snapshot) -> tuple[int, int]:
        """Write what the snapshot with these tensors is behind them, for `read_described`: (offset,
        length), bytes.
        """
        roles = {name: role.value for name, role in snapshot.roles.items()}
        rows = [[one.name, one.dtype, one.shape, one.offset] for one in self._places]
        told = {"meta": snapshot.meta, "roles": roles, "tensors": rows}
        text = json.dumps(told).encode()
        os.pwrite(self.buffer.fd, text, self.buffer.size)
        return self.buffer.size, len(text)


def read_described(fd: int, at: int, length: int) -> Snapshot:
    """The snapshot in another process's buffer; its tensors are the buffer's memory, not a copy. They
    must not be used once the buffer is given back.
    """
    document = json.loads(os.pread(fd, length, at))
    memory = mmap.mmap(fd, at)
    return Snapshot(
        document["meta"],
        {
            name: _view(memory, _Place(name, dtype, tuple(shape), offset))
            for name, dtype, shape, offset in document["tensors"]
        },
        {name: Role(role) for name, role in document["roles"].items()},
    )


def _view(memory: mmap.mmap, place: _Place) -> Tensor:
    dtype = DTYPES[place.dtype]
    count = 1
    for size in place.shape:
        count *= size
    if not count:
        return torch.empty(place.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=place.offset)
    return flat.reshape(place.shape)


class Staging:
    """The two buffers. Used by the training's thread, but for `give_back`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._free: list[Buffer] = []
        self._made = 0
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        self._under_way: torch.cuda.Event | None = None

    def copy(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Copies of them as they are now. In memory of their own if both buffers are in use, or a
        tensor is of a kind that no checkpoint holds.
        """
        buffer = self._take() if SHARED else None
        if buffer is None or any(one.dtype not in DTYPE_NAMES for one in tensors.values()):
            if buffer is not None:
                self.give_back(buffer)
            return on_the_host(tensors)
        places, end = [], 0
        for name, one in tensors.items():
            places.append(_Place(name, DTYPE_NAMES[one.dtype], tuple(one.shape), end))
            end += -(-one.numel() * one.element_size() // _ALIGN) * _ALIGN
        memory = buffer.memory(end, pinned=self._cuda)
        staged = Staged(buffer, places, self._synchronize)
        for place in places:
            staged[place.name] = _view(memory, place)
        self._copy(staged, tensors)
        return staged

    def wait(self) -> None:
        """What the device does from here on comes after the copy under way; no thread waits."""
        if self._under_way is not None:
            torch.cuda.current_stream(self._device).wait_event(self._under_way)
            self._under_way = None

    def give_back(self, buffer: Buffer) -> None:
        """Nobody reads this buffer any more."""
        with self._lock:
            self._free.append(buffer)

    def _take(self) -> Buffer | None:
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._made == BUFFERS:
                return None
            self._made += 1
        return Buffer()

    @torch.no_grad()
    def _copy(self, staged: Staged, tensors: Mapping[str, Tensor]) -> None:
        if not self._cuda:
            for name, one in tensors.items():
                staged[name].copy_(one)
            return
        self._stream = self._stream or torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        event = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._stream):
            for name, one in tensors.items():
                staged[name].copy_(one, non_blocking=True)
                if one.is_cuda:
                    one.record_stream(self._stream)
            event.record(self._stream)
        staged.copied = event.synchronize
        self._under_way = event

    def _synchronize(self) -> None:
        """On the CPU a copy is whole when it is there."""


def on_the_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory of their own."""
    return {name: one.detach().to("cpu", copy=True).contiguous() for name, one in tensors.items()}
