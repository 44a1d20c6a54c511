"""Where documents come from: files, folders, Parquet, JSON lines, a data set, the standard library.

They come in pieces, so that memory is bounded whatever the size. A row of a table is held whole, a file
of text never is.
"""

from __future__ import annotations

import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final, NamedTuple

from forkcast_trainer.data.decode import Counts, cut, decoded
from forkcast_trainer.data.files import STDLIB, Content, TextFile, content_of, opened, text_files
from forkcast_trainer.data.hub import rows
from forkcast_trainer.errors import DataError
from forkcast_wire.echo import first_line, one_line, shown
from forkcast_wire.manifest import TextFormat, TextSource

_ROWS: Final = 64
_BUFFER: Final = 1 << 20
_LONGEST_LINE: Final = 64 << 20


class Piece(NamedTuple):
    """Part of a document. ends: whether it is the last of it."""

    text: str
    ends: bool


@dataclass
class _Wanted:
    """Bytes of text that are still wanted."""

    left: int


def pieces(
    source: TextSource,
    field: str,
    counts: Counts | None = None,
    files: Sequence[TextFile] | None = None,
) -> Iterator[Piece]:
    """The documents of a source in a fixed order, cut at ``max_bytes``; nothing is read beyond it.

    counts: is added to. files: of the source; None: of this machine, found here. Raises DataError naming ``field`` where the source does not exist, cannot be
    read, or holds no text.
    """
    counts = counts if counts is not None else Counts()
    wanted = _Wanted(source.max_bytes or sys.maxsize)
    files = text_files(source, field, None, None) if files is None else files
    for piece in _all_pieces(source, field, counts, wanted, files):
        text, ends = piece
        data = text.encode(errors="replace")
        if len(data) >= wanted.left:
            text, ends = data[: wanted.left].decode(errors="ignore"), True
        wanted.left -= len(data)
        counts.characters += len(text)
        counts.documents += ends
        yield Piece(text, ends)
        if wanted.left <= 0:
            return


def _all_pieces(
    source: TextSource, field: str, counts: Counts, wanted: _Wanted, files: Sequence[TextFile]
) -> Iterator[Piece]:
    if source.format is TextFormat.DATASET:
        yield from _documents(_dataset(source, field, counts))
        return
    for file in files:
        counts.files += 1
        try:
            yield from _file(source, file, field, counts, wanted)
        except DataError:
            raise
        except (OSError, EOFError, zlib.error, lzma.LZMAError, _zstd_error()) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            rule, remedy = f"{file.path}: {one_line(reason)}", "make it readable, or give it anew"
            raise DataError(f"{field}.uri", rule, remedy) from None


def _zstd_error() -> type[Exception]:
    try:
        from zstandard import ZstdError
    except ImportError:
        return OSError
    return ZstdError


def _file(
    source: TextSource, text: TextFile, field: str, counts: Counts, wanted: _Wanted
) -> Iterator[Piece]:
    path = text.path
    content = content_of(path, source.format)
    if content is Content.TABLE:
        yield from _documents(_parquet(text, source.text_column, field, counts))
        return
    with opened(text, field) as file:
        if content is Content.LINES:
            yield from _documents(_lines(file, path, source.text_column, field, counts))
        else:
            lenient = source.uri == STDLIB  # it tests its own decoders
            most = wanted.left
            yield from _document(decoded(file, path, field, counts, most=most, lenient=lenient))


def _documents(texts: Iterable[str]) -> Iterator[Piece]:
    for text in texts:
        yield from _document(cut(text))


def _document(parts: Iterable[str]) -> Iterator[Piece]:
    held: str | None = None
    for part in parts:
        if held is not None:
            yield Piece(held, ends=False)
        held = part
    yield Piece(held or "", ends=True)


def _text(value: Any, place: str, column: str, field: str, counts: Counts) -> str | None:
    """The text of a row's column; None if it has none. Raises DataError."""
    if value is None or value == "":
        counts.empty += 1
        return None
    if not isinstance(value, str):
        rule = f"{place}: {shown(column)} holds {type(value).__name__}, not text"
        raise DataError(f"{field}.textColumn", rule, "name a column of texts")
    return value


def _lines(
    file: BinaryIO, path: PurePath, column: str, field: str, counts: Counts
) -> Iterator[str]:
    """JSON lines: an object a line."""
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
        place = f"{path} line {number}"
        if len(line) == _LONGEST_LINE:
            rule = f"{place} is longer than {_LONGEST_LINE >> 20} MiB"
            raise DataError(f"{field}.uri", rule, "write one object a line, or split the document")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError):
            rule = f"{place} is not a JSON object"
            raise DataError(
                f"{field}.uri", rule, "write one object a line, or set format: Text"
            ) from None
        if not isinstance(row, dict):
            rule = f"{place} is not a JSON object"
            raise DataError(f"{field}.uri", rule, "write one object a line, or set format: Text")
        if column not in row:
            known = one_line(", ".join(map(str, row)) or "none", 200)
            raise DataError(
                f"{field}.textColumn", f"{place} has no column {column}", f"one of: {known}"
            )
        if (text := _text(row[column], place, column, field, counts)) is not None:
            yield text.encode(errors="replace").decode() if not text.isascii() else text


def _parquet(text: TextFile, column: str, field: str, counts: Counts) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = text.path
    place = path if isinstance(path, Path) else text.open()
    try:
        # a page at a time: by default a whole row group is read ahead
        with pq.ParquetFile(place, pre_buffer=False, buffer_size=_BUFFER) as file:
            names = file.schema_arrow.names
            if column not in names:
                known = ", ".join(names)
                rule = f"{path} has no column {column}"
                raise DataError(f"{field}.textColumn", rule, f"one of: {known}")
            if names.count(column) > 1:
                rule = f"{path} has {names.count(column)} columns {column}"
                raise DataError(f"{field}.textColumn", rule, "rename all but one of them")
            kind = file.schema_arrow.field(column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                rule = f"{path}: column {column} holds {kind}, not text"
                raise DataError(f"{field}.textColumn", rule, "name a column of texts")
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    if (row := _text(value, str(path), column, field, counts)) is not None:
                        yield row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        first = one_line(first_line(error))
        raise DataError(f"{field}.uri", f"{path}: {first}", "give a Parquet file") from None


def _dataset(source: TextSource, field: str, counts: Counts) -> Iterator[str]:
    column = source.text_column
    for row in rows(source, field):
        if column not in row:
            names = ", ".join(row)
            raise DataError(f"{field}.textColumn", "no such column", f"one of: {names}")
        if (text := _text(row[column], source.uri, column, field, counts)) is not None:
            yield text
