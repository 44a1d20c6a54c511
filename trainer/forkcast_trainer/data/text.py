"""Where documents come from: files, folders, Parquet, a data set, the standard library itself."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import TextFormat, TextSource

STDLIB = "python-stdlib:"
_TEXT_SUFFIXES = {".txt", ".md", ".py", ".text", ".rst"}


def documents(source: TextSource, field: str) -> Iterator[str]:
    """The documents of a source in a fixed order, cut at ``max_bytes``.

    Raises DataError naming ``field`` where the source does not exist or cannot be read.
    """
    left = source.max_bytes or None
    for text in _all_documents(source, field):
        if left is None:
            yield text
            continue
        data = text.encode()[:left]
        left -= len(data)
        yield data.decode(errors="ignore")
        if left <= 0:
            return


def source_files(source: TextSource, field: str) -> list[Path]:
    """The local files of a source, sorted by path; empty for a data set of the hub."""
    if source.uri == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "__pycache__", "lib2to3"}
        return sorted(p for p in root.rglob("*.py") if not skip & set(p.parts))
    if source.format is TextFormat.DATASET:
        return []
    path = Path(source.uri)
    if not path.exists():
        raise DataError(f"{field}.uri", f"{source.uri} does not exist", "give a file or a folder")
    if path.is_file():
        return [path]
    wanted = {".parquet"} if source.format is TextFormat.PARQUET else _TEXT_SUFFIXES | {".parquet"}
    files = sorted(p for p in path.rglob("*") if p.suffix in wanted and p.is_file())
    if not files:
        raise DataError(f"{field}.uri", f"{source.uri} holds no text files", "put text there")
    return files


def _all_documents(source: TextSource, field: str) -> Iterator[str]:
    if source.format is TextFormat.DATASET:
        yield from _dataset(source, field)
        return
    for path in source_files(source, field):
        try:
            if source.format is TextFormat.PARQUET or path.suffix == ".parquet":
                yield from _parquet(path, source.text_column, field)
            else:
                yield path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(
                f"{field}.uri", f"{path}: {error.strerror}", "make it readable"
            ) from None


def _parquet(path: Path, column: str, field: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if column not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(f"{field}.textColumn", f"{path} has no column {column}", f"one of: {names}")
    for batch in file.iter_batches(batch_size=1024, columns=[column]):
        for value in batch.column(0).to_pylist():
            if value:
                yield str(value)


def _dataset(source: TextSource, field: str) -> Iterator[str]:
    import datasets

    local = Path(source.uri)
    try:
        if local.is_dir() and any(local.glob("*.parquet")):
            files = [str(path) for path in sorted(local.glob("*.parquet"))]
            rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        else:
            rows = datasets.load_dataset(
                source.uri, source.config_name, split=source.split, streaming=True
            )
        for row in rows:
            if source.text_column not in row:
                names = ", ".join(row)
                raise DataError(f"{field}.textColumn", "no such column", f"one of: {names}")
            if row[source.text_column]:
                yield str(row[source.text_column])
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{field}.uri", f"data set {source.uri} cannot be loaded: {first}", "check its name"
        ) from error
