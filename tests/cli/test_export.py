"""`forkcast export`: a run into a tracker, once, again, and as it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import forkcast
from forkcast.records import Index, Tier
from forkcast_cli.__main__ import app
from forkcast_cli.export import index_of, missing
from forkcast_watch.trackers.base import Held
from forkcast_wire import history, keys
from forkcast_wire.documents import Complete, dump
from forkcast_wire.statistics import row_to_stats, stats_row, write_chunk
from forkcast_wire.store import FolderStore
from tests.cli.conftest import row
from tests.make import step_stats
from tests.versitygw import ACCESS, SECRET, Versitygw
from tests.waiting import HANG_SECONDS, until


def said(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(path: Path) -> list[tuple[int, int]]:
    return [(one["epoch"], one["step"]) for one in lines(path) if "event" not in one]


def events(path: Path) -> list[int]:
    return [one["event"]["step"] for one in lines(path) if "event" in one]


AS_IT_STANDS = [*((0, n) for n in range(140)), *((1, n) for n in range(140, 300))]


def test_the_run_as_it_stands_is_written_with_its_events(made_run, tmp_path):
    path = tmp_path / "x.jsonl"
    assert "300 steps and 2 events added" in said("export", made_run, "--to", f"jsonl:{path}")
    assert steps(path) == AS_IT_STANDS
    assert events(path) == [150, 250]
    first = lines(path)[0]
    assert (first["loss"], first["z"], first["u_volatility"]) == (5.0, 0.5, 0.2)
    assert "z" not in lines(path)[150]  # of an adopted rollout, which no monitor has judged


def test_exporting_again_adds_nothing_and_later_what_is_new(made_run, tmp_path):
    path = tmp_path / "x.jsonl"
    said("export", made_run, "--to", f"jsonl:{path}")
    before = path.read_bytes()
    assert "0 steps and 0 events" in said("export", made_run, "--to", f"jsonl:{path}")
    assert path.read_bytes() == before
    write_chunk([row(1, step, 3.0) for step in range(300, 305)], made_run / "statistics")
    document = json.loads(said("export", made_run, "--to", f"jsonl:{path}", "--json"))
    assert document == [{"to": f"jsonl:{path}", "steps": 5, "events": 0}]
    assert steps(path) == [*AS_IT_STANDS, *((1, n) for n in range(300, 305))]


def test_tensorboard_shows_it_whole_after_two_exports_and_several_trackers_are_taken(
    made_run, tmp_path
):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told = ("--to", f"tensorboard:{tmp_path}/tb", "--to", f"jsonl:{tmp_path}/x")
    for _ in range(2):
        said("export", made_run, *told)
    assert len(list((tmp_path / "tb").iterdir())) == 1
    seen = accumulator.EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    seen.Reload()
    assert [one.step for one in seen.Scalars("loss")] == list(range(300))
    assert [one.step for one in seen.Tensors("events")] == [150, 250]
    assert steps(tmp_path / "x") == AS_IT_STANDS


def test_what_a_place_lacks_comes_in_the_order_of_training(made_run):
    run = forkcast.load_run(made_run)
    held = Held((1, 248), frozenset({(0, 150, 3)}))
    found = [
        one["step"] if isinstance(one, dict) else f"event {one.step}" for one in missing(run, held)
    ]
    assert found == [249, 250, "event 250", *range(251, 300)]


def test_a_row_gives_back_what_was_measured_and_judged(made_run):
    stored = row(0, 3, 2.5) | {"tier": 2}
    judged = Index(
        step=3,
        epoch=0,
        components={"volatility": 0.2},
        index=0.1,
        z=0.5,
        ready=True,
        tier=Tier.EVENT,
    )
    assert index_of(stored) == judged
    assert index_of(stats_row(step_stats(3))) is None
    assert row_to_stats(stats_row(step_stats(3))) == step_stats(3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tensorbord:x", "names no tracker; begin it with one of jsonl:"),
        ("jsonl:/proc/none/x", "cannot be opened: "),
        ("jsonl:/dev/full", "failed after 0 steps: [Errno 28] No space left on device"),
    ],
)
def test_a_target_that_cannot_be_used_is_one_line_and_exit_code_2(made_run, spec, words):
    done = CliRunner().invoke(app, ["export", str(made_run), "--to", spec])
    assert done.exit_code == 2
    assert done.output.startswith("error: --to: ")
    assert words in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_damaged_history_and_a_folder_without_a_run_are_one_line_each(made_run, tmp_path):
    chunk = next((made_run / "statistics").glob("*.parquet"))
    chunk.write_bytes(chunk.read_bytes()[:100])
    told = said("export", made_run, "--to", f"jsonl:{tmp_path}/x", code=2)
    assert chunk.name in told
    assert "restore it from a copy" in told
    assert "holds no run" in said("export", tmp_path / "made/statistics", "--to", "jsonl:x", code=2)


class Following:
    """`forkcast export --follow` as a process."""

    def __init__(self, place: str, path: Path, **environment: str) -> None:
        command = [sys.executable, "-m", "forkcast_cli", "export", place, "--follow", "--to"]
        self.process = subprocess.Popen(
            [*command, f"jsonl:{path}"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(params=["folder", "bucket"])
def live(request, tmp_path):
    """(store, place, environment) of a run that goes on, on this machine and on any other."""
    if request.param == "folder":
        yield FolderStore(tmp_path / "run"), str(tmp_path / "run"), {}
        return
    from forkcast_wire.manifest import Storage
    from forkcast_wire.store import open_store

    (folder := tmp_path / "server").mkdir()
    server = Versitygw(folder)
    server.start()
    server.make_bucket("runs")
    storage = Storage(
        endpoint=server.endpoint,
        bucket="runs",
        prefix="ml/gpt/",
        credentials_dir=str(server.credentials),
    )
    keys_of = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    yield (
        open_store(storage, tmp_path),
        "s3://runs/ml/gpt",
        {"AWS_ENDPOINT_URL": server.endpoint, **keys_of},
    )
    server.kill()


def put(store, first: int, last: int) -> None:
    rows = [stats_row(step_stats(step)) for step in range(first, last + 1)]
    store.put(keys.history(0, 0, first, last), history.encoded(rows))


def test_a_run_is_followed_until_it_ends(live, tmp_path):
    store, place, environment = live
    put(store, 0, 9)
    path = tmp_path / "x.jsonl"
    process = Following(place, path, **environment).process
    try:
        until(lambda: len(lines(path)) == 10 or process.poll() is not None, "the first steps")
        put(store, 10, 14)
        until(lambda: len(lines(path)) == 15 or process.poll() is not None, "the next steps")
        put(store, 15, 19)
        done = Complete(epoch=0, step=20, tokens=1, validation_loss=2.5, seconds=9.0)
        store.put(keys.COMPLETE, dump(done))
        output, errors = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert "20 steps and 0 events added" in output
    assert steps(path) == [(0, n) for n in range(20)]


def test_following_ends_with_ctrl_c_and_keeps_what_it_wrote(tmp_path):
    store, path = FolderStore(tmp_path / "run"), tmp_path / "x.jsonl"
    put(store, 0, 9)
    process = Following(str(tmp_path / "run"), path).process
    try:
        until(lambda: len(lines(path)) == 10 or process.poll() is not None, "the first steps")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert "10 steps and 0 events added" in output


@pytest.mark.parametrize("name", ["jsonl", "tensorboard"])
def test_what_was_exported_is_a_log_that_detect_reads(made_run, tmp_path, name):
    said("export", made_run, "--to", f"{name}:{tmp_path}/x")
    (path,) = (tmp_path / "x").iterdir() if name == "tensorboard" else [tmp_path / "x"]
    assert " rows, steps 0 to 299" in said("detect", path)
