"""The bytes of a log: a file, a compressed file, a file that grows, or what another program prints.

A Stream is read once, forwards. Reading blocks for as long as a live source has nothing; `on_idle` is
called meanwhile, so that what is pending can be shown.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import time
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

_CHUNK: Final = 1 << 16
_IDLE_SECONDS: Final = 0.5
#: What is longer is no line of a log: the rest of it is left out.
LONGEST_LINE: Final = 1 << 20
_BREAK: Final = re.compile("[\r\n]+")
_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_GZIP: Final = b"\x1f\x8b"
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

#: Gives the next bytes, b"" at the end.
Source = Callable[[], bytes]


class Stop:
    """Whether a live source is to end although more may come."""

    def __init__(self) -> None:
        self.asked = False


class Stream:
    """Bytes and lines of one log. name: for messages. path: of a file that holds them all, if there is
    one. line: number of the line read last, from 1. long_lines: how many were too long to be read.
    cut_short: whether the log ends within an entry.
    """

    def __init__(self, source: Source, name: str, path: Path | None = None) -> None:
        self.name = name
        self.path = path
        self.line = 0
        self.long_lines = 0
        self.cut_short = False
        self._source = source
        self._held = b""
        self._decompressed = False

    def peek(self, size: int) -> bytes:
        """The next bytes without taking them; fewer at the end."""
        while len(self._held) < size:
            chunk = self._next()
            if not chunk:
                break
            self._held += chunk
        return self._held[:size]

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        found = self.peek(size)
        self._held = self._held[size:]
        return found

    def chunks(self) -> Iterator[bytes]:
        """All that is left."""
        while chunk := self._held or self._next():
            self._held = b""
            yield chunk

    def decompress(self) -> bool:
        """Read on through gzip, if these are its bytes. Whether they are."""
        if self._decompressed or self.peek(2) != _GZIP:
            return False
        held, inner = self._held, self._source

        def compressed() -> Iterator[bytes]:
            yield held
            while chunk := inner():
                yield chunk

        self._held, self._decompressed = b"", True
        unpacked = self._unpacked(compressed())
        self._source = lambda: next(unpacked, b"")
        return True

    def _unpacked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The members of a gzip file one after another; what is cut short ends where it is cut."""
        unpack = zlib.decompressobj(wbits=31)
        for chunk in chunks:
            data = chunk
            while data:
                if unpack.eof:
                    if not data.startswith(_GZIP[:1]):
                        return  # padding
                    unpack = zlib.decompressobj(wbits=31)
                try:
                    found = unpack.decompress(data, _CHUNK)
                except zlib.error:
                    self.cut_short = True
                    return
                if found:
                    yield found
                data = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
        self.cut_short = self.cut_short or not unpack.eof

    def lines(self) -> Iterator[str]:
        """The lines, without their ends and without colours. A carriage return ends a line, too: a
        progress bar is overwritten by what follows it. Bytes that are no text are replaced.
        """
        head = self.peek(3)
        mark, encoding = next((m for m in _MARKS if head.startswith(m[0])), (b"", "utf-8"))
        self.read(len(mark))
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        rest, skipping = "", False
        for chunk in self.chunks():
            *whole, rest = _BREAK.split(rest + decoder.decode(chunk))
            if skipping and whole:
                whole, skipping = whole[1:], False
            if len(rest) > LONGEST_LINE:
                self.long_lines += not skipping
                rest, skipping = "", True
            for line in whole:
                self.line += 1
                yield _ANSI.sub("", line) if "\x1b" in line else line
        rest += decoder.decode(b"", final=True)
        if rest and not skipping:
            self.line += 1
            yield _ANSI.sub("", rest) if "\x1b" in rest else rest

    def _next(self) -> bytes:
        return self._source()


def file_source(path: Path) -> Source:
    """The bytes of a file. Raises OSError."""
    file = path.open("rb")
    return lambda: file.read1(_CHUNK)


def growing_source(path: Path, on_idle: Callable[[], None], stop: Stop) -> Source:
    """The bytes of a file that another program appends to, until it is to stop. A file that was replaced,
    or has become shorter, is read from its start. Raises OSError.
    """
    file = path.open("rb")

    def read() -> bytes:
        nonlocal file
        while not (chunk := file.read1(_CHUNK)) and not stop.asked:
            on_idle()
            time.sleep(_IDLE_SECONDS)
            if _begins_anew(path, file):
                file.close()
                file = path.open("rb")
        return chunk

    return read


def _begins_anew(path: Path, file: BufferedReader) -> bool:
    try:
        there = path.stat()
    except OSError:  # it has been moved away, and will be written again
        return False
    return there.st_ino != os.fstat(file.fileno()).st_ino or there.st_size < file.tell()


def pipe_source(
    file: BinaryIO, on_idle: Callable[[], None], stop: Stop, tee: BinaryIO | None = None
) -> Source:
    """What another program prints, as it comes, until it ends or is to stop. tee: gets every byte,
    too, at once.
    """
    descriptor = file.fileno()

    def read() -> bytes:
        while not select.select([descriptor], [], [], _IDLE_SECONDS)[0]:
            if stop.asked:
                return b""
            on_idle()
        chunk = os.read(descriptor, _CHUNK)
        if tee is not None:
            tee.write(chunk)
            tee.flush()
        return chunk

    return read
