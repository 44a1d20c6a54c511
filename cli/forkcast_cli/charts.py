"""Line charts as inline SVG: small, without a script, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 24, 28
_MOST_POINTS = 1200
_TICKS = 5
_MOST_WHOLE = 1e9

Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve. style: a CSS class of the page. width, in pixels. dots: marks instead of a line."""

    points: Pairs
    style: str
    label: str = ""
    width: float = 1.6
    dots: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at a step, with a word at its top."""

    x: float
    label: str
    style: str = "mark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What one picture shows. levels: (y, word) of dashed horizontal lines. bands: (from, to, CSS
    class) of shaded spans of steps. y_from, y_to: a fixed range of y instead of the data's.
    """

    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    levels: Sequence[tuple[float, str]] = ()
    bands: Sequence[tuple[float, float, str]] = ()
    y_label: str = ""
    height: int = 240
    width: int = 980
    y_from: float | None = None
    y_to: float | None = None
    x_from: float | None = None
    x_to: float | None = None
    title: str = ""
    described: str = field(default="")


def smooth(points: Pairs, count: int) -> list[tuple[float, float]]:
    """The trailing mean over ``count`` points."""
    out: list[tuple[float, float]] = []
    window: list[float] = []
    for x, y in points:
        window = [*window, y][-count:]
        out.append((x, math.fsum(window) / len(window)))
    return out


def thin(points: Pairs) -> list[tuple[float, float]]:
    """At most about 1,200 points: of each stretch its lowest and highest, so that spikes stay."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= _MOST_POINTS:
        return finite
    size = math.ceil(len(finite) / (_MOST_POINTS / 2))
    out: list[tuple[float, float]] = []
    for start in range(0, len(finite), size):
        part = finite[start : start + size]
        out += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return out


def top_edge(values: Iterable[float]) -> float | None:
    """A top edge that one wild value cannot push out of sight of the rest."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if len(ordered) < 20:
        return None
    return min(ordered[-1], 1.6 * ordered[int(0.99 * len(ordered))] - 0.6 * ordered[0])


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Round numbers that cover the range."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


class _Scale:
    """Data to pixels."""

    def __init__(self, chart: Chart) -> None:
        points = [p for line in chart.lines for p in line.points if math.isfinite(p[1])]
        xs = [x for x, _ in points] or [0.0, 1.0]
        ys = [y for _, y in points] + [y for y, _ in chart.levels] or [0.0, 1.0]
        self.x0 = chart.x_from if chart.x_from is not None else min(xs)
        self.x1 = chart.x_to if chart.x_to is not None else max(xs)
        low = chart.y_from if chart.y_from is not None else min(ys)
        high = chart.y_to if chart.y_to is not None else max(ys)
        room = (high - low) * 0.06 or 0.5
        self.y0 = low if chart.y_from is not None else low - room
        self.y1 = high if chart.y_to is not None else high + room
        self.width, self.height = chart.width, chart.height

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0 or 1.0)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0 or 1.0)
        share = min(max(share, 0.0), 1.0)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def svg(chart: Chart) -> str:
    """The picture."""
    scale = _Scale(chart)
    parts = [
        (
            f'<svg viewBox="0 0 {chart.width} {chart.height}" role="img" '
            f'aria-label="{escape(chart.described or chart.title)}">'
        )
    ]
    parts += _bands(chart, scale)
    parts += _axes(chart, scale)
    parts += _lines(chart, scale)
    parts += _marks(chart, scale)
    if chart.title:
        parts.append(f'<text class="title" x="{_LEFT}" y="13">{escape(chart.title)}</text>')
    parts += _legend(chart)
    return "".join([*parts, "</svg>"])


def _bands(chart: Chart, scale: _Scale) -> Iterable[str]:
    bottom = chart.height - _BOTTOM
    for start, end, style in chart.bands:
        x, width = scale.x(start), max(scale.x(end) - scale.x(start), 1)
        yield (
            f'<rect class="{style}" x="{x:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{bottom - _TOP}"/>'
        )


