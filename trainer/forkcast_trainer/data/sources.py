"""The texts of a run, found: each with its files as they are now, and the name that its tokens have by them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from forkcast_trainer.data.files import LocalFile, TextFile, source_files, text_files
from forkcast_trainer.data.hub import pinned
from forkcast_trainer.data.tokenizer import digest_of
from forkcast_trainer.errors import DataError
from forkcast_wire.manifest import Data, Storage, TextFormat, TextSource

#: Of the rules by which text becomes ids; with other rules a kept file is another's.
_RULES: Final = 2
_HELD: Final = "spec.data.validation.source"
#: What a source has said since the first version; what came later counts where it is given.
_EVER: Final = {"uri", "format", "config_name", "split", "text_column", "max_bytes"}


@dataclass(frozen=True)
class Located:
    """A text of the run. name: of its token file, a digest of source, tokenizer and options. label,
    weight: of a mixture's text; a text that is alone has the label train and the weight 1. files: of
    text, none for a data set of the hub. ready: the files of a text that is tokenised already, each with a name of its own.
    """

    source: TextSource
    field: str
    name: str
    label: str = "train"
    weight: float = 1.0
    files: Sequence[TextFile] = ()
    ready: Sequence[tuple[str, Path]] = ()

    @property
    def names(self) -> Sequence[str]:
        """Of all its token files."""
        return [name for name, _ in self.ready] or [self.name]


@dataclass(frozen=True)
class Texts:
    """The texts of a run. held: the held-out one, where it is a text of its own."""

    train: Sequence[Located]
    held: Located | None

    @property
    def all(self) -> Sequence[Located]:
        """Each of them."""
        return [*self.train, *([self.held] if self.held is not None else [])]


def locate(
    data: Data, storage: Storage | None = None, commits: Mapping[str, str] = MappingProxyType({})
) -> Texts:
    """The texts of a manifest, looked at once. storage: of the run. commits: of data sets of the hub, see
    `hub.commits_of`. Raises DataError.
    """
    tokenizer = _digest_of(data.tokenizer)
    if data.vocabulary_size is not None:
        of_tokens = f"{tokenizer}\0{data.vocabulary_size}"
    else:
        of_tokens = tokenizer

    def located(source: TextSource, field: str) -> Located:
        if source.format is not TextFormat.TOKENS:
            source = pinned(source, commits)
            found = text_files(source, field, data.s3, storage)
            return Located(source, field, _name(source, tokenizer, found), files=found)
        files = source_files(source, field)
        ready = [(_name(source, of_tokens, [LocalFile(path)]), path) for path in files]
        return Located(source, field, ready[0][0], ready=ready)

    train = [located(one, field) for field, one in data.texts()]
    if data.mixture:
        train = [
            replace(found, label=one.name, weight=one.weight)
            for found, one in zip(train, data.mixture, strict=True)
        ]
    source = data.validation.source
    if source is None:
        return Texts(train, None)
    return Texts(train, replace(located(source, _HELD), label="validation"))


def _digest_of(tokenizer: str) -> str:
    try:
        return digest_of(tokenizer)
    except OSError as error:
        rule = f"{tokenizer}: {error.strerror}"
        raise DataError("spec.data.tokenizer", rule, "make it readable") from None


def _name(source: TextSource, tokenizer_digest: str, files: Sequence[TextFile]) -> str:
    """A digest of what goes in: the source, the tokenizer, and the size and time of the source's files."""
    seen = [file.seen for file in files]
    text = json.dumps([_RULES, _facts(source), tokenizer_digest, seen])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _facts(source: TextSource) -> dict[str, object]:
    """What of a source its tokens depend on: two mixtures share the token file of a text."""
    said = source.model_dump(mode="json", exclude={"name", "weight"})
    return {name: value for name, value in said.items() if name in _EVER or value is not None}
