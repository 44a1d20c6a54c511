"""`forkcast detect` as a command: what it says of a log, and what it makes of resumes, runs and ranks."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from forkcast_cli.__main__ import app
from forkcast_cli.detect.log_detector import REACH
from forkcast_monitor.presets import PRESETS
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import row_to_stats, rows_of, tail_of
from forkcast_wire.tail import Row, encoded
from tests.cli.log_samples import SAMPLES, event
from tests.cli.made_course import course, lines

ROOT = Path(__file__).parents[2]


def ran(*arguments, code=0):
    done = CliRunner().invoke(app, ["detect", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def found(tmp_path, content, *arguments, name="log.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return json.loads(ran(path, "--json", *arguments))


def only(document):
    (run,) = document["runs"]
    return run


@pytest.fixture
def expected(tmp_path):
    """The events of the course."""
    events = only(found(tmp_path, lines(course())))["events"]
    assert [one["onset"] for one in events if 290 < one["step"] < 320] == [300]
    return events


def test_a_log_is_told_in_words(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(course()))
    said = ran(path).splitlines()
    assert said[0] == f"{path}: JSON lines"
    assert said[1] == "columns: step = step, loss = loss, grad_norm = grad_norm, lr = learning_rate"
    assert said[2].startswith("400 rows, steps 0 to 399: ")
    assert any(line.startswith("  step 30") for line in said)


def test_the_datas_epoch_is_not_the_lineages(tmp_path, expected):
    """Regression: each row was an epoch of its own, and the detector never warmed up."""
    rows = [{name: value for name, value in row.items() if name != "epoch"} for row in course()]
    assert only(found(tmp_path, lines(rows)))["events"] == expected
    whole = [{**row, "epoch": row["step"] // 100} for row in course()]
    assert only(found(tmp_path, lines(whole)))["events"] == expected


def test_numbers_as_text_are_numbers(tmp_path, expected):
    rows = [{name: str(value) for name, value in row.items()} for row in course()]
    assert only(found(tmp_path, lines(rows)))["events"] == expected


def test_a_loss_that_is_nan_in_words_is_not_finite(tmp_path):
    for word in ("NaN", "nan", "Infinity", "-inf"):
        rows = [{**row, "loss": word} if row["step"] == 350 else row for row in course(spike=10**6)]
        (event,) = only(found(tmp_path, lines(rows)))["events"]
        assert (event["step"], "not finite" in event["cause"]) == (350, True)


def test_rows_of_evaluations_are_no_rows_of_training(tmp_path, expected):
    rows = []
    for row in course():
        rows.append(row)
        if row["step"] % 100 == 0:
            rows.append({"epoch": 0.1, "eval_loss": 3.0, "step": row["step"]})
    rows.append({"train_runtime": 7.0, "epoch": 1.0, "step": 399, "train_loss": 3.1})
    run = only(found(tmp_path, lines(rows)))
    assert (run["rows"], run["validations"], run["events"]) == (400, 4, expected)


def test_a_last_line_that_is_cut_short_is_left_out(tmp_path, expected):
    document = found(tmp_path, lines(course()) + b'{"step": 400, "loss": 3.')
    assert only(document)["events"] == expected
    assert "1 line is no JSON: left out" in document["notes"]


def test_steps_taken_again_after_a_resume_replace_the_earlier_ones(tmp_path, expected):
    rows = list(course())
    lost = [{**row, "loss": row["loss"] + 0.001} for row in rows[200:290]]
    run = only(found(tmp_path, lines([*rows[:290], *lost, *rows[290:]])))
    assert run["rows"] == 400
    assert run["resumes"] == [{"at": 289, "to": 200}]
    assert any("90 rows were replaced" in note for note in run["notes"])


def test_after_a_resume_the_detector_is_as_if_the_abandoned_rows_had_never_come(tmp_path, expected):
    rows = list(course())
    wild = [{**row, "loss": 50.0 + row["step"], "grad_norm": 900.0} for row in rows[200:290]]
    events = only(found(tmp_path, lines([*rows[:200], *wild, *rows[200:]])))["events"]
    assert [one for one in events if not one["abandoned"]] == expected
    assert any(one["abandoned"] and one["step"] < 290 for one in events)


def test_what_a_resume_abandoned_is_left_out_although_it_was_not_taken_again(tmp_path):
    rows = list(course(300))
    run = only(found(tmp_path, lines([*rows, *rows[200:250]])))
    assert (run["rows"], run["last_step"]) == (250, 249)


def test_a_log_that_ends_right_after_a_resume_has_resumed(tmp_path):
    rows = list(course(250))
    run = only(found(tmp_path, lines([*rows, rows[200]])))
    assert (run["rows"], run["resumes"]) == (201, [{"at": 249, "to": 200}])


def test_a_resume_from_far_is_one_too_and_it_is_said(tmp_path):
    rows = [{"step": n, "loss": 3.0 + n % 7 / 100} for n in range(REACH + 300)]
    again = [{"step": n, "loss": 3.0 + n % 7 / 100} for n in range(50, 200)]
    run = only(found(tmp_path, lines([*rows, *again])))
    assert run["resumes"] == [{"at": REACH + 299, "to": 50}]
    assert run["last_step"] == 199
    assert any("began anew there" in note for note in run["notes"])


def test_one_row_that_lies_behind_is_no_resume(tmp_path, expected):
    rows = list(course())
    run = only(found(tmp_path, lines([*rows[:200], {**rows[150], "loss": 9.0}, *rows[200:]])))
    assert (run["rows"], run["resumes"], run["events"]) == (400, [], expected)
    assert "1 row lies behind the steps around: left out" in run["notes"]


def test_steps_that_go_back_all_the_time_are_no_resumes(tmp_path):
    steps = [*range(10), *(step for n in range(12, 2000) for step in (n, n - 1, n - 2, n))]
    run = only(found(tmp_path, lines({"step": step, "loss": 3.0} for step in steps)))
    assert len(run["resumes"]) <= 100
    assert any("several ranks or runs at once" in note for note in run["notes"])


def test_a_second_run_in_the_same_file_is_one(tmp_path, expected):
    document = found(tmp_path, lines([*course(), *course(100), *course()]))
    assert [run["rows"] for run in document["runs"]] == [400, 100, 400]
    assert [run["name"] for run in document["runs"]] == ["run", "run 2", "run 3"]
    assert [document["runs"][n]["events"] for n in (0, 2)] == [expected, expected]


def test_rows_that_run_backwards_are_sorted_and_it_is_said(tmp_path, expected):
    document = found(tmp_path, lines(reversed(list(course()))))
    assert (only(document)["rows"], only(document)["events"]) == (400, expected)
    assert "its rows run backwards: sorted by step" in document["notes"]


def test_runs_that_a_column_names_are_told_apart(tmp_path, expected):
    rows = [{**row, "run": name} for row in course() for name in ("first", "second")]
    document = found(tmp_path, lines(rows))
    assert [run["name"] for run in document["runs"]] == ["first", "second"]
    assert [run["events"] for run in document["runs"]] == [expected, expected]


def test_a_last_row_of_step_zero_is_no_run(tmp_path, expected):
    run = only(found(tmp_path, lines([*course(), {"step": 0, "loss": 3.3}])))
    assert (run["rows"], run["events"]) == (400, expected)


def test_fractions_of_an_epoch_are_no_steps_and_it_is_told(tmp_path):
    """Regression: three of 400 rows were read, and the log was said to have no event."""
    rows = [{"epoch": row["step"] / 200, "loss": row["loss"]} for row in course()]
    (tmp_path / "log").write_bytes(lines(rows))
    said = ran(tmp_path / "log", "--columns", "step=epoch", code=2)
    assert "column epoch is no step" in said
    assert "--columns step=" in said
    assert said.count("\n") == 1
    run = only(found(tmp_path, lines(rows), "--columns", "step="))
    assert run["rows"] == 400


def test_a_sum_that_is_no_mean_over_tokens_is_told(tmp_path):
    for factor, told in ((1, False), (32, True)):
        rows = [{**row, "loss": row["loss"] * factor} for row in course()]
        notes = only(found(tmp_path, lines(rows)))["notes"]
        assert any("hardly a mean over tokens" in note for note in notes) == told


def test_an_event_that_rises_is_shown_with_the_step_at_which_it_rose(tmp_path):
    """Regression: causes named the step at which a branch was asked for, and no line had it."""
    rows = [
        {**row, "loss": row["loss"] + 0.2 * (row["step"] >= 300), "grad_norm": row["grad_norm"] * 3}
        if row["step"] >= 300
        else row
        for row in course(spike=10**6)
    ]
    (event, *_) = only(found(tmp_path, lines(rows)))["events"]
    assert (event["tier"], event["tier_step"] > event["step"]) == ("branch", True)
    said = f"step {event['step']}, branch at step {event['tier_step']}: "
    assert said in ran(tmp_path / "log.jsonl")


def test_gaps_and_rows_of_several_steps_are_told(tmp_path):
    rows = [row for row in course(300, 10**6, every=10) if not 1000 <= row["step"] < 1500]
    run = only(found(tmp_path, lines(rows)))
    assert run["steps_per_row"] == 10
    assert "10 steps a row: spikes shorter than about 40 steps cannot be seen" in run["notes"]
    assert "1 gap in the steps, the longest of 500 after step 990" in run["notes"]


def test_a_rounded_loss_and_a_bfloat16_are_told(tmp_path):
    rows = [{**row, "loss": round(row["loss"], 2)} for row in course()]
    notes = only(found(tmp_path, lines(rows)))["notes"]
    assert "the loss is rounded to .01: what is smaller cannot be seen" in notes
    rows = [{**row, "loss": round(row["loss"] * 32) / 32} for row in course()]
    notes = only(found(tmp_path, lines(rows)))["notes"]
    assert "the loss is a bfloat16: near 3.0 it moves in steps of 0.0156" in notes


def test_the_loss_of_one_rank_is_told_and_a_batchs_is_not(tmp_path):
    noise = random.Random(1)
    heavy = [{"step": n, "loss": 3.0 + 0.05 * abs(noise.gauss(0, 1)) ** 3.5} for n in range(3000)]
    assert any("one rank" in one for one in only(found(tmp_path, lines(heavy)))["notes"])
    normal = [{"step": n, "loss": 3.0 + 0.05 * noise.gauss(0, 1)} for n in range(3000)]
    assert not any("one rank" in one for one in only(found(tmp_path, lines(normal)))["notes"])


def test_a_loss_alone_is_enough(tmp_path):
    rows = [{"step": row["step"], "loss": row["loss"]} for row in course()]
    run = only(found(tmp_path, lines(rows)))
    assert [one["onset"] for one in run["events"]] == [300]
    assert any("no gradient norm" in note for note in run["notes"])


def test_parquet_is_read_like_json(tmp_path, expected):
    rows = [{**row, "step": float(row["step"])} for row in course()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    assert only(json.loads(ran(tmp_path / "log.parquet", "--json")))["events"] == expected


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("run-1.wandb", SAMPLES["W&B run file"][0]),
        ("events.out.tfevents.1.host.2.0", SAMPLES["TensorBoard events"][0]),
        ("trainer_state.json", SAMPLES["JSON document"][0]),
        ("metrics.csv", SAMPLES["CSV table, Lightning"][0]),
        ("main.log", SAMPLES["llm.c main.log"][0]),
    ],
)
def test_a_folder_with_one_known_log_is_that_log(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert only(json.loads(ran(tmp_path, "--json")))["rows"] == 24


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["lightning_logs/version_0/metrics.csv"], "lightning_logs/version_0/metrics.csv"),
        (["checkpoint-900/trainer_state.json", "checkpoint-1000/trainer_state.json"], None),
        (["runs/Nov01/events.out.tfevents.1", "runs/Nov01/events.out.tfevents.2"], "runs/Nov01"),
    ],
)
def test_a_log_further_down_is_found_and_named(tmp_path, names, taken):
    """Regression: a trainer's output folder was said to hold no log, and which file was read was not said."""
    samples = {
        "csv": "CSV table, Lightning",
        "json": "JSON document",
        "1": "TensorBoard events",
        "2": "TensorBoard events",
    }
    for name in names:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SAMPLES[samples[name.rpartition(".")[2]]][0])
    said = ran(tmp_path / "out").splitlines()[0]
    assert said.startswith(f"{tmp_path / 'out' / (taken or names[-1])}: ")


