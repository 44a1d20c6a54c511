"""The commands on a made run, through the real entry point."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from forkcast.admission import Refusal
from forkcast.allowance import Allowance, Grounds
from forkcast.branch_rules import BranchRules
from forkcast_cli.__main__ import app
from forkcast_cli.doctor import Check
from forkcast_cli.facts import gather
from forkcast_cli.report import run_charts
from forkcast_wire import keys
from forkcast_wire.branches import Suppression, record_of
from forkcast_wire.documents import dump
from forkcast_wire.store import FolderStore
from tests.ports import free_port

ROOT = Path(__file__).parents[2]


def said(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_status_and_branches(made_run):
    document = json.loads(said("status", made_run, "--json"))
    assert (document["state"], document["epoch"], document["openBranches"]) == ("complete", 1, 0)
    assert [b["outcome"] for b in json.loads(said("branches", made_run, "--json"))] == [
        "Accepted",
        "NoAction",
    ]
    assert "e0-t150" in said("status", made_run)
    assert "e1-t250" in said("branches", made_run)


def test_explain_says_why(made_run):
    text = " ".join(said("explain", "e0-t150", "-d", made_run).split())
    assert "c000 was adopted: learning rate x0.8, rewind 10" in text
    assert "0.050 nats/token below the control at +20 (margin 0.020)" in text
    assert "No action" in said("explain", "last", "-d", made_run)
    assert "no such branch" in said("explain", "e9-t9", "-d", made_run, code=2)
    document = json.loads(said("explain", "made-e0-t150", "-d", made_run, "--json"))
    assert document["decision"]["winner"] == "c000"


def test_what_a_branch_may_cost_and_why_a_trigger_opened_none_is_said_everywhere(made_run):
    store = FolderStore(made_run)
    record = record_of(store, "e1-t250")
    allowance = Allowance(candidates=3, most=6, grounds=Grounds.AGAIN)
    rules = BranchRules().within(allowance)
    store.put(keys.branch_file("e1-t250", "branch"), dump(replace(record, rules=rules)))
    why = {260: Refusal.RESERVED, 270: Refusal.BRANCH_ACTIVE, 280: Refusal.RESERVED}
    for step, reason in why.items():
        told = Suppression(trigger=replace(record.trigger, step=step), reason=reason)
        store.put(keys.suppressed(told.trigger), dump(told))
    allowed = "It may try 3 of 6 candidates: this departure has had a branch already."
    refused = (
        "3 triggers opened no branch, the last at step 280: 2 because the rest of branching.budget is "
        "kept for severe departures; 1 because another branch is open"
    )
    assert allowed in " ".join(said("explain", "e1-t250", "-d", made_run).split())
    assert "It may try" not in said("explain", "e0-t150", "-d", made_run)  # of an earlier version
    assert refused in " ".join(said("status", made_run).split())
    document = json.loads(said("status", made_run, "--json"))
    assert document["suppressedBy"] == {"BudgetReserved": 2, "BranchActive": 1}
    assert document["branches"][1]["allowance"] == {
        "candidates": 3,
        "grounds": "Again",
        "most": 6,
    }
    page = Path(said("report", made_run).replace("\n", "").strip()).read_text()
    assert allowed in page
    assert f"step 270 ({Refusal.BRANCH_ACTIVE.words})" in page


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.pictures = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line", "circle", "rect", "polyline", "br"):
            self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset")]
        self.pictures += tag == "svg"

    def handle_endtag(self, tag):
        if tag in ("line", "circle", "rect", "polyline"):
            return
        assert self.open.pop() == tag


def test_report_is_one_sound_page_without_requests(made_run):
    path = Path(said("report", made_run).replace("\n", "").strip())
    text = path.read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert page.pictures == 7  # loss, index, parts, and two for each branch
    assert not re.search(r"url\(|@import|<script", text)
    assert "&lt;proxy &amp; down&gt;" in text
    assert "<proxy & down>" not in text
    assert path.stat().st_size < 500_000


def test_the_report_has_a_row_for_each_departure_with_its_first_step(made_run):
    assert re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td><td>(\w+)</td>", departures(made_run)) == [
        ("150", "148", "branch"),
        ("250", "248", "branch"),
    ]


def departures(folder):
    text = Path(said("report", folder).replace("\n", "").strip()).read_text()
    return text.split("<h2>Departures</h2>")[1].split("</table>")[0]


def test_report_of_a_run_that_has_barely_begun(made_run):
    import shutil

    for name in ("branches", "rollouts", "lineage", "statistics"):
        shutil.rmtree(made_run / name)
    (made_run / "complete.json").unlink()
    said("report", made_run)
    assert json.loads(said("report", made_run, "--json"))["metrics"]["steps"] == 0
    assert "no branch" in said("branches", made_run)


def test_the_reports_axis_goes_to_the_last_step_whatever_is_lost(made_run):
    max((made_run / "statistics").glob("*.parquet")).unlink()
    facts = gather(made_run)
    assert max(point.step for point in facts.points) < 200
    assert {chart.x_to for chart in run_charts(facts)} == {300}


def test_status_with_watch_ends_if_nobody_is_at_work(made_run):
    (made_run / "complete.json").unlink()
    for state in ("stopped", "finished"):
        (made_run / "progress.json").write_text(json.dumps({"state": state, "step": 200}))
        told = said("status", "-w", made_run)
        assert "nobody is at work on this run" in told


def test_a_remedy_with_brackets_is_printed_whole(monkeypatch):
    lacking = Check("cli", ok=False, found="", remedy="pip install 'forkcast[local]'")
    monkeypatch.setattr("forkcast_cli.doctor.examine", lambda _: [lacking])
    assert "pip install 'forkcast[local]'" in said("doctor", code=1)


def test_runs_is_one_parquet_index(made_run):
    rows = json.loads(said("runs", made_run.parent, "--json"))
    table = pq.read_table(made_run.parent / "runs.parquet").to_pylist()
    assert len(rows) == len(table) == 4
    assert [r["verdict"] for r in table] == [
        "Accepted",
        "DroppedAtRung",
        "NoBetter",
        "DroppedAtRung",
    ]
    assert [r["relapsed_within_500"] for r in table] == [True, True, None, None]


def test_runs_that_cannot_be_read_are_rows_that_say_why(made_run, monkeypatch):
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    keys = made_run.parent / "keys"
    keys.mkdir()
    for name in ("accessKeyId", "secretAccessKey"):
        (keys / name).write_text("x")
    document = json.loads((made_run / "manifest.json").read_text())
    away = {"endpoint": f"http://127.0.0.1:{free_port()}", "bucket": "runs"}
    for name, storage in (
        ("away", {**away, "credentialsDir": str(keys)}),
        ("keyless", {**away, "credentialsDir": str(keys / "nowhere")}),
    ):
        shutil.copytree(made_run, made_run.parent / name)
        document["spec"]["storage"] = storage
        (made_run.parent / name / "manifest.json").write_text(json.dumps(document))
    shutil.copytree(made_run, made_run.parent / "damaged")
    (made_run.parent / "damaged" / "manifest.json").write_text("{")
    rows = json.loads(said("runs", made_run.parent, "--json"))
    unread = {row["run"]: row["not_read"] for row in rows if row.get("not_read")}
    assert unread.keys() == {"away", "keyless", "damaged"}
    assert "no connection" in unread["away"]
    assert "nowhere" in unread["keyless"]
    assert "is damaged" in unread["damaged"]
    assert len(rows) == 4 + 3  # and every row of the run that can be read
    table = pq.read_table(made_run.parent / "runs.parquet").to_pylist()
    assert {row["run"]: row["not_read"] for row in table} == {"made": None, **unread}
    screen = said("runs", made_run.parent)
    assert screen.count("not read: ") == 3


def test_plan_of_the_quickstart():
    document = json.loads(said("plan", ROOT / "examples" / "quickstart.yaml", "--json"))
    assert document["model"]["parameters"] > 800_000
    assert 0 < document["branch_steps_least"] < document["branch_steps_most"]


@pytest.mark.parametrize("command", ["status", "branches", "report"])
def test_a_folder_without_a_run_is_bad_input(tmp_path, command):
    assert "holds no run" in said(command, tmp_path, code=2)


def test_doctor_names_what_is_here():
    names = {one["name"] for one in json.loads(said("doctor", "--json"))}
    assert {"python", "trainer", "disk", "sockets"} <= names


def test_the_manifest_reference_is_up_to_date():
    script = ROOT / "scripts" / "generate_manifest_reference.py"
    subprocess.run([sys.executable, script, "--check"], check=True)
