"""Where a tokenizer comes from, and what it is: a folder, a hub id, or the bytes themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from forkcast_trainer.data.encoder import Encode, restored
from forkcast_trainer.errors import DataError
from forkcast_wire.echo import first_line
from forkcast_wire.manifest_file import looks_like_path

BYTES: Final = "bytes"
_END_OF_TEXT_BYTE: Final = 256
_MARK: Final = "<|endoftext|>"


@dataclass(frozen=True)
class Tokenizer:
    """mark: the text of the end-of-text token, if it has one. described: what `restored` makes the same
    ``encode`` of in another process; None if it lives in this one only. sentinels: ids of <extra_id_0>,
    <extra_id_1>, ..., which T5's tokenizers have.
    """

    encode: Encode
    vocabulary_size: int
    end_of_text: int
    mark: str | None = None
    described: str | None = None
    sentinels: tuple[int, ...] = ()

    @property
    def dtype(self) -> Literal["uint16", "uint32"]:
        """Of the ids in a token file: little-endian, two bytes if they suffice."""
        return "uint16" if self.vocabulary_size <= 1 << 16 else "uint32"


def open_tokenizer(uri: str) -> Tokenizer:
    """``bytes``, a folder in Hugging Face layout (vocab.json and merges.txt suffice), or a hub id.

    Raises DataError.
    """
    if uri == BYTES:
        return Tokenizer(_bytes, _END_OF_TEXT_BYTE + 1, _END_OF_TEXT_BYTE)
    folder = Path(uri)
    if not folder.is_dir() and looks_like_path(uri):
        raise DataError(
            "spec.data.tokenizer", f"no such folder: {folder.absolute()}", "give a tokenizer folder"
        )
    gpt2 = (folder / "merges.txt").exists() and not (folder / "tokenizer.json").exists()
    try:
        return _byte_level_bpe(folder) if gpt2 else _hugging_face(uri)
    except Exception as error:  # noqa: BLE001  # the tokenizers library raises bare Exceptions
        first = first_line(error)
        what = uri if folder.is_dir() else f"{uri}: no such folder, and as a hub id"
        raise DataError(
            "spec.data.tokenizer", f"{what}: {first}", "give a tokenizer folder"
        ) from None


def _bytes(text: str, *, goes_on: bool = False) -> NDArray[np.integer]:  # noqa: ARG001
    return np.frombuffer(text.encode(), dtype=np.uint8)


def digest_of(uri: str) -> str:
    """Of what a tokenizer is made of: the files of a folder, whatever its path and their times; a hub
    id by its name. Raises OSError.
    """
    folder, digest = Path(uri), hashlib.sha256()
    if uri == BYTES or not folder.is_dir():
        return uri
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.name}\0{len(data)}\0".encode(errors="surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


def _hugging_face(uri: str) -> Tokenizer:
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(uri, trust_remote_code=False)
    fast = getattr(hf, "backend_tokenizer", None)
    if fast is not None:
        return _with_end(fast, hf.eos_token_id, hf.eos_token)

    def encode(text: str, *, goes_on: bool = False) -> NDArray[np.integer]:  # noqa: ARG001
        ids = hf(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return np.asarray(ids["input_ids"], dtype=np.int64)

    known = hf.get_vocab()
    sizes = _size(known.values(), hf.eos_token_id)
    return Tokenizer(encode, *sizes, hf.eos_token, sentinels=_sentinels(known))


def _byte_level_bpe(folder: Path) -> Tokenizer:
    """GPT-2's own layout: vocab.json and merges.txt."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers import Tokenizer as Fast

    bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return _with_end(Fast.from_str(bpe.to_str()), bpe.token_to_id(_MARK), _MARK)


def _with_end(fast: Any, end: int | None, mark: str | None) -> Tokenizer:
    described = str(fast.to_str())
    known = fast.get_vocab(with_added_tokens=True)
    sizes = _size(known.values(), end)
    mark = mark if end is not None else None
    return Tokenizer(restored(described), *sizes, mark, described, _sentinels(known))


def _sentinels(known: Mapping[str, int]) -> tuple[int, ...]:
    """In their order, as far as they go without a gap."""
    names = takewhile(known.__contains__, (f"<extra_id_{number}>" for number in count()))
    return tuple(known[name] for name in names)


def _size(ids: Iterable[int], end: int | None) -> tuple[int, int]:
    """(ids, the end-of-text id). A tokenizer without an end-of-text gets one more id for it, as bytes do:
    any id of its own would be a word.
    """
    size = max(ids) + 1
    return (size + 1, size) if end is None else (size, int(end))
