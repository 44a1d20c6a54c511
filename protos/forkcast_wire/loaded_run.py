"""A run's records for analysis: `forkcast.load_run(PLACE)` gives steps and events as tables.

run = forkcast.load_run("runs/quickstart")
run.steps().select(["step", "loss"])  # a pyarrow Table
run.events_frame()  # a pandas DataFrame
"""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from forkcast.lineage import LineageEntry
from forkcast.ports import Store
from forkcast.records import Trigger
from forkcast_wire import keys
from forkcast_wire.completion import ended
from forkcast_wire.documents import Complete, DocumentError, RunInfo, load
from forkcast_wire.manifest import Storage
from forkcast_wire.manifest_error import ManifestError
from forkcast_wire.manifest_file import load_manifest
from forkcast_wire.run_events import RunEvent, events_of, triggers_of
from forkcast_wire.run_folder import read_manifest
from forkcast_wire.run_records import BranchView, RecordsReader
from forkcast_wire.run_steps import Row, abandoned, read_steps, with_recorded_losses
from forkcast_wire.statistics import former_tails, tail_of, to_table
from forkcast_wire.store import KeyMissing, StoreRefused, StoreUnavailable, open_store

T = TypeVar("T")
_BUCKET: Final = "s3://"
#: What any run with a step on record has some of.
_SIGNS: Final = (
    keys.HISTORY_PREFIX,
    keys.ATTEMPTS_PREFIX,
    keys.LINEAGE_PREFIX,
    keys.BRANCHES_PREFIX,
    keys.SUPPRESSED_PREFIX,
    "checkpoints/",
    "ring/",
)
_EVENTS: Final = pa.schema(
    [
        ("run_uid", pa.string()),
        ("epoch", pa.int64()),
        ("step", pa.int64()),
        ("onset_step", pa.int64()),
        ("tier", pa.int64()),
        ("component", pa.string()),
        ("cause", pa.string()),
        ("rule", pa.string()),
        ("z", pa.float64()),
        ("branch", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
    ]
)


class LoadedRun:
    """A run as its records were when it was loaded.

    name: of the run; of the folder or prefix if the records do not say. run_uid: "" if nothing does.
    branches: by (epoch, step). lineage: by epoch, without epoch 0. triggers: all that fired, those
    that opened no branch included. complete: the end on record, None without one; ended: whether the run
    has taken all steps that are wanted now.
    damaged: what is wrong with each document that is left out because it cannot be read.
    """

    def __init__(
        self, name: str, store: Store, statistics: Path, total_steps: int | None = None
    ) -> None:
        """statistics: the monitor's folder of rows; it need not exist. total_steps: wanted; None if only
        the record of the end tells. Raises StoreError.
        """
        info = _document(store, RunInfo, keys.RUN)
        self.name = info.name if info is not None else name
        self._uid = info.uid if info is not None else ""
        self._store, self._statistics = store, statistics
        records = RecordsReader(store).read()
        self.branches: list[BranchView] = records.branches
        self.lineage: list[LineageEntry] = records.lineage
        self.triggers: list[Trigger] = triggers_of(records)
        self._records = records
        self.damaged: tuple[str, ...] = records.damaged
        self.complete = _document(store, Complete, keys.COMPLETE)
        self.ended = ended(self.complete, total_steps or 0)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows behind `steps`, by (epoch, step). Raises HistoryError, StoreError."""
        found = read_steps(self._statistics, self._store, self.lineage)
        decisions = [one.decision for one in self.branches if one.decision is not None]
        adopted = with_recorded_losses(found.adopted, self.lineage, decisions)
        rows = [{**row, "adopted": False} for row in found.own]
        rows += [{**row, "adopted": True} for row in adopted]
        return sorted(rows, key=lambda row: (row["epoch"], row["step"]))

    @cached_property
    def event_records(self) -> list[RunEvent]:
        """The events behind `events`. Raises HistoryError, StoreError."""
        return events_of(self._records, self.rows)

    @property
    def run_uid(self) -> str:
        """The same in every attempt. Raises HistoryError, StoreError."""
        return self._uid or next((row["run_uid"] for row in self.rows), "")

    def steps(self) -> pa.Table:
        """One row a step, by (epoch, step): the columns of docs/statistics.md, and

        adopted: whether an adopted rollout took the step instead of the main run;
        abandoned: whether a later collapse went back behind it. The rows that are not abandoned are
        the run as it stands, each step once.

        Raises HistoryError if a chunk is damaged, StoreError.
        """
        rows = self.rows
        gone = [self.abandoned(row) for row in rows]
        table = to_table(rows)
        table = table.append_column("adopted", pa.array([r["adopted"] for r in rows], pa.bool_()))
        return table.append_column("abandoned", pa.array(gone, pa.bool_()))

    def abandoned(self, row: Row) -> bool:
        """Whether a later collapse went back behind a row's step."""
        return abandoned(self.lineage, row)

    def events(self) -> pa.Table:
        """One row an event, by (epoch, step), with the columns of `RunEvent`."""
        return pa.Table.from_pylist([asdict(one) for one in self.event_records], _EVENTS)

    def steps_frame(self) -> Any:
        """`steps` as a pandas DataFrame. Raises ModuleNotFoundError without pandas."""
        return _frame(self.steps())

    def events_frame(self) -> Any:
        """`events` as a pandas DataFrame. Raises ModuleNotFoundError without pandas."""
        return _frame(self.events())


def load_run(
    place: str | os.PathLike[str],
    *,
    endpoint: str | None = None,
    region: str | None = None,
    credentials_dir: str | None = None,
    ca_file: str | None = None,
) -> LoadedRun:
    """The run at a place: a work directory, a store's folder, a manifest whose storage section names
    the store, or ``s3://bucket/prefix``. Nothing is written there.

    endpoint: of the S3 API; AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or AWS itself by default.
    region: AWS_REGION, AWS_DEFAULT_REGION or us-east-1 by default. credentials_dir, ca_file: as in a
    manifest's storage section; without, the keys are looked for as AWS's own tools do.

    Raises ManifestError (a ValueError) where there is no run, or it cannot be read; StoreError.
    """
    text = os.fspath(place)
    if not text.startswith(_BUCKET):
        return _local(Path(text))
    storage = _bucket(text, endpoint, region, credentials_dir, ca_file)
    store = open_store(storage, Path(), write=False)
    name = storage.prefix.removesuffix("/").rpartition("/")[2]
    try:
        _check_run(text, store)
        return LoadedRun(name or text, store, Path(os.devnull))
    except StoreUnavailable as error:
        remedy = "check bucket, keys and rights"
        if not isinstance(error, StoreRefused):
            remedy = "check the endpoint"
        why = error.why.removeprefix("spec.storage: ")
        said = f"{text} at {storage.endpoint}: {why}; {remedy}"
        raise type(error)(said, why=error.why) from None


def _local(path: Path) -> LoadedRun:
    """Raises ManifestError."""
    if not path.exists():
        raise ManifestError(str(path), "does not exist", "give a run's work directory or store")
    try:
        manifest = load_manifest(path) if path.is_file() else read_manifest(path)
    except FileNotFoundError:  # a store's folder
        store = open_store(Storage(), path, write=False)
        statistics = path / "statistics"
        tails = [tail_of(statistics), *former_tails(statistics)]
        if not any(one.exists() for one in (statistics, *tails)):
            _check_run(str(path), store)
        return LoadedRun(path.resolve().name, store, statistics)
    store = open_store(manifest.spec.storage, path, write=False)
    total = manifest.spec.training.total_steps
    return LoadedRun(manifest.metadata.name, store, path / "statistics", total)


def _check_run(place: str, store: Store) -> None:
    """Raises ManifestError if the store holds no record of a run."""
    if not any(_some(store, sign) for sign in _SIGNS):
        raise ManifestError(place, "holds no run", _elsewhere(store))


def _some(store: Store, prefix: str) -> bool:
    return next(iter(store.list(prefix)), None) is not None


def _elsewhere(store: Store) -> str:
    """The remedy: a run of those below, if it is a place of many."""
    found = (info.key for info in store.list(""))
    below = next((key for key in found if key.endswith(f"/{keys.RUN}")), None)
    if below is not None:
        return f"there is one below, at {below.removesuffix(keys.RUN)}"
    return "give a run's work directory, or the folder or prefix of its store"


def _bucket(
    url: str,
    endpoint: str | None,
    region: str | None,
    credentials_dir: str | None,
    ca_file: str | None,
) -> Storage:
    bucket, _, prefix = url.removeprefix(_BUCKET).partition("/")
    signed = region or _variable("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"
    server = endpoint or _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    try:
        return Storage(
            bucket=bucket,
            prefix=prefix,
            endpoint=server or f"https://s3.{signed}.amazonaws.com",
            region=signed,
            credentials_dir=credentials_dir,
            ca_file=ca_file,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "storage"
        said = first["msg"].removeprefix("Value error, ")
        rule, _, remedy = said.partition("; ")
        raise ManifestError(url, f"{field}: {rule}", remedy or "give s3://BUCKET/PREFIX") from None


def _variable(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _document(store: Store, kind: type[T], key: str) -> T | None:
    """None if there is none, or it is damaged: the rest of the run can be read without."""
    try:
        return load(kind, store.get(key)[0])
    except (KeyMissing, DocumentError):
        return None


def _frame(table: pa.Table) -> Any:
    try:
        import pandas  # noqa: F401, ICN001  for its name in the error
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a frame needs pandas, which is not installed; pip install 'forkcast[pandas]', or take "
            "the arrow table of steps() or events()",
            name="pandas",
        ) from None
    return table.to_pandas(maps_as_pydicts="strict")
