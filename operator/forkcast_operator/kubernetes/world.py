"""The cluster's world: what the store holds is shared; rollouts are Jobs, and main goes on."""

from __future__ import annotations

from collections.abc import Sequence

from forkcast_operator import clock
from forkcast_operator.kubernetes.rollouts import Act, GiveUp, plan
from forkcast_operator.kubernetes.seen import JobSeen
from forkcast_operator.stored import StoredWorld
from forkcast_wire import branches
from forkcast_wire.branches import Admission, BranchRecord
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import Remembered, read_document


class ClusterWorld(StoredWorld):
    """`World` for one branch of one run, over a look at its Jobs.

    What the branch needs of the cluster is not done here: `acts` lists it, and the holder of the
    connection to the API server does it.
    """

    def __init__(
        self,
        spec: TrainingRunSpec,
        store: Remembered,
        record: BranchRecord,
        monitor: MonitorStub,
        proxy: ProxyStub | None,
        jobs: Sequence[JobSeen],
    ) -> None:
        super().__init__(spec, store, record, monitor, proxy, direct=store.direct)
        self._jobs = [job for job in jobs if job.branch == record.name]
        self._admitted: Admission | None = None

    def started_at(self) -> float | None:
        """From its opening; rollouts that wait in a queue start the clock when the first of them is
        admitted, which is recorded, so that a restarted operator or a deleted Job changes nothing.
        """
        scheduling = self.spec.scheduling
        if not (scheduling.rollout_queue_name or scheduling.queue_name):
            return self.record.opened_at
        if self._admitted is None:
            self._admitted = read_document(self.store, Admission, self._key("admitted"))
        if self._admitted is None and any(job.admitted for job in self._jobs):
            self._create("admitted", Admission(at=clock.now()))
            self._admitted = read_document(self.store, Admission, self._key("admitted"))
        if self._admitted is not None:
            return self._admitted.at
        drafted = self.store.head(self._key("draft")) is not None
        return None if drafted else self.record.opened_at

    def _occupied(self) -> bool:
        return any(job.work.alive for job in self._jobs)

    def acts(self) -> list[Act]:
        """What is to be done with the branch's Jobs. Candidates whose Job failed are recorded."""
        rollouts = branches.rollouts(self.store, self.id)
        acts = plan(rollouts, self._jobs, self.spec.branching.max_concurrent_rollouts)
        for act in acts:
            if isinstance(act, GiveUp):
                branches.give_up(self.store, self.id, act.candidate, act.rung, act.failure)
        return [act for act in acts if not isinstance(act, GiveUp)]
