"""The local world: one machine, a store, and services on Unix sockets."""

from __future__ import annotations

import json
from pathlib import Path

from forkcast.ports import Store
from forkcast_operator.stored import StoredWorld
from forkcast_wire.branches import BranchRecord
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from forkcast_wire.manifest import TrainingRunSpec


class LocalWorld(StoredWorld):
    """`World` for one branch of one run. The rollout server of the folder runs what is desired."""

    def __init__(
        self,
        spec: TrainingRunSpec,
        store: Store,
        record: BranchRecord,
        monitor: MonitorStub,
        proxy: ProxyStub | None,
        workdir: Path,
        *,
        direct: Store | None = None,
    ) -> None:
        super().__init__(spec, store, record, monitor, proxy, direct=direct)
        self._workdir = workdir

    def _held(self) -> bool:
        """Whether the main run waits. A directive that a dying monitor took with it has had no
        effect, so the effect is looked at, and the directive comes again.
        """
        try:
            progress = json.loads((self._workdir / "progress.json").read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(progress, dict) and progress.get("state") == "held"
