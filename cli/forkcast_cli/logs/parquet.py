"""Parquet: a table with one row a step, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from forkcast_cli.logs.base import LogError, Row, WholeFormat
from forkcast_cli.logs.stream import Stream

_BATCH: Final = 1 << 14


def _fits(head: bytes) -> bool:
    return head.startswith(b"PAR1")


def _rows(stream: Stream) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.BufferReader(b"".join(stream.chunks())) if stream.path is None else stream.path
    try:
        with pq.ParquetFile(source) as file:
            # lists and maps are no figures of a step
            flat = [f.name for f in file.schema_arrow if not pa.types.is_nested(f.type)]
            for batch in file.iter_batches(_BATCH, columns=flat):
                for values in batch.to_pylist():
                    yield Row(values)
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise LogError(f"is damaged: {first}", "give an intact copy") from None


FORMAT: Final = WholeFormat(name="Parquet", fits=_fits, rows=_rows)
