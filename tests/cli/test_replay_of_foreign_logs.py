"""Logs of other programs through the detector: rows are checked, not trusted."""

import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from forkcast_cli.__main__ import app
from forkcast_cli.log_rows import LogError, parse, read


def course(steps=400, spike=300):
    """Rows as Hugging Face's Trainer writes them: `epoch` is the data's, a fraction."""
    noise = random.Random(7)
    for step in range(steps):
        level = 3.0 + math.exp(-step / 60) + noise.gauss(0, 0.02)
        high = 4.0 if spike <= step < spike + 6 else 0.0
        yield {
            "epoch": round(step / 3000, 4),
            "grad_norm": 1.0 + noise.gauss(0, 0.05) + 20 * high,
            "learning_rate": 1e-4,
            "loss": level + high,
            "step": step,
        }


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def replayed(tmp_path, content, name="log.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = CliRunner().invoke(app, ["replay", str(path), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@pytest.fixture
def expected(tmp_path):
    """What the log gives without a column `epoch`."""
    rows = [{name: v for name, v in row.items() if name != "epoch"} for row in course()]
    found = replayed(tmp_path, lines(rows))
    assert found["triggers"]
    return found


def refused(tmp_path, content, name="log.jsonl"):
    path = tmp_path / name
    path.write_text(content)
    done = CliRunner().invoke(app, ["replay", str(path)])
    assert done.exit_code == 2, done.output
    (line,) = done.output.splitlines()
    assert line.startswith(f"error: {path}: ")
    return line


def test_the_datas_epoch_is_not_the_lineages(tmp_path, expected):
    """Regression: each row was an epoch of its own, and the detector never warmed up."""
    assert replayed(tmp_path, lines(course())) == expected


def test_whole_epochs_of_the_data_are_not_the_lineages_either(tmp_path, expected):
    assert replayed(tmp_path, lines({**r, "epoch": r["step"] // 100} for r in course())) == expected


def test_numbers_as_text_are_numbers(tmp_path, expected):
    assert (
        replayed(tmp_path, lines({k: str(v) for k, v in r.items()} for r in course())) == expected
    )


def test_a_loss_that_is_nan_in_words_is_not_finite(tmp_path):
    for word in ("NaN", "nan", "Infinity", "-inf"):
        rows = [{**r, "loss": word} if r["step"] == 350 else r for r in course(spike=10**6)]
        (trigger,) = replayed(tmp_path, lines(rows))["triggers"]
        assert trigger["step"] == 350


def test_rows_without_loss_are_left_out_and_counted(tmp_path, expected):
    rows = []
    for row in course():
        rows.append(row)
        if row["step"] % 100 == 0:
            rows.append({"epoch": 0.1, "eval_loss": 3.0, "step": row["step"]})
    rows.append({"train_runtime": 7.0, "epoch": 1.0, "step": 399, "train_loss": 3.1})
    found = replayed(tmp_path, lines(rows))
    assert found["triggers"] == expected["triggers"]
    assert found["notes"] == ["5 rows without loss: left out"]


def test_a_last_line_that_is_cut_short_is_left_out(tmp_path, expected):
    found = replayed(tmp_path, lines(course()) + '{"step": 400, "loss": 3.')
    assert found["triggers"] == expected["triggers"]
    assert found["notes"] == ["line 401 is cut short: left out"]


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    said = refused(tmp_path, lines(course(5)) + "{oops\n" + lines(course(5)))
    assert "line 6: is not JSON" in said


def test_steps_taken_again_after_a_restart_replace_the_earlier_ones(tmp_path, expected):
    rows = list(course())
    lost = [{**row, "loss": 50.0, "grad_norm": 900.0} for row in rows[200:290]]
    found = replayed(tmp_path, lines([*rows[:200], *lost, *rows[200:]]))
    assert (found["steps"], found["triggers"]) == (400, expected["triggers"])
    assert found["notes"] == ["90 rows replaced by a later one: left out"]


def test_what_a_restart_abandoned_is_left_out_although_it_was_not_taken_again(tmp_path):
    rows = list(course(300))
    found = replayed(tmp_path, lines([*rows, *rows[200:250]]))
    assert found["steps"] == 250


def test_rows_in_reverse_are_sorted_and_this_is_said(tmp_path, expected):
    found = replayed(tmp_path, lines(reversed(list(course()))))
    assert (found["steps"], found["triggers"]) == (400, expected["triggers"])
    assert found["notes"] == ["399 rows out of order: sorted"]


def test_a_json_array_and_a_trainers_state_are_read_and_this_is_said(tmp_path, expected):
    for document in (list(course()), {"best_metric": None, "log_history": list(course())}):
        found = replayed(tmp_path, json.dumps(document, indent=1))
        assert found["triggers"] == expected["triggers"]
        assert "one JSON document" in found["notes"][0]


@pytest.mark.parametrize("rank", ["0", 0, 0.0, None])
def test_rank_0_is_rank_0_however_it_is_written(tmp_path, expected, rank):
    rows = [{**row, "rank": rank} for row in course()]
    others = [{**row, "rank": "1", "loss": 99.0} for row in course()]
    found = replayed(tmp_path, lines(x for pair in zip(rows, others, strict=True) for x in pair))
    assert found["triggers"] == expected["triggers"]
    assert found["notes"] == ["400 rows of another rank: left out"]


def test_a_log_of_another_rank_alone_is_said(tmp_path):
    assert "no row of rank 0" in refused(tmp_path, lines({**r, "rank": 3} for r in course(9)))


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("loss", "high", "line 3, column loss: 'high' is not a number"),
        ("loss", [1.0], "line 3, column loss: '[1.0]' is not a number"),
        ("grad_norm", True, "line 3, column grad_norm: 'True' is not a number"),
        ("step", "2.5", "line 3, column step: '2.5' is not a whole number"),
        ("step", -1, "line 3, column step: '-1' is not from 0 to"),
        ("step", 1e300, "line 3, column step: '1e+300' is not from 0 to"),
        ("step", "NaN", "line 3, column step: 'NaN' is not a whole number"),
        ("rank", "first", "line 3, column rank: 'first' is not a number"),
        ("attention_entropy", 3.0, "column attention_entropy: '3.0' is not a list of numbers"),
        ("group_grad_norms", [1, 2], "column group_grad_norms: '[1, 2]' is not numbers by name"),
    ],
)
def test_a_value_that_is_none_is_named_by_row_and_column(tmp_path, column, value, said):
    rows = [{**row, column: value} if row["step"] == 2 else row for row in course(9)]
    assert said in refused(tmp_path, lines(rows))


def test_rows_that_are_no_objects_are_named(tmp_path):
    assert "line 2: is no object" in refused(tmp_path, lines([*course(1), 7]))


def test_bytes_that_are_no_text_are_said(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'\xff\xfe{"step": 1}')
    done = CliRunner().invoke(app, ["replay", str(path)])
    assert (done.exit_code, "is not UTF-8" in done.output) == (2, True)


def test_what_is_no_file_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["replay", "/dev/zero"])
    assert (done.exit_code, "no ordinary file" in done.output) == (2, True)


def test_parquet_of_anybody_is_read_alike(tmp_path, expected):
    rows = [{**row, "step": float(row["step"])} for row in course()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "log.parquet"), "--json"])
    assert json.loads(done.output)["triggers"] == expected["triggers"]


