"""Write the chart's Grafana dashboards; with --check, fail where they are out of date."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "charts" / "forkcast" / "files" / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT = 24, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. queries: (expression, legend). kind: of Grafana. width: of 24 columns."""

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8


_RUN = '{namespace=~"$namespace", run=~"$run"}'


def _simple(title: str, text: str, metric: str, unit: str = "short") -> Panel:
    """A metric of the chosen runs as it is."""
    query = (f"{metric}{_RUN}", "{{namespace}}/{{run}}")
    return Panel(title=title, text=text, queries=(query,), unit=unit)


def _quantiles(title: str, text: str, metric: str, by: str) -> Panel:
    """Median and 99th percentile of a histogram of seconds."""
    labels = f"le, {by}" if by else "le"
    return Panel(
        title=title,
        text=text,
        queries=tuple(
            (
                f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))",
                f"{f'{{{{{by}}}}} ' if by else ''}p{round(q * 100)}",
            )
            for q in (0.5, 0.99)
        ),
        unit="s",
    )


def _rate(title: str, text: str, metric: str, by: str, unit: str = "ops") -> Panel:
    legend = " ".join(f"{{{{{one.strip()}}}}}" for one in by.split(","))
    query = (f"sum by ({by}) (rate({metric}[$__rate_interval]))", legend)
    return Panel(title=title, text=text, queries=(query,), unit=unit)


def _grown(title: str, text: str, metric: str, by: str) -> Panel:
    query = (f"sum by ({by}) (increase({metric}[$__range]))", f"{{{{{by}}}}}")
    return Panel(title=title, text=text, queries=(query,), kind="bargauge")


