"""Parquet: a table with one row a step, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from forkcast_cli.logs.base import LogError, Row, WholeFormat
from forkcast_cli.logs.names import INSIDE, place
from forkcast_cli.logs.stream import Stream
from forkcast_wire.echo import first_line

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH: Final = 1 << 14


def _fits(head: bytes) -> bool:
    return head.startswith(b"PAR1")


def _rows(stream: Stream) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(b"".join(stream.chunks())) if stream.path is None else stream.path
    try:
        with pq.ParquetFile(source) as file:
            taken = [f.name for f in file.schema_arrow if _is_figure(f)]
            for batch in file.iter_batches(_BATCH, columns=taken):
                for values in batch.to_pylist():
                    yield Row(values)
    except (pa.ArrowException, OSError, ValueError) as error:
        first = first_line(error)
        raise LogError(f"is damaged: {first}", "give an intact copy") from None


def _is_figure(column: pa.Field) -> bool:
    """Whether it has one value a step, or a known one a layer; other lists and maps are no figures."""
    import pyarrow as pa

    if not pa.types.is_nested(column.type):
        return True
    return pa.types.is_list(column.type) and any(place(r, column.name) is not None for r in INSIDE)


FORMAT: Final = WholeFormat(name="Parquet", fits=_fits, rows=_rows)
