"""The picture of a log: loss, gradient norm and index by step, with what happened. HTML, SVG or PNG."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from forkcast_cli.charts import Chart, Line, Mark, svg, top_edge
from forkcast_cli.detect.logged_run import LoggedRun
from forkcast_cli.detect.session import Session
from forkcast_cli.detect.words import BRANCHING, closing_lines, comparison_lines, opening_lines
from forkcast_wire.files import replace_bytes

#: The endings of a picture's path.
KINDS: Final = (".html", ".svg", ".png")
_WIDTH: Final = 980
_MOST_LABELS: Final = 12
_MOST_PICTURED: Final = 8
_HIGHEST_Z: Final = 8.5
_START: Final = 0.03
_LEAST_POINTS: Final = 50
_PNG_SECONDS: Final = 60
_PNG_SCALE: Final = 2
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge")
#: The colours of a picture that stands alone; in a page they are the page's variables.
_COLOURS: Final = {
    "--card": "#fff",
    "--ink": "#1d1d1b",
    "--soft": "#6b6a66",
    "--rule": "#e6e5e1",
    "--grid": "#efeeea",
    "--s1": "#2a78d6",
    "--s2": "#eb6834",
    "--s3": "#1baf7a",
    "--s4": "#c98500",
    "--trigger": "#e34948",
}
_VARIABLE: Final = re.compile(r"var\((--\w+)\)")


class PlotError(ValueError):
    """A picture cannot be made, in one line with a remedy."""


def write_plot(session: Session, name: str, path: Path) -> None:
    """Write the picture; its ending, one of KINDS, says which. Raises PlotError, OSError."""
    match path.suffix.lower():
        case ".html":
            replace_bytes(path, page(session, name).encode())
        case ".png":
            replace_bytes(path, as_png(picture(session)))
        case _:
            replace_bytes(path, picture(session).encode())


def charts(run: LoggedRun) -> Iterator[Chart]:
    """The charts of one run, from top to bottom."""
    curves = run.curves
    events = run.detector.events
    labelled = len(events) <= _MOST_LABELS
    marks = [
        Mark(
            x=one.step,
            label=f"{one.tier} {one.step:,}" if labelled else "",
            style="mark trigger" if one.tier in BRANCHING else "mark event",
        )
        for one in events
    ]
    bare = [Mark(x=mark.x, label="", style=mark.style) for mark in marks]
    first, last = run.first or 0, max(run.last or 0, *(one.step for one in events), 0)
    loss = curves.loss.points()
    lines = [Line(points=part, style="dropped", label="abandoned") for part in curves.abandoned]
    lines.append(Line(points=loss, style="main", label="loss", width=1.3))
    validations = curves.validation.points()
    if validations:
        lines.append(Line(points=validations, style="validation", label="validation", dots=True))
    yield Chart(
        title="Loss",
        lines=lines,
        marks=marks,
        height=320,
        x_from=first,
        x_to=last,
        y_to=_top(lines, first, last),
        described="loss by step, with events",
    )
    norms = curves.grad_norm.points()
    if norms:
        yield Chart(
            title="Gradient norm",
            lines=[Line(points=norms, style="main", width=1.3)],
            marks=bare,
            height=170,
            x_from=first,
            x_to=last,
            y_to=top_edge([y for _, y in norms]),
            described="gradient norm by step",
        )
    index = curves.z.points()
    yield Chart(
        title="Uncertainty Index",
        lines=[Line(points=index, style="main", width=1.3)],
        levels=[(3.2, "event")],
        marks=bare,
        height=170,
        x_from=first,
        x_to=last,
        y_from=0,
        y_to=max(_HIGHEST_Z, 1.05 * (top_edge([z for _, z in index]) or 0.0)),
        described="the index by step",
    )


def _top(lines: Sequence[Line], first: int, last: int) -> float | None:
    """A top edge that shows the course, whatever the loss was at the start."""
    start = first + _START * (last - first)
    later = [y for line in lines for x, y in line.points if x >= start]
    return top_edge(later) if len(later) > _LEAST_POINTS else None


def page(session: Session, name: str) -> str:
    """A page that needs nothing beside it."""
    environment = Environment(
        loader=PackageLoader("forkcast_cli", "."), autoescape=True, trim_blocks=True
    )
    template = environment.get_template("detect/page.html.j2")
    return template.render(
        name=name,
        lead=list(opening_lines(name, session.format, session.columns)),
        lines=list(closing_lines(session, list_events=True)),
        runs=[
            (run.name, [Markup(svg(chart)) for chart in charts(run)])  # noqa: S704  escaped in svg()
            for run in session.runs[:_MOST_PICTURED]
        ],
        several=len(session.runs) > 1,
        compared=list(comparison_lines(session)) if len(session.runs[0].detectors) > 1 else [],
        left_out=max(0, len(session.runs) - _MOST_PICTURED),
    )


def picture(session: Session) -> str:
    """One SVG of all charts, below each other."""
    parts, y = [], 0.0
    several = len(session.runs) > 1
    for run in session.runs[:_MOST_PICTURED]:
        if several:
            y += 26
            parts.append(f'<text class="title" x="52" y="{y - 6:.0f}">{escape(run.name)}</text>')
        for chart in charts(run):
            place = f'<svg x="0" y="{y:.0f}" width="{_WIDTH}" height="{chart.height}" '
            parts.append(place + svg(chart).removeprefix("<svg "))
            y += chart.height + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y:.0f}" '
        f'viewBox="0 0 {_WIDTH} {y:.0f}"><style>{_style()}</style>'
        f'<rect width="{_WIDTH}" height="{y:.0f}" fill="{_COLOURS["--card"]}"/>'
        + "".join(parts)
        + "</svg>"
    )


def _style() -> str:
    """The charts' rules with the colours written out, which not every program reads otherwise."""
    rules = (Path(__file__).parent.parent / "charts.css").read_text(encoding="utf-8")
    rules = rules.replace("font-family:inherit", "font-family:system-ui,'DejaVu Sans',sans-serif")
    return _VARIABLE.sub(lambda found: _COLOURS.get(found[1], "#6b6a66"), rules)


def as_png(drawing: str) -> bytes:
    """An SVG as PNG, by the first program here that can. Raises PlotError if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "plot.svg", Path(folder) / "plot.png"
        source.write_text(drawing, encoding="utf-8")
        for command in _commands(drawing, source, target):
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=_PNG_SECONDS)  # noqa: S603
            except (OSError, subprocess.SubprocessError):
                continue
            if target.exists():
                return target.read_bytes()
    raise PlotError(
        "a PNG needs rsvg-convert, inkscape or Chromium on the PATH; install one, or write .svg or .html"
    )


def _commands(drawing: str, source: Path, target: Path) -> Iterator[Sequence[str]]:
    if found := shutil.which("rsvg-convert"):
        yield (found, f"--zoom={_PNG_SCALE}", f"--output={target}", str(source))
    if found := shutil.which("inkscape"):
        yield (
            found,
            f"--export-filename={target}",
            f"--export-width={_WIDTH * _PNG_SCALE}",
            str(source),
        )
    size = re.search(r'width="(\d+)" height="(\d+)"', drawing)
    assert size is not None
    for browser in filter(None, map(shutil.which, _BROWSERS)):
        yield (
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--force-device-scale-factor={_PNG_SCALE}",
            f"--window-size={size[1]},{size[2]}",
            f"--user-data-dir={target.parent / 'profile'}",
            f"--screenshot={target}",
            source.as_uri(),
        )
