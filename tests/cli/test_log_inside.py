"""Attention entropy and logits in anybody's log: which columns they are, and what the detector makes of them."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from forkcast_cli.__main__ import app
from forkcast_cli.logs.base import Row
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.inside import Inside, choose, layer, stem
from forkcast_cli.logs.names import Role
from forkcast_cli.logs.points import Assembler
from forkcast_wire.statistics import stats_row, write_chunk
from tests.cli.made_course import course, lines
from tests.make import step_stats

ENTROPIES = [
    "attention_entropy",
    "attn_entropy",
    "train/attn_entropy",
    "Attention Entropy",
    "attn/entropy_mean",
    "attention_entropy/0",
    "layer_3/attn_entropy",
    "model.layers.11.self_attn.entropy",
    "attn_entropy_layer3",
]
LOGITS = [
    "attention_logit_max",
    "max_attn_logit",
    "train/max_attention_logits",
    "max qk logit",
    "attn/logits_max",
    "blocks.7.attn.max_logit",
]
NEITHER = [
    "entropy",
    "policy_entropy",
    "attn_entropy_min",
    "attn_entropy_std",
    "val/attention_entropy",
    "teacher/attn_entropy",
    "attn_entropy/layer_3/head_7",
    "attn_entropy_head_3",
    "attention_entropy_loss",
    "cross_attn_entropy",
    "max_logit",
    "logits_max",
    "attn_logit",
    "attn_logit_mean",
    "max_attn_logit_threshold",
    "max_attn_score",
    "max_attn_logit_clipped",
    "router/max_logit",
]


@pytest.mark.parametrize("name", ENTROPIES)
def test_an_entropy_is_known(name):
    assert stem(Inside.ENTROPY, name) is not None
    assert stem(Inside.LOGIT, name) is None


@pytest.mark.parametrize("name", LOGITS)
def test_a_largest_logit_is_known(name):
    assert stem(Inside.LOGIT, name) is not None
    assert stem(Inside.ENTROPY, name) is None


@pytest.mark.parametrize("name", NEITHER)
def test_what_may_be_something_else_is_never_taken(name):
    assert all(stem(kind, name) is None for kind in Inside)


@given(st.text(max_size=40))
def test_a_name_of_a_stem_has_a_layer(name):
    for kind in Inside:
        found = stem(kind, name)
        assert found is None or layer(found, name) is not None or len(name) > 9


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["attn_entropy/0", "attn_entropy/1"], "attn_entropy/*"),
        (["attn_entropy", "attn_entropy/1"], "attn_entropy/*"),
        (["train/attn_entropy", "attn_entropy"], "attn_entropy"),
        (["attn_entropy", "attention_entropy"], None),
        (["attn_entropy", "attn_entropy_mean"], None),
        (["loss"], None),
    ],
)
def test_of_names_that_mean_different_things_none_is_taken(names, taken):
    found, rivals = choose(Inside.ENTROPY, names)
    assert found == taken
    assert rivals == (sorted(names) if taken is None and len(names) > 1 else [])
    assert choose(Inside.ENTROPY, names[::-1]) == (found, rivals)


def points(rows, columns=None):
    assembler = Assembler(columns or Columns())
    assembler.columns.decide(rows)
    found = [point for row in rows for _, point in assembler.take(Row(row))]
    return assembler, found + [point for _, point in assembler.flush()]


def test_layers_are_one_measurement_and_a_list_is_too():
    rows = [
        {"step": n, "loss": 3.0, "attn_entropy/1": 0.5, "attn_entropy/0": 0.7 + n} for n in range(2)
    ]
    assert [one.attention_entropy for one in points(rows)[1]] == [(0.7, 0.5), (1.7, 0.5)]
    rows = [
        {"step": 0, "loss": 3.0, "attention_entropy": [0.7, 0.5], "max_attn_logit": [3.0, -9.0]}
    ]
    (one,) = points(rows)[1]
    assert (one.attention_entropy, one.attention_logit_max) == ((0.7, 0.5), 9.0)


def test_of_layers_that_are_not_counted_from_0_the_lowest_counts():
    rows = [{"step": 0, "loss": 3.0, "attn_entropy/4": 0.5, "attn_entropy/8": 0.7}]
    assert points(rows)[1][0].attention_entropy == (0.5,)


def test_what_is_measured_at_a_step_without_a_loss_is_of_the_next_point():
    rows = [
        {"step": 4, "max_attn_logit": 70.0, "attn_entropy": 0.5, "val_loss": 3.1},
        {"step": 5, "loss": 3.0},
        {"step": 6, "loss": 3.0},
    ]
    first, second = points(rows)[1]
    assert (first.step, first.attention_logit_max, first.attention_entropy) == (5, 70.0, (0.5,))
    assert first.validation == 3.1
    assert (second.attention_logit_max, second.attention_entropy, second.validation) == (None,) * 3


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "", None, "n/a", 0.0])
def test_what_is_no_entropy_is_left_out(value):
    """0 before any other stands for what was not measured; a negative one has another sign."""
    rows = [{"step": 0, "loss": 3.0, "attn_entropy": value}]
    assert points(rows)[1][0].attention_entropy is None


def test_an_entropy_that_falls_to_0_counts():
    rows = [{"step": n, "loss": 3.0, "attn_entropy": value} for n, value in enumerate((0, 0.5, 0))]
    assert [one.attention_entropy for one in points(rows)[1]] == [None, (0.5,), (0.0,)]


def test_a_given_name_may_stand_for_all_layers_and_nothing_for_none():
    rows = [{"step": 0, "loss": 3.0, "ent.0.x": 0.5, "ent.1.x": 0.7, "max_attn_logit": 9.0}]
    given = {Role.ATTENTION_ENTROPY: "ent.*.x", Role.ATTENTION_LOGIT: ""}
    (one,) = points(rows, Columns(given))[1]
    assert (one.attention_entropy, one.attention_logit_max) == ((0.5, 0.7), None)


# ------------------------------------------------------------------------------------------ the command


def ran(path, *arguments):
    done = CliRunner().invoke(app, ["detect", str(path), *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def heated(**names):
    """The course with a healthy loss, and from row 200 on what the names give."""
    rows = [{**row, "loss": 3.0 + 0.01 * math.sin(n)} for n, row in enumerate(course())]
    return [
        row | {k: (v[1] if n >= 200 else v[0]) for k, v in names.items()}
        for n, row in enumerate(rows)
    ]


def internal(text):
    (run,) = json.loads(text)["runs"]
    return [
        (one["step"], one["tier"], one["cause"])
        for one in run["events"]
        if one["component"] == "entropy"
    ]


def test_a_collapse_of_the_attention_is_an_event_whose_layer_is_named(tmp_path):
    rows = heated(**{"attn_entropy/0": (0.8, 0.8), "attn_entropy/1": (0.7, 0.02)})
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(rows))
    ((_, tier, cause),) = internal(ran(path, "--json"))
    assert tier == "branch"
    assert "attention entropy 0.020 of its most in layer 1" in cause
    assert "attention_entropy = attn_entropy/*" in ran(path)
    assert internal(ran(path, "--json", "--columns", "attention_entropy=")) == []


def test_a_mean_over_all_layers_names_none(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(heated(attn_entropy=(0.8, 0.02))))
    ((_, _, cause),) = internal(ran(path, "--json"))
    assert "layer" not in cause


def test_a_logit_that_grows_is_an_event_in_a_table_of_ones_own(tmp_path):
    rows = heated(max_attn_logit=(20.0, 200.0))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    ((_, tier, cause),) = internal(ran(tmp_path / "log.parquet", "--json"))
    assert (tier, "largest attention logit 200" in cause) == ("event", True)


def test_rivals_are_named_and_a_name_that_no_row_has_too(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(heated(attn_entropy=(0.8, 0.02), attention_entropy=(0.8, 0.8))))
    text = " ".join(ran(path, "--columns", "attention_logit_max=nowhere").split())
    assert (
        "each of attention_entropy, attn_entropy could be attention_entropy: none was taken" in text
    )
    assert "no row has the column nowhere" in text
    assert internal(ran(path, "--json")) == []
    assert internal(ran(path, "--json", "--columns", "attention_entropy=attn_entropy"))


def test_an_entropy_in_nats_is_reported_as_such(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(heated(attn_entropy=(3.2, 3.1))))
    assert "attention_entropy goes up to 3.2" in " ".join(ran(path).split())


def test_what_export_wrote_into_a_tracker_is_judged_as_the_run_itself(tmp_path):
    """A step as our own history has it, by way of TensorBoard's files."""
    rows = [
        step_stats(
            n,
            loss=3.0 + 0.01 * math.sin(n),
            attention_entropy=(0.8, 0.02 if n >= 300 else 0.7),
            attention_logit_max=20.0,
        )
        for n in range(400)
    ]
    write_chunk(
        [stats_row(one) | {"index": None, "z": None} for one in rows],
        made(tmp_path / "run" / "statistics"),
    )
    own = internal(ran(tmp_path / "run", "--json", "--rule", "warmupSteps=50"))
    assert [tier for _, tier, _ in own] == ["branch"]
    for target in (f"tensorboard:{tmp_path / 'board'}", f"jsonl:{tmp_path / 'run.jsonl'}"):
        done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", target])
        assert done.exit_code == 0, done.output
        place = target.partition(":")[2]
        assert internal(ran(place, "--json", "--rule", "warmupSteps=50")) == own
    shown = " ".join(ran(tmp_path / "board").split())
    assert "attention_entropy = attention_entropy/*" in shown
    assert "attention_logit_max = attention_logit_max" in shown


def made(folder):
    folder.mkdir(parents=True)
    return folder
