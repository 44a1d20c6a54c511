"""Which files a text source is made of, what each of them holds, and how its bytes are opened.

A folder is read as people mount and edit it: hidden files and folders are skipped (`.git`, `._a.txt`,
`.ipynb_checkpoints`, the `..data` of a ConfigMap), links are followed, and each real file is read once.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import BinaryIO, Final, cast

from forkcast_trainer.data.s3_text import SCHEME, S3File, bucket_of
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import DataStorage, Storage, TextFormat, TextSource

STDLIB: Final = "python-stdlib:"
_TEXT: Final = {".txt", ".md", ".py", ".text", ".rst"}
_LINES: Final = {".jsonl", ".ndjson"}
_PACKED: Final = {".gz", ".zst", ".xz", ".bz2"}
#: First bytes of what is opened, and of what is refused, with the remedy.
_OPENED: Final = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bz2",
}
_REFUSED: Final = {
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"7z\xbc\xaf\x27\x1c": ("is a 7z archive", "unpack it"),
    b"Rar!": ("is a rar archive", "unpack it"),
    b"\x04\x22\x4d\x18": ("is lz4-compressed", "unpack it, or pack it with zstd"),
    b"PAR1": ("is a Parquet file", "set format: Parquet"),
    b"ARROW1": ("is an Arrow file", "give Parquet or text"),
    b"%PDF-": ("is a PDF", "give its text"),
    b"\x89PNG": ("is an image", "give text"),
    b"\x7fELF": ("is a program", "give text"),
    b"\x80\x04": ("is a pickle", "give text"),
}
_HEAD: Final = 512
_TAR: Final = slice(257, 262)


class Content(Enum):
    """What a file holds: a document; a JSON object with one on each line; a table of them."""

    TEXT = "text"
    LINES = "JSON lines"
    TABLE = "Parquet"


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes. Raises OSError."""
        return self.path.stat().st_size

    @property
    def seen(self) -> tuple[str, int, int]:
        """Name, size and time. Raises OSError."""
        status = self.path.stat()
        return str(self.path), status.st_size, status.st_mtime_ns

    def open(self) -> io.BufferedReader:
        """Its bytes. Raises OSError."""
        return self.path.open("rb")


#: A file of text. path: its name, for its suffix and for people. seen: what tells it from another version.
TextFile = LocalFile | S3File


def text_files(
    source: TextSource, field: str, access: DataStorage | None, storage: Storage | None
) -> Sequence[TextFile]:
    """The files of a source, here or in a bucket, sorted by name; empty for a data set of the hub. access,
    storage: of the data and of the run. Raises DataError if there are none.
    """
    if not source.uri.startswith(SCHEME):
        return [LocalFile(path) for path in source_files(source, field)]
    bucket, prefix = bucket_of(source.uri, field, access, storage)
    wanted, found = _wanted(source.format), bucket.below(prefix)
    alone = len(found) == 1 and found[0].key == prefix
    files = [
        file
        for file in (S3File(bucket, info) for info in found)
        if alone or (not _is_hidden(file.info.key[len(prefix) :]) and _is_wanted(file.path, wanted))
    ]
    if not files:
        names = ", ".join(sorted(wanted))
        raise DataError(f"{field}.uri", f"{source.uri} holds no {names} object", "put text there")
    return files


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def content_of(path: PurePath, form: TextFormat) -> Content:
    """By the manifest's format; Auto: by the suffix, under that of a compression."""
    if form is TextFormat.TEXT:
        return Content.TEXT
    suffix = _suffix(path)
    if form is TextFormat.PARQUET or suffix == ".parquet":
        return Content.TABLE
    return Content.LINES if suffix in _LINES | {".json"} else Content.TEXT


def _suffix(path: PurePath) -> str:
    outer = path.suffix.lower()
    return Path(path.stem).suffix.lower() if outer in _PACKED else outer


