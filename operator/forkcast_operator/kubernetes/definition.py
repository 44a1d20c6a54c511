"""The cluster's definition of TrainingRun, which may be newer than this operator: definitions are
applied first in an upgrade, and stay in a rollback. It then fills in defaults that nobody here knows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from forkcast_operator.kubernetes.cluster import RUN, Cluster
from forkcast_operator.kubernetes.run import Run, SpecError
from forkcast_wire import newer
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.newer import Unknown

NEWER: Final = "NewerManifest"
#: A definition that does not explain a field is read again after this.
_FRESH_SECONDS: Final = 5.0


class Definition:
    """Reads specs by it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._schema: Mapping[str, Any] = {}
        self._read_at = float("-inf")

    async def spec(self, run: Run) -> tuple[TrainingRunSpec, tuple[str, ...]]:
        """The run's spec, and the fields that were left out of it: this operator does not know them,
        and they have the definition's defaults.

        Raises SpecError for a spec that cannot be carried out, NewerManifest for an unknown field
        that says something; ClusterError if the definition cannot be read.
        """
        spec, unknown = run.read()
        if unknown and self._meant(unknown):
            await self._refresh()
        if meant := self._meant(unknown):
            names = ", ".join(f"spec.{one}" for one in meant)
            raise SpecError(
                NEWER, f"{names}: {newer.RULE}; upgrade the operator, or remove the field"
            )
        return spec, tuple(f"spec.{one}" for one in unknown)

    def _meant(self, unknown: list[Unknown]) -> list[Unknown]:
        return [one for one in unknown if not newer.has_default(self._schema, one)]

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at < _FRESH_SECONDS:
            return
        schema = await self._cluster.schema(RUN)
        self._schema = schema.get("properties", {}).get("spec", {})
        self._read_at = time.monotonic()
