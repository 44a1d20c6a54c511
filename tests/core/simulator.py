"""A world in memory with faults: operators that crash after any command, rollouts that vanish or
fail, a trainer that adopts late or crashes, two operators, retention that prunes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from forkcast.actions import Action
from forkcast.branch_rules import BranchRules
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
from forkcast.decision import CONTROL, Candidate, Decision, Draft, DraftSource, ProxyAnswer
from forkcast.lineage import LineageEntry
from forkcast.phases import MOVES, Finished, Forking, Phase
from forkcast.records import StateKind, StateRef, Trial, TrialStatus, Trigger
from forkcast.seen import RolloutSeen, Seen
from tests import make


class Crash(Exception):
    """The operator died here."""


def state(step: int, epoch: int = 0, kind: StateKind = StateKind.RING) -> StateRef:
    name = f"{kind.value}/{epoch}/{step}"
    return make.state_ref(step, kind, key=name, epoch=epoch, digest=name)


def trigger(step: int = 100, epoch: int = 0) -> Trigger:
    return make.trigger(step=step, epoch=epoch, onset_step=step - 2)


BASES = (state(95), state(60))


@dataclass
class Rollout:
    job: RunRollout
    until: int | None
    trials: dict[int, Trial] = field(default_factory=dict)
    deaths: int = 0


@dataclass
class SimWorld:
    """One branch's world. ``quality``: seed of what the rollouts measure; ``chaos``: of the faults."""

    trigger: Trigger
    quality: int = 0
    chaos: random.Random = field(default_factory=random.Random)
    crash_rate: float = 0.0
    fault_rate: float = 0.0
    crash_at: int | None = None
    phase: Phase | None = None
    bases: tuple[StateRef, ...] | None = None
    pins: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    draft: Draft | None = None
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    decision: Decision | None = None
    lineage: dict[int, LineageEntry] = field(default_factory=dict)
    posted: int = 0
    trainer_epoch: int = 0
    durable_epoch: int = 0
    adopted: list[LineageEntry] = field(default_factory=list)
    held: bool = False
    outcome: tuple[object, str] | None = None
    commands: int = 0
    ticks: int = 0
    deadline: int = 400
    decisions_written: int = 0
    violations: list[str] = field(default_factory=list)

    def observe(self, phase: Phase) -> Seen:
        return Seen(
            bases=self.bases,
            draft=self.draft,
            rollouts={
                n: RolloutSeen(until=r.until, trials=dict(r.trials))
                for n, r in self.rollouts.items()
            },
            main_losses={},
            main_over_threshold=False,
            decision=self.decision,
            lineage=self.lineage.get(self.trigger.epoch + 1),
            durable_epoch=self.durable_epoch,
            expired=self.ticks > self.deadline,
            run_finished=False,
            released=self.outcome is not None,
        )

    def do(self, command: Command) -> None:
        self.commands += 1
        if self.fault_rate and self.chaos.random() < self.fault_rate:
            if isinstance(command, HoldMain | PostCollapse):
                return  # directives live in memory and may be lost unseen: they come again
            raise Crash  # the store refused: what comes after in this pass is not done either
        match command:
            case HoldMain():
                self.held = self.outcome is None
            case PinBases():
                found = tuple(one for one in BASES if one.key not in self.deleted)
                self.pins |= {one.key for one in found}
                self.bases = found if self.bases is None else self.bases
            case DraftCandidates():
                self.draft = self.draft or self._draft()
            case RunRollout():
                self._needs(command.base, "I6: a rollout starts from a base that is gone")
                if command.base.key not in self.pins:
                    self.violations.append("I6: a rollout starts from an unpinned base")
                known = self.rollouts.setdefault(command.candidate, Rollout(command, command.until))
                known.until = command.until
            case StopRollout():
                self.rollouts[command.candidate].until = None
            case PinState():
                self.pins.add(command.state.key)
            case RecordDecision():
                if self.decision is None:
                    self.decision = command.decision
                    self.decisions_written += 1
            case AppendLineage():
                if self.decision is None or command.entry.decision_digest != self.decision.digest:
                    self.violations.append("I7: the lineage names another decision")
                if command.entry.state.key not in self.pins:
                    self.violations.append("I8: the adopted state is not pinned")
                self.lineage.setdefault(command.entry.epoch, command.entry)
            case PostCollapse():
                self.posted = max(self.posted, command.entry.epoch)
            case Release():
                for one in self.rollouts.values():
                    one.until = None
                self.pins.clear()
                self._drop_losers()
                self.held = False
                self.outcome = (command.outcome, command.reason)
        if self.crash_at == self.commands or (
            self.crash_rate and self.chaos.random() < self.crash_rate
        ):
            raise Crash

    def save(self, phase: Phase) -> None:
        if self.phase is not None and type(phase) not in MOVES[type(self.phase)]:
            self.violations.append(f"illegal move {type(self.phase)} -> {type(phase)}")
        self.phase = phase

    def tick(self) -> None:
        """Rollouts publish, the trainer adopts and saves; either may fail. Retention prunes."""
        self.ticks += 1
        if self.fault_rate and self.chaos.random() < 0.3:
            self.deleted |= {one.key for one in BASES if one.key not in self.pins}
        for name, one in self.rollouts.items():
            if one.until is not None and one.until not in one.trials:
                if self.fault_rate and self.chaos.random() < self.fault_rate:
                    one.deaths += 1
                    continue
                one.trials[one.until] = self._trial(name, one)
        if self.posted > self.trainer_epoch and not self._unlucky():
            entry = self.lineage[self.posted]
            self._needs(entry.state, "I8: the adopted state is gone before it is adopted")
            if entry.epoch <= self.trainer_epoch:
                self.violations.append("I1/I3: an epoch applied twice or backwards")
            self.adopted.append(entry)
            self.trainer_epoch = entry.epoch
        elif self.trainer_epoch > self.durable_epoch:
            if self._unlucky():  # the trainer dies before its checkpoint: it reads the log again
                self.trainer_epoch = self.durable_epoch
                self._needs(self.adopted.pop().state, "I8: what a restarted trainer needs is gone")
            else:
                self.durable_epoch = self.trainer_epoch

    def _unlucky(self) -> bool:
        return bool(self.fault_rate) and self.chaos.random() < self.fault_rate

    def _needs(self, ref: StateRef, violation: str) -> None:
        if ref.key in self.deleted:
            self.violations.append(violation)

    def _drop_losers(self) -> None:
        """The end states of a branch go with it, but for one that is adopted."""
        kept = self.decision.adopted if self.decision and self.decision.applied else None
        for one in self.rollouts.values():
            states = [trial.state for trial in one.trials.values() if trial.state]
            self.deleted |= {ref.key for ref in states if ref != kept}

    def _draft(self) -> Draft:
        rng = random.Random(self.quality)
        actions = [
            Action(learning_rate_scale=0.8, rewind_steps=5),
            Action(clipping="ZClip", rewind_steps=5),
            Action(momentum_reset=True, rewind_steps=40),
        ]
        rng.shuffle(actions)
        candidates = tuple(Candidate(name=f"c00{n}", action=a) for n, a in enumerate(actions))
        return Draft(
            seed=1,
            strategy="Lattice",
            source=DraftSource.HEURISTIC,
            model="",
            horizon=0,
            proxy=ProxyAnswer.NOT_ASKED,
            detail="",
            candidates=candidates,
            finalists=tuple(one.name for one in candidates),
        )

    def _trial(self, name: str, one: Rollout) -> Trial:
        rung = one.until or 0
        rng = random.Random(f"{self.quality}/{name}/{rung}")
        status = rng.choices([TrialStatus.OK, TrialStatus.DIVERGED, TrialStatus.FAILED], [8, 1, 1])[
            0
        ]
        if name == CONTROL:
            status = TrialStatus.OK
        loss = 3.0 if name == CONTROL else 3.0 + rng.uniform(-0.15, 0.1)
        ok = status is TrialStatus.OK
        step = self.trigger.step + rung
        losses = tuple(3.0 + 0.1 * (-1) ** i for i in range(step - one.job.base.step))
        ref = replace(state(step, kind=StateKind.ROLLOUT), key=f"rollouts/{name}/{rung}")
        return Trial(
            candidate=name,
            rung=rung,
            step=step,
            status=status,
            validation_loss=loss if ok else None,
            mean_weights_loss=loss if ok else None,
            losses_from=one.job.base.step + 1,
            losses=losses,
            spike_steps=(),
            steps_run=len(losses),
            seconds=0.0,
            state=ref if ok else None,
            failure="" if ok else "x",
        )


