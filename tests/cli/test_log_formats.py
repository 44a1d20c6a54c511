"""Every format of the shelf: what its logs say, whole, cut, damaged, compressed, behind other text."""

import gzip
import json
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkcast_cli.logs import TEXT, WHOLE
from forkcast_cli.logs.base import LogError, NothingFitsError
from forkcast_cli.logs.columns import Columns, given_columns
from forkcast_cli.logs.opening import open_log
from forkcast_cli.logs.points import Assembler
from forkcast_cli.logs.stream import LONGEST_LINE, Stream
from forkcast_wire.tfrecords import crc32c
from tests.cli import log_samples
from tests.cli.log_samples import NORM, RATE, ROWS, SAMPLES, VALIDATION, loss, text

NAMES = list(SAMPLES)


def stream(data, size=1 << 16):
    at = 0

    def source():
        nonlocal at
        at += size
        return data[at - size : at]

    return Stream(source, "log")


def read(data, columns="", size=1 << 16, *, live=False):
    """(log, assembler, points by run)."""
    log = open_log(stream(data, size), Columns(given_columns(columns)), live=live)
    assembler = Assembler(log.columns)
    found = {}
    for row in log.rows:
        for run, point in assembler.take(row):
            found.setdefault(run, []).append(point)
    for run, point in assembler.flush():
        found.setdefault(run, []).append(point)
    return log, assembler, found


def points(data, *args, **kwargs):
    _, _, found = read(data, *args, **kwargs)
    return next(iter(found.values()))


def test_every_format_has_a_sample():
    assert {name.partition(",")[0] for name in SAMPLES} == {one.name for one in (*TEXT, *WHOLE)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1 << 16, 7])
def test_a_sample_is_known_and_read(name, size):
    data, every, has = SAMPLES[name]
    log, _, found = read(data, size=size)
    assert log.format == name.partition(",")[0]
    for rows in found.values():
        first = rows[0].step
        assert [one.step - first for one in rows] == [n * every for n in range(ROWS)]
        digits = 3 if name == "MaxText" else 4
        assert [one.loss for one in rows] == pytest.approx(
            [round(loss(n), digits) for n in range(ROWS)], abs=1e-6
        )
        norms = [one.grad_norm for one in rows]
        assert norms == [pytest.approx(NORM)] * ROWS if "n" in has else all(map(math.isnan, norms))
        rates = [one.learning_rate for one in rows[1:]]
        assert rates == [pytest.approx(RATE if "r" in has else 0.0)] * (ROWS - 1)
        held_out = [(n, one.validation) for n, one in enumerate(rows) if one.validation is not None]
        if "v" in has:
            ((at, value),) = held_out
            assert at in (9, 10)  # what has no step of its own is of the row before
            assert value == pytest.approx(VALIDATION, abs=1e-5)
        else:
            assert held_out == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.partition(",")[0] != "Parquet"])
def test_a_compressed_sample_is_read_alike(name):
    data, _, _ = SAMPLES[name]
    assert read(gzip.compress(data), size=999)[2] == read(data)[2]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.partition(",")[0] in {f.name for f in TEXT}]
)
def test_three_rows_are_enough_to_know_a_format(name):
    data, _, _ = SAMPLES[name]
    lines = data.decode().split("\n")
    for end in range(len(lines)):
        cut = text(lines[:end])
        try:
            found = points(cut)
        except LogError:
            continue
        if len(found) == 3:
            break
    log, _, _ = read(cut)
    assert log.format == name.partition(",")[0]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.partition(",")[0] in {f.name for f in TEXT}]
)
def test_a_log_may_begin_with_thousands_of_other_lines(name):
    data, _, _ = SAMPLES[name]
    noise = text(f"    x_{n} = f(loss, {n})  # step: {{'a': {n}}}, [0]" for n in range(5000))
    log, _, found = read(noise + data)
    assert log.format == name.partition(",")[0]
    assert list(found.values()) == list(read(data)[2].values())


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.partition(",")[0] in {f.name for f in TEXT}]
)
def test_a_program_that_is_still_printing_is_known_too(name):
    data, _, _ = SAMPLES[name]
    log, _, found = read(data, live=True)
    assert log.format == name.partition(",")[0]
    assert [one.loss for one in next(iter(found.values()))] == [one.loss for one in points(data)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_what_another_shell_redirects_is_read(encoding):
    data, _, _ = SAMPLES["nanoGPT"]
    changed = data.decode().replace("\n", "\r\n").encode(encoding)
    assert points(changed, size=33) == points(data)


def test_the_crc_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("name", ["TensorBoard events", "W&B run file"])
def test_a_last_record_that_is_cut_is_left_out_and_said(name):
    data, _, _ = SAMPLES[name]
    whole = points(data)
    for cut in range(1, 40):
        log, _, found = read(data[:-cut])
        (rows,) = found.values()
        assert rows[: ROWS - 1] == whole[: ROWS - 1]
        assert any("cut short" in one for one in log.remarks())


@pytest.mark.parametrize("name", ["TensorBoard events", "W&B run file"])
def test_a_flipped_bit_in_the_middle_is_damage(name):
    data, _, _ = SAMPLES[name]
    at = len(data) // 2
    with pytest.raises(LogError, match=r"damaged|no event|no record"):
        read(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])


