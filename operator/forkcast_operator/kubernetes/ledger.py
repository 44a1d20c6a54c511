"""A run's records in the store: what they show, and one pass over its open branches. Blocking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from forkcast.decision import Outcome
from forkcast.loop import reconcile
from forkcast.phases import Finished, Phase, Verifying
from forkcast.ports import Store
from forkcast.records import StateKind, Trigger
from forkcast_operator.intake import Intake, Received
from forkcast_operator.kubernetes.loss import refuse_loss
from forkcast_operator.kubernetes.rollouts import Act
from forkcast_operator.kubernetes.run import Run, SpecError
from forkcast_operator.kubernetes.run_facts import StoreFacts
from forkcast_operator.kubernetes.seen import JobSeen
from forkcast_operator.kubernetes.store_pool import PASS_SECONDS
from forkcast_operator.kubernetes.world import ClusterWorld
from forkcast_wire import branches, catalogue, keys
from forkcast_wire.branches import BranchRecord, StoredBranch
from forkcast_wire.completion import completion, ended
from forkcast_wire.documents import (
    Complete,
    DocumentError,
    RunInfo,
    dump,
    lineage_head,
    saved_states,
)
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.resources import TrainingRunStatus
from forkcast_wire.store import AlreadyExists, Remembered, put_document, read_document

_log = structlog.get_logger()
#: Phases that wait for pods; the others mostly for what they have done themselves.
_WAITING: Final = (Verifying, Finished)
_SETTLING_PASSES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A trigger that was settled in this pass: the branch opened, or why none was."""

    trigger: Trigger
    received: Received
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a pass has seen. active: the open branches; ended: those that ended in it. acts: what
    their Jobs need; deadlines: Unix seconds, of those whose clock counts. Both by a branch's name.
    """

    facts: StoreFacts
    active: Sequence[StoredBranch]
    acts: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    deadlines: Mapping[str, float] = field(default_factory=dict)
    settled: Sequence[Settled] = ()
    ended: Sequence[StoredBranch] = ()


class Ledger:
    """The records of one run. Used by one thread at a time."""

    def __init__(self, run: Run, store: Store) -> None:
        self.store = Remembered(store, seconds=PASS_SECONDS)
        self._run_uid, self._name = run.uid, run.name
        self._intake = Intake(run.name, self.store, hold_main=False)
        self._finished: dict[str, StoredBranch] = {}
        self._complete: Complete | None = None
        self._info: RunInfo | None = None
        self._foreign: set[str] = set()

    def claim(self, digest: str, total_steps: int, before: TrainingRunStatus) -> RunInfo:
        """Make the place this run's: run.json is its alone. digest, total_steps: of the manifest,
        recorded the first time. before: the run's last status.

        Raises SpecError if another run's records are there, or below it; RecordsLostError if the run
        had records and they are gone, so that it is not made anew.
        """
        self.store.begin()  # the last pass may have used up its time
        if self._info is not None and self.store.head(keys.RUN) is None:
            self._info = None  # somebody has deleted it
        if self._info is None:
            self.store.refresh()
            found = [info.key for info in self.store.list("")]
            self._refuse_runs_below(found)
            refuse_loss(before, found)
            info = RunInfo(
                uid=self._run_uid,
                name=self._name,
                manifest_digest=digest,
                first_total_steps=total_steps,
            )
            try:
                put_document(self.store, keys.RUN, info)
            except AlreadyExists:
                standing = read_document(self.store, RunInfo, keys.RUN)
                if standing is None or standing.holder != self._run_uid:
                    other = (standing.held_by or standing.name) if standing else "another"
                    raise SpecError(
                        "PrefixInUse",
                        f"spec.storage.prefix holds run {other} already; choose another prefix",
                    ) from None
                info = standing
                if info.first_total_steps is None:  # claimed by an older operator
                    info = replace(info, first_total_steps=total_steps)
                    self.store.put(keys.RUN, dump(info))
            self._info = info
        return self._info

    def owned(self) -> bool:
        """Whether run.json names this run, read anew. A damaged one names none."""
        standing = self._standing()
        return standing is not None and standing.holder == self._run_uid

    def adopted_away(self) -> str:
        """Name of the run that has adopted these records, "" for none; read anew."""
        standing = self._standing()
        away = standing is not None and standing.holder_uid not in ("", self._run_uid)
        return standing.held_by if standing is not None and away else ""

    def _standing(self) -> RunInfo | None:
        try:
            return read_document(self.store.direct, RunInfo, keys.RUN)
        except DocumentError:
            return None

    @property
    def identity(self) -> str:
        """The uid in the records, "" if it is the run's own, or not known yet."""
        known = self._info.uid if self._info else ""
        return known if known != self._run_uid else ""

    def confirm(self) -> None:
        """Raises SpecError if another run has adopted the records meanwhile; StoreError."""
        if other := self.adopted_away():
            raise SpecError(
                "RecordsAdopted",
                f"TrainingRun {other} has adopted the records of this run; delete this one",
            )

    def _refuse_runs_below(self, found: Iterable[str]) -> None:
        """found: keys. Raises SpecError if another run's records are below this one's prefix."""
        below = next((key for key in found if key.endswith(f"/{keys.RUN}")), None)
        if below is not None:
            raise SpecError(
                "PrefixInUse",
                f"spec.storage.prefix has another run below it ({below}); its records are not this "
                "run's: create this run anew with another prefix",
            )

    def look(
        self,
        spec: TrainingRunSpec,
        triggers: Sequence[Trigger],
        jobs: Sequence[JobSeen],
        monitor: MonitorStub | None,
        proxy: ProxyStub | None,
        *,
        before: TrainingRunStatus,
        paused: bool = False,
    ) -> Look:
        """One pass: settle triggers, take every open branch as far as it goes now.

        before: the run's last status. paused: the run is suspended; branches stand still. Raises
        StoreError, MonitorUnavailableError, RecordsLostError.
        """
        self.store.refresh()
        refuse_loss(before, (info.key for info in self.store.list("")))
        settled = [
            Settled(trigger=one, received=received, word=word)
            for one, (received, word) in zip(
                triggers, self._intake.receive(spec, triggers), strict=True
            )
        ]
        looked_at: list[StoredBranch] = []
        acts: dict[str, list[Act]] = {}
        deadlines: dict[str, float] = {}
        for record, saved in self._intake.active():
            phase = saved
            if monitor is not None and not paused and self._own(record):
                world = ClusterWorld(spec, self.store, record, monitor, proxy, jobs)
                phase = self._advance(world, record, saved)
                acts[record.name] = world.acts()
                if (deadline := world.deadline()) is not None:
                    deadlines[record.name] = deadline
            looked_at.append(self._read(record, phase))
        return Look(
            facts=self._facts(spec.training.total_steps, looked_at),
            active=[branch for branch in looked_at if not branch.finished],
            acts=acts,
            deadlines=deadlines,
            settled=settled,
            ended=[branch for branch in looked_at if branch.finished],
        )

    def _own(self, record: BranchRecord) -> bool:
        """Whether a branch is about this run. What a record names is asked about, and told, at the
        monitor; and the run's own pods can write records.
        """
        uid = record.trigger.run_uid
        own = self._info is not None and uid == self._info.uid
        if not own and uid not in self._foreign:
            self._foreign.add(uid)
            _log.error("branch.of_another_run", branch=record.name, uid=uid)
        return own

    def _advance(self, world: ClusterWorld, record: BranchRecord, saved: Phase) -> Phase:
        """As far as the branch goes now; returns the phase it has come to."""
        phase, waited = saved, 0
        while waited < _SETTLING_PASSES:
            following = reconcile(world, phase, record.rules)
            if following != phase:
                _log.info("branch.phase", branch=record.name, phase=type(following).__name__)
                phase, waited = following, 0
            elif isinstance(phase, _WAITING):
                break
            else:  # what was done just now may show at once
                waited += 1
        return phase

    def _read(self, record: BranchRecord, phase: Phase | None = None) -> StoredBranch:
        """What the store holds of one branch; of a finished one it is read once."""
        if record.name in self._finished:
            return self._finished[record.name]
        branch = branches.read(self.store, record, phase)
        if branch.finished:
            self._finished[record.name] = branch
            self.store.forget(keys.rollouts(branch.id))
        return branch

    def known(self) -> list[StoredBranch]:
        """The finished branches of the last look, in the order of their opening. No request."""
        return sorted(self._finished.values(), key=_opened)

    def _facts(self, total_steps: int, looked_at: Iterable[StoredBranch]) -> StoreFacts:
        """looked_at: the branches that this pass has read."""
        if not ended(self._complete, total_steps):
            self._complete = completion(self.store, total_steps)
        known = {branch.record.name: branch for branch in looked_at}
        found = [known.get(one.name) or self._read(one) for one in self._intake.records()]
        outcomes: dict[str, Outcome | None] = {}
        steps = 0
        for branch in sorted(found, key=_opened):
            phase = branch.phase
            outcomes[branch.record.name] = phase.outcome if isinstance(phase, Finished) else None
            if branch.finished and branch.decision is not None:
                steps += branch.decision.cost.rollout_steps
        suppressed, last_suppressed = branches.suppressions(self.store)
        return StoreFacts(
            lineage=lineage_head(self.store),
            complete=self._complete,
            states=tuple(saved_states(self.store, StateKind.CHECKPOINT)),
            outcomes=outcomes,
            suppressed=suppressed,
            last_suppressed=last_suppressed,
            rollout_steps=steps,
            attempts=sum(1 for _ in self.store.list(keys.ATTEMPTS_PREFIX)),
        )

    def release(self) -> None:
        """The run is going: nothing of its open branches stays pinned."""
        self.store.refresh()
        for record, _ in self._intake.active():
            catalogue.unpin(self.store.direct, record.trigger.id)

    def erase(self) -> int:
        """Delete the run's records, run.json last so that an erasure that was cut short can go on;
        returns how many objects. A key that Forkcast does not build is left.

        Raises SpecError, and deletes nothing, unless run.json names this run and no other run is
        below it.
        """
        self.store.refresh()
        found = [info.key for info in self.store.direct.list("")]  # however many there are
        if keys.RUN in found and not self.owned():
            raise SpecError("PrefixInUse", "run.json names another run")
        self._refuse_runs_below(found)
        ours = [key for key in found if keys.is_record(key)] if keys.RUN in found else []
        for key in sorted(ours, key=lambda key: key == keys.RUN):
            self.store.delete(key)
        if len(ours) < len(found):
            _log.warning("run.foreign_keys_left", count=len(found) - len(ours))
        return len(ours)


def _opened(branch: StoredBranch) -> tuple[float, str]:
    return branch.record.opened_at, branch.record.name
