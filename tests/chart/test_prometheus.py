"""A real Prometheus over the real services: targets, every expression of the rules, real alerts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.waiting import until

from .conftest import template
from .live import Installation, Processes, Prometheus, environment_of, object_store
from .values_matrix import EXTERNAL

ROOT = Path(__file__).parents[2]
NAMESPACE = "watched"
RULES = yaml.safe_load((ROOT / "charts/forkcast/files/alerts/forkcast.yaml").read_text())
EXPRESSIONS = {
    rule.get("alert") or rule["record"]: rule["expr"]
    for group in RULES["groups"]
    for rule in group["rules"]
}
#: A branch soon, whatever the statistics say.
FORCED = {
    "trigger": {"z": "1000", "singleZ": "1000", "forceEverySteps": 500},
    "warmupSteps": 20,
}
_SET_OPERATOR = r"(?:and|or|unless)\b(?:\s*(?:on|ignoring)\s*\([^)]*\))?"
_COMPARISON = r"==|!=|>=|<=|>|<"
_CUT = re.compile(rf"\b{_SET_OPERATOR}|{_COMPARISON}")


def operands(expression: str) -> list[str]:
    """What an alert compares: the parts between comparisons and `and`s outside all brackets. The
    argument of `absent` stands for it; numbers are left out.
    """
    parts, begin, at, depth, quoted = [], 0, 0, 0, False
    while at < len(expression):
        cut = _CUT.match(expression, at) if not depth and not quoted else None
        if cut:
            parts.append(expression[begin:at])
            begin = at = cut.end()
            continue
        quoted ^= expression[at] == '"'
        if not quoted:
            depth += (expression[at] in "([{") - (expression[at] in ")]}")
        at += 1
    parts.append(expression[begin:])
    found = []
    for part in map(str.strip, parts):
        inner = re.fullmatch(r"absent\((.*)\)", part)
        if not re.fullmatch(r"[\d.]+|Inf|NaN", part):
            found.append(inner[1] if inner else part)
    return found


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("absent(a)", ["a"]),
        ('rate(a{b="x > 1"}[5m]) > 0.5', ['rate(a{b="x > 1"}[5m])']),
        ("a > 60 and on (i) b == 1", ["a", "b"]),
        ("a > 0.9 * sum(b) and on () count(c) > 0", ["a", "0.9 * sum(b)", "count(c)"]),
        ("abs(a) == Inf or a != a", ["abs(a)", "a", "a"]),
    ],
)
def test_what_an_alert_compares(expression, parts):
    assert operands(expression) == parts


@pytest.fixture(scope="module")
def processes(kubectl, tmp_path_factory):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed; it comes with the package of its name")
    made = Processes(tmp_path_factory.mktemp("live"), environment_of(kubectl))
    yield made
    made.stop_all()


@pytest.fixture(scope="module")
def installation(processes, kubectl):
    kubectl.ok("create", "namespace", NAMESPACE)
    with object_store() as endpoint:
        made = Installation(processes, kubectl, endpoint, NAMESPACE)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def groups(helm, tmp_path_factory):
    """The rules as the chart renders them."""
    values = {**EXTERNAL, "metrics": {"prometheusRule": {"enabled": True}}}
    done = template(helm, tmp_path_factory.mktemp("rules"), values)
    assert done.returncode == 0, done.stderr
    (rule,) = [
        one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "PrometheusRule"
    ]
    return rule["spec"]["groups"]


@pytest.fixture(scope="module")
def prometheus(processes, installation, groups):
    """With a run that trains and has a branch. The server is there before the run, as it would be."""
    made = Prometheus(processes, installation.targets, groups)
    until(lambda: len(_up(made)) == len(installation.targets), "all targets up")
    installation.run("calm", uncertainty=FORCED)
    return made


def _up(prometheus):
    active = prometheus.get("targets")["activeTargets"]
    return {one["labels"]["job"] for one in active if one["health"] == "up"}


def test_every_target_is_up(prometheus, installation):
    assert _up(prometheus) == installation.targets.keys()


def test_every_rule_is_evaluated(prometheus, groups):
    wanted = {rule["alert"] for group in groups for rule in group["rules"]}
    assert wanted == EXPRESSIONS.keys()

    def healthy():
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return {rule["name"] for rule in rules if rule["health"] == "ok"} == wanted

    until(healthy, "every rule evaluated")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_a_rule_compares_has_series(prometheus, name):
    """Compared with nothing, every expression returns series in a healthy installation."""
    if "certificate_expiry" in EXPRESSIONS[name]:
        pytest.skip("this installation talks in plain text; test_certificates_expire.py has them")
    for operand in operands(EXPRESSIONS[name]):
        until(lambda operand=operand: prometheus.series(operand), f"series of {operand}")


def test_a_healthy_installation_is_silent(prometheus):
    until(lambda: prometheus.series("forkcast_operator_branches_active == 1"), "a branch")
    until(lambda: prometheus.series("forkcast_train_loss > 2"), "a step")
    alerts = prometheus.get("alerts")["alerts"]
    assert [one["labels"]["alertname"] for one in alerts if one["state"] == "firing"] == []


def test_a_failed_run_fires(prometheus, installation):
    """An alert that waits for nothing, from the pod's end to Prometheus."""
    trainer = installation.run("doomed", lifecycle={"maxRestarts": 0})
    status = {"state": {"terminated": {"exitCode": 1}}, "name": "trainer"}
    installation.pod_is(trainer.pod, {"phase": "Failed", "containerStatuses": [status]})
    until(lambda: prometheus.alert("ForkcastRunFailed") == "firing", "the alert")
    (alert,) = [
        one
        for one in prometheus.get("alerts")["alerts"]
        if one["labels"]["alertname"] == "ForkcastRunFailed"
    ]
    assert (alert["labels"]["namespace"], alert["labels"]["run"]) == (NAMESPACE, "doomed")
    assert alert["annotations"]["runbook_url"].endswith("/ForkcastRunFailed.md")


def test_a_proxy_that_is_gone_is_told_of(prometheus, installation):
    """The next branch asks in vain; the alert is pending, as it is to last ten minutes."""
    installation.processes.stop("proxy")
    until(lambda: "proxy" not in _up(prometheus), "the target's loss")
    installation.run("asking", uncertainty=FORCED)
    until(lambda: prometheus.alert("ForkcastProxyUnavailable") == "pending", "the alert")


def test_nobody_stumbled(prometheus, installation):
    for name in ("operator", "monitor", "proxy"):
        assert "Traceback" not in installation.processes.log(name)
