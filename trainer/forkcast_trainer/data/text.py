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
    """The local files of a source, sorted by path; empty for a data set of the hub.

    Raises DataError where there are none.
    """
    if source.uri == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "__pycache__", "lib2to3"}
        return sorted(p for p in root.rglob("*.py") if not skip & set(p.parts))
    path = Path(source.uri)
    if source.format is TextFormat.DATASET:
        return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    if not path.exists():
        raise DataError(f"{field}.uri", f"{source.uri} does not exist", "give a file or a folder")
    if path.is_file():
        return [path]
    wanted = {
        TextFormat.AUTO: _TEXT_SUFFIXES | {".parquet"},
        TextFormat.TEXT: _TEXT_SUFFIXES,
        TextFormat.PARQUET: {".parquet"},
    }[source.format]
    files = sorted(p for p in path.rglob("*") if p.suffix in wanted and p.is_file())
    if not files:
        names = ", ".join(sorted(wanted))
        raise DataError(f"{field}.uri", f"{source.uri} holds no {names} file", "put text there")
    return files


def _all_documents(source: TextSource, field: str) -> Iterator[str]:
    if source.format is TextFormat.DATASET:
        yield from _dataset(source, field)
        return
    for path in source_files(source, field):
        try:
            if source.format is TextFormat.PARQUET or (
                source.format is TextFormat.AUTO and path.suffix == ".parquet"
            ):
                yield from _parquet(path, source.text_column, field)
            else:
                yield path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{field}.uri", f"{path}: {reason}", "make it readable") from None


def _parquet(path: Path, column: str, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{field}.uri", f"{path}: {first}", "give a Parquet file") from None
    if column not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(f"{field}.textColumn", f"{path} has no column {column}", f"one of: {names}")
    for batch in file.iter_batches(batch_size=1024, columns=[column]):
        for value in batch.column(0).to_pylist():
            if value:
                yield str(value)


def _dataset(source: TextSource, field: str) -> Iterator[str]:
    """The rows of a data set of the hub, of the library's own cache where there is no network, or
    of a local folder in its layout (train-*.parquet, validation-*.parquet, data/...).
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{field}.format", "Dataset needs the `datasets` library", "pip install datasets"
        ) from None

    try:
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
