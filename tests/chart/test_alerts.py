"""Every alert: it fires on what it is for, says so in words, has a runbook, and is silent in health."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import template

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts" / "forkcast" / "files" / "alerts" / "forkcast.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}
RUN = 'namespace="lab",run="one"'
_EXPIRY = 'forkcast_operator_certificate_expiry_timestamp_seconds{job="operator",service="proxy",file="ca.crt"}'
_OPERATOR = 'instance="o:9090",job="operator"'

#: A healthy installation over six hours, one sample a minute.
HEALTHY = {
    'forkcast_operator_build_info{version="0.1.0"}': "1x400",
    f"forkcast_operator_leader{{{_OPERATOR}}}": "1x400",
    f"forkcast_operator_last_event_age_seconds{{{_OPERATOR}}}": "5x400",
    'forkcast_operator_reconcile_seconds_bucket{kind="Branch",le="0.5"}': "0+30x400",
    'forkcast_operator_reconcile_seconds_bucket{kind="Branch",le="1"}': "0+30x400",
    'forkcast_operator_reconcile_seconds_bucket{kind="Branch",le="+Inf"}': "0+30x400",
    'forkcast_operator_api_requests_total{verb="patch",code="429"}': "0x400",
    f"forkcast_operator_run_failed{{{RUN}}}": "0x400",
    f"forkcast_operator_run_stalled{{{RUN}}}": "0x400",
    f"forkcast_operator_trainer_restarts_total{{{RUN}}}": "1x400",
    f"forkcast_operator_checkpoint_age_seconds{{{RUN}}}": "9000x400",  # of a long interval
    f"forkcast_operator_checkpoint_intervals_behind{{{RUN}}}": "0.9x400",
    f"forkcast_operator_run_unstable{{{RUN}}}": "0x400",
    'forkcast_operator_branches_total{outcome="Failed"}': "0x400",
    'forkcast_operator_branches_total{outcome="Accepted"}': "0+0.1x400",
    'forkcast_operator_rollouts_total{verdict="Failed"}': "0x400",
    'forkcast_operator_rollouts_total{verdict="NoBetter"}': "0+0.5x400",
    'forkcast_operator_triggers_suppressed_total{reason="Budget"}': "0x400",
    'forkcast_operator_proxy_requests_total{result="unavailable"}': "0x400",
    "forkcast_operator_store_errors_total": "0x400",
    "forkcast_monitor_runs": "1x400",
    f"forkcast_uncertainty_zscore{{{RUN}}}": "0.4x400",
    f"forkcast_train_loss{{{RUN}}}": "3.1x400",
    f"forkcast_steps_total{{{RUN}}}": "0+60x400",
    f"forkcast_report_streams{{{RUN}}}": "1x400",
    f"forkcast_stats_dropped_total{{{RUN}}}": "0x400",
    f"forkcast_saves_skipped_total{{{RUN}}}": "0x400",
    'forkcast_proxy_forecasts_total{outcome="forecast"}': "0+10x400",
    'forkcast_proxy_forecasts_total{outcome="abstained"}': "0+1x400",
    'forkcast_monitor_certificate_expiry_timestamp_seconds{job="monitor",file="tls.crt"}': "2e9x400",
    'forkcast_proxy_model_info{sha256="0",feature_version="1"}': "1x400",
}

#: alert: (series that differ from health, None for one that is gone; labels; words of the description)
ILL: dict[str, tuple[dict[str, str | None], dict[str, str], str]] = {
    "ForkcastOperatorDown": (
        {'forkcast_operator_build_info{version="0.1.0"}': "1x200 _x200"},
        {},
        "nothing is started",
    ),
    "ForkcastOperatorNoLeader": (
        {f"forkcast_operator_leader{{{_OPERATOR}}}": "0x400"},
        {},
        "none has held the lease",
    ),
    "ForkcastOperatorWatchStale": (
        {f"forkcast_operator_last_event_age_seconds{{{_OPERATOR}}}": "0+60x400"},
        {"instance": "o:9090", "job": "operator"},
        "o:9090 has shown no life for 6h 0m 0s",
    ),
    "ForkcastReconcileErrors": (
        {'forkcast_operator_reconcile_errors_total{kind="Branch",reason="Store"}': "0+12x400"},
        {"kind": "Branch", "reason": "Store"},
        "Branch fail for Store, 200m a second",
    ),
    "ForkcastReconcileSlow": (
        {
            'forkcast_operator_reconcile_seconds_bucket{kind="Branch",le="0.5"}': "0x400",
            'forkcast_operator_reconcile_seconds_bucket{kind="Branch",le="1"}': "0x400",
            'forkcast_operator_reconcile_seconds_bucket{kind="Branch",le="2.5"}': "0+30x400",
        },
        {"kind": "Branch"},
        "Branch take more than 2.485s",
    ),
    "ForkcastApiThrottled": (
        {'forkcast_operator_api_requests_total{verb="patch",code="429"}': "0+6x400"},
        {},
        "100m requests a second",
    ),
    "ForkcastStoreUnavailable": (
        {"forkcast_operator_store_errors_total": "0+6x400"},
        {},
        "100m calls a second",
    ),
    "ForkcastRunFailed": (
        {f"forkcast_operator_run_failed{{{RUN}}}": "1x400"},
        {"namespace": "lab", "run": "one"},
        "lab/one has failed",
    ),
    "ForkcastRunStalled": (
        {f"forkcast_operator_run_stalled{{{RUN}}}": "1x400"},
        {"namespace": "lab", "run": "one"},
        "lab/one has been Stalled",
    ),
    "ForkcastTrainerRestarting": (
        {f"forkcast_operator_trainer_restarts_total{{{RUN}}}": "0+0.1x400"},
        {"namespace": "lab", "run": "one"},
        "started 6 times",
    ),
    "ForkcastCheckpointOld": (
        {f"forkcast_operator_checkpoint_intervals_behind{{{RUN}}}": "3x400"},
        {"namespace": "lab", "run": "one"},
        "lab/one is 3 times checkpoint.everySteps behind",
    ),
    "ForkcastStepsStopped": (
        {f"forkcast_steps_total{{{RUN}}}": "100x400"},
        {"namespace": "lab", "run": "one"},
        "reported no step",
    ),
    "ForkcastLossNotFinite": (
        {f"forkcast_train_loss{{{RUN}}}": " ".join(["NaN"] * 401)},
        {"namespace": "lab", "run": "one"},
        "lab/one has not been a number",
    ),
    "ForkcastUnstable": (
        # one scrape in twenty is calm
        {f"forkcast_operator_run_unstable{{{RUN}}}": " ".join((["1"] * 19 + ["0"]) * 20)},
        {"namespace": "lab", "run": "one"},
        "over its threshold in 93.55%",
    ),
    "ForkcastStatisticsDropped": (
        {f"forkcast_stats_dropped_total{{{RUN}}}": "0+2x400"},
        {"namespace": "lab", "run": "one"},
        "lab/one dropped 30 steps",
    ),
    "ForkcastSavesSkipped": (
        {f"forkcast_saves_skipped_total{{{RUN}}}": "0+1x400"},
        {"namespace": "lab", "run": "one"},
        "lab/one has skipped 60 saves",
    ),
    "ForkcastBranchesFailing": (
        {'forkcast_operator_branches_total{outcome="Failed"}': "0+0.2x400"},
        {},
        "72 branches within six hours",
    ),
    "ForkcastRolloutsFailing": (
        {'forkcast_operator_rollouts_total{verdict="Failed"}': "0+1x400"},
        {},
        "360 rollouts within six hours",
    ),
    "ForkcastBranchBudgetSpent": (
        {'forkcast_operator_triggers_suppressed_total{reason="Budget"}': "0+0.5x400"},
        {"reason": "Budget"},
        "180 triggers",
    ),
    "ForkcastMonitorDown": ({"forkcast_monitor_runs": "1x200 _x200"}, {}, "goes on unwatched"),
    "ForkcastStreamsFailing": (
        {f'forkcast_streams_failed_total{{{RUN},code="INTERNAL"}}': "0+6x400"},
        {"namespace": "lab", "run": "one", "code": "INTERNAL"},
        "lab/one end with INTERNAL",
    ),
    "ForkcastRunOverBudget": (
        {f'forkcast_over_budget_total{{{RUN},reason="disk"}}': "0+1x400"},
        {"namespace": "lab", "run": "one", "reason": "disk"},
        "lab/one is not watched any longer: disk",
    ),
    "ForkcastRequestsRefused": (
        {'forkcast_proxy_requests_refused_total{job="proxy",reason="token"}': "0+12x400"},
        {"job": "proxy", "reason": "token"},
        "proxy refuses 200m calls a second: token",
    ),
    "ForkcastCertificateExpires": (
        {_EXPIRY: "1015200x400"},
        {"job": "operator", "service": "proxy", "file": "ca.crt"},
        "ca.crt of operator expires in 11d 12h 0m 0s",
    ),
    "ForkcastCertificateExpired": (
        {_EXPIRY: "7200x400"},
        {"job": "operator", "service": "proxy", "file": "ca.crt"},
        "ca.crt of operator has expired",
    ),
    "ForkcastProxyUnavailable": (
        {'forkcast_operator_proxy_requests_total{result="unavailable"}': "0+1x400"},
        {},
        "60 forecasts within an hour",
    ),
    "ForkcastProxySlow": (
        {
            'forkcast_proxy_request_seconds_bucket{le="1.0"}': "0x400",
            'forkcast_proxy_request_seconds_bucket{le="5.0"}': "0+30x400",
            'forkcast_proxy_request_seconds_bucket{le="+Inf"}': "0+30x400",
        },
        {},
        "more than 4.96s",
    ),
    "ForkcastProxyAbstains": (
        {
            'forkcast_proxy_forecasts_total{outcome="forecast"}': "0x400",
            'forkcast_proxy_forecasts_total{outcome="abstained"}': "0+10x400",
        },
        {},
        "nine in ten",
    ),
}


def _promtool(promtool: str, folder: Path, series: dict[str, str | None], checks: list[Any]):
    values = {**HEALTHY, **series}
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": shown} for name, shown in values.items() if shown
                ],
                "alert_rule_test": checks,
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(document))
    return subprocess.run(
        [promtool, "test", "rules", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_rules_are_valid(promtool):
    subprocess.run([promtool, "check", "rules", "--lint=all", str(RULES)], check=True)


def test_health_is_silent(promtool, tmp_path):
    checks = [{"eval_time": "6h", "alertname": name, "exp_alerts": []} for name in ALERTS]
    done = _promtool(promtool, tmp_path, {}, checks)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_never_scraped_is_not_down(promtool, tmp_path):
    never = {'forkcast_operator_build_info{version="0.1.0"}': None, "forkcast_monitor_runs": None}
    names = ("ForkcastOperatorDown", "ForkcastMonitorDown")
    checks = [{"eval_time": "6h", "alertname": name, "exp_alerts": []} for name in names]
    done = _promtool(promtool, tmp_path, never, checks)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_and_says_why(promtool, tmp_path, name):
    series, labels, words = ILL[name]
    # promtool wants the whole annotation; what it got is in its answer, the words must be in it
    check = {"eval_time": "6h", "alertname": name, "exp_alerts": []}
    done = _promtool(promtool, tmp_path, series, [check])
    said = done.stdout + done.stderr
    fired = re.findall(r"Labels:(\{.*\})\s+Annotations:(\{.*\})", said)
    assert len(fired) == 1, said
    shown = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', fired[0][0]))
    expected = {"alertname": name, **ALERTS[name]["labels"], **labels}
    assert shown == expected
    assert words in fired[0][1]
    assert "{{" not in fired[0][1]
    assert "no value" not in fired[0][1]


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_follows_the_conventions(name):
    rule = ALERTS[name]
    assert re.fullmatch(r"Forkcast[A-Z][A-Za-z]+", name)
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["annotations"]["summary"].endswith(".")
    assert "{{" not in rule["annotations"]["summary"]


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_runbook(name):
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    for part in ("**Means.**", "**Harm.**", "**Look.**", "**Do.**"):
        assert part in text, part


def test_no_runbook_without_an_alert():
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == set(ALERTS) | {"README"}


def test_every_alert_is_tested():
    assert ILL.keys() == ALERTS.keys()


def test_an_alert_can_be_overridden_by_name(helm, tmp_path):
    own = {"ForkcastUnstable": {"for": "2h", "severity": "critical", "expr": "vector(1) > 2"}}
    values = {
        "objectStore": {"mode": "Bundled"},
        "metrics": {"prometheusRule": {"enabled": True, "overrides": own}},
    }
    done = template(helm, tmp_path, values)
    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one]
    (made,) = [one for one in objects if one["kind"] == "PrometheusRule"]
    rules = [rule for group in made["spec"]["groups"] for rule in group["rules"]]
    (found,) = [rule for rule in rules if rule["alert"] == "ForkcastUnstable"]
    said = (found["for"], found["labels"]["severity"], found["expr"])
    assert said == ("2h", "critical", "vector(1) > 2")
    others = [rule for rule in rules if rule["alert"] != "ForkcastUnstable"]
    assert all(rule["expr"] == ALERTS[rule["alert"]]["expr"] for rule in others if "alert" in rule)