def test_records_over_several_blocks_are_joined():
    long = json.dumps({"text": "x" * 100_000}).encode()
    item = log_samples.field(1, log_samples.field(1, b"note") + log_samples.field(16, long))
    records = list(log_samples.wandb_records())
    records[5:5] = [log_samples.field(2, item)]
    assert len(points(log_samples.leveldb(records))) == ROWS


def test_a_compressed_file_that_is_cut_is_read_to_there_and_it_is_said():
    data, _, _ = SAMPLES["llm.c main.log"]
    packed = gzip.compress(data * 40)
    log, _, found = read(packed[:-30])
    assert len(found[""]) > ROWS
    assert any("cut short" in one for one in log.remarks())


def test_a_state_that_is_cut_is_read_to_there_and_it_is_said():
    data, _, _ = SAMPLES["JSON document"]
    log, _, found = read(data[: len(data) // 2])
    assert len(found[""]) > 5
    assert any("cut short" in one for one in log.remarks())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        bytes(range(256)) * 20,
        b"PAR1" + b"\x00" * 50,
        b":W&B\xe1\xbe\x01" + b"\x00" * 50,
        b"\x1f\x8b" + b"\x00" * 50,
    ],
)
def test_what_is_no_log_is_refused(data):
    with pytest.raises(LogError) as caught:
        read(data)
    assert not isinstance(caught.value, NothingFitsError)
    assert "; " in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\n\n\n",
        b"hello\nworld\n",
        text(f"accuracy: {n}" for n in range(50)),
        text(json.dumps({"step": n, "reward": 1.0}) for n in range(50)),
        text(["step,eval_loss,ppl,z_loss", *(f"{n},3.0,20.0,.1" for n in range(50))]),
        b"# a README\n\nThe loss is computed as in the paper.\n",
    ],
)
def test_a_text_without_a_loss_fits_nothing(data):
    with pytest.raises(NothingFitsError, match="--columns"):
        read(data)


def test_names_help_where_nothing_is_a_loss():
    rows = text(json.dumps({"step": n, "objective": 3.0}) for n in range(50))
    with pytest.raises(NothingFitsError, match=r"training loss \(objective, step\)"):
        read(rows)
    assert len(points(rows, "loss=objective")) == 50
    with pytest.raises(NothingFitsError, match="no column loess; it has: objective, step"):
        read(rows, "loss=loess")


def test_a_name_over_several_lines_is_told_in_one():
    rows = text(json.dumps({"step": n, "a\nb": 3.0}) for n in range(50))
    with pytest.raises(NothingFitsError, match=r"\(a b, step\)"):
        read(rows)


def test_documents_without_a_loss_are_not_held():
    """Regression: thousands of rows of any size were kept until a format was chosen."""
    log = text(json.dumps({"text": "x" * 20_000, f"name {n}": n}) for n in range(300))
    at = iter([log, b""])
    with pytest.raises(NothingFitsError) as caught:
        open_log(Stream(lambda: next(at), "log"), Columns())
    assert len(str(caught.value)) < 2000


