"""Healthy training runs made from a seed: nothing in them is unstable, so whatever fires is a false alarm.

Every run falls by a power law from a random start to a random floor. What differs is the noise about
the curve, the schedule, and what is logged. Sizes come from logs of real runs: the batch mean of a
loss scatters by .01 to .05 nats, one rank's by .05 to .3; the tails are heavier than a normal one's; a
batch that stands out raises the gradient norm by at most x1.65.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from forkcast.records import FloatArray, StepStats

ROWS = 10_000
_WARM_UP = 200
_TOKENS = 2**19


@dataclass(slots=True)
class Run:
    """Columns of one run, [rows] each. norm None: no gradient norm is logged."""

    step: FloatArray
    curve: FloatArray
    noise: FloatArray
    norm: FloatArray | None
    rate: FloatArray
    tokens: FloatArray
    rounded: int | None = None
    validation: dict[int, float] = field(default_factory=dict)

    def rows(self) -> Iterator[StepStats]:
        """The run as records of steps."""
        loss = self.curve + self.noise
        if self.rounded is not None:
            loss = np.round(loss, self.rounded)
        norms = np.full(len(loss), np.nan) if self.norm is None else self.norm
        columns = (self.step, loss, norms, self.rate, self.tokens)
        for step, one, norm, rate, tokens in zip(*(c.tolist() for c in columns), strict=True):
            yield StepStats(
                run_uid="healthy",
                epoch=0,
                attempt=0,
                rank=0,
                step=int(step),
                loss=one,
                grad_norm=norm,
                grad_norm_clipped=norm,
                learning_rate=rate,
                tokens=int(tokens),
                validation_loss=self.validation.get(int(step)),
            )


def _curve(draw: np.random.Generator, rows: int) -> FloatArray:
    """A power law from about ln of a vocabulary's size to 1.5 to 3 nats."""
    floor, start = draw.uniform(1.5, 3.0), draw.uniform(9.0, 11.0)
    turn, power = draw.uniform(20, 200), draw.uniform(0.4, 0.8)
    return floor + (start - floor) * (1 + np.arange(rows) / turn) ** -power


def _cosine(rows: int, warm: int = _WARM_UP) -> FloatArray:
    t = np.arange(rows)
    falling = 0.1 + 0.45 * (1 + np.cos(np.pi * np.clip((t - warm) / max(1, rows - warm), 0, 1)))
    return 1e-3 * np.where(t < warm, (t + 1) / warm, falling)


def _norm(draw: np.random.Generator, noise: FloatArray, sd: float) -> FloatArray:
    """A norm that falls, scatters with Student tails and follows the loss's noise; bounded as in logs."""
    rows = len(noise)
    level = np.log(draw.uniform(0.2, 1.0)) + np.log1p(4 / (1 + np.arange(rows) / 100))
    share = draw.uniform(0.2, 0.5)
    own = draw.standard_t(5, rows) * draw.uniform(0.05, 0.2)
    with_loss = np.clip(0.1 * share * noise / sd, -0.5, 0.5)
    return np.exp(level + own + with_loss)


def _run(
    draw: np.random.Generator,
    noise: FloatArray,
    sd: float,
    *,
    norm: bool,
    rate: FloatArray | None = None,
) -> Run:
    rows = len(noise)
    return Run(
        step=np.arange(rows, dtype=float),
        curve=_curve(draw, rows),
        noise=noise * _wider_at_first(rows),
        norm=_norm(draw, noise, sd) if norm else None,
        rate=_cosine(rows) if rate is None else rate,
        tokens=_TOKENS * (1 + np.arange(rows, dtype=float)),
    )


def _wider_at_first(rows: int) -> FloatArray:
    """The scatter falls with the loss, to a half over the first thousand rows or so."""
    return 0.5 + 0.5 / (1 + np.arange(rows) / 300)


def _sd(draw: np.random.Generator) -> float:
    return float(draw.uniform(0.01, 0.05))


def normal(draw: np.random.Generator, rows: int) -> Run:
    """Normal noise, with a gradient norm."""
    sd = _sd(draw)
    return _run(draw, sd * draw.standard_normal(rows), sd, norm=True)


