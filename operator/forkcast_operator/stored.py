"""A branch's world as far as the store holds it: the same on one machine and on a cluster.

Bases, draft, desired rungs, trials, decision, lineage and pins are documents of the store, whatever
runs the processes. What differs is who runs the rollouts and whether the main run waits; that is
left to the two worlds made of this one.
"""

from __future__ import annotations

import math

import grpc
import numpy as np
import structlog

from forkcast import ladder, lineage
from forkcast.actions import Action
from forkcast.branch_rules import Policy
from forkcast.commands import (
    AppendLineage,
    Command,
    DraftCandidates,
    HoldMain,
    PinBases,
    PinState,
    PostCollapse,
    RecordDecision,
    Release,
    RunRollout,
    StopRollout,
)
from forkcast.decision import Decision
from forkcast.directives import Collapse, Directive, Hold, Resume
from forkcast.lineage import LineageEntry
from forkcast.phases import Deciding, Phase
from forkcast.ports import Store
from forkcast.records import StateKind, StateRef, Window
from forkcast.retention import choose_bases, of_lineage
from forkcast.seen import Seen
from forkcast_operator import clock
from forkcast_operator.draft import draft, seed_of
from forkcast_operator.rules import lattice_of
from forkcast_wire import branches, catalogue, keys
from forkcast_wire import forkcast_pb2 as pb
from forkcast_wire.branches import Bases, BranchRecord, OutcomeRecord
from forkcast_wire.codec import directive_to_wire, window_from_wire
from forkcast_wire.completion import completion
from forkcast_wire.documents import (
    RolloutJob,
    RolloutUntil,
    dump,
    lineage_entries,
    read_manifest,
    saved_states,
)
from forkcast_wire.forkcast_pb2_grpc import MonitorStub, ProxyStub
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.store import AlreadyExists, put_document, read_document

_log = structlog.get_logger()
_RPC_SECONDS = 5.0


class MonitorUnavailableError(RuntimeError):
    """The monitor did not answer; the pass is worth another try. The message: gRPC's details."""