def test_columns_of_text_can_be_named():
    rows = text(f"round {n}: my objective = {3 + n} / 7" for n in range(30))
    assert [one.loss for one in points(rows, "step=round,loss=objective")] == [
        3 + n for n in range(30)
    ]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("nan", math.nan), ("NaN", math.nan), ("inf", math.inf), ("-Infinity", -math.inf)],
)
def test_a_loss_that_is_no_number_in_words_is_not_finite(value, wanted):
    rows = [json.dumps({"step": n, "loss": value if n == 5 else 3.0}) for n in range(30)]
    assert points(text(rows))[5].loss == pytest.approx(wanted, nan_ok=True)
    lines = [f"iter {n}: loss {value if n == 5 else 3.0}, time 1ms" for n in range(30)]
    assert points(text(lines))[5].loss == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize(
    "line",
    [
        "10:00:01,123 step {step:,}: loss {loss:.4f}, norm {norm:,.1f}, 1,234,567 tok/s",
        "step={step:,} loss={loss:.4e} norm={norm:,.2f}, done",
        '"{step:,}",{loss:.4f},"{norm:,.1f}"',
        '{{"step": "{step:,}", "loss": {loss:.4f}, "norm": "{norm:,.1f}"}}',
    ],
)
def test_commas_between_thousands_belong_to_the_number(line):
    """Regression: step 1,000 was read as step 1, and the rest of the log as another run."""
    rows = [line.format(step=n, loss=loss(n % 24), norm=1000.5 + n) for n in range(990, 1030)]
    header = ["step,loss,norm"] if line.startswith('"') else []
    found = points(text([*header, *rows]))
    assert [one.step for one in found] == list(range(990, 1030))
    assert [one.grad_norm for one in found] == [1000.5 + n for n in range(990, 1030)]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_decimal_comma_between_other_delimiters_is_a_point(delimiter):
    """Regression: a spreadsheet's export was no log, or one of which half of each number was read."""
    rows = [delimiter.join([str(n), f"{loss(n):.4f}".replace(".", ",")]) for n in range(30)]
    found = points(text([delimiter.join(["step", "loss"]), *rows]))
    assert [(one.step, one.loss) for one in found] == [(n, loss(n)) for n in range(30)]


def test_a_step_may_say_of_how_many():
    rows = [{"global_step/max_steps": f"{n}/900", "loss": loss(n)} for n in range(30)]
    assert [one.step for one in points(text(map(json.dumps, rows)))] == list(range(30))


def test_half_of_a_number_with_a_decimal_comma_is_never_read():
    rows = text(f"step {n} loss {loss(n):.4f}".replace(".", ",") for n in range(30))
    with pytest.raises(NothingFitsError):
        read(rows)


def test_a_table_for_people_is_read():
    """Regression: the line under the header was taken for the header."""
    rows = [f"| {n} | {loss(n):.4f} |" for n in range(30)]
    found = points(text(["| step | loss |", "|------|:----:|", *rows]))
    assert [(one.step, one.loss) for one in found] == [(n, loss(n)) for n in range(30)]


def test_a_tensor_that_is_printed_is_its_value():
    end = ", device='cuda:0', grad_fn=<NllLossBackward0>)"
    found = points(text(f"step {n} loss tensor({loss(n):.4f}{end}" for n in range(30)))
    assert [(one.step, one.loss) for one in found] == [(n, loss(n)) for n in range(30)]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_without_names_is_told_what_it_lacks(delimiter):
    """Regression: it was to be given names of columns that it does not have."""
    with pytest.raises(NothingFitsError, match="a line of names above"):
        read(text(delimiter.join([str(n), f"{loss(n):.4f}"]) for n in range(30)))


def test_a_norm_that_is_not_finite_is_no_missing_one():
    rows = [{"step": n, "loss": 3.0, "grad_norm": 1.0} for n in range(30)]
    rows[4]["grad_norm"], rows[5]["grad_norm"], rows[6]["grad_norm"] = "nan", None, -1
    found = [one.grad_norm for one in points(text(map(json.dumps, rows)))]
    assert found[4] == math.inf
    assert math.isnan(found[5])
    assert math.isnan(found[6])


@pytest.mark.parametrize("value", [-1, 2.5, 1e300, "first", True, [1], 10**400, "9" * 5000])
def test_a_step_that_is_none_is_left_out_and_counted(value):
    rows = [{"step": value if n == 5 else n, "loss": 3.0} for n in range(30)]
    _, assembler, found = read(text(map(json.dumps, rows)))
    assert len(found[""]) == 29
    assert sum(assembler.counts.values()) == (1 if len(str(value)[:60]) < 60 else 0) or value in (
        10**400,
        "9" * 5000,
    )


def test_a_loss_that_is_none_is_left_out_and_counted():
    rows = [{"step": n, "loss": "high" if n in (5, 7) else 3.0} for n in range(30)]
    _, assembler, found = read(text(map(json.dumps, rows)))
    assert len(found[""]) == 28
    assert dict(assembler.counts) == {"whose loss is no such number: left out": 2}
    assert assembler.examples == {"loss": "high"}


def test_a_bad_line_is_left_out_and_counted():
    data, _, _ = SAMPLES["JSON lines"]
    log, _, found = read(data + b'{"oops\n' + b'{"step": 24, "loss": 3.')
    assert found == read(data)[2]
    assert "2 lines are no JSON: left out" in log.remarks()


