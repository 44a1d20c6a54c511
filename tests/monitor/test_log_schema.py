"""The shipped log_schema.json says what the history holds, and the page says what it says."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkcast.records import Event, Index, StepStats, Tier
from forkcast_monitor.history import History
from forkcast_monitor.signals import SIGNALS
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import COMPONENT, SCHEMA, read_tail
from forkcast_wire.tail import Row, judged

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads(files("forkcast_monitor").joinpath("log_schema.json").read_text())
COLUMNS = DOCUMENT["properties"]
JSON_TYPES = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def type_name(kind):
    if pa.types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    return str(kind)


def stats(step, **more):
    plain = {
        "run_uid": "u",
        "epoch": 0,
        "attempt": 0,
        "rank": 0,
        "loss": 1.5,
        "grad_norm": 2.0,
        "grad_norm_clipped": 1.0,
        "learning_rate": 1e-3,
        "tokens": 64 * (step + 1),
    }
    return StepStats(step=step, **{**plain, **more})


SAMPLED = {
    "update_ratio": 1e-3,
    "rms_max": 1.0,
    "update_cosine": -0.5,
    "attention_entropy": (0.5, 1.0),
    "attention_logit_max": -3.0,
    "activation_mean": (-0.1, 0.1),
    "activation_sd": (1.0, 2.0),
    "group_grad_norms": {"embedding": 1.0, "attention": 0.5},
    "validation_loss": 1.4,
    "step_seconds": 0.1,
}
EVENT = Event(
    run_uid="u",
    epoch=0,
    step=2,
    onset_step=1,
    tier=Tier.EVENT,
    component="volatility",
    cause="the loss departed",
)


def component_column(name):
    ((pattern, column),) = DOCUMENT["patternProperties"].items()
    assert re.fullmatch(pattern, name)
    return column


@pytest.fixture
def rows(tmp_path):
    """The rows of a real history: from its Parquet file and from its tail."""
    history = History(tmp_path)
    index = Index(step=1, epoch=0, components={"volatility": 1.0}, index=1.0, z=2.0, ready=True)
    history.append([Row(stats_to_wire(stats(0)))])
    wild = stats(2, loss=math.nan, grad_norm=math.inf, skipped=True)
    history.append(
        [
            judged(stats_to_wire(stats(1, **SAMPLED)), index, None),
            judged(stats_to_wire(wild), replace(index, step=2, tier=Tier.EVENT), EVENT),
        ]
    )
    tail = read_tail(tmp_path)
    history.close()
    (path,) = tmp_path.glob("*.parquet")
    stored = pq.read_table(path).to_pylist()
    for row in stored:
        row["group_grad_norms"] = dict(row["group_grad_norms"])
    return [*tail, *stored]


def test_its_columns_are_those_that_are_written_in_their_order_and_type():
    assert {name: one["parquet"] for name, one in COLUMNS.items()} == {
        field.name: type_name(field.type) for field in SCHEMA
    }
    assert list(COLUMNS) == SCHEMA.names == DOCUMENT["required"]
    (component,) = DOCUMENT["patternProperties"].values()
    assert all(one["description"].endswith(".") for one in (*COLUMNS.values(), component))


def test_every_row_keeps_to_it(rows):
    assert len(rows) == 6
    for row in rows:
        assert list(row) == [*COLUMNS, *(COMPONENT + name for name in SIGNALS)]
        for name, value in row.items():
            column = COLUMNS.get(name) or component_column(name)
            kinds = column["type"] if isinstance(column["type"], list) else [column["type"]]
            assert isinstance(value, tuple(JSON_TYPES[kind] for kind in kinds)), name
            inner = column.get("items") or column.get("additionalProperties") or column
            numbers = value.values() if isinstance(value, dict) else value
            numbers = numbers if isinstance(value, list | dict) else [value]
            for number in numbers:
                if isinstance(number, float | int):
                    assert not number < inner.get("minimum", -math.inf), name
                    assert not number > inner.get("maximum", math.inf), name


def test_a_column_is_nullable_exactly_where_the_record_may_lack_it():
    optional = {*SAMPLED, "tier", "event", "onset_step"} - {"group_grad_norms"}
    assert {name for name, one in COLUMNS.items() if "null" in one["type"]} == optional


def test_the_page_is_up_to_date():
    script = ROOT / "scripts" / "generate_statistics_reference.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
