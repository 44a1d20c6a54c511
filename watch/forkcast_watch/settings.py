"""What `forkcast.watch` is told, checked before anything is hooked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forkcast_monitor.config import configure
from forkcast_watch.trackers import named
from forkcast_watch.trackers.base import Tracker
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_error import ManifestError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


class WatchError(ValueError):
    """A setting that cannot be used: field, rule, remedy."""

    def __init__(self, field: str, rule: str, remedy: str) -> None:
        super().__init__(f"{field}: {rule}; {remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """folder: of the run; runs/<name> by default. name: lower-case, shown in lists; made from the time by
    default. monitor: "" to start one beside the training, or the address of a monitor (host:port or
    unix:path), reached as FORKCAST_TLS_CA, FORKCAST_TLS_CERT, FORKCAST_TLS_KEY, FORKCAST_TOKEN_FILE or
    FORKCAST_INSECURE_DEV say. namespace: under which that monitor knows the run.
    start_step: optimizer steps already taken, > 0 after a resume. total_steps, tokens_per_step: where
    they are known. uncertainty: as `spec.uncertainty` of a manifest. trackers: further places for
    the steps and events, in a text (``tensorboard:DIR``, see forkcast_watch.trackers) or of one's own.
    sample_every: steps between two samples of RMS_t, update ratio and norms by group. inside_every: of
    attention and activations; 0 for none.
    scaler: torch's GradScaler, if the loop uses one.
    """

    folder: str | Path | None = None
    name: str | None = None
    monitor: str = ""
    namespace: str = "default"
    start_step: int = 0
    total_steps: int | None = None
    tokens_per_step: int | None = None
    uncertainty: Mapping[str, Any] | None = None
    trackers: Sequence[str | Tracker] = ()
    sample_every: int = 10
    inside_every: int = 50
    scaler: Any = None

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            rule = f"{self.name!r} is not lower-case letters, digits and '-', at most 40"
            raise WatchError("name", rule, "choose another")
        for field, least in (
            ("start_step", 0),
            ("total_steps", 1),
            ("tokens_per_step", 1),
            ("sample_every", 1),
            ("inside_every", 0),
        ):
            value = getattr(self, field)
            if value is not None and (type(value) is not int or value < least):
                rule = f"{value!r} is not an integer of at least {least}"
                raise WatchError(field, rule, "change it or leave it out")
        if isinstance(self.trackers, str):
            rule = f"{self.trackers!r} is a text, not a list of them"
            raise WatchError("trackers", rule, f"write [{self.trackers!r}]")
        for tracker in self.trackers:
            if isinstance(tracker, str):
                try:
                    named(tracker)
                except ManifestError as error:
                    raise WatchError(error.field, error.rule, error.remedy) from None
        try:
            configure(Uncertainty.model_validate(dict(self.uncertainty or {})))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["uncertainty", *map(str, first["loc"])])
            raise WatchError(where, str(first["msg"]), "change it or leave it out") from None
        except ValueError as error:
            raise WatchError("uncertainty", str(error), "change it or leave it out") from None

    @property
    def rules(self) -> str:
        """The uncertainty section as JSON, "" for the shipped rules."""
        return json.dumps(dict(self.uncertainty)) if self.uncertainty else ""

    def place(self) -> tuple[str, Path]:
        """(name, folder) with the defaults filled in."""
        name = self.name
        if name is None and self.folder is not None:
            name = name_of(Path(self.folder))
        name = name or datetime.now(UTC).strftime("watched-%Y%m%d-%H%M%S-%f")
        folder = Path(self.folder) if self.folder is not None else Path("runs") / name
        return name, folder.absolute()


def name_of(folder: Path) -> str | None:
    """A run's name like the folder's, if one can be made of it."""
    text = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:40].strip("-")
    return text or None