def test_other_ranks_are_left_out_and_counted():
    data, _, _ = SAMPLES["torchtitan"]
    others = data.replace(b"[rank0]", b"[rank1]").replace(b" loss: ", b" loss: 9")
    mixed = text(
        line
        for pair in zip(data.decode().split("\n"), others.decode().split("\n"), strict=True)
        for line in pair
    )
    log, _, found = read(mixed)
    assert found == read(data)[2]
    assert f"{ROWS + 1} lines of other ranks: left out" in log.remarks()


def test_rows_of_other_ranks_are_left_out_and_counted():
    rows = [{"step": n, "rank": r, "loss": 3.0 + r} for n in range(30) for r in (0, 1, 2)]
    _, assembler, found = read(text(map(json.dumps, rows)))
    assert {one.loss for one in found[""]} == {3.0}
    assert assembler.counts["of other ranks"] == 60


def test_ranks_without_a_name_repeat_a_step_and_the_last_counts():
    rows = [{"step": n, "loss": 3.0 + r} for n in range(30) for r in (0, 1)]
    _, assembler, found = read(text(map(json.dumps, rows)))
    assert {one.loss for one in found[""]} == {4.0}
    assert assembler.counts == {"repeated a step: the last of each was taken": 30}


def test_an_iteration_that_megatrons_scaler_skipped_is_no_step_and_a_nan_is_one():
    lines = SAMPLES["Megatron-LM or GPT-NeoX"][0].decode().split("\n")
    skipped = lines[5].replace("skipped iterations:   0", "skipped iterations:   1")
    lines[5] = skipped.replace("lm loss: ", "mm loss: ")
    lines[7] = (
        lines[7].replace("nan iterations:   0", "nan iterations:   1").replace("lm loss: ", "x: ")
    )
    log, _, found = read(text(lines))
    assert [one.step for one in found[""][:6]] == [0, 10, 20, 30, 50, 60]
    assert math.isnan(found[""][5].loss)
    assert "1 iterations were skipped by the loss scaler" in log.remarks()


def test_composers_batches_go_on_over_its_epochs():
    lines = [
        line
        for epoch in (1, 2)
        for batch in range(1, 16)
        for line in (
            f"0: [epoch={epoch}][batch={batch}/15]:",
            f"0: \t Train loss/train/total: {loss(batch)}",
        )
    ]
    assert [one.step for one in points(text(lines))] == list(range(1, 31))


def test_srun_labels_before_olmos_lines_are_passed_over():
    data, _, _ = SAMPLES["OLMo, OLMo-core"]
    labelled = text(f"0: {line}" for line in data.decode().split("\n"))
    assert points(labelled) == points(data)


def test_a_rate_among_torchtitans_figures_is_no_obstacle():
    data, _, _ = SAMPLES["torchtitan"]
    assert points(data.replace(b"memory:", b"lr: 1e-4  memory:")) == points(data)


def test_both_runs_of_an_export_are_read_and_bins_are_said():
    log, _, found = read(SAMPLES["W&B export"][0])
    assert list(found) == ["a - b", "second"]
    assert log.remarks()[0].startswith("24 of 24 rows are bins")


def test_a_line_without_an_end_is_left_out_and_said():
    data, _, _ = SAMPLES["nanoGPT"]
    log, _, found = read(
        data + b"x" * (LONGEST_LINE + 200_000) + b"\n" + b"iter 240: loss 3.0, time 1ms\n"
    )
    assert len(found[""]) == ROWS + 1
    assert any("longer than" in one for one in log.remarks())


def test_a_second_header_begins_a_second_table():
    first = log_samples.table([{"step": n, "loss": 3.0} for n in range(30)])
    second = log_samples.table([{"loss": 4.0, "step": n, "x": 1} for n in range(30, 60)])
    assert [one.loss for one in points(first + b"done\n" + second)] == [3.0] * 30 + [4.0] * 30


def test_a_tensor_of_a_real_writer_is_a_scalar():
    number = struct.pack("<f", 2.5)
    record = log_samples.event(3, "loss", 2.5, tensor=True)
    assert number in record
    assert points(b"".join([log_samples.event(2, "loss", 3.5), record]))[1].loss == 2.5


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_a_damaged_log_is_read_or_refused_in_one_line(name, data):
    original, _, _ = SAMPLES[name]
    at = data.draw(st.integers(0, len(original) - 1))
    end = data.draw(st.integers(at, min(len(original), at + 40)))
    changed = original[:at] + data.draw(st.binary(max_size=20)) + original[end:]
    refusal = "; "
    try:
        read(changed)
    except LogError as error:
        refusal = str(error)
    assert "; " in refusal
    assert "\n" not in refusal


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_line(data):
    refusal = "; "
    try:
        read(data)
    except LogError as error:
        refusal = str(error)
    assert "; " in refusal
