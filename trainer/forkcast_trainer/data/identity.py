"""Whether the text is still what the run began with: other tokens are other windows, another order and
another held-out part, so losses would not compare and earlier training text might be held out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import structlog

from forkcast.ports import Store
from forkcast_trainer.data.tokens import RunTokens, Tokens
from forkcast_trainer.errors import DataError
from forkcast_wire import keys
from forkcast_wire.documents import DocumentError, TextIdentity, dump, load
from forkcast_wire.store import AlreadyExists, Conflict, KeyMissing

_log = structlog.get_logger()
_FIELD = "spec.data"
_REMEDY = "put the text back, or go on with this one: spec.training.changedText: Accept"


def identity_of(tokens: RunTokens) -> TextIdentity:
    """Of the tokens of a run; both parts may be of the same files."""
    count, digest = _identity(tokens.train)
    held_count, held_digest = _identity(tokens.held)
    return TextIdentity(
        tokens=count,
        sha256=digest,
        validation_tokens=held_count,
        validation_sha256=held_digest,
    )


def _identity(texts: Sequence[Tokens]) -> tuple[int, str]:
    """(ids, digest): of one file they are the file's own; of a mixture the digest is over names, shares
    and files of its texts, in their order.
    """
    files = [file for text in texts for file in text.files]
    if len(files) == 1:
        return files[0].count, files[0].sha256
    total = math.fsum(text.weight for text in texts)
    facts = [
        [text.label, text.weight / total, [(file.count, file.sha256) for file in text.files]]
        for text in texts
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return sum(file.count for file in files), digest


def claim(store: Store, ours: TextIdentity, *, accept: bool) -> None:
    """Record the text at the run's first start; later starts must have the same. accept: another one
    takes its place. A damaged record is written again.

    Raises DataError if the text is another, and StoreError.
    """
    while True:
        try:
            data, etag = store.get(keys.TEXT)
        except KeyMissing:
            try:
                store.put(keys.TEXT, dump(ours), create=True)
            except AlreadyExists:
                continue
            return
        theirs = _read(data)
        if theirs == ours:
            return
        if theirs is not None:
            if not accept:
                raise _changed(theirs, ours, _REMEDY)
            _log.warning("data.changed_text_accepted", rule=_changed(theirs, ours, "").rule)
        try:
            store.put(keys.TEXT, dump(ours), match=etag)
        except Conflict:
            continue
        return


def compare(store: Store, ours: TextIdentity) -> None:
    """Raises DataError if a rollout has another text than its run, and StoreError."""
    try:
        theirs = _read(store.get(keys.TEXT)[0])
    except KeyMissing:
        return  # of a version that did not record it
    agree(theirs, ours)


def agree(theirs: TextIdentity | None, ours: TextIdentity) -> None:
    """Raises DataError if two processes of a run have different texts; None: not known."""
    if theirs is not None and theirs != ours:
        raise _changed(theirs, ours, "give every pod of the run the same text")


def _read(data: bytes) -> TextIdentity | None:
    try:
        return load(TextIdentity, data)
    except DocumentError as error:
        _log.warning("data.identity_damaged", key=keys.TEXT, error=str(error))
        return None


def _changed(theirs: TextIdentity, ours: TextIdentity, remedy: str) -> DataError:
    part, before = "train", _shown(theirs.tokens, theirs.sha256)
    now = _shown(ours.tokens, ours.sha256)
    if before == now:
        part = "validation"
        before = _shown(theirs.validation_tokens, theirs.validation_sha256)
        now = _shown(ours.validation_tokens, ours.validation_sha256)
    rule = f"the text, its tokenizer or its mixture has changed: {now}, but the run has {before}"
    return DataError(f"{_FIELD}.{part}", rule, remedy)


def _shown(tokens: int, sha256: str) -> str:
    return f"{tokens:,} tokens ({sha256[:12]})"