class StoredWorld:
    """`World` for one branch of one run, but for what runs."""

    def __init__(
        self,
        spec: TrainingRunSpec,
        store: Store,
        record: BranchRecord,
        monitor: MonitorStub,
        proxy: ProxyStub | None,
        *,
        direct: Store | None = None,
    ) -> None:
        """direct: the store itself, if ``store`` shows what it held when a pass began. Pins and
        deletions go there, since they must see what the trainer does at the same time.
        """
        self.spec, self.store, self.record = spec, store, record
        self._direct = direct if direct is not None else store
        self.trigger, self.id = record.trigger, record.trigger.id
        self._monitor, self._proxy = monitor, proxy

    # ----------------------------------------------------------------------------------- observe

    def observe(self, phase: Phase) -> Seen:
        """What the store and the monitor show of the branch now.

        Raises MonitorUnavailableError if the verdict needs the main run's course and nobody
        knows it; past the deadline it is taken without.
        """
        stored = branches.read(self.store, self.record, phase)
        epoch = self.trigger.epoch + 1
        expired = self._seconds_left() <= 0
        losses, over = self._main(expired=expired) if isinstance(phase, Deciding) else ({}, False)
        return Seen(
            bases=stored.bases,
            draft=stored.draft,
            rollouts=stored.rollouts,
            main_losses=losses,
            main_over_threshold=over,
            decision=stored.decision,
            lineage=read_document(self.store, LineageEntry, lineage.key(epoch)),
            durable_epoch=self._durable_epoch(epoch),
            expired=expired,
            run_finished=completion(self.store, self.spec.training.total_steps) is not None,
            released=stored.released and not self._occupied(),
        )

    def started_at(self) -> float | None:
        """Since when the branch's deadline counts, Unix seconds; None: it does not count yet."""
        return self.record.opened_at

    def deadline(self) -> float | None:
        """The branch's deadline, Unix seconds: it goes on while no operator runs."""
        started = self.started_at()
        return None if started is None else started + self.spec.branching.budget.deadline_seconds

    def _seconds_left(self) -> float:
        deadline = self.deadline()
        return math.inf if deadline is None else deadline - clock.now()

    def _held(self) -> bool:
        """Whether the main run waits for this branch."""
        return False

    def _occupied(self) -> bool:
        """Whether anything of this branch still runs or waits: then it is not released."""
        return self._held()

    def _key(self, name: str) -> str:
        return keys.branch_file(self.id, name)

    def _durable_epoch(self, epoch: int) -> int:
        prefix = f"{keys.state_prefix(StateKind.CHECKPOINT)}e{epoch}/"
        for info in self.store.list(prefix):
            folder, _, name = info.key.rpartition("/")
            if name == "manifest.json" and read_manifest(self.store, folder) is not None:
                return epoch
        return epoch - 1

    def _main(self, *, expired: bool) -> tuple[dict[int, float], bool]:
        try:
            window, over_threshold = self._window()
        except MonitorUnavailableError:
            if expired:
                return {}, False
            raise
        steps, losses = window.columns["step"], window.columns["loss"]
        return {int(s): float(v) for s, v in zip(steps, losses, strict=True)}, over_threshold

    def _window(self) -> tuple[Window, bool]:
        """The last steps, and whether the last one is over the threshold. Raises
        MonitorUnavailableError, also if what the monitor answers is no window.
        """
        request = pb.GetWindowRequest(run_uid=self.trigger.run_uid)
        try:
            reply: pb.WindowReply = self._monitor.GetWindow(request, timeout=_RPC_SECONDS)
        except grpc.RpcError as error:
            _log.info("world.monitor_unavailable", code=error.code().name)
            raise MonitorUnavailableError(f"{error.code().name}: {error.details()}") from error
        try:
            window = window_from_wire(reply.window)
        except ValueError as error:
            raise MonitorUnavailableError(f"the monitor's answer is no window: {error}") from error
        if not np.isfinite(window.columns["step"]).all():
            raise MonitorUnavailableError("the monitor's answer is no window: a step is no number")
        return window, reply.over_threshold

    # ---------------------------------------------------------------------------------------- do

    def do(self, command: Command) -> None:
        """Carry out one command; every one may come again."""
        match command:
            case HoldMain():
                self._hold()
            case PinBases():
                self._pin_bases(command)
            case DraftCandidates():
                self._draft(command)
            case RunRollout():
                self._run_rollout(command)
            case StopRollout(candidate=candidate):
                self._desire(candidate, None)
            case PinState(state=state):
                catalogue.pin(self._direct, self.id, [state.key])
            case RecordDecision(decision=decision):
                self._create("decision", decision)
            case AppendLineage(entry=entry):
                try:
                    put_document(self.store, lineage.key(entry.epoch), entry)
                except AlreadyExists:
                    _log.warning("world.superseded", epoch=entry.epoch)
            case PostCollapse(entry=entry):
                digest = entry.decision_digest
                self._post(Collapse(branch=self.id, epoch=entry.epoch, decision_digest=digest))
            case Release():
                self._release(command)

    def _hold(self) -> None:
        if not self._held() and (left := self._seconds_left()) > 0:
            self._post(Hold(branch=self.id, deadline_seconds=left))

    def _create(self, name: str, record: object) -> None:
        try:
            put_document(self.store, self._key(name), record)
        except AlreadyExists:
            _log.info("world.already_recorded", record=name)  # that one holds; it is read next

    def _post(self, directive: Directive) -> None:
        message = directive_to_wire(self.trigger.run_uid, directive)
        try:
            self._monitor.PostDirective(
                pb.PostDirectiveRequest(directive=message), timeout=_RPC_SECONDS
            )
        except grpc.RpcError as error:
            _log.info("world.directive_not_posted", id=directive.id, code=error.code().name)

    def _pin_bases(self, command: PinBases) -> None:
        """Pin, look again, record: a state that was being deleted meanwhile is passed over."""
        oldest = max(0, command.before_step - self.spec.branching.rollback.steps)
        gone: set[str] = set()
        while True:
            chosen = choose_bases(
                [ref for ref in self._states() if ref.key not in gone],
                before_step=command.before_step,
                depths=command.depths,
                oldest=oldest,
            )
            held = catalogue.pin(self._direct, self.id, [ref.key for ref in chosen])
            dead = {
                ref.key
                for ref in chosen
                if ref.key not in held or read_manifest(self._direct, ref.key) is None
            }
            if not dead:
                break
            gone |= dead
        self._create("bases", Bases(bases=chosen))

    def _states(self) -> tuple[StateRef, ...]:
        """The main run's saved states that lie on the trigger's lineage."""
        states = [
            ref
            for kind in (StateKind.RING, StateKind.CHECKPOINT)
            for ref in saved_states(self.store, kind)
        ]
        return of_lineage(states, lineage_entries(self.store), self.trigger.epoch)

    def _draft(self, command: DraftCandidates) -> None:
        entries = lineage_entries(self.store)
        if self.record.rules.policy is Policy.LADDER:
            self._create("draft", ladder.draft(command.trigger, command.bases, entries))
            return
        try:
            window, _ = self._window()
        except MonitorUnavailableError:
            return  # the monitor comes back; the command comes again
        lattice = lattice_of(self.spec, command.trigger, command.bases, entries)
        seed = seed_of(command.branch, self.spec.training.seed)
        allowance = self.record.rules.allowance
        top_k = self.spec.branching.top_k if allowance is None else allowance.candidates
        drawn = draft(self.spec, lattice, window, self._history(), seed, self._proxy, top_k)
        self._create("draft", drawn)

    def _history(self) -> list[tuple[Action, float]]:
        """What earlier branches measured: verified actions and their improvement, nats/token."""
        return [
            (decision.draft.candidate(judged.candidate).action, judged.improvement)
            for decision in branches.decisions(self.store)
            for judged in decision.judgements
            if judged.improvement is not None
        ]

    def _run_rollout(self, command: RunRollout) -> None:
        rules = self.record.rules
        rungs = (*rules.rungs, rules.confirm_steps) if rules.confirm_steps else rules.rungs
        job = RolloutJob(
            run_uid=self.trigger.run_uid,
            trigger_id=self.id,
            candidate=command.candidate,
            action=command.action,
            base=command.base,
            trigger_step=command.trigger_step,
            rungs=rungs,
            publish_from=rules.rungs[-1],
        )
        put_document(self.store, keys.rollout_job(self.id, command.candidate), job)
        self._desire(command.candidate, command.until)

    def _desire(self, candidate: str, until: int | None) -> None:
        key = keys.rollout_until(self.id, candidate)
        desired = RolloutUntil(until=until)
        if read_document(self.store, RolloutUntil, key) != desired:
            self.store.put(key, dump(desired))

    def _release(self, command: Release) -> None:
        decision = read_document(self.store, Decision, self._key("decision"))
        for name, rollout in branches.rollouts(self.store, self.id).items():
            if rollout.until is not None:
                self._desire(name, None)
            for trial in rollout.trials.values():
                if trial.state is not None:
                    self._drop_state(trial.state, decision)
        catalogue.unpin(self._direct, self.id)
        self._post(Resume(branch=self.id))
        self._create(
            "outcome",
            OutcomeRecord(
                branch=command.branch,
                outcome=command.outcome,
                reason=command.reason,
                decision_digest=decision.digest if decision is not None else None,
            ),
        )

    def _drop_state(self, state: StateRef, decision: Decision | None) -> None:
        """A loser's end state goes; the adopted one stays, as the lineage names it."""
        if decision is not None and decision.adopted == state and decision.applied:
            return
        catalogue.delete_state(self._direct, state)

    # -------------------------------------------------------------------------------------- save

    def save(self, phase: Phase) -> None:
        """Write phase.json."""
        branches.save_phase(self.store, self.id, phase)
