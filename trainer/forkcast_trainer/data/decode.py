"""Bytes to text in pieces of about a million characters, and what was odd about them.

UTF-8, or what a byte order mark says. A mark is no text; CRLF and CR become LF. What is not UTF-8 is
replaced by U+FFFD and counted; more than one character in a thousand of a file is refused, for then the
file is in another encoding.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from forkcast_trainer.errors import DataError

PIECE: Final = 1 << 20
_CHUNK: Final = 1 << 20
_SEARCHED: Final = 1 << 12
_MOST_BAD: Final = 0.001
_MARKS: Final = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_REPLACEMENT: Final = "\ufffd".encode()


@dataclass
class Counts:
    """What was read. not_text: characters that are no UTF-8, or NUL. empty: rows without text.
    marks: literal end-of-text marks, which are read as plain text.
    """

    files: int = 0
    documents: int = 0
    characters: int = 0
    not_text: int = 0
    empty: int = 0
    marks: int = 0


def cut(text: str) -> Iterator[str]:
    """A text in pieces; at least one. It is cut before white space, where no tokenizer of words and
    no byte-level one joins what is on both sides.
    """
    first = 0
    while len(text) - first > PIECE:
        end = first + PIECE
        while end > first + PIECE - _SEARCHED:
            if text[end].isspace() and not text[end - 1].isspace():
                break
            end -= 1
        else:
            end = first + PIECE
        yield text[first:end]
        first = end
    yield text[first:]


def decoded(
    file: BinaryIO, path: Path, field: str, counts: Counts, *, lenient: bool
) -> Iterator[str]:
    """The text of a file, in pieces; at least one. lenient: nothing is refused.

    Raises DataError.
    """
    head = file.read(_CHUNK)
    mark, encoding = next((m for m in _MARKS if head.startswith(m[0])), (b"", "utf-8"))
    inner = codecs.getincrementaldecoder(encoding)("replace")
    decoder = io.IncrementalNewlineDecoder(inner, translate=True)
    data, before, held = head[len(mark) :], b"", ""
    seen = bad = nulls = 0
    while True:
        text = decoder.decode(data, final=not data)
        seen += len(text)
        nulls += text.count("\0")
        bad += text.count("\ufffd")
        if encoding == "utf-8":
            bad -= (before + data).count(_REPLACEMENT)
            before = (before + data)[-2:]
        held += text
        if not data:
            break
        if not lenient and bad + nulls > _MOST_BAD * max(seen, PIECE):
            break  # clear enough
        *whole, held = cut(held)
        yield from whole
        data = file.read(_CHUNK)
    counts.not_text += bad + nulls
    if not lenient and bad + nulls > _MOST_BAD * seen:
        raise _no_text(path, field, max(bad, nulls) / seen, nulls=nulls > bad)
    yield held


def _no_text(path: Path, field: str, share: float, *, nulls: bool) -> DataError:
    """The refusal, with the share of the file's characters that are no text."""
    what = "is NUL bytes" if nulls else "is not UTF-8"
    remedy = "if it is text in another encoding, convert it, e.g. iconv -f ISO-8859-1 -t UTF-8"
    if nulls:
        remedy = "if it is UTF-16, convert it: iconv -f UTF-16 -t UTF-8"
    return DataError(f"{field}.uri", f"{path}: {100 * share:.2g} % of it {what}", remedy)
