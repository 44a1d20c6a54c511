"""What being watched adds to a training step, with the monitor attached, stalled and dead.

Five contestants with an engine each train the same model on the same batches in short blocks, in
turns: plain, plain once more (the A/A row: what the method itself sees), and three watched ones.
Each watched block begins with a connected reporter; then the monitor is left alone, stopped, or
killed, and the block is timed. All five must end with the same loss, bit by bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import served
from figures import Row, median, quantile, times

from forkcast_trainer.placement import placement
from forkcast_trainer.step import Engine
from forkcast_wire.manifest import TrainingRunSpec
from forkcast_wire.reporting import Hello, Reporter

_ROUNDS, _BLOCK, _WARM = 12, 10, 5
_PLAIN, _AGAIN, _ATTACHED, _STALLED, _DEAD = "plain", "plain again", "attached", "stalled", "dead"
_PATIENCE = 60.0


@dataclass
class _Contestant:
    name: str
    engine: Engine
    monitor: served.Served | None = None
    blocks: list[float] = field(default_factory=list)  # seconds a step

    def block(self, attempt: int, steps: int) -> None:
        """Time some steps as the trainer takes them."""
        reporter = Reporter(self.monitor.target if self.monitor else "", self._hello(attempt))
        self.engine.position.attempt = attempt
        if self.monitor:
            _until_live(reporter)
        self._steps(reporter, _WARM)
        if self.monitor and self.name == _STALLED:
            self.monitor.stall()
        if self.monitor and self.name == _DEAD:
            self.monitor.kill()
        self.blocks.append(self._steps(reporter, steps) / steps)
        if self.monitor and self.name == _STALLED:
            self.monitor.resume()
        reporter.close()
        if self.monitor and self.name == _DEAD:
            self.monitor.revive()

    def _steps(self, reporter: Reporter, count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            reporter.directives()
            self.engine.step()
            for stats in self.engine.told():
                reporter.report(stats)
        return time.perf_counter() - started

    def _hello(self, attempt: int) -> Hello:
        return Hello(
            run_uid=served.UID,
            epoch=0,
            attempt=attempt,
            rank=0,
            start_step=self.engine.position.step,
            total_steps=100_000,
            base_step=0,
        )


def _until_live(reporter: Reporter) -> None:
    with reporter._changed:
        if not reporter._changed.wait_for(lambda: reporter._live is not None, _PATIENCE):
            raise TimeoutError("the monitor does not answer the reporter")


def measure(scale: float) -> list[Row]:
    """Interleaved rounds; the order turns by one every round."""
    manifest = served.quickstart()
    rounds, steps = times(_ROUNDS, scale), times(_BLOCK, scale, 5)
    with served.folder() as folder:
        monitors = {
            name: served.monitor(folder / name, manifest) for name in (_ATTACHED, _STALLED, _DEAD)
        }
        try:
            contestants = [
                _Contestant(name, _engine(manifest.spec, folder), monitors.get(name))
                for name in (_PLAIN, _AGAIN, _ATTACHED, _STALLED, _DEAD)
            ]
            for turn in range(rounds):
                shift = turn % len(contestants)
                for one in contestants[shift:] + contestants[:shift]:
                    one.block(turn, steps)
        finally:
            for server in monitors.values():
                server.close()
    losses = {one.engine.position.loss for one in contestants}
    if len(losses) != 1:
        raise RuntimeError(f"observation changed the training: {losses}")
    return _rows(contestants)


def _engine(spec: TrainingRunSpec, folder: Path) -> Engine:
    return Engine(spec, served.UID, folder, placement(spec))


def _rows(contestants: list[_Contestant]) -> list[Row]:
    plain = contestants[0].blocks
    rows = []
    for one in contestants:
        row = Row(
            section="observation",
            name=f"step, {one.name}",
            value=median(one.blocks) * 1e3,
            unit="ms",
        )
        if one is not contestants[0]:
            ratios = [mine / base for mine, base in zip(one.blocks, plain, strict=True)]
            low, high = quantile(ratios, 0.25), quantile(ratios, 0.75)
            goal = "A/A" if one.name == _AGAIN else "goal x1.01"
            note = f"median over rounds; quartiles x{low:.3g} to x{high:.3g}; {goal}"
            row = replace(row, ratio=median(ratios), against="plain", note=note)
        rows.append(row)
    return rows
