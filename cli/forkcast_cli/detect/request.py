"""What `forkcast detect` is asked, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forkcast.lineage import LineageEntry
from forkcast_cli.detect.plot import KINDS
from forkcast_cli.detect.rules import with_rules
from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.columns import given_columns
from forkcast_cli.logs.names import Role
from forkcast_cli.view import RunReader
from forkcast_monitor.config import DetectorConfig, configure
from forkcast_monitor.presets import PRESETS
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.manifest_file import ManifestError, load_manifest
from forkcast_wire.run_folder import MANIFEST, is_watched

STDIN: Final = "-"
_OURS: Final = "Forkcast"
#: Of a log, which may be short: what the level itself needs. A run of ours waits for its own warm-up.
_WARMUP_ROWS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked. configs: detectors by name, the first is the one that is reported. plot: path of a
    picture. follow: the log is still being written. tee: what is read from a pipe is passed on.
    """

    target: str
    columns: Mapping[Role, str]
    configs: Mapping[str, DetectorConfig]
    lineage: Iterable[LineageEntry] = ()
    plot: Path | None = None
    as_json: bool = False
    follow: bool = False
    tee: bool = False

    @property
    def live(self) -> bool:
        """Whether events are reported as they come."""
        return self.follow or self.target == STDIN

    @property
    def name(self) -> str:
        """Of the log, for people."""
        return "standard input" if self.target == STDIN else self.target


def request_for(
    target: str,
    *,
    columns: str,
    manifest: Path | None,
    rules: Iterable[str],
    preset: str,
    compare: bool,
    plot: Path | None,
    follow: bool,
    tee: bool,
    as_json: bool,
) -> Request:
    """The request of a command's options. A run's folder brings its rules and its lineage along.

    Raises ManifestError naming option, rule and remedy.
    """
    if tee and target != STDIN:
        raise ManifestError("--tee", "passes standard input on", "give - for the log")
    if follow and target == STDIN:
        follow = False  # it is followed anyway
    if plot is not None and plot.suffix.lower() not in KINDS:
        raise ManifestError(
            "--plot", f"{plot} is no kind of picture", f"end it in {', '.join(KINDS)}"
        )
    try:
        named = given_columns(columns)
    except LogError as error:
        raise ManifestError("--columns", error.what, error.remedy) from None
    run = Path(target)
    ours = (run / MANIFEST).exists() or is_watched(run)
    view = RunReader(run).look() if ours else None
    uncertainty = view.rules if view is not None else Uncertainty(warmup_steps=_WARMUP_ROWS)
    if manifest is not None:
        uncertainty = load_manifest(manifest).spec.uncertainty
    if preset and preset not in PRESETS:
        raise ManifestError("--preset", f"{preset} is none", f"one of {', '.join(PRESETS)}")
    given = [f"preset={preset}", *rules] if preset else rules
    try:
        chosen = with_rules(uncertainty, given)
        configs = {chosen.preset or _OURS: configure(chosen)}
        if compare:
            others = [name for name in PRESETS if name not in configs]
            configs |= {
                name: configure(Uncertainty(preset=name, warmup_steps=chosen.warmup_steps))
                for name in others
            }
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError("spec.uncertainty", str(error), "change it") from None
    return Request(
        target=target,
        columns=named,
        configs=configs,
        lineage=view.lineage if view is not None else (),
        plot=plot,
        as_json=as_json,
        follow=follow,
        tee=tee,
    )
