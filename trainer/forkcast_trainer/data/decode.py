"""Bytes to text in pieces of some ten thousand characters, and what was odd about them.

UTF-8, or what a byte order mark says. A mark is no text; CRLF and CR become LF. What is not UTF-8 is
replaced by U+FFFD and counted; more than one character in a thousand of a file is refused, for then the
file is in another encoding.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO, Final

from forkcast_trainer.errors import DataError

PIECE: Final = 1 << 14
#: The longest piece, if no place to cut is found before.
LONGEST: Final = 1 << 18
_CHUNK: Final = 1 << 20
#: Places that no pre-tokenizer's pattern reaches across, GPT-2's, Llama's and Qwen's among them: a letter or
#: digit, then a single space. Punctuation may take the line feeds behind it, and of several spaces the
#: last goes with the word.
_SEAM: Final = re.compile(r"(?<=[^\W_])(?= \S)")
#: If there is none: a letter or digit before any white space or ASCII punctuation but the apostrophe, and
#: before that of Chinese and Japanese.
_SECOND_SEAM: Final = re.compile(
    r"(?<=[^\W_])(?=[\s!-&(-/:-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"
)
_LEAST_JUDGED: Final = 1 << 20
_MOST_BAD: Final = 0.001
_MARKS: Final = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LONGEST_MARK: Final = 4
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
    """A text in pieces; at least one. The tokens of the pieces are those of the whole, unless a run of
    `LONGEST` characters has no letter or digit followed by white space or punctuation.
    """
    first = 0
    while len(text) - first > PIECE:
        least, most = first + PIECE, first + LONGEST
        found = _SEAM.search(text, least, most)
        if found is None and len(text) <= most:
            break
        found = found or _SECOND_SEAM.search(text, least, most)
        end = found.start() if found else most
        yield text[first:end]
        first = end
    yield text[first:]


def decoded(
    file: BinaryIO, path: PurePath, field: str, counts: Counts, *, most: int, lenient: bool
) -> Iterator[str]:
    """The text of a file, in pieces; at least one. most: bytes of UTF-8 that are wanted of it; no more
    of the file is read than that takes. lenient: nothing is refused.

    Raises DataError.
    """
    head = file.read(min(_CHUNK, max(most, _LONGEST_MARK)))
    mark, encoding = next((m for m in _MARKS if head.startswith(m[0])), (b"", "utf-8"))
    inner = codecs.getincrementaldecoder(encoding)("replace")
    decoder = io.IncrementalNewlineDecoder(inner, translate=True)
    data, before, held = head[len(mark) :], b"", ""
    taken = seen = bad = nulls = 0
    while True:
        text = decoder.decode(data, final=not data)
        seen += len(text)
        taken += len(text.encode())
        nulls += text.count("\0")
        bad += text.count("\ufffd")
        if encoding == "utf-8":
            bad -= (before + data).count(_REPLACEMENT)
            before = (before + data)[-2:]
        held += text
        if not data or taken >= most:
            break
        if not lenient and bad + nulls > _MOST_BAD * max(seen, _LEAST_JUDGED):
            break  # clear enough
        *whole, held = cut(held)
        yield from whole
        data = file.read(min(_CHUNK, most - taken))
    counts.not_text += bad + nulls
    if not lenient and bad + nulls > _MOST_BAD * seen:
        raise _no_text(path, field, max(bad, nulls) / seen, nulls=nulls > bad)
    yield held


def _no_text(path: PurePath, field: str, share: float, *, nulls: bool) -> DataError:
    """The refusal, with the share of the file's characters that are no text."""
    what = "is NUL bytes" if nulls else "is not UTF-8"
    remedy = "if it is text in another encoding, convert it, e.g. iconv -f ISO-8859-1 -t UTF-8"
    if nulls:
        remedy = "if it is UTF-16, convert it: iconv -f UTF-16 -t UTF-8"
    return DataError(f"{field}.uri", f"{path}: {100 * share:.2g} % of it {what}", remedy)
