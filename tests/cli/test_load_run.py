"""`forkcast.load_run`: a run's steps and events as tables, from a folder, a store and a bucket."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import forkcast
from forkcast.admission import Refusal
from forkcast.records import StateKind, TriggerRule
from forkcast_cli.facts import gather
from forkcast_cli.report import run_charts
from forkcast_wire import history, keys
from forkcast_wire.branches import Suppression
from forkcast_wire.documents import dump
from forkcast_wire.manifest_file import ManifestError
from forkcast_wire.statistics import rows_of, stats_row, write_chunk
from forkcast_wire.store import FolderStore, StoreRefused, StoreUnavailable
from tests.cli.conftest import row
from tests.make import lineage_entry, step_stats, trigger
from tests.ports import free_port
from tests.versitygw import Versitygw


def drawn(folder: Path) -> list[tuple[str, float, float]]:
    """What the report draws of the training loss: (whose, step, loss)."""
    chart = run_charts(gather(folder))[0]
    return sorted((line.label, x, y) for line in chart.lines for x, y in line.points)


def test_the_steps_are_those_the_report_draws_the_adopted_ones_included(made_run):
    table = forkcast.load_run(made_run).steps()
    rows = table.to_pylist()
    of = {(False, False): "main run", (False, True): "abandoned", (True, False): "adopted rollout"}
    mine = sorted((of[r["adopted"], r["abandoned"]], r["step"], r["loss"]) for r in rows)
    assert mine == [one for one in drawn(made_run) if one[0] in of.values()]
    assert [r["step"] for r in rows if not r["abandoned"]] == list(range(300))
    assert table.schema.field("attention_entropy").type == pa.list_(pa.float64())
    assert "u_volatility" in table.column_names


def test_the_stored_rows_of_an_adopted_rollout_come_before_what_its_decision_kept(made_run):
    store = FolderStore(made_run)
    rows = [stats_row(step_stats(n, epoch=1, loss=9.0, grad_norm=7.0)) for n in range(140, 150)]
    store.put(keys.history(1, 0, 140, 149), history.encoded(rows))
    adopted = [r for r in forkcast.load_run(made_run).steps().to_pylist() if r["adopted"]]
    assert [r["step"] for r in adopted] == list(range(140, 170))
    assert [r["grad_norm"] for r in adopted] == [7.0] * 10 + [None] * 20


def test_a_collapse_behind_an_earlier_one_abandons_its_steps_too(tmp_path):
    store = FolderStore(tmp_path)
    for epoch, steps in enumerate((range(20), range(15, 30), range(8, 40))):
        rows = [stats_row(step_stats(n, epoch=epoch)) for n in steps]
        store.put(keys.history(epoch, 0, steps[0], steps[-1]), history.encoded(rows))
    for epoch, base in ((1, 12), (2, 6)):
        state = {"kind": StateKind.ROLLOUT, "step": (15, 8)[epoch - 1]}
        entry = lineage_entry(epoch, base_step=base)
        from dataclasses import replace

        entry = replace(entry, state=replace(entry.state, **state))
        store.put(f"lineage/{epoch}.json", dump(entry))
    rows = forkcast.load_run(tmp_path).steps().to_pylist()
    kept = [(r["epoch"], r["step"]) for r in rows if not r["abandoned"]]
    assert kept == [*((0, n) for n in range(6)), *((2, n) for n in range(8, 40))]


def test_events_are_the_departures_with_what_came_of_them(made_run):
    store = FolderStore(made_run)
    for rule, step, why in (
        (TriggerRule.CONSECUTIVE, 200, Refusal.BUDGET),
        (TriggerRule.CALM, 210, Refusal.NO_LOAN),
    ):
        told = trigger(epoch=1, step=step, onset_step=step - 3, rule=rule, cause="It departed")
        store.put(keys.suppressed(told), dump(Suppression(trigger=told, reason=why)))
    run = forkcast.load_run(made_run)
    found = [(e["step"], e["branch"], e["outcome"], e["reason"]) for e in run.events().to_pylist()]
    assert found == [
        (150, "e0-t150", "Accepted", "Improved"),
        (200, None, None, "Budget"),
        (250, "e1-t250", "NoAction", "NoCandidatePassed"),
    ]
    first = run.events().to_pylist()[0]
    assert first["rule"] == "Single"
    assert run.events()["cause"].to_pylist()[1] == "It departed"
    assert (first["onset_step"], first["component"], first["tier"]) == (148, "volatility", 3)
    assert [one.step for one in run.triggers] == [150, 200, 210, 250]
    assert [one.id for one in run.branches] == ["e0-t150", "e1-t250"]
    assert [one.epoch for one in run.lineage] == [1]
    assert (run.name, run.complete.step) == ("made", 300)


def test_events_that_opened_no_branch_are_those_the_monitor_recorded_with_a_step(made_run):
    rows = [row(1, n, 3.0) for n in range(300, 310)]
    rows[4] |= {"tier": 2, "event": "The loss rose.", "onset_step": 302, "u_volatility": 4.0}
    rows[8] |= {"tier": 2, "event": "A row of an earlier version."}
    write_chunk(rows, made_run / "statistics")
    (chunk,) = (made_run / "statistics").glob("e0-*")
    judged = rows_of(chunk, "")
    judged[150] |= {"tier": 3, "event": "The loss and the norm rose.", "onset_step": 145}
    chunk.unlink()
    write_chunk(judged, made_run / "statistics")
    found = forkcast.load_run(made_run).events().to_pylist()
    told = [(e["epoch"], e["step"], e["tier"], e["branch"], e["cause"]) for e in found]
    assert told[0] == (0, 150, 3, "e0-t150", "The loss and the norm rose.")
    assert told[2] == (1, 304, 2, None, "The loss rose.")
    assert [one["onset_step"] for one in found] == [145, 248, 302, 308]
    assert (found[2]["component"], found[2]["rule"], found[2]["reason"]) == ("volatility", None, "")


def test_frames_are_the_same_tables(made_run):
    run = forkcast.load_run(made_run)
    frame = run.steps_frame()
    assert list(frame["step"]) == run.steps()["step"].to_pylist()
    assert list(run.events_frame()["branch"]) == ["e0-t150", "e1-t250"]


def test_without_pandas_the_error_names_the_remedy(made_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = forkcast.load_run(made_run)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'forkcast\[pandas\]'"):
        run.steps_frame()
    assert run.steps().num_rows


def test_a_store_folder_without_a_manifest_is_read_as_well(made_run):
    whole = forkcast.load_run(made_run).steps()
    (made_run / "manifest.json").unlink()
    (made_run / "run.json").unlink()
    run = forkcast.load_run(str(made_run))
    assert run.steps().equals(whole)
    assert run.name == "made"


def test_nothing_is_written_into_what_is_read(made_run):
    (made_run / "manifest.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in made_run.rglob("*")}
    forkcast.load_run(made_run).steps()
    assert {path: path.stat().st_mtime_ns for path in made_run.rglob("*")} == before


def test_a_damaged_document_is_named_and_hides_no_other(made_run):
    (made_run / "branches/e1-t250/decision.json").write_text("{}")
    run = forkcast.load_run(made_run)
    assert [one.id for one in run.branches] == ["e0-t150"]
    assert "branches/e1-t250/decision.json" in run.damaged[0]


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_run_is_one_clear_error(tmp_path, made):
    place = tmp_path / "none"
    if made:
        place.mkdir()
    with pytest.raises(ManifestError) as caught:
        forkcast.load_run(place)
    assert len(caught.value.lines()) == 1
    assert str(place) in str(caught.value)
    assert caught.value.remedy


def test_a_folder_of_runs_names_one_of_them(made_run):
    with pytest.raises(ManifestError, match="holds no run; there is one below, at made/"):
        forkcast.load_run(made_run.parent)


def test_a_bucket_is_read_with_the_keys_that_aws_tools_would_use(made_run, tmp_path, monkeypatch):
    import boto3

    (folder := tmp_path / "server").mkdir()
    server = Versitygw(folder)
    server.start()
    try:
        server.make_bucket("runs")
        from tests.versitygw import ACCESS, SECRET

        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
        )
        shutil.rmtree(made_run / "statistics")
        rows = [stats_row(step_stats(n)) for n in range(20)]
        FolderStore(made_run).put(keys.history(0, 0, 0, 19), history.encoded(rows))
        for path in sorted(made_run.rglob("*")):
            if path.is_file() and ".forkcast" not in path.parts:
                client.upload_file(str(path), "runs", f"a/b/{path.relative_to(made_run)}")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(StoreRefused, match=r"s3://runs/a/b at .* no credentials; set"):
            forkcast.load_run("s3://runs/a/b", endpoint=server.endpoint)
        given = {"credentials_dir": str(server.credentials)}
        nowhere = f"http://127.0.0.1:{free_port()}"
        with pytest.raises(StoreUnavailable, match="Connection refused; check the endpoint"):
            forkcast.load_run("s3://runs/a/b", endpoint=nowhere, **given)
        with pytest.raises(StoreRefused, match="check bucket, keys and rights"):
            forkcast.load_run("s3://none/a/b", endpoint=server.endpoint, **given)
        with pytest.raises(ManifestError, match="endpoint: must be an http:// or https:// URL"):
            forkcast.load_run("s3://runs/a/b", endpoint="ftp://x", **given)
        given = {"endpoint": server.endpoint, "credentials_dir": str(server.credentials)}
        run = forkcast.load_run("s3://runs/a/b", **given)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        again = forkcast.load_run("s3://runs/a/b/")
        assert again.steps().equals(run.steps())
        local = forkcast.load_run(made_run)
        assert run.steps().equals(local.steps())
        assert run.events().equals(local.events())
        with pytest.raises(ManifestError, match="holds no run; there is one below, at a/b/"):
            forkcast.load_run("s3://runs/")
        with pytest.raises(ManifestError, match="s3://BUCKET/PREFIX"):
            forkcast.load_run("s3://r/../x")
    finally:
        server.kill()


def test_importing_forkcast_needs_neither_torch_nor_pyarrow(tmp_path):
    program = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'pyarrow', 'pydantic', 'pandas'))\n"
        "import forkcast\n"
        "assert not [one for one in sys.modules if one.startswith('forkcast_')]\n"
        "from forkcast import load_run\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "No module named 'pyarrow'" in done.stderr or "pyarrow" in done.stderr
    assert "line 4" in done.stderr  # only the call's own import needs it


def test_what_forkcast_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lode_run'"):
        forkcast.lode_run  # noqa: B018
