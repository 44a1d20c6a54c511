"""A short storm of kills in CI (`make storm` is the long one), and the checker's own eyes."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import row_to_stats, rows_of, tail_of
from forkcast_wire.tail import Row, decoded, encoded

sys.path.insert(0, str(Path(__file__).parent))
from check_run import check
from storm import storm

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """A run that has ended after some of its parts were killed: the folder, and what happened."""
    place = tmp_path_factory.mktemp("storm")
    return place / "w", storm(place, kills=6, seed=5)


def test_a_run_whose_parts_are_killed_ends_without_a_broken_invariant(survived):
    _, found = survived
    assert found["broken"] == []
    assert sum(found["kills"].values()) == 6


def first(folder, pattern):
    return min(folder.glob(pattern))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_step(folder):
    """From the middle of the history, wherever it is now."""
    path = sorted(folder.glob("statistics/*.parquet"))
    if path:
        table = pq.read_table(path[0])
        pq.write_table(pa.concat_tables([table.slice(0, 5), table.slice(6)]), path[0])
    else:
        rows = tail_rows(folder)
        tail_of(folder / "statistics").write_bytes(encoded([*rows[:5], *rows[6:]], ()))


def tail_rows(folder):
    data = tail_of(folder / "statistics").read_bytes()
    return [Row(record) for frame in decoded(data)[0] for record in frame.stats]


def repeat_a_step(folder):
    rows = tail_rows(folder)
    if not rows:
        stored = rows_of(first(folder, "statistics/*.parquet"), "the first chunk")
        rows = [Row(stats_to_wire(row_to_stats(row))) for row in stored]
    tail_of(folder / "statistics").write_bytes(encoded([*rows[-3:], *rows[-3:]], ()))


def lose_a_step_of_the_history(folder):
    for path in folder.glob("history/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.field("step") != 7), path)


DAMAGE = {
    "a step of the statistics is lost": (lose_a_step, "are missing"),
    "a step of the history is lost": (lose_a_step_of_the_history, "history: epoch 0: 1 steps"),
    "a step is on record twice": (repeat_a_step, "on record twice"),
    "a byte of a state is flipped": (
        lambda f: flip(first(f, "checkpoints/*/*/*/cp_*.ptz")),
        "other bytes",
    ),
    "a state has lost its bytes": (
        lambda f: first(f, "checkpoints/*/*/*/cp_*.ptz").unlink(),
        "a manifest and no bytes",
    ),
    "a state says another step": (
        lambda f: edit(
            first(f, "checkpoints/*/*/*/manifest.json"), lambda d: d["state"].update(step=1)
        ),
        "its manifest says epoch, attempt, step",
    ),
    "the run is told as shorter": (
        lambda f: edit(f / "complete.json", lambda d: d.update(step=7)),
        "complete.json: step 7",
    ),
    "a base is still pinned": (
        lambda f: edit(f / "catalogue.json", lambda d: d.update(pins={"e0-t150": ["x"]})),
        "still pinned",
    ),
    "a decision was edited": (
        lambda f: edit(
            first(f, "branches/*/decision.json"), lambda d: d["trials"][0].update(steps_run=10**6)
        ),
        "is not what the decision says",
    ),
    "a branch has not ended": (
        lambda f: edit(first(f, "branches/*/phase.json"), lambda d: d.update(kind="Deciding")),
        "phase Deciding",
    ),
    "a trigger was never settled": (
        lambda f: shutil.rmtree(first(f, "branches/*")),
        "settled 0 times",
    ),
    "an epoch of nobody": (
        lambda f: (
            (f / "lineage").mkdir(exist_ok=True)
            or (f / "lineage/99.json").write_text(
                json.dumps({"epoch": 99, "run_uid": "?", "trigger_step": 1})
            )
        ),
        "lineage: epochs",
    ),
    "a partial file was left": (
        lambda f: (f / "monitor/x.json.1.part").write_text(""),
        "was left",
    ),
    "the count of starts was lost": (
        lambda f: (f / "attempts.json").write_text(""),
        "attempts.json: is no JSON",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_checker_sees(survived, tmp_path, name):
    harm, said = DAMAGE[name]
    shutil.copytree(survived[0], tmp_path / "w", ignore=shutil.ignore_patterns("*.sock", "tokens"))
    harm(tmp_path / "w")
    broken = check(tmp_path / "w")
    assert any(said in one for one in broken), broken