def test_of_several_logs_none_is_taken_and_they_are_named(tmp_path, capsys):
    for name in ("version_0", "version_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_bytes(SAMPLES["CSV table, Lightning"][0])
    said = CliRunner().invoke(app, ["detect", str(tmp_path)])
    assert (said.exit_code, "version_0/metrics.csv, version_1/metrics.csv" in said.output) == (
        2,
        True,
    )


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("form", ["csv", "text", "lines"])
def test_steps_that_begin_anew_in_each_epoch_are_counted_on(tmp_path, expected, first, form):
    """Regression: each epoch was a run of its own, too short for the detector to warm up."""
    rows = [
        {"epoch": s // 100, "batch": s % 100 + first, "loss": row["loss"], "norm": row["grad_norm"]}
        for row in course()
        for s in [row["step"]]
    ]
    if form == "csv":
        said = "epoch,step,loss,grad_norm\n" + "".join(
            ",".join(map(str, row.values())) + "\n" for row in rows
        )
    elif form == "text":
        said = "".join(
            "Epoch [{epoch}/4], Step [{batch}/100], Loss: {loss}, grad norm: {norm}\n".format(**row)
            for row in rows
        )
    else:
        said = lines([{"step" if n == "batch" else n: v for n, v in row.items()} for row in rows])
        said = said.decode().replace('"norm"', '"grad_norm"')
    run = only(found(tmp_path, said.encode()))
    assert (run["rows"], run["first_step"], run["last_step"]) == (400, first, 399 + first)
    assert [one["step"] - first for one in run["events"]] == [one["step"] for one in expected]


def test_an_epoch_taken_again_after_a_resume_replaces_the_earlier_one(tmp_path):
    rows = [
        {"epoch": e, "step": s, "loss": 3.0 + s / 1000}
        for e, steps in ((0, 100), (1, 60), (1, 100), (2, 50))
        for s in range(steps)
    ]
    run = only(found(tmp_path, lines(rows)))
    assert (run["rows"], run["last_step"]) == (250, 249)
    assert run["resumes"] == [{"at": 159, "to": 100}]


@pytest.mark.parametrize(
    "bar",
    [
        "{p:3d}%|####  | {s}/400 [00:10<03:20,  4.71it/s, loss={loss}, grad_norm={norm}]",
        "{s}/400 [=====>......] - ETA: 1:02 - loss: {loss} - grad_norm: {norm}",
    ],
)
def test_a_progress_bar_drawn_twice_is_one_row(tmp_path, expected, bar):
    """Regression: each redraw was a step of its own, with the loss of the step before."""
    drawn, before = [], {"loss": 9.0, "norm": 1.0}
    for row in course():
        now = {"loss": row["loss"], "norm": row["grad_norm"]}
        drawn += [bar.format(p=row["step"] // 4, s=row["step"], **each) for each in (before, now)]
        before = now
    run = only(found(tmp_path, "\r".join(drawn).encode()))
    assert (run["rows"], run["events"]) == (400, expected)


@pytest.mark.parametrize(
    "line",
    [
        "[{s:05d}/01200] loss={loss} grad_norm={norm}",
        "Epoch: [0][{s:4d}/1200]\tTime  0.123 ( 0.130)\tLoss {loss} (2.3456e+00)\tgrad_norm {norm}",
        "Train Epoch: 1 [{s}/60000 (7%)]\tLoss: {loss}\tgrad_norm: {norm}",
        "2026-11-28 10:00:00 [1/8] [{s}/1200] loss: {loss} grad_norm: {norm}",
    ],
)
def test_a_counter_in_brackets_is_the_step(tmp_path, expected, line):
    rows = [row | {"step": 2 * row["step"]} for row in course()]
    text = "\n".join(line.format(s=r["step"], loss=r["loss"], norm=r["grad_norm"]) for r in rows)
    run = only(found(tmp_path, text.encode()))
    assert (run["rows"], run["last_step"]) == (400, 798)
    assert [one["step"] for one in run["events"]] == [2 * one["step"] for one in expected]


def test_a_count_that_stands_still_is_no_step(tmp_path, expected):
    text = "\n".join(f"[0/8] loss: {r['loss']} grad_norm: {r['grad_norm']}" for r in course())
    run = only(found(tmp_path, text.encode()))
    assert (run["rows"], run["events"]) == (400, expected)
    rows = [
        {
            "step": 7,
            "iteration": r["step"],
            **r,
        }
        for r in course()
    ]
    rows = [{**{k: v for k, v in row.items() if k != "step"}, "global_step": 7} for row in rows]
    run = only(found(tmp_path, lines(rows)))
    assert (run["rows"], run["events"]) == (400, expected)


def test_a_guess_is_told_as_one_with_what_else_it_could_be(tmp_path):
    """Regression: `loss/ce` was taken for the loss beside `loss/total` without a word."""
    rows = [
        {"step": row["step"], "loss/ce": row["loss"], "loss/total": row["loss"] + 0.1}
        for row in course()
    ]
    (tmp_path / "log").write_bytes(lines(rows))
    said = ran(tmp_path / "log")
    assert "loss = loss/ce (a guess)" in said
    assert "note: loss could also be loss/total: if it is, name it by --columns loss=NAME" in said
    document = json.loads(ran(tmp_path / "log", "--json"))
    assert document["unsure"] == {"loss": ["loss/total"]}
    given = ran(tmp_path / "log", "--columns", "loss=loss/total")
    assert "a guess" not in given
    assert "could also" not in given


def test_one_loss_under_two_names_is_no_guess(tmp_path):
    rows = [
        {"step": row["step"], "loss": row["loss"], "train_loss": row["loss"]} for row in course()
    ]
    assert found(tmp_path, lines(rows))["unsure"] == {}


def test_the_event_files_of_a_resumed_run_are_one_log(tmp_path):
    for number, steps in enumerate((range(30), range(20, 60))):
        records = b"".join(event(step, "loss", 3.0 + number) for step in steps)
        (tmp_path / f"events.out.tfevents.{number}").write_bytes(records)
    run = only(json.loads(ran(tmp_path, "--json")))
    assert (run["rows"], run["resumes"]) == (60, [{"at": 29, "to": 20}])


def test_a_log_needs_neither_torch_nor_a_cluster(tmp_path):
    (tmp_path / "log").write_bytes(SAMPLES["nanoGPT"][0])
    code = (
        "import sys; from forkcast_cli.__main__ import app; app(sys.argv[1:], standalone_mode=False);"
        "sys.exit(str({'torch', 'transformers', 'kubernetes', 'kopf', 'grpc'} & set(sys.modules) or ''))"
    )
    command = [sys.executable, "-c", code, "detect", str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"{tmp_path / 'log'}: nanoGPT")
    assert done.stderr.strip() == ""


# ------------------------------------------------------------------------------------- our own history


def test_our_own_history_is_folded_along_its_lineage(made_run):
    whole = json.loads(ran(made_run, "--json"))
    assert whole["format"] == "history of a Forkcast run"
    assert only(whole)["rows"] == 286
    assert only(json.loads(ran(made_run / "statistics", "--json")))["rows"] == 286


def test_a_run_of_ours_is_not_followed(made_run):
    assert "use forkcast status --watch" in ran(made_run, "--follow", code=2)


def test_a_chunk_and_an_open_tail_are_histories_too(made_run, tmp_path):
    """The tail as the monitor writes it, and as an earlier version did: alone, and in a run's folder."""
    (chunk, *_) = sorted((made_run / "statistics").glob("*.parquet"))
    document = json.loads(ran(chunk, "--json"))
    assert document["format"] == "history of a Forkcast run"
    rows = rows_of(chunk, "")
    statistics = tmp_path / "run" / "statistics"
    statistics.mkdir(parents=True)
    frame = encoded([Row(stats_to_wire(row_to_stats(row))) for row in rows], ())
    former = lines([{**row, "group_grad_norms": {}} for row in rows])
    for tail, content in (
        (tail_of(statistics), frame),
        (statistics.with_name("statistics.tail.jsonl"), former),
    ):
        tail.write_bytes(content)
        for place in (tail, statistics.parent):
            document = json.loads(ran(place, "--json"))
            assert document["format"] == "history of a Forkcast run"
            assert only(document)["rows"] == len(rows)
        tail.unlink()


def test_a_history_of_an_earlier_version_is_ours_too(made_run):
    """Regression: a chunk without the columns of later versions was taken for a foreign table."""
    for chunk in (made_run / "statistics").glob("*.parquet"):
        table = pq.read_table(chunk)
        pq.write_table(table.drop_columns(["tier", "event", "onset_step"]), chunk)
    document = json.loads(ran(made_run, "--json"))
    assert document["format"] == "history of a Forkcast run"
    assert only(document)["rows"] == 286


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 2, "is empty"),
        (b"\x00\x01\x02" * 99, 2, "neither text nor"),
        (b"PAR1" + b"x" * 99, 2, "is damaged"),
        (b"hello\nworld\n", 3, "nothing in it looks like a training loss"),
        (lines([{"step": 1, "x": 2}, {"loss": 3}] * 30), 2, "both a step (step) and a loss (loss)"),
        (lines({"step": 2.5, "loss": 3} for _ in range(9)), 2, "no row has both a step and a loss"),
    ],
)
def test_a_foreign_file_is_one_line_and_an_exit_code(tmp_path, content, code, said):
    path = tmp_path / "log"
    path.write_bytes(content)
    output = ran(path, code=code).splitlines()
    assert output[0].startswith(f"error: {path}: ")
    assert said in output[0]
    shown = [] if code == 2 else ["it begins:", "  hello", "  world"]
    assert output[1:] == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/log"], "does not exist"),
        (["/dev/zero"], "no ordinary file"),
        ([".", "--columns", "lost=x"], "--columns: 'lost' is no role"),
        (["x", "--plot", "x.gif"], "end it in .html, .svg, .png"),
        (["x", "--rule", "window"], "is no rule"),
        (["x", "--rule", "windows=9"], "no such rule"),
        (["x", "--rule", "window=9"], "--rule window"),
        (["x", "--rule", "trigger.singleZ=high"], "write one like 0.98 or 3e-4"),
        (["x", "--tee"], "--tee"),
        (["-", "--preset", "Nothing"], "--preset"),
    ],
)
def test_a_wrong_request_is_one_line(arguments, said):
    output = ran(*arguments, code=2)
    assert said in output
    assert output.count("; ") == 1 or "; parts are written like" in output  # a rule and a remedy
    assert "spec.uncertainty" not in output
    assert output.count("\n") == 1


