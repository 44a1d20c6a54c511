"""Where a run's loss stands, and how far off one row is: the ground of every statistical signal.

A falling loss makes a plain moving average useless as a baseline: it lags behind, so that healthy rows
sit below it for thousands of steps, and every rise is measured from too high. Three things are done
about that.

The *forecast* follows two exponential averages, T1 of the loss and T2 of T1. Their difference is the
slope; the forecast is T1 carried forward by it, and never upwards: nothing that gets better asks for a
forecast that it gets worse. Both are moved by residuals clipped at 2.5 scales, so that a spike moves
the level by no more than an ordinary row does, however high it is.

The *scale* is the mean absolute residual of the inliers alone, times 1.2533 (the ratio for a normal
distribution). Outliers are known by the clip, so they do not widen what they are judged by; but if
many lie below the forecast, too, it is the scale that is wrong, and they count.

The *cover* is the least that the loss stood at over the last 64 rows or so: a level that was left
downwards a moment ago may be taken again without a departure.

A loss that steps down (the decay of a schedule, a larger batch) would leave the forecast behind for a
hundred rows; the sum Dn finds it, and the level begins anew from the last five rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from forkcast.records import StepStats
from forkcast.robust import usable

#: Rows that only teach the level: at the beginning, and after a gap.
WARM_ROWS: Final = 50
AGAIN_ROWS: Final = 16
#: Residuals beyond so many scales are clipped, and do not count for the scale.
_CLIP: Final = 2.5
#: Mean absolute deviation of a normal distribution to its standard deviation: sqrt(pi / 2).
_TO_SD: Final = 1.2533
_COVER: Final = 1 / 64
_RECENT_ROWS: Final = 5
_STEP_DOWN: Final = 12.0
_RENEWED_ROWS: Final = 16
#: Share of the smallest difference seen between two rows, for a log whose losses are rounded: the
#: scale is no less, or a row that rounds to the next value would be a departure.
_ROUNDING: Final = 0.5
#: Gain of the average of the log gradient norm.
_NORM_GAIN: Final = 0.03
#: A rate higher than that of the row before by this factor rises. A rise after so many rows without
#: one is a restart of the schedule; a warm-up is a rise from the first row on.
_RISE: Final = 1.0001
_PLATEAU_ROWS: Final = 20
#: For so many rows after the rate last rose, a rise of the loss is what a higher rate does; and so many
#: it may take to settle where the higher rate holds it.
RATE_ROWS: Final = 300
SETTLE_ROWS: Final = 500
_LEAST: Final = 1e-9
#: A batch that is smaller by more than this factor is taken for a count that was wrong.
_BATCH_MOST: Final = 16.0
#: Share of rows below the clip, of a healthy run about one in a hundred, that says that the scale is wrong.
_TOO_NARROW: Final = 0.2


class Level:
    """Folds rows; after each, what the row looked like beside the level before it.

    residual, z: nats/token and scales, against the forecast and against the cover; 0 while warm.
    scale: standard deviation of healthy rows about the forecast, nats/token.
    scale is no less than half the rounding of a log's losses.
    cover: the level that a row has to exceed, nats/token.
    norm_rise: log of the gradient norm over its average, None where none is measured; norm_level: that
    average, log units. finite, norm_finite: False for a loss or a norm that is no number; a norm of 0,
    or of NaN where there never was another, is one that nobody measures. warm: whether the level is still being learnt. rate_rose: whether the
    learning rate has risen within RATE_ROWS, the warm-up of the run excepted.
    """

    __slots__ = (
        "_down",
        "_inliers",
        "_last",
        "_last_rate",
        "_last_step",
        "_last_tokens",
        "_rate_rows",
        "_rows",
        "_since_rise",
        "_smallest",
        "_spread",
        "_t1",
        "_t2",
        "_to_learn",
        "_tokens_a_step",
        "_under",
        "cover",
        "finite",
        "gain_least",
        "norm_finite",
        "norm_level",
        "norm_rise",
        "residual",
        "scale",
        "warm",
        "z",
    )

    def __init__(self, decay: float = 0.98) -> None:
        self.gain_least = 1 - decay
        self._t1 = self._t2 = self.cover = math.nan
        self.scale = self._spread = 0.0
        self._rows = self._inliers = 0
        self._to_learn = WARM_ROWS
        self._down = self._under = 0.0
        self._last: deque[float] = deque(maxlen=_RECENT_ROWS)
        self._smallest = 0.0
        self._last_step = self._last_tokens = -1
        self._tokens_a_step = 0.0
        self._last_rate = 0.0
        self._rate_rows = self._since_rise = 0
        self.residual = self.z = 0.0
        self.norm_level: float = math.nan
        self.norm_rise: float | None = None
        self.warm = self.finite = self.norm_finite = True

    @property
    def rate_rose(self) -> bool:
        """Whether the schedule has raised the learning rate a moment ago."""
        return self._rate_rows > SETTLE_ROWS - RATE_ROWS

    @property
    def settling(self) -> bool:
        """Whether the loss may still be rising to where a higher learning rate holds it."""
        return self._rate_rows > 0

    def splice(self) -> None:
        """What comes next does not follow what came: a gap, or a collapse. The level is learnt
        again; the scale is known.
        """
        self._t1 = self._t2 = self.cover = math.nan
        self._rows = 0
        self._to_learn = AGAIN_ROWS if self._inliers >= WARM_ROWS else WARM_ROWS
        self._down = self._under = 0.0
        self._last.clear()
        self._last_step = -1
        self.warm = True

    def fold(self, stats: StepStats) -> None:
        """Fold one row. A loss that is not finite moves nothing."""
        loss = stats.loss
        self._note_schedule(stats)
        self._fold_norm(stats.grad_norm)
        if not -1e100 < loss < 1e100:
            self.finite, self.residual, self.z = False, 0.0, 0.0
            return
        self.finite = True
        last, rows = self._last, self._rows + 1
        self._rows = rows
        if last:
            moved = loss - last[-1]
            if moved:
                moved = moved if moved > 0 else -moved
                if moved < self._smallest or not self._smallest:
                    self._smallest = moved
        last.append(loss)
        if rows == 1:
            self._t1 = self._t2 = self.cover = loss
        gain_least = self.gain_least
        gain = 1 / rows if rows * gain_least < 1 else gain_least
        t1, t2 = self._t1, self._t2
        fall = t1 - t2
        if fall < 0 and gain < 1:
            forecast = t1 + fall / (1 - gain)
            cover = self.cover + fall * gain / (1 - gain)
        else:
            forecast, cover = t1, self.cover
        cover -= (cover - forecast) * _COVER
        if cover < forecast:
            cover = forecast
        self.cover = cover
        floor = _ROUNDING * self._smallest
        if floor < _LEAST:
            floor = _LEAST
        spread = self._spread
        scale = spread if spread > floor else floor
        residual = loss - forecast
        warm = rows <= self._to_learn
        most = _CLIP * scale
        inlier, inliers = -most < residual < most, self._inliers
        if not inlier and not (warm and inliers < WARM_ROWS):
            clipped = most if residual > 0 else -most
        else:
            clipped = residual
        t1 = forecast * gain + (1 - gain) * t1 + gain * clipped
        self._t1, self._t2 = t1, t2 + gain * (t1 - t2)
        under = self._under
        self._under = under = under + gain_least * ((residual <= -most) - under)
        if inlier or inliers < WARM_ROWS or under > _TOO_NARROW:
            self._inliers = inliers = inliers + 1
            share = 1 / inliers
            share = share if share > gain_least else gain_least
            away = residual if residual > 0 else -residual
            self._spread = spread = spread + share * (_TO_SD * away - spread)
        self.scale = spread if spread > floor else floor
        self.warm, self.residual = warm, residual
        if warm:
            self.z = 0.0
            return
        self.z = (loss - cover) / scale
        below = residual / scale
        below = -_CLIP if below < -_CLIP else 3.0 if below > 3.0 else below
        down = self._down - below - 1
        self._down = down if down > 0 else 0.0
        if down > _STEP_DOWN:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """The loss has stepped down: what it stands at now is the level."""
        self._t1 = self._t2 = self.recent
        self._rows = _RENEWED_ROWS
        self._to_learn = 0
        self._down = self._under = 0.0

    @property
    def recent(self) -> float:
        """Mean of the last losses, nats/token; 0 before the first."""
        last = self._last
        return sum(last) / len(last) if last else 0.0

    def _fold_norm(self, norm: float) -> None:
        # a norm of exactly 0 is one that nobody measured: its logarithm says nothing
        level = self.norm_level
        if not 0 < norm < 1e100:
            self.norm_rise = None
            # nobody measures a norm in a log that never had a number for it
            self.norm_finite = norm == 0 or (norm != norm and level != level)  # noqa: PLR0124
            return
        self.norm_finite = True
        log = math.log(norm)
        if level != level:  # noqa: PLR0124 - the first
            self.norm_level, self.norm_rise = log, 0.0
            return
        rise = self.norm_rise = log - level
        rows = self._rows
        if rows < AGAIN_ROWS:  # at the beginning, and of what follows a splice
            self.norm_level = level + rise / (rows + 1)
        else:
            self.norm_level = level + _NORM_GAIN * (
                1.0 if rise > 1 else -1.0 if rise < -1 else rise
            )

    def _note_schedule(self, stats: StepStats) -> None:
        """What the schedule does: the rate, and the tokens of a step."""
        rate = stats.learning_rate
        if 0 < rate < 1e100:
            if rate > _RISE * self._last_rate:
                if self._since_rise >= _PLATEAU_ROWS or self.rate_rose:
                    self._rate_rows = SETTLE_ROWS
                self._since_rise = 0
            else:
                self._since_rise += 1
                if self._rate_rows:
                    self._rate_rows -= 1
            self._last_rate = rate
        step, tokens = stats.step, stats.tokens
        last_step, last_tokens = self._last_step, self._last_tokens
        self._last_step, self._last_tokens = step, tokens
        if 0 <= last_step < step and tokens > last_tokens > 0:
            now = (tokens - last_tokens) / (step - last_step)
            before = self._tokens_a_step
            if now == before:
                return
            if before and now > before:
                # as slowly as the scale learns: sequences of all lengths are no change of the batch
                self._tokens_a_step += self.gain_least * (now - before)
            else:
                if now < 0.99 * before:  # a mean over fewer tokens scatters more
                    self._spread *= math.sqrt(min(before / now, _BATCH_MOST))
                self._tokens_a_step = now

    _FLOATS = (
        "_t1", "_t2", "cover", "scale", "_spread", "_down", "_under", "_smallest", "_tokens_a_step", "_last_rate",
        "norm_level",
    )  # fmt: skip
    _WHOLE = (
        "_rows",
        "_inliers",
        "_to_learn",
        "_last_step",
        "_last_tokens",
        "_rate_rows",
        "_since_rise",
    )

    def state(self) -> list[list[float | None]]:
        """[floats, integers, last losses], JSON-ready; None for what is not known yet."""
        floats = [getattr(self, name) for name in self._FLOATS]
        return [
            [value if usable(value) else None for value in floats],
            [getattr(self, name) for name in self._WHOLE],
            list(self._last),
        ]

    def restore(self, state: Sequence[Sequence[float | None]]) -> None:
        """Become what `state` was taken from."""
        floats, whole, last = state
        for name, value in zip(self._FLOATS, floats, strict=True):
            setattr(self, name, math.nan if value is None else float(value))
        for name, number in zip(self._WHOLE, whole, strict=True):
            setattr(self, name, int(number or 0))
        self._last = deque((float(value or 0.0) for value in last), maxlen=_RECENT_ROWS)
        self.warm = self._rows <= self._to_learn or not self._rows