RUNS = (
    Panel(
        title="Runs by state",
        text="TrainingRuns by the reason of their Ready condition.",
        queries=(("sum by (state) (forkcast_operator_runs) > 0", "{{state}}"),),
    ),
    _grown(
        "Branches by outcome",
        "That ended in the chosen time.",
        "forkcast_operator_branches_total",
        "outcome",
    ),
    _grown(
        "Finalists by verdict",
        "Judged in the chosen time.",
        "forkcast_operator_rollouts_total",
        "verdict",
    ),
    _simple("Training loss", "Nats per token.", "forkcast_train_loss"),
    _simple(
        "Index z",
        "Uncertainty Index over its healthy spread; 2.5 three times, or 3.2 once, triggers.",
        "forkcast_uncertainty_zscore",
    ),
    _simple("Gradient norm", "Before clipping.", "forkcast_grad_norm"),
    Panel(
        title="Steps per second",
        text="Accepted steps.",
        queries=((f"rate(forkcast_steps_total{_RUN}[$__rate_interval])", "{{namespace}}/{{run}}"),),
    ),
    Panel(
        title="Triggers",
        text="By rule, per hour.",
        queries=((f"sum by (rule) (increase(forkcast_triggers_total{_RUN}[1h]))", "{{rule}}"),),
    ),
    _simple("Lineage epoch", "Collapses so far.", "forkcast_lineage_epoch"),
    _simple(
        "Age of the newest checkpoint",
        "What a failure now would lose.",
        "forkcast_operator_checkpoint_age_seconds",
        "s",
    ),
    Panel(
        title="Trainer restarts",
        text="After failures, per hour.",
        queries=(
            (
                f"increase(forkcast_operator_trainer_restarts_total{_RUN}[1h])",
                "{{namespace}}/{{run}}",
            ),
        ),
    ),
    Panel(
        title="Cost of verification",
        text="Optimizer steps of rollouts against steps of the run.",
        queries=(
            (
                (
                    f"sum by (namespace, run) (forkcast_operator_rollout_steps_total{_RUN}) / "
                    f"sum by (namespace, run) (forkcast_steps_total{_RUN})"
                ),
                "{{namespace}}/{{run}}",
            ),
        ),
        unit="percentunit",
    ),
)
OPERATOR = (
    Panel(
        title="Leaders",
        text="Must be 1.",
        queries=(("sum(forkcast_operator_leader)", "leaders"),),
        kind="stat",
    ),
    Panel(
        title="Version",
        text="That runs.",
        queries=(("count by (version) (forkcast_operator_build_info)", "{{version}}"),),
        kind="stat",
    ),
    Panel(
        title="Silence of the watch",
        text="Since the watch on runs last showed life.",
        queries=(("forkcast_operator_last_event_age_seconds", "{{instance}}"),),
        unit="s",
    ),
    _quantiles("Reconcile", "One pass.", "forkcast_operator_reconcile_seconds", "kind"),
    _rate(
        "Failed passes", "Tried again.", "forkcast_operator_reconcile_errors_total", "kind, reason"
    ),
    _rate(
        "Requests to the API server",
        "By verb and answer.",
        "forkcast_operator_api_requests_total",
        "verb, code",
        "reqps",
    ),
    Panel(
        title="Open branches",
        text="Not finished.",
        queries=(("forkcast_operator_branches_active", "open"),),
    ),
    _quantiles("Time of a branch", "From open to ended.", "forkcast_operator_branch_seconds", ""),
    _rate(
        "Failed calls to the store", "A second.", "forkcast_operator_store_errors_total", "instance"
    ),
    _grown(
        "Suppressed triggers",
        "That opened no branch.",
        "forkcast_operator_triggers_suppressed_total",
        "reason",
    ),
    Panel(
        title="Failed or stalled runs",
        text="That need a person.",
        queries=(
            ("forkcast_operator_run_failed == 1", "failed {{namespace}}/{{run}}"),
            ("forkcast_operator_run_stalled == 1", "stalled {{namespace}}/{{run}}"),
        ),
    ),
)
SERVICES = (
    Panel(
        title="Registered runs",
        text="At the monitor.",
        queries=(("forkcast_monitor_runs", "{{instance}}"),),
        kind="stat",
    ),
    Panel(
        title="Open streams",
        text="Of trainers.",
        queries=(("sum(forkcast_report_streams)", "streams"),),
        kind="stat",
    ),
    Panel(
        title="Model",
        text="Of the proxy; nothing where it has none.",
        queries=(("count by (sha256) (forkcast_proxy_model_info)", "{{sha256}}"),),
        kind="stat",
    ),
    _rate("Steps taken in", "All runs.", "forkcast_steps_total", "instance"),
    _rate("Records known already", "Counted once.", "forkcast_stats_duplicates_total", "namespace, run"),
    _rate("Steps that were dropped", "By trainers' rings.", "forkcast_stats_dropped_total", "namespace, run"),
    _rate("Saves that were skipped", "The store was slow.", "forkcast_saves_skipped_total", "namespace, run"),
    Panel(
        title="Steps that wait",
        text="For a late one.",
        queries=(("forkcast_stream_lag_steps", "{{namespace}}/{{run}}"),),
    ),
    _rate("Streams that the monitor ended", "By code.", "forkcast_streams_failed_total", "code"),
    Panel(
        title="Refused calls",
        text="Without a valid certificate or token.",
        queries=(
            (
                "sum by (reason) (rate(forkcast_monitor_requests_refused_total[$__rate_interval]))",
                "monitor {{reason}}",
            ),
            (
                "sum by (reason) (rate(forkcast_proxy_requests_refused_total[$__rate_interval]))",
                "proxy {{reason}}",
            ),
        ),
        unit="ops",
    ),
    Panel(
        title="Certificates",
        text="Time until they expire.",
        queries=(
            ("forkcast_monitor_certificate_expiry_timestamp_seconds - time()", "monitor {{file}}"),
            ("forkcast_proxy_certificate_expiry_timestamp_seconds - time()", "proxy {{file}}"),
            ("forkcast_operator_certificate_expiry_timestamp_seconds - time()", "operator {{service}} {{file}}"),
        ),
        unit="s",
    ),
    _quantiles("Forecast requests", "All candidates of one.", "forkcast_proxy_request_seconds", ""),
    _rate("Forecasts", "Of candidates.", "forkcast_proxy_forecasts_total", "source, outcome"),
    _grown("Abstentions by reason", "In the chosen time.", "forkcast_proxy_abstentions_total", "reason"),
    _grown("Answers that the operator got", "In the chosen time.", "forkcast_operator_proxy_requests_total", "result"),
)  # fmt: skip
DASHBOARDS = {
    "runs": ("Forkcast / Runs", "forkcast-runs", RUNS, True),
    "operator": ("Forkcast / Operator", "forkcast-operator", OPERATOR, False),
    "services": ("Forkcast / Monitor and proxy", "forkcast-services", SERVICES, False),
}


def _targets(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"datasource": _SOURCE, "expr": expression, "legendFormat": legend, "refId": chr(65 + n)}
        for n, (expression, legend) in enumerate(panel.queries)
    ]


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {},
        "targets": _targets(panel),
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def dashboard(name: str) -> dict[str, Any]:
    """The dashboard of that name, as Grafana imports it."""
    title, uid, panels, per_run = DASHBOARDS[name]
    placed: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + _HEIGHT
        placed.append(_panel(panel, number, x, y))
        x += panel.width
    variables: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    ]
    if per_run:
        variables += [
            _variable("namespace", "label_values(forkcast_report_streams, namespace)"),
            _variable("run", 'label_values(forkcast_report_streams{namespace=~"$namespace"}, run)'),
        ]
    return {
        "uid": uid,
        "title": title,
        "tags": ["forkcast"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": placed,
    }


def files() -> dict[Path, str]:
    """Every file and what must stand in it."""
    return {
        FOLDER / f"forkcast-{name}.json": json.dumps(dashboard(name), indent=1) + "\n"
        for name in DASHBOARDS
    }


def main() -> int:
    """0: written, or up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where out of date")
    given = parser.parse_args()
    stale = [p for p, text in files().items() if not p.exists() or p.read_text() != text]
    if given.check and stale:
        names = ", ".join(path.name for path in stale)
        sys.stderr.write(f"{names}: out of date; run scripts/{Path(__file__).name}\n")
        return 1
    for path in () if given.check else stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
