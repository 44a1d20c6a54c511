"""Token files in the store: the run's first process makes them, every other fetches them, so that a rollout
never tokenises.

A token file is named by its source, tokenizer and options. Its bytes come first and its card, with their
digest, last: without a card there is no token file. The store may fail or lie at any time: a
process that needs the tokens then makes them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from forkcast.ports import Store
from forkcast_trainer.data.hub import commits_of
from forkcast_trainer.data.sources import Texts, locate
from forkcast_trainer.data.token_file import Card, TokenFile, alone, card_of, kept
from forkcast_trainer.data.tokens import RunTokens, prepare
from forkcast_wire import beats, keys
from forkcast_wire.documents import DocumentError, dump, load
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import Data, Storage
from forkcast_wire.store import KeyMissing, StoreError

_log = structlog.get_logger()


def prepared(
    store: Store, data: Data, folder: Path, *, progress: bool, storage: Storage | None = None
) -> RunTokens:
    """`tokens.prepare`, with what the run has published of its texts. storage: of the run. Raises
    DataError.
    """
    texts = locate(data, storage, commits_of(store, data))
    damaged = fetch(store, texts, folder)
    tokens = prepare(data, folder, progress=progress, texts=texts)
    if damaged:
        publish_aside(store, [file for file in tokens.files if file.name in damaged])
    return tokens


def fetch(store: Store, texts: Texts, folder: Path) -> set[str]:
    """Let `tokens.prepare` find in the folder what the run has published of these texts, if anything.
    Returns the names of token files that are damaged in the store; their cards are taken back, so that
    a process that has the tokens publishes them again.
    """
    damaged = set()
    _fetch_cards(store, texts, folder)
    for name in {text.name: None for text in texts.all if not text.ready}:
        if kept(folder, name) is not None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder), beats.during(beats.Phase.STORE):
            try:
                if kept(folder, name) is None:
                    _fetch(store, name, folder)
            except KeyMissing:
                continue
            except DocumentError as error:
                _log.warning("data.damaged", name=name, error=str(error))
                damaged.add(name)
                with suppress(StoreError):
                    store.delete(keys.token_card(name))
            except (StoreError, OSError) as error:
                _log.warning("data.not_fetched", name=name, error=str(error))
    return damaged


def _fetch_cards(store: Store, texts: Texts, folder: Path) -> None:
    """What the run has found out about files of ids that it does not own: they are read once, not by each
    of its processes.
    """
    for name in [name for text in texts.all if text.ready for name in text.names]:
        card = folder / f"{name}.json"
        if card.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(KeyMissing), beats.during(beats.Phase.STORE):
            try:
                written = store.get(keys.token_card(name))[0]
                replace_bytes(card, dump(load(Card, written)))
            except (StoreError, DocumentError, OSError) as error:
                if not isinstance(error, KeyMissing):
                    _log.warning("data.not_fetched", name=name, error=str(error))


def _fetch(store: Store, name: str, folder: Path) -> None:
    """Raises KeyMissing, StoreError, DocumentError, OSError."""
    written = store.get(keys.token_card(name))[0]
    card, path = load(Card, written), folder / f"{name}.bin"
    store.get_file(keys.token_file(name), path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != card.sha256 or path.stat().st_size != card.size:
        path.unlink()
        raise DocumentError(f"{keys.token_file(name)}: its bytes are not those of its card")
    replace_bytes(folder / f"{name}.json", dump(card))
    _log.info("data.fetched", name=name, tokens=card.count)


def publish(store: Store, files: Sequence[TokenFile]) -> None:
    """Publish token files of this machine; what is damaged in the store is put again. Never raises for
    what the store or the disk does.
    """
    for file in files:
        name, card = file.name, card_of(file)
        try:
            if not _stands(store, name, card, file=file.ours):
                if file.ours:
                    store.put_file(keys.token_file(name), file.path)
                store.put(keys.token_card(name), dump(card))
        except (StoreError, OSError) as error:
            _log.warning("data.not_published", name=name, error=str(error))


def _stands(store: Store, name: str, card: Card, *, file: bool) -> bool:
    """Whether the store has this card, and as many bytes as it says if it is to have the file. Raises
    StoreError.
    """
    try:
        written = load(Card, store.get(keys.token_card(name))[0])
    except (KeyMissing, DocumentError):
        return False
    if written != card or not file:
        return written == card
    there = store.head(keys.token_file(name))
    return there is not None and there.size == card.size


def publish_aside(store: Store, files: Sequence[TokenFile]) -> threading.Thread:
    """`publish` in a thread: training does not wait for it, nor does the end of the process."""
    thread = threading.Thread(target=publish, args=(store, files), daemon=True)
    thread.start()
    return thread
