"""The kubectl plugin over objects as the operator writes them, with a kubectl that prints them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forkcast_cli.kubectl import app

SINCE = "2026-01-01T00:00:00Z"


def condition(kind, status, reason):
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": SINCE,
    }


RUN = {
    "metadata": {"name": "gpt", "namespace": "ml"},
    "spec": {"data": {"train": {"uri": "python-stdlib:"}}, "training": {"totalSteps": 1000}},
    "status": {
        "observedGeneration": 1,
        "conditions": [condition("Ready", "True", "Branching")],
        "progress": {"step": 500, "totalSteps": 1000, "tokens": 12345, "percentage": 50},
        "metrics": [{"name": "train_loss", "value": "3.12"}],
        "uncertainty": {"index": "1.3", "z": "2.7", "ready": True},
    },
}
BRANCH = {
    "metadata": {"name": "gpt-e0-t288"},
    "spec": {
        "runRef": {"name": "gpt", "uid": "u"},
        "trigger": {
            "epoch": 0,
            "step": 288,
            "onsetStep": 286,
            "rule": "Single",
            "z": "4",
            "index": "1.9",
            "components": {"volatility": "4.1"},
        },
        "openedAt": SINCE,
        "deadlineSeconds": 900,
        "candidates": 64,
        "topK": 1,
        "rungs": [10],
        "confirmSteps": 0,
        "confirmFinalists": 1,
        "depths": [0],
        "apply": True,
        "acceptance": {
            "preset": "Default",
            "maxRiskQuantile": "0.2",
            "maxVolatilityRatio": "1.05",
            "unknownMargin": "0.02",
        },
    },
    "status": {
        "observedGeneration": 1,
        "conditions": [condition("Ready", "True", "Accepted")],
        "draft": {"source": "Heuristic", "count": 64, "finalists": ["c007"], "note": "proxy down"},
        "rollouts": [
            {"name": "control", "state": "Measured", "rung": 10, "validationLoss": "3.1"},
            {
                "name": "c007",
                "action": "learning rate x0.8",
                "state": "Measured",
                "rung": 10,
                "validationLoss": "3.0",
                "improvement": "0.1",
                "verdict": "Accepted",
            },
        ],
        "decision": {
            "outcome": "Accepted",
            "reason": "Improved",
            "winner": "c007",
            "action": "learning rate x0.8",
            "key": "branches/e0-t288/decision.json",
            "sha256": "0" * 64,
            "time": SINCE,
        },
    },
}


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Runs the plugin; beside its answer, what it has asked kubectl for."""
    answers = {"trainingrun": RUN, "branch": BRANCH, "branches": {"items": [BRANCH]}}
    for kind, document in answers.items():
        (tmp_path / kind).write_text(json.dumps(document))
    asked = tmp_path / "asked"
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n'
        f'[ "$3" = nobody ] && {{ echo "Error from server (NotFound): no nobody" >&2; exit 1; }}\n'
        f'[ "$1" = get ] && cat {tmp_path}/$2\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        done = CliRunner().invoke(app, arguments)
        return done, asked.read_text().splitlines()

    return run


def test_status_says_what_the_run_does_and_shows_its_branches(ask) -> None:
    done, asked = ask("status", "gpt", "-n", "ml")
    assert done.exit_code == 0
    for said in (
        "Branching",
        "step 500 of 1000",
        "train loss 3.12",
        "z 2.70",
        "gpt-e0-t288",
        "c007",
    ):
        assert said in done.output
    assert all(line.endswith("--namespace=ml") for line in asked)
    assert "-l forkcast.dev/run=gpt" in asked[1]


def test_explain_says_why(ask) -> None:
    done, _ = ask("explain", "gpt-e0-t288")
    for said in ("At step 288", "proxy down", "Adopted: c007, learning rate x0.8", "+0.1000"):
        assert said in done.output


def test_branches_and_status_as_json(ask) -> None:
    assert json.loads(ask("branches", "gpt", "--json")[0].output)[0]["name"] == "gpt-e0-t288"
    assert json.loads(ask("status", "gpt", "--json")[0].output)["status"]["progress"]["step"] == 500


def test_the_report_is_one_page(ask, tmp_path) -> None:
    page = tmp_path / "page.html"
    done, _ = ask("report", "gpt", "-o", str(page))
    assert done.stdout.strip() == str(page)
    assert "without its history" in done.stderr  # this kubectl shows no ConfigMap
    text = Path(page).read_text()
    assert "gpt-e0-t288: Accepted" in text
    assert "learning rate x0.8" in text
    assert "<script" not in text


@pytest.mark.parametrize(("command", "value"), [("suspend", "true"), ("resume", "false")])
def test_suspend_and_resume_patch_the_spec(ask, command, value) -> None:
    done, asked = ask(command, "gpt", "--context", "far")
    assert done.exit_code == 0
    (line,) = asked
    assert line == (
        f'patch trainingrun gpt --type=merge -p {{"spec": {{"suspend": {value}}}}} --context=far'
    )


def test_what_kubectl_refuses_is_one_line(ask) -> None:
    done, _ = ask("status", "nobody")
    assert done.exit_code == 2
    assert "NotFound" in done.output