def test_our_own_rows_keep_their_lineage_epoch_and_a_null_loss_was_not_finite():
    row = {"run_uid": "u", "epoch": 2, "attempt": 1, "rank": 0, "step": 5, "loss": None}
    log = read([("row 1", {**row, "grad_norm": 1.0, "tokens": 9})])
    (record,) = log.records
    assert (record.epoch, record.attempt, record.tokens) == (2, 1, 9)
    assert math.isnan(record.loss)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    [
        "step",
        "loss",
        "grad_norm",
        "epoch",
        "attempt",
        "rank",
        "run_uid",
        "tokens",
        "skipped",
        "validation_loss",
        "attention_entropy",
        "group_grad_norms",
        "x",
    ]
)


@settings(max_examples=400)
@given(st.lists(st.dictionaries(_NAMES, _JSON, max_size=8) | _JSON, max_size=6))
def test_any_rows_are_read_or_refused_in_one_line(rows):
    records, refusal = [], "; "
    try:
        records = read([(f"row {n}", row) for n, row in enumerate(rows, 1)]).records
    except LogError as error:
        refusal = str(error)
    assert "; " in refusal
    keys = [(one.epoch, one.step) for one in records]
    assert keys == sorted(set(keys))


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(data):
    refusal = "; "
    try:
        parse(data)
    except LogError as error:
        refusal = str(error)
    assert "; " in refusal
