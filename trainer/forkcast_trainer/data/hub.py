"""Data sets of the hub: which commit a run reads, pinned at its first start; and their rows, streamed.

A token for a private data set comes from HF_TOKEN or the library's own login.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from forkcast.ports import Store
from forkcast_trainer.errors import DataError
from forkcast_wire import beats, keys
from forkcast_wire.documents import TextCommits
from forkcast_wire.echo import first_line
from forkcast_wire.manifest import Data, TextFormat, TextSource
from forkcast_wire.store import read_document, update_document, wait_for

_log = structlog.get_logger()


def name_of(source: TextSource) -> str:
    """Of what is pinned: the data set, and the branch, tag or commit that is asked for."""
    return f"{source.uri}@{source.revision or ''}"


def pinned(source: TextSource, commits: Mapping[str, str]) -> TextSource:
    """The source at the commit that its run has pinned; as it is if there is none."""
    commit = commits.get(name_of(source))
    return source if commit is None else source.model_copy(update={"revision": commit})


def commits_of(store: Store, data: Data) -> Mapping[str, str]:
    """The commit of each data set of the hub, by `name_of`: resolved at the run's first start, and kept, so
    that a later push changes nothing. A run that has begun without goes on without.

    Raises DataError for a data set that does not exist, StoreError.
    """
    sources = [*data.texts()]
    if data.validation.source is not None:
        sources.append(("spec.data.validation.source", data.validation.source))
    wanted = {name_of(one): (field, one) for field, one in sources if _is_on_the_hub(one)}
    if not wanted:
        return {}
    found = wait_for(lambda: read_document(store, TextCommits, keys.TEXT_COMMITS), None)
    known = {} if found is None else found.commits
    if all(name in known for name in wanted):
        return known
    if found is None and wait_for(lambda: store.head(keys.TEXT), None) is not None:
        return {}
    new = {
        name: commit
        for name, (field, one) in wanted.items()
        if name not in known and (commit := _resolved(one, field)) is not None
    }
    if not new:
        return known
    # the first process of a run that says so wins
    return wait_for(
        lambda: update_document(
            store,
            TextCommits,
            keys.TEXT_COMMITS,
            TextCommits(commits={}),
            lambda before: TextCommits(commits=new | before.commits),
        ),
        None,
    ).commits


def _is_on_the_hub(source: TextSource) -> bool:
    return source.format is TextFormat.DATASET and not Path(source.uri).is_dir()


def _resolved(source: TextSource, field: str) -> str | None:
    """The commit; None where the hub cannot be asked: then the library's cache may do. Raises DataError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        with beats.during(beats.Phase.STORE):
            info = HfApi().dataset_info(source.uri, revision=source.revision, timeout=30)
    except RepositoryNotFoundError:
        rule = f"{source.uri}: no such data set, or it is private"
        raise DataError(f"{field}.uri", rule, "correct its name, or set HF_TOKEN") from None
    except RevisionNotFoundError:
        rule = f"{source.uri} has no revision {source.revision}"
        raise DataError(f"{field}.revision", rule, "give a branch, tag or commit") from None
    except Exception as error:  # noqa: BLE001  what the HTTP library below raises is nobody's promise
        _log.warning("data.revision_not_pinned", source=source.uri, error=first_line(error))
        return None
    return str(info.sha)


def rows(source: TextSource, field: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set of the hub, of the library's own cache where there is no network, or of a
    local folder in its layout (train-*.parquet, validation-*.parquet, data/...); no more of it is
    loaded than is read. Raises DataError.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{field}.format", "Dataset needs the `datasets` library", "pip install datasets"
        ) from None
    revision = source.revision if _is_on_the_hub(source) else None
    try:
        yield from datasets.load_dataset(
            source.uri, source.config_name, split=source.split, revision=revision, streaming=True
        )
    except Exception as error:
        rule = f"data set {source.uri} cannot be loaded: {first_line(error)}"
        raise DataError(f"{field}.uri", rule, "check its name, and HF_TOKEN if private") from error