def student(draw: np.random.Generator, rows: int) -> Run:
    """Student t noise of 3 to 6 degrees of freedom, with a gradient norm."""
    sd = _sd(draw)
    return _run(draw, sd * draw.standard_t(draw.uniform(3, 6), rows), sd, norm=True)


def student_without_norm(draw: np.random.Generator, rows: int) -> Run:
    """The same without a gradient norm."""
    sd = _sd(draw)
    return _run(draw, sd * draw.standard_t(draw.uniform(3, 6), rows), sd, norm=False)


def odd_batches(draw: np.random.Generator, rows: int) -> Run:
    """Normal noise, and one row in 200 (an odd batch) 3 to 15 deviations higher; a fifth of them in pairs,
    with a norm up to x1.65.
    """
    sd = _sd(draw)
    noise = sd * draw.standard_normal(rows)
    odd = np.flatnonzero(draw.random(rows) < 1 / 200)
    odd = np.unique(np.concatenate([odd, odd[draw.random(len(odd)) < 0.2] + 1]))
    odd = odd[odd < rows]
    noise[odd] += sd * draw.uniform(3, 15, len(odd))
    run = _run(draw, noise, sd, norm=True)
    assert run.norm is not None
    run.norm[odd] *= draw.uniform(1.0, 1.65, len(odd))
    return run


def one_rank(draw: np.random.Generator, rows: int) -> Run:
    """One rank's loss: wide, skewed upwards, neighbours alike where documents go on; no norm."""
    sd = float(draw.uniform(0.05, 0.3))
    noise = draw.standard_t(6, rows) + 0.15 * (draw.standard_normal(rows) ** 2 - 1)
    together = draw.uniform(0, 0.2)
    for row in range(1, rows):
        noise[row] += together * noise[row - 1]
    return _run(draw, sd * noise, sd, norm=False)


def drifting_data(draw: np.random.Generator, rows: int) -> Run:
    """Student noise over a slow drift of the data: half to two deviations over 300 to 3,000 rows."""
    sd = _sd(draw)
    noise = sd * draw.standard_t(5, rows)
    span = draw.uniform(300, 3000)
    keep = np.exp(-1 / span)
    wander = draw.standard_normal(rows) * np.sqrt(1 - keep**2)
    for row in range(1, rows):
        wander[row] += keep * wander[row - 1]
    return _run(draw, noise + sd * draw.uniform(0.5, 2.0) * wander, sd, norm=True)


def harder_shards(draw: np.random.Generator, rows: int) -> Run:
    """Data that change for good every 500 to 4,000 rows, by up to a deviation either way."""
    sd = _sd(draw)
    noise = sd * draw.standard_t(5, rows)
    at = 0
    while (at := at + int(draw.uniform(500, 4000))) < rows:
        noise[at:] += sd * draw.uniform(-1.0, 1.0)
    return _run(draw, noise, sd, norm=True)


def batch_sizes(draw: np.random.Generator, rows: int) -> Run:
    """A batch that grows or shrinks by 2 or 4 every 1,000 to 4,000 rows; the log has the tokens."""
    return _batch_sizes(draw, rows, told=True)


def batch_sizes_untold(draw: np.random.Generator, rows: int) -> Run:
    """The same in a log that does not have the tokens, nor a norm."""
    return _batch_sizes(draw, rows, told=False)


def _batch_sizes(draw: np.random.Generator, rows: int, *, told: bool) -> Run:
    sd = _sd(draw)
    size = np.ones(rows)
    at = 0
    while (at := at + int(draw.uniform(1000, 4000))) < rows:
        size[at:] *= draw.choice([0.25, 0.5, 2.0, 4.0])
        size = np.clip(size, 1 / 16, 16)
    run = _run(draw, sd * draw.standard_t(5, rows) / np.sqrt(size), sd, norm=told)
    run.tokens = np.cumsum(_TOKENS * size) if told else np.zeros(rows)
    if run.norm is not None:
        run.norm /= size**0.25
    return run


