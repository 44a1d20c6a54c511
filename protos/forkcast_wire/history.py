"""The history in the run's store: what the trainer measured, step by step, whatever watches it.

Rows are as in `forkcast_wire.statistics`, without what a monitor adds (index, z, components). Chunks
are create-only and overlap where several became one; a reader leaves out those inside another.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq

from forkcast.ports import Store
from forkcast_wire import keys
from forkcast_wire.statistics import merged, rows_of, to_table
from forkcast_wire.store import KeyMissing

_READERS = 8


def encoded(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(to_table(rows), file)
    return file.getvalue()


def decoded(data: bytes, key: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file. Raises HistoryError naming its key."""
    return rows_of(io.BytesIO(data), key)


def read(store: Store) -> list[dict[str, Any]]:
    """All rows in the order (epoch, step), each once. Where a restarted trainer took steps again, the
    later attempt replaces the earlier one from its first row on. Raises HistoryError.
    """
    found = [info.key for info in store.list(keys.HISTORY_PREFIX)]
    with ThreadPoolExecutor(_READERS) as readers:
        chunks = readers.map(lambda key: _chunk(store, key), outermost(found))
    return merged(row for rows in chunks for row in rows)


def outermost(found: Sequence[str]) -> list[str]:
    """The keys of chunks whose steps are not all in another chunk of the same epoch and attempt."""
    chunks = sorted(
        ((chunk, key) for key in found if (chunk := keys.history_of(key)) is not None),
        key=lambda one: (*one[0][:3], -one[0][3]),
    )
    kept: list[tuple[tuple[int, int, int, int], str]] = []
    for chunk, key in chunks:
        inside = kept and kept[-1][0][:2] == chunk[:2] and kept[-1][0][3] >= chunk[3]
        if not inside:
            kept.append((chunk, key))
    return [key for _, key in kept]


def _chunk(store: Store, key: str) -> list[dict[str, Any]]:
    try:
        return decoded(store.get(key)[0], key)
    except KeyMissing:  # a larger one has taken its place since
        return []
