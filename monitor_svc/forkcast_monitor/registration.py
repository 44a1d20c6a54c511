"""Which runs a monitor serves, durable: one folder a run, its registration in it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from forkcast_monitor.config import DetectorConfig, configure
from forkcast_wire.documents import DocumentError, dump, load
from forkcast_wire.fields import MOST_STEPS
from forkcast_wire.files import replace_bytes
from forkcast_wire.manifest import Mode, Uncertainty
from forkcast_wire.run_folder import REGISTRATION

_log = structlog.get_logger()
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MOST_JSON = 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A run as it was registered. uncertainty: `spec.uncertainty` as JSON, '' for the shipped
    rules. total_steps: 0 where unknown.
    """

    run_uid: str
    name: str
    namespace: str
    uncertainty: str
    mode: str
    total_steps: int

    def config(self) -> DetectorConfig:
        """The rules in force. Raises ValueError, naming the field that is wrong."""
        try:
            given = Uncertainty.model_validate_json(self.uncertainty or "{}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["uncertainty_json", *(str(part) for part in first["loc"])])
            raise ValueError(f"{where}: {first['msg']}") from None
        return configure(given)

    def check(self) -> None:
        """Raises ValueError, naming the field that is wrong."""
        if not _UID.fullmatch(self.run_uid):
            raise ValueError("run_uid: 1 to 64 of A-Z, a-z, 0-9, '-' and '_'")
        for field, value in (("name", self.name), ("namespace", self.namespace)):
            if not _LABEL.fullmatch(value):
                raise ValueError(f"{field}: must be a DNS label, lower case, at most 63 characters")
        modes = [one.value for one in Mode if one is not Mode.DISABLED]
        if self.mode not in modes:
            raise ValueError(f"mode: must be one of {', '.join(modes)}")
        if len(self.uncertainty.encode()) > _MOST_JSON:
            raise ValueError(f"uncertainty_json: at most {_MOST_JSON} bytes")
        if self.total_steps > MOST_STEPS:
            raise ValueError(f"total_steps: at most {MOST_STEPS}")
        self.config()


class RunFolders:
    """The folders of all registered runs. A name is a checked uid, so none leads elsewhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "runs"
        self._forgotten = folder / "forgotten"
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._forgotten, ignore_errors=True)  # of a process that died deleting
        self._forgotten.mkdir(exist_ok=True)

    def all(self) -> list[Registration]:
        """Every registration that can be read; the operator registers the others again."""
        found = []
        for path in sorted(self._folder.glob(f"*/{REGISTRATION}")):
            try:
                found.append(load(Registration, path.read_bytes()))
            except (OSError, DocumentError) as error:
                _log.error("monitor.registration_not_read", path=str(path), reason=str(error))
        return found

    def save(self, registration: Registration) -> None:
        """Make a registration durable. Raises OSError."""
        folder = self.path(registration.run_uid)
        folder.mkdir(exist_ok=True)
        replace_bytes(folder / REGISTRATION, dump(registration))

    def delete(self, run_uid: str) -> None:
        """Delete a run's folder; once this has begun, no restart knows the run. Raises OSError."""
        gone = self._forgotten / run_uid
        shutil.rmtree(gone, ignore_errors=True)
        self.path(run_uid).replace(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def path(self, run_uid: str) -> Path:
        """The folder of a checked uid."""
        return self._folder / run_uid