def _axes(chart: Chart, scale: _Scale) -> Iterable[str]:
    bottom, right = chart.height - _BOTTOM, chart.width - _RIGHT
    for value in ticks(scale.y0, scale.y1, 4):
        y = scale.y(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{_tick(value)}</text>'
    for value in ticks(scale.x0, scale.x1, 8):
        x = scale.x(value)
        yield f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 15}">{_tick(value)}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    if chart.y_label:
        y = (bottom + _TOP) / 2
        yield (
            f'<text class="tick" text-anchor="middle" transform="translate(11 {y:.0f}) rotate(-90)">'
            f"{escape(chart.y_label)}</text>"
        )
    for level, word in chart.levels:
        y = scale.y(level)
        yield f'<line class="level" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" text-anchor="end" x="{right - 2}" y="{y - 4:.1f}">{escape(word)}</text>'


def _tick(value: float) -> str:
    """As in the text beside it: 1,250,000 rather than 1.25e+06."""
    whole = value == int(value) and 1000 <= abs(value) < _MOST_WHOLE
    return f"{int(value):,}" if whole else f"{value:g}"


def _lines(chart: Chart, scale: _Scale) -> Iterable[str]:
    """A curve leaves the frame where it is beyond it: along the edge it would look level."""
    for line in chart.lines:
        thinned = thin(line.points)
        if line.dots:
            for x, y in thinned:
                place = f'cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}"'
                yield f'<circle class="dot {line.style}" {place} r="3"/>'
            continue
        label = f"<title>{escape(line.label)}</title>" if line.label else ""
        for part in within(thinned, scale.y0, scale.y1):
            path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in part)
            yield (
                f'<polyline class="line {line.style}" stroke-width="{line.width}" points="{path}">'
                f"{label}</polyline>"
            )


def within(points: Pairs, low: float, high: float) -> list[list[tuple[float, float]]]:
    """The stretches of a curve that lie in [low, high], each up to the edge through which it leaves."""
    parts: list[list[tuple[float, float]]] = []
    before: tuple[float, float] | None = None
    for x, y in points:
        edge = min(max(y, low), high)
        if before is None:
            parts.append([(x, y)] if edge == y else [])
        else:
            (x0, y0), was = before, min(max(before[1], low), high)
            if was != y0 and (edge == y or edge != was):  # it comes in
                parts.append([(x0 + (x - x0) * (was - y0) / (y - y0), was)])
            if edge == y:
                parts[-1].append((x, y))
            elif was == y0 or edge != was:  # it goes out
                parts[-1].append((x0 + (x - x0) * (edge - y0) / (y - y0), edge))
        before = (x, y)
    return [part for part in parts if part]


def _marks(chart: Chart, scale: _Scale) -> Iterable[str]:
    free: list[float] = []  # the right end of the last word in each row
    for mark in sorted(chart.marks, key=lambda one: one.x):
        x = scale.x(mark.x)
        length = 6.2 * len(mark.label) + 8
        anchor, start = ("end", x - 4 - length) if x + length > chart.width else ("start", x)
        row = next((i for i, end in enumerate(free) if end < start), len(free))
        free[row : row + 1] = [start + length]
        y = _TOP + 11 + 13 * row
        yield (
            f'<line class="{mark.style}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" '
            f'y2="{chart.height - _BOTTOM}"/>'
        )
        shift = -4 if anchor == "end" else 4
        yield (
            f'<text class="word" text-anchor="{anchor}" x="{x + shift:.1f}" y="{y}">'
            f"{escape(mark.label)}</text>"
        )


def _legend(chart: Chart) -> Iterable[str]:
    x = float(chart.width - _RIGHT)
    seen: set[str] = set()
    for line in reversed(chart.lines):
        if not line.label or line.label in seen:
            continue
        seen.add(line.label)
        yield f'<text class="key" text-anchor="end" x="{x:.0f}" y="13">{escape(line.label)}</text>'
        x -= 6.6 * len(line.label) + 8
        if line.dots:
            yield f'<circle class="dot {line.style}" cx="{x - 8:.0f}" cy="9" r="3"/>'
        else:
            yield (
                f'<line class="line {line.style}" stroke-width="2.5" x1="{x - 16:.0f}" '
                f'x2="{x:.0f}" y1="9" y2="9"/>'
            )
        x -= 30