def decay(draw: np.random.Generator, rows: int) -> Run:
    """Warm-up, constant rate, and a decay to nothing in the last fifth, where the loss falls once more."""
    sd = _sd(draw)
    t = np.arange(rows)
    begins = int(0.8 * rows)
    left = np.clip((rows - t) / (rows - begins), 0, 1)
    rate = 1e-3 * np.minimum((t + 1) / _WARM_UP, 1) * left
    run = _run(draw, sd * draw.standard_t(5, rows), sd, norm=True, rate=rate)
    run.curve = run.curve - draw.uniform(0.05, 0.3) * (1 - left) * (2 - left) / 2
    return run


def restarts(draw: np.random.Generator, rows: int) -> Run:
    """Cosine with restarts every 1,500 to 4,000 rows: the loss rises by .02 to .15 nats within 30 to 150
    rows, the norm by up to a third, and both fall again along the cycle.
    """
    sd = _sd(draw)
    cycle = int(draw.uniform(1500, 4000))
    within = np.arange(rows) % cycle
    rate = 1e-3 * (0.05 + 0.475 * (1 + np.cos(np.pi * within / cycle)))
    rate[:_WARM_UP] *= np.arange(1, _WARM_UP + 1) / _WARM_UP
    hot = (1 - np.exp(-within / draw.uniform(30, 150))) * (1 + np.cos(np.pi * within / cycle)) / 2
    hot[:cycle] = 0
    run = _run(draw, sd * draw.standard_t(5, rows), sd, norm=True, rate=rate)
    run.curve = run.curve + draw.uniform(0.02, 0.15) * hot
    assert run.norm is not None
    run.norm *= 1 + draw.uniform(0, 0.33) * hot
    return run


def evaluations(draw: np.random.Generator, rows: int) -> Run:
    """A row missing at every evaluation, every 100 to 500 steps, with a validation loss beside the next; and
    a few holes of 20 to 400 steps, where a run was resumed.
    """
    sd = _sd(draw)
    run = _run(draw, sd * draw.standard_t(5, rows), sd, norm=True)
    every = int(draw.uniform(100, 500))
    holes = (np.arange(rows) % every == 0).astype(float)
    for _ in range(3):
        holes[int(draw.uniform(300, rows))] += int(draw.uniform(20, 400))
    run.step = np.arange(rows) + np.cumsum(holes)
    run.tokens = _TOKENS * (1 + run.step)
    spread = draw.uniform(0.05, 0.3) * sd
    run.validation = {
        int(run.step[row]): float(run.curve[row] + spread * draw.standard_normal())
        for row in range(every, rows, every)
    }
    return run


def rounded(draw: np.random.Generator, rows: int) -> Run:
    """Losses of two decimals, as many loggers write them; no norm."""
    sd = float(draw.uniform(0.004, 0.03))
    run = _run(draw, sd * draw.standard_t(6, rows), sd, norm=False)
    run.rounded = 2
    return run


def heavy_norm(draw: np.random.Generator, rows: int) -> Run:
    """A gradient norm that doubles once in 50 rows whatever the loss does."""
    sd = _sd(draw)
    run = _run(draw, sd * draw.standard_t(4, rows), sd, norm=True)
    assert run.norm is not None
    high = draw.random(rows) < 1 / 50
    run.norm[high] *= draw.uniform(1.5, 6.0, int(high.sum()))
    return run


KINDS: Mapping[str, Callable[[np.random.Generator, int], Run]] = {
    "normal noise": normal,
    "Student noise": student,
    "Student noise, no norm": student_without_norm,
    "odd batches": odd_batches,
    "one rank, no norm": one_rank,
    "data that drift": drifting_data,
    "data that change": harder_shards,
    "batch sizes": batch_sizes,
    "batch sizes untold, no norm": batch_sizes_untold,
    "decay of the rate": decay,
    "restarts of the rate": restarts,
    "evaluations and resumes": evaluations,
    "rounded to .01, no norm": rounded,
    "heavy gradient norm": heavy_norm,
}


def healthy_run(kind: str, seed: int, number: int, rows: int = ROWS) -> Run:
    """Run ``number`` of a kind; the same for the same seed."""
    return KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind), number]), rows)