def source_files(source: TextSource, field: str) -> list[Path]:
    """The local files of a source, sorted by path; empty for a data set of the hub.

    Raises DataError if there are none.
    """
    if source.uri == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "__pycache__", "lib2to3"}
        return sorted(p for p in root.rglob("*.py") if not skip & set(p.parts))
    path = Path(source.uri)
    if source.format is TextFormat.DATASET:
        return _below(path) if path.is_dir() else []
    if not path.exists():
        raise DataError(f"{field}.uri", f"{source.uri} does not exist", "give a file or a folder")
    if source.format is TextFormat.TOKENS:
        return _token_files(path, source.split, field)
    if not path.is_dir():
        return [path]
    wanted = _wanted(source.format)
    files = [one for one in _below(path) if _is_wanted(one, wanted)]
    if not files:
        names = ", ".join(sorted(wanted))
        raise DataError(f"{field}.uri", f"{source.uri} holds no {names} file", "put text there")
    return files


def _token_files(path: Path, split: str, field: str) -> list[Path]:
    """The file itself; of a folder that of the split, or all."""
    if not path.is_dir():
        if path.suffix == ".idx":
            path = path.with_suffix(".bin")
        if not path.is_file():
            raise DataError(f"{field}.uri", f"{path} does not exist", "give the .bin file")
        return [path]
    if (one := path / f"{split}.bin").is_file():
        return [one]
    files = [one for one in _below(path) if one.suffix == ".bin"]
    if not files:
        raise DataError(f"{field}.uri", f"{path} holds no .bin file", "put tokens there")
    return files


def _wanted(form: TextFormat) -> set[str]:
    """Suffixes of text in a folder."""
    return {
        TextFormat.AUTO: _TEXT | _LINES | {".parquet"},
        TextFormat.TEXT: _TEXT,
        TextFormat.PARQUET: {".parquet"},
    }[form]


def _is_wanted(path: PurePath, wanted: set[str]) -> bool:
    """In a folder `.json` alone is more often a description than text; compressed it is text."""
    suffix = _suffix(path)
    packed = path.suffix.lower() in _PACKED
    return suffix in wanted or (packed and suffix == ".json" and ".jsonl" in wanted)


def _below(root: Path) -> list[Path]:
    """The regular files below a folder that are not hidden, each real file once, sorted by path."""
    found: dict[tuple[int, int], Path] = {}
    folders: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder).stat()
        if (here.st_dev, here.st_ino) in folders:  # a link upwards
            below.clear()
            continue
        folders.add((here.st_dev, here.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                status = path.stat()
                found.setdefault((status.st_dev, status.st_ino), path)
    return sorted(found.values())


def opened(file: TextFile, field: str) -> BinaryIO:
    """The bytes of a file of text, decompressed if they are compressed, whatever its name says.

    Raises DataError for what is no text; reading from it raises OSError, EOFError, zlib.error,
    lzma.LZMAError or zstandard.ZstdError where it is damaged.
    """
    path = file.path
    if isinstance(path, Path) and not path.is_file():
        raise DataError(f"{field}.uri", f"{path} is no regular file", "give a file or a folder")
    raw = file.open()
    head = raw.peek(_HEAD)[:_HEAD]
    packing = next((name for magic, name in _OPENED.items() if head.startswith(magic)), None)
    text = _unpacked(raw, packing, path, field)
    head = text.peek(_HEAD)[:_HEAD]
    for magic, (what, remedy) in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{field}.uri", f"{path} {what}", remedy)
    if head[_TAR] == b"ustar":
        raise DataError(f"{field}.uri", f"{path} is a tar archive", "unpack it")
    return cast("BinaryIO", text)


def _unpacked(
    raw: io.BufferedReader, packing: str | None, path: PurePath, field: str
) -> io.BufferedReader:
    match packing:
        case "gz":
            return io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=raw)))
        case "xz":
            return io.BufferedReader(cast("io.RawIOBase", lzma.LZMAFile(raw)))
        case "bz2":
            return io.BufferedReader(cast("io.RawIOBase", bz2.BZ2File(raw)))
        case "zst":
            try:
                import zstandard
            except ImportError:
                raise DataError(
                    f"{field}.uri", f"{path} needs the `zstandard` library", "pip install zstandard"
                ) from None
            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            return io.BufferedReader(cast("io.RawIOBase", reader))
        case _:
            return raw