def run_to_end(world: SimWorld, rules: BranchRules, operators: int = 1) -> Phase:
    """Reconcile until the branch has ended. A crashed operator starts again from the saved phase."""
    from forkcast.loop import reconcile

    start = Forking(branch="r-e0-t100", trigger=world.trigger)
    memory: list[Phase] = [start] * operators
    for _ in range(3000):
        number = world.chaos.randrange(operators)
        saved = world.phase or start
        phase = memory[number] if operators > 1 and world.chaos.random() < 0.5 else saved
        try:
            memory[number] = reconcile(_Fenced(world, several=operators > 1), phase, rules)
        except Crash:
            memory[number] = world.phase or start
        world.tick()
        if isinstance(world.phase, Finished):
            return world.phase
    raise AssertionError(f"the branch never ends: {world.phase}")


class _Fenced:
    """Two operators may save phases out of order: the world is what counts, so a stale save that
    would move the branch backwards is dropped, as a compare-and-swap would."""

    _ORDER = list(MOVES)

    def __init__(self, world: SimWorld, *, several: bool) -> None:
        self._world, self._several = world, several

    def observe(self, phase):
        return self._world.observe(phase)

    def do(self, command):
        self._world.do(command)

    def save(self, phase):
        known = self._world.phase
        if self._several and known is not None:
            if self._ORDER.index(type(phase)) < self._ORDER.index(type(known)):
                return
            self._world.phase = phase
            return
        self._world.save(phase)
