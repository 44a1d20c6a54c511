"""Token files in the store: the run's first process makes them, every other fetches them, so that a rollout
never tokenises.

A token file is named by its source, tokenizer and options. Its bytes come first and its card, with their
digest, last: without a card there is no token file. The store may fail or lie at any time: a
process that needs the tokens then makes them.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import structlog

from forkcast.ports import Store
from forkcast_trainer.data.tokens import Card, alone, card_of, kept, names
from forkcast_trainer.errors import DataError
from forkcast_wire import beats, keys
from forkcast_wire.documents import DocumentError, dump, load
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import Data
from forkcast_wire.store import KeyMissing, StoreError

_log = structlog.get_logger()


def fetch(store: Store, data: Data, folder: Path) -> None:
    """Let `tokens.prepare` find in the folder what the run has published of this text, if anything.

    Raises DataError where the text is not as the manifest says.
    """
    for name in names(data):
        if kept(folder, name) is not None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder), beats.during(beats.Phase.STORE):
            try:
                if kept(folder, name) is None:
                    _fetch(store, name, folder)
            except KeyMissing:
                continue
            except (StoreError, DocumentError, OSError) as error:
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


def publish(store: Store, data: Data, folder: Path) -> None:
    """Publish the token files of a text that `tokens.prepare` has left in the folder; what is damaged
    there is put again. Never raises for what the store or the disk does.
    """
    try:
        found = {name: kept(folder, name) for name in names(data)}
        for name, file in found.items():
            if file is not None and not _stands(store, name, card_of(file)):
                store.put_file(keys.token_file(name), file.path)
                store.put(keys.token_card(name), dump(card_of(file)))
    except (StoreError, DataError, OSError) as error:
        _log.warning("data.not_published", error=str(error))


def _stands(store: Store, name: str, card: Card) -> bool:
    """Whether the store has this card, and as many bytes as it says. Raises StoreError."""
    try:
        written = load(Card, store.get(keys.token_card(name))[0])
    except (KeyMissing, DocumentError):
        return False
    file = store.head(keys.token_file(name))
    return written == card and file is not None and file.size == card.size


def publish_aside(store: Store, data: Data, folder: Path) -> threading.Thread:
    """`publish` in a thread: training does not wait for it, nor does the end of the process."""
    thread = threading.Thread(target=publish, args=(store, data, folder), daemon=True)
    thread.start()
    return thread