def test_a_rule_of_the_detector_can_be_given(tmp_path):
    run = only(
        found(tmp_path, lines(course()), "--rule", "trigger.singleZ=1e6", "--rule", "trigger.z=1e6")
    )
    assert run["events"] == []


def test_presets_are_chosen_and_compared(tmp_path, expected):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(course()))
    table = ran(path, "--compare").splitlines()
    rows = [line.split() for line in table[[line.split()[0] for line in table].index("preset") :]]
    assert rows[0] == ["preset", "events", "branches", "at", "steps"]
    assert [row[0] for row in rows[1:]] == list(PRESETS)
    compared = only(json.loads(ran(path, "--compare", "--json")))
    assert compared["events"] == compared["presets"]["Forkcast"] == expected
    assert set(compared["rules"]) == set(PRESETS)
    assert "olmo" in compared["rules"]["OlmoCore"].lower()
    alone = only(json.loads(ran(path, "--preset", "OlmoCore", "--json")))
    assert alone["events"] == compared["presets"]["OlmoCore"] != expected
    assert "one of Forkcast, Literal" in ran(path, "--preset", "olmo", code=2)


# ---------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize("ending", ["html", "svg"])
def test_a_plot_is_whole_and_holds_the_events(tmp_path, ending):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines([*course(), *course(50)]))
    out = tmp_path / f"plot.{ending}"
    assert f"plot: {out}" in ran(path, "--plot", out)
    drawn = out.read_text()
    assert drawn.count("Gradient norm") == 2
    assert "branch 30" in drawn or "event 30" in drawn
    assert "var(--" not in drawn or ending == "html"
    assert "//" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_a_png_is_one_or_the_remedy_is_named(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    path.write_bytes(lines(course()))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "write .svg or .html" in ran(path, "--plot", tmp_path / "x.png", code=2)
