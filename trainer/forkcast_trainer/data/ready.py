"""Text that is tokenised already: files of ids are mapped where they are and copied nowhere.

Three layouts: Megatron-LM's indexed data set (`.bin`, and `.idx` beside it), a token file of ours (`.bin`, and
its card `.json`), and bare little-endian ids as nanoGPT writes them (`train.bin`, `val.bin`). A file is
read once, whole: for its digest, and because an id that the model has no row for would end the run
hours later, without a word on a GPU.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from forkcast_trainer.data.token_file import Card, IdType, TokenFile
from forkcast_trainer.errors import DataError
from forkcast_wire import beats
from forkcast_wire.documents import DocumentError, dump, load
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import TextSource

_MAGIC: Final = b"MMIDIDX\x00\x00"
_HEAD: Final = struct.Struct("<QBQQ")
#: Megatron-LM's numbers for the types that ids have.
_MEGATRON: Final[dict[int, IdType]] = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}
_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class _Layout:
    """What is known of a file of ids before it is read. sha256, vocabulary_size: if a card says."""

    dtype: IdType
    count: int
    sha256: str | None = None
    vocabulary_size: int | None = None


def ids_of(
    path: Path, name: str, source: TextSource, field: str, folder: Path, vocabulary: int | None
) -> TokenFile:
    """A file of ids, checked; the next time its card is found in the folder under ``name``, which is of
    its size and time, too. vocabulary: ids that the model has; None: what the file's own card says.

    Raises DataError.
    """
    card_path = folder / f"{name}.json"
    try:
        card = load(Card, card_path.read_bytes())
    except (OSError, DocumentError):
        card = _checked(path, source, field, vocabulary)
        replace_bytes(card_path, dump(card))
    return TokenFile(path=path, name=name, **asdict(card))


def _checked(path: Path, source: TextSource, field: str, vocabulary: int | None) -> Card:
    def wrong(rule: str, remedy: str, name: str = "uri") -> DataError:
        return DataError(f"{field}.{name}", f"{path}: {rule}", remedy)

    try:
        layout = _layout(path, source, wrong)
        vocabulary = vocabulary or layout.vocabulary_size
        if vocabulary is None:
            raise DataError(
                "spec.data.vocabularySize",
                "is not set, and tokens do not say which tokenizer they are of",
                "set it, or give the tokenizer",
            )
        digest = _read(path, layout, vocabulary, wrong)
    except OSError as error:
        raise wrong(error.strerror or type(error).__name__, "make it readable") from None
    if layout.sha256 not in (None, digest):
        raise wrong("its bytes are not those of its card", "copy it again")
    return Card(
        dtype=layout.dtype,
        count=layout.count,
        vocabulary_size=vocabulary,
        end_of_text=None,
        sha256=digest,
    )


def _layout(path: Path, source: TextSource, wrong: Callable[..., DataError]) -> _Layout:
    size = path.stat().st_size
    if not size:
        raise wrong("is empty", "give some tokens")
    index, card = path.with_suffix(".idx"), path.with_suffix(".json")
    if index.exists():
        layout = _megatron(index, wrong)
    elif card.exists():
        try:
            found = load(Card, card.read_bytes())
        except DocumentError as error:
            raise wrong(f"{card.name}: {error}", "give the card that belongs to it") from None
        layout = _Layout(found.dtype, found.count, found.sha256, found.vocabulary_size)
    else:
        kind: IdType = "uint16" if source.id_type is None else source.id_type.numpy
        width = np.dtype(kind).itemsize
        if size % width:
            rule = f"{size:,} bytes are no whole number of {kind} ids: it is cut short, or of other ids"
            raise wrong(rule, "copy it again, or set idType", "idType")
        return _Layout(kind, size // width)
    wanted = layout.count * np.dtype(layout.dtype).itemsize
    if size != wanted:
        rule = f"has {size:,} bytes, but its index or card says {wanted:,}"
        raise wrong(rule, "copy it again")
    return layout


def _megatron(index: Path, wrong: Callable[..., DataError]) -> _Layout:
    """Reads no more of an index than is there, whatever it says."""
    with index.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise wrong(f"{index.name} is no index of Megatron-LM's", "give the one beside it")
        head = file.read(_HEAD.size)
        size = index.stat().st_size - len(_MAGIC) - _HEAD.size
        version, code, sequences, documents = _HEAD.unpack(head) if size >= 0 else (0, 0, 0, 0)
        if version != 1 or code not in _MEGATRON:
            rule = f"{index.name} is of version {version}, ids of type {code}"
            raise wrong(rule, "write it with version 1 and integer ids")
        if size < sequences * 12 + documents * 8:
            raise wrong(f"{index.name} is cut short", "copy it again")
        width, count = np.dtype(_MEGATRON[code]).itemsize, 0
        lengths_at = file.tell()
        for first in range(0, sequences, _CHUNK):
            many = min(_CHUNK, sequences - first)
            file.seek(lengths_at + 4 * first)
            lengths = np.fromfile(file, dtype="<i4", count=many).astype(np.int64)
            file.seek(lengths_at + 4 * sequences + 8 * first)
            pointers = np.fromfile(file, dtype="<i8", count=many)
            begins = count + np.cumsum(lengths) - lengths
            if (lengths < 0).any() or not np.array_equal(begins * width, pointers):
                rule = f"{index.name}: its sequences do not follow one another in the file"
                raise wrong(rule, "merge them into one data set with Megatron-LM's own tool")
            count += int(lengths.sum())
    return _Layout(_MEGATRON[code], count)


def _read(path: Path, layout: _Layout, vocabulary: int, wrong: Callable[..., DataError]) -> str:
    """The digest. Raises OSError, and DataError for an id that is none."""
    digest, seen = hashlib.sha256(), 0
    width = np.dtype(layout.dtype).itemsize
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            beats.beat()
            digest.update(chunk)
            ids = np.frombuffer(chunk[: len(chunk) // width * width], dtype=layout.dtype)
            low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
            if low < 0 or high >= vocabulary:
                bad = seen + int(np.argmax((ids < 0) | (ids >= vocabulary)))
                rule = f"id {low if low < 0 else high} of token {bad:,} or after it is outside the "
                rule += f"vocabulary of {vocabulary:,}"
                remedy = "set vocabularySize or the tokenizer that made the tokens, or idType"
                raise wrong(rule, remedy)
            seen += len(ids)
    return digest.hexdigest()
