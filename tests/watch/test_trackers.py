"""The contract of the trackers, on each of the shelf: written by it, read back by what its users read with."""

from __future__ import annotations

import json
import math
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forkcast.records import Index
from forkcast_watch.trackers import TRACKERS, Held, Queued, TrackedRun, open_tracker
from forkcast_watch.trackers.base import event_key, event_name, figures, named_event
from forkcast_watch.trackers.queued import MOST_WAITING
from forkcast_wire.manifest_error import ManifestError
from tests.make import step_stats
from tests.waiting import HANG_SECONDS, until

RUN = TrackedRun("u", "my-run")
EXTRAS = ("mlflow", "wandb")


@dataclass(frozen=True)
class Told:
    """An event."""

    step: int = 3
    epoch: int = 0
    tier: int = 2
    run_uid: str = "u"
    onset_step: int = 2
    component: str = "loss"
    cause: str = "The loss rose by .11 nats; the norm did not."


@dataclass(frozen=True)
class Shown:
    """What a reader of a place sees: by step its figures; the text of its events by step."""

    steps: dict[int, dict[str, float]]
    events: dict[int, str]


def judged(step: int, epoch: int = 0) -> Index:
    parts = {"volatility": 0.5, "entropy": -1.0}
    return Index(step=step, epoch=epoch, components=parts, index=0.25, z=1.5, ready=True)


# --------------------------------------------------------------- one reader for each on the shelf


def read_jsonl(folder: Path) -> Shown:
    rows = [json.loads(line) for line in (folder / "x").read_text().splitlines()]
    steps = {}
    for row in rows:
        if "event" not in row:
            row |= {f"group_grad_norms/{k}": v for k, v in row["group_grad_norms"].items()}
            row |= {f"activation_sd/{n}": v for n, v in enumerate(row["activation_sd"] or ())}
            steps[row["step"]] = {k: v for k, v in row.items() if v is not None}
    return Shown(steps, {r["event"]["step"]: r["event"]["cause"] for r in rows if "event" in r})


def read_tensorboard(folder: Path) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = {"scalars": 0, "tensors": 0}
    seen = EventAccumulator(str(folder / "x"), size_guidance=given)
    seen.Reload()
    steps: dict[int, dict[str, float]] = {}
    for tag in seen.Tags()["scalars"]:
        for one in seen.Scalars(tag):
            assert tag not in steps.setdefault(one.step, {}), "a step stands there twice"
            steps[one.step][tag] = one.value
    steps = {step: values for step, values in steps.items() if "loss" in values}
    texts = seen.Tensors("events") if "events" in seen.Tags()["tensors"] else []
    return Shown(steps, {one.step: one.tensor_proto.string_val[0].decode() for one in texts})


def read_mlflow(folder: Path) -> Shown:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    place = client.get_experiment_by_name(str(folder / "x"))
    (run,) = client.search_runs([place.experiment_id])
    assert run.info.run_name == "my-run"
    steps: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for one in client.get_metric_history(run.info.run_id, name):
            steps.setdefault(one.step, {})[name] = one.value
    prefix = "forkcast.event."
    events = {
        int(tag.split("-")[1][1:]): text
        for tag, text in run.data.tags.items()
        if tag.startswith(prefix)
    }
    return Shown({n: v for n, v in steps.items() if "loss" in v}, events)


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: a log of leveldb behind seven bytes, in blocks of 32 kB."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(folder: Path) -> Shown:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process writes the file, and has when it has ended
    steps: dict[int, dict[str, float]] = {}
    events: dict[int, str] = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = Record.FromString(data)
            pairs = [(".".join(i.nested_key) or i.key, i.value_json) for i in record.history.item]
            row = {key: json.loads(value) for key, value in pairs}
            if "loss" in row:
                row = {key: float(value) for key, value in row.items()}
                steps[int(row["step"])] = row
            for item in record.summary.update:
                name = ".".join(item.nested_key) or item.key
                if name.startswith("event_e"):
                    events[int(name.split("_")[2][1:])] = json.loads(item.value_json)
    return Shown(steps, events)


READERS = {
    "jsonl": read_jsonl,
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.fixture(params=list(TRACKERS))
def place(request, tmp_path, monkeypatch) -> Any:
    """Opens a tracker of the shelf at one place again and again, and reads what is there."""
    name = request.param
    if name in EXTRAS:
        pytest.importorskip(name)
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    target = "my-project" if name == "wandb" else str(tmp_path / "x")

    class Place:
        offline = name == "wandb"

        def open(self, run: TrackedRun = RUN) -> Any:
            return open_tracker(f"{name}:{target}", run)

        def read(self) -> Shown:
            return READERS[name](tmp_path)

    yield Place()
    if name == "wandb":
        import wandb

        wandb.teardown()  # its process, and the folder it was told first


def test_steps_and_events_arrive_with_their_figures(place):
    tracker = place.open()
    assert tracker.held() == Held()
    more = {
        "activation_sd": (0.5, 0.75),
        "group_grad_norms": {"mlp": 2.0},
        "validation_loss": 3.5,
        "grad_norm": 4.0,
    }
    for step in range(4):
        tracker.step(step_stats(step, **more), judged(step) if step else None)
    tracker.event(Told())
    tracker.step(step_stats(4), judged(4))
    tracker.close()
    shown = place.read()
    assert sorted(shown.steps) == [0, 1, 2, 3, 4]
    expected = {
        "loss": 1.0,
        "grad_norm": 4.0,
        "validation_loss": 3.5,
        "epoch": 0.0,
        "activation_sd/1": 0.75,
        "group_grad_norms/mlp": 2.0,
        "z": 1.5,
        "u_volatility": 0.5,
        "u_entropy": -1.0,
    }
    assert {name: shown.steps[2][name] for name in expected} == expected
    assert "z" not in shown.steps[0]
    assert "validation_loss" not in shown.steps[4]
    assert list(shown.events) == [3]
    assert "The loss rose by .11 nats" in shown.events[3]


def test_a_loss_that_is_not_finite_is_shown_as_such(place):
    tracker = place.open()
    lacks = dict.fromkeys(("grad_norm", "grad_norm_clipped", "learning_rate"), math.nan)
    tracker.step(step_stats(0, loss=math.nan, **lacks), None)
    tracker.step(step_stats(1, loss=math.inf, **lacks), None)
    tracker.close()
    steps = place.read().steps
    assert math.isnan(steps[0]["loss"])
    assert steps[1]["loss"] == math.inf


def test_a_place_is_continued_and_says_what_it_holds(place):
    first = place.open()
    for step in range(5):
        first.step(step_stats(step), None)
    first.event(Told(step=4))
    first.close()
    other = place.open(TrackedRun("v", "another"))
    if not place.offline:
        assert other.held() == Held()
    other.close()
    again = place.open()
    if place.offline:
        with pytest.raises(ManifestError, match="holds this run already; `wandb sync` it"):
            again.held()
    else:
        assert again.held() == Held((0, 4), frozenset({(0, 4, 2)}))
    again.step(step_stats(5), None)
    again.close()
    third = place.open()
    if not place.offline:
        assert third.held().newest == (0, 5)
    third.close()


def test_steps_that_come_again_after_a_collapse_are_those_of_the_later_epoch(place):
    tracker = place.open()
    for step in range(6):
        tracker.step(step_stats(step), None)
    tracker.event(Told(step=5))
    for step in range(3, 8):
        tracker.step(step_stats(step, epoch=1, loss=2.0), None)
    tracker.close()
    shown = place.read()
    steps = shown.steps
    assert list(shown.events) == [5]  # of an abandoned step, and the reason why it is
    assert sorted(steps) == list(range(8))
    assert [steps[n]["epoch"] for n in range(8)] == [0.0] * 3 + [1.0] * 5
    assert [steps[n]["loss"] for n in range(8)] == [1.0] * 3 + [2.0] * 5


def test_steps_that_come_again_after_a_restart_stand_once(place):
    first = place.open()
    for step in range(6):
        first.step(step_stats(step), None)
    first.close()
    again = place.open()
    for step in range(4, 8):
        again.step(step_stats(step, attempt=1, loss=2.0), None)
    again.close()
    losses = {step: shown["loss"] for step, shown in place.read().steps.items()}
    assert losses == dict.fromkeys(range(4), 1.0) | dict.fromkeys(range(4, 8), 2.0)


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_extra_is_one_error_with_its_remedy(name, monkeypatch):
    for module in [one for one in sys.modules if one.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ManifestError) as caught:
        open_tracker(f"{name}:x", RUN)
    assert str(caught.value).endswith(f"pip install 'forkcast[{name}]'")
    assert len(caught.value.lines()) == 1


@pytest.mark.parametrize("spec", ["", "jsonl", "tensorbord:x", ":x", "/tmp/x.jsonl"])
def test_a_text_that_names_no_tracker_is_told_those_there_are(spec):
    with pytest.raises(ManifestError, match="one of jsonl:, tensorboard:, mlflow:, wandb:"):
        open_tracker(spec, RUN)


@pytest.mark.parametrize("name", ["jsonl", "tensorboard"])
def test_a_place_that_cannot_be_written_is_one_error(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestError, match=r"cannot be opened: .*change the target"):
        open_tracker(f"{name}:{tmp_path}/file/x", RUN)


def test_the_shelf_needs_no_tracker_library_and_no_torch():
    import subprocess

    names = ("torch", "mlflow", "wandb", "tensorboard", "tensorflow", "pandas")
    program = (
        f"import sys; sys.modules |= dict.fromkeys({names!r})\n"
        "from forkcast_watch.trackers import TRACKERS, open_tracker\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_column_of_a_step_is_a_figure_or_names_the_row():
    whole = step_stats(
        7,
        update_ratio=0.1,
        rms_max=1.0,
        update_cosine=0.2,
        attention_entropy=(0.5,),
        attention_logit_max=3.0,
        activation_mean=(0.0,),
        activation_sd=(1.0,),
        group_grad_norms={"mlp": 1.0},
        validation_loss=2.0,
        step_seconds=0.5,
    )
    found = {name.partition("/")[0] for name in figures(whole, judged(7))}
    columns = set(whole.__dataclass_fields__)
    assert columns - found == {"run_uid", "attempt", "rank", "step"}
    assert found - columns == {"index", "z", "tier", "u_volatility", "u_entropy"}


# ------------------------------------------------------------------------------- behind a queue


class Scripted:
    """A tracker whose calls fail or wait as told; what it got, in order."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()
        self.closed = threading.Event()

    def held(self) -> Held:
        return Held((0, 1))

    def step(self, stats, index) -> None:
        self.gate.wait()
        if self.fails:
            raise ConnectionError("the server is away")
        self.got.append(stats.step)

    def event(self, event) -> None:
        self.step(event, None)

    def close(self) -> None:
        self.closed.set()


def test_a_tracker_that_raises_is_told_once_and_once_more_when_it_works_again():
    tracker, told = Scripted(), []
    queued = Queued(tracker, "x", told.append)
    tracker.fails = True
    for step in range(20):
        queued.step(step_stats(step), None)
    until(lambda: not queued._calls and told, "the failures")
    assert told == ["tracker x: ConnectionError: the server is away; training goes on without it"]
    until(lambda: queued._failures >= 4, "four failures in a row")
    tracker.fails = False
    for step in range(20, 60):
        queued.step(step_stats(step), None)
    queued.close()
    assert len(told) == 2
    assert told[1].startswith("tracker x: works again; it lacks ")
    assert tracker.got == list(range(tracker.got[0], 60))
    assert int(told[1].split()[-2]) == 60 - len(tracker.got)
    assert tracker.closed.is_set()


def test_a_tracker_that_blocks_holds_up_nothing_and_keeps_the_newest():
    tracker, told = Scripted(), []
    queued = Queued(tracker, "x", told.append)
    tracker.gate.clear()
    count = MOST_WAITING + 100
    for step in range(count):
        queued.step(step_stats(step), None)
    assert told == ["tracker x: too slow; it lacks steps; training goes on"]
    queued.close(seconds=0)
    assert told[1] == "tracker x: not done after 0 s; left behind"
    tracker.gate.set()
    assert tracker.closed.wait(HANG_SECONDS)
    assert tracker.got[-MOST_WAITING:] == list(range(100, count))


def test_a_full_disk_is_told_once_and_ends_nothing():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    told: list[str] = []
    queued = Queued(open_tracker("jsonl:/dev/full", RUN), "jsonl", told.append)
    for step in range(50):
        queued.step(step_stats(step), None)
    queued.event(Told())
    queued.close()
    assert len(told) == 1
    assert "No space left on device" in told[0]


@pytest.mark.parametrize("between", ["-", "_"])
def test_the_name_of_an_event_gives_its_key_back(between):
    told = Told(step=12, epoch=3, tier=4)
    assert event_name(told, between) == f"e3{between}t12{between}tier4"
    assert named_event(event_name(told, between), between) == event_key(told)
