"""The record of the accepted steps: what a restart knows of it."""

import json
import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkcast.records import Index
from forkcast_monitor.history import History
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import (
    SCHEMA,
    HistoryError,
    chunk_name,
    last_steps,
    read_history,
    read_tail,
    row_to_stats,
    stats_row,
    tail_of,
)
from forkcast_wire.tail import Row, decoded, framed, judged

from .conftest import statistics


def test_a_restart_knows_the_last_step_of_each_attempt_from_chunks_and_tail(tmp_path):
    rows = statistics("u", 1100)
    one = History(tmp_path)
    for row in rows[:1024]:
        one.append([unjudged(row)])
    assert list(tmp_path.glob("*.parquet"))
    assert not read_tail(tmp_path)
    for row in rows[1024:]:
        one.append([unjudged(replace(row, attempt=1))])
    again = History(tmp_path)
    assert again.last_steps == one.last_steps == {(0, 0): 1023, (0, 1): 1099}
    assert last_steps(tmp_path) == {(0, 0): 1023}
    assert again.rows_to_chunk == 1024 - 76
    again.close()
    assert last_steps(tmp_path) == one.last_steps
    assert [row["step"] for row in read_history(tmp_path)] == list(range(1100))


def unjudged(row):
    return Row(stats_to_wire(row))


#: What is left of the tail's bytes: to the middle of a row, and with a byte of every tenth row turned.
LEFT = {
    "cut": lambda rows: b"".join(rows[:3]) + rows[3][:50],
    "cut in a head": lambda rows: b"".join(rows[:3]) + rows[3][:5],
    "holed": lambda rows: b"".join(
        row[:40] + bytes([row[40] ^ 255]) + row[41:] if n % 10 == 0 else row
        for n, row in enumerate(rows)
    ),
    "begins in the middle": lambda rows: b"".join(rows)[30:],
    "zeros": lambda rows: bytes(len(rows[0])),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_a_damaged_tail_that_begins_where_a_chunk_does_takes_nothing_from_it(tmp_path, left):
    """A crash leaves the rows of a chunk in the tail, too; what a disk then loses of the tail is lost
    there alone."""
    rows = statistics("u", 1030)
    one = History(tmp_path)
    for row in rows[:1023]:
        one.append([unjudged(row)])
    tail = tail_of(tmp_path)
    whole = tail.read_bytes()
    before = [framed(frame) for frame in decoded(whole)[0]]
    assert b"".join(before) == whole
    one.append([unjudged(rows[1023])])
    assert tail.read_bytes() == b""
    tail.write_bytes(left(before))
    again = History(tmp_path)
    for row in rows[1024:]:
        again.append([unjudged(row)])
    again.close()
    assert read_tail(tmp_path) == []
    assert [row["step"] for row in read_history(tmp_path)] == list(range(1030))
    assert [row["loss"] for row in read_history(tmp_path)] == [row.loss for row in rows]
    assert again.size == sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))


def test_a_chunk_that_cannot_be_read_is_not_replaced_by_rows_that_begin_there(tmp_path):
    one = History(tmp_path)
    for row in statistics("u", 10):
        one.append([unjudged(row)])
    path = tmp_path / chunk_name(0, 0, 0)
    path.write_bytes(b"PAR1 damaged")
    one.close()
    assert path.read_bytes() == b"PAR1 damaged"
    assert len(read_tail(tmp_path)) == 10  # for whoever repairs it


def test_a_chunk_holds_what_was_appended_bit_for_bit(tmp_path):
    rows = statistics("u", 1024, seed=3)
    one = History(tmp_path)
    index = Index(
        step=0, epoch=0, components={"volatility": 2 / 3}, index=0.1 + 0.2, z=1 / 3, ready=True
    )
    for row in rows:
        one.append([judged(stats_to_wire(row), index, None)])
    found = read_history(tmp_path)
    assert [row["loss"] for row in found] == [row.loss for row in rows]
    assert {(row["index"], row["z"], row["u_volatility"]) for row in found} == {
        (0.1 + 0.2, 1 / 3, 2 / 3)
    }


def former_line(stats, **judged):
    """A row as earlier versions wrote it: no tier, no event."""
    return json.dumps({**stats_row(stats), "index": 0.1, "z": 0.2, "u_volatility": None, **judged})


@pytest.mark.parametrize("place", ["statistics/tail.jsonl", "statistics.tail.jsonl"])
def test_the_tail_of_an_earlier_version_is_read_and_taken_over(tmp_path, place):
    folder = tmp_path / "statistics"
    folder.mkdir()
    rows = statistics("u", 40, seed=4)
    wild = replace(rows[7], loss=math.nan, grad_norm=-0.0)
    rows[7] = wild
    lines = [former_line(row, u_volatility=1 / 3) for row in rows]
    (tmp_path / place).write_text("\n".join([*lines, '{"cut": ', former_line(rows[0])[:-9]]))
    before = read_history(folder)
    history = History(folder)
    assert not (tmp_path / place).exists()
    assert history.last_steps == {(0, 0): 39}
    after = read_history(folder)
    wanted = [repr(stats_row(row)) for row in rows]
    assert [repr(stats_row(row_to_stats(row))) for row in before] == wanted
    assert [repr(stats_row(row_to_stats(row))) for row in after] == wanted
    assert {(r["index"], r["z"], r["u_volatility"]) for r in after} == {(0.1, 0.2, 1 / 3)}
    history.append([unjudged(row) for row in statistics("u", 41)[40:]])
    history.close()
    assert [row["step"] for row in read_history(folder)] == list(range(41))
    assert [History(folder).last_steps] == [{(0, 0): 40}]


def test_a_crash_between_taking_over_a_tail_and_deleting_it_counts_no_row_twice(tmp_path):
    folder = tmp_path / "statistics"
    folder.mkdir()
    former = tmp_path / "statistics.tail.jsonl"
    former.write_text("\n".join(former_line(row) for row in statistics("u", 10)) + "\n")
    kept = former.read_bytes()
    History(folder)
    former.write_bytes(kept)
    assert [row["step"] for row in read_history(folder)] == list(range(10))
    again = History(folder)
    again.close()
    assert [row["step"] for row in read_history(folder)] == list(range(10))


def test_a_chunk_of_an_earlier_version_reads_with_null_in_the_columns_it_lacks(tmp_path):
    one = History(tmp_path)
    one.append([unjudged(row) for row in statistics("u", 5)])
    one.close()
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    later = ["tier", "event", "onset_step"]
    for missing in (later, later[2:]):
        pq.write_table(table.drop_columns(missing), path)
        found = read_history(tmp_path)
        assert [row["step"] for row in found] == list(range(5))
        assert all(row[name] is None for row in found for name in later)
    pq.write_table(table.drop_columns(["z"]), path)
    with pytest.raises(HistoryError, match="column z"):
        read_history(tmp_path)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_chunk_with_a_column_twice_or_of_another_kind_is_refused_by_name(tmp_path, name):
    one = History(tmp_path)
    one.append([unjudged(row) for row in statistics("u", 2)])
    one.close()
    (path,) = tmp_path.glob("*.parquet")
    table = pq.read_table(path)
    other = pa.array([b"?"] * len(table), pa.binary())
    for changed in (
        table.append_column(SCHEMA.field(name), table.column(name)),
        table.append_column(name, other),
        table.set_column(table.schema.get_field_index(name), name, other),
    ):
        pq.write_table(changed, path)
        with pytest.raises(HistoryError, match=f"column {name}$"):
            read_history(tmp_path)


def test_the_last_step_is_read_from_the_step_column_wherever_it_stands(tmp_path):
    path = tmp_path / "e0-a0-000000000000.parquet"
    pq.write_table(pa.table({"loss": [2.5, 2.4], "step": [7, 8]}), path)
    assert last_steps(tmp_path) == {(0, 0): 8}
    pq.write_table(pa.table({"loss": [2.5, 2.4]}), path)
    with pytest.raises(HistoryError, match="damaged"):
        last_steps(tmp_path)


def test_tier_event_and_onset_are_kept_in_tail_and_chunk(tmp_path):
    history = History(tmp_path)
    wanted = [(0, None, None), (2, "the loss departed", 0), (3, "\u00e4", 2)]
    for stats, (tier, event, onset) in zip(statistics("u", 3), wanted, strict=True):
        history.append([replace(unjudged(stats), tier=tier, event=event, onset_step=onset)])

    def kept():
        return [(row["tier"], row["event"], row["onset_step"]) for row in read_history(tmp_path)]

    assert kept() == wanted
    history.close()
    assert read_tail(tmp_path) == []
    assert kept() == wanted
    table = pq.read_table(next(tmp_path.glob("*.parquet")))
    assert table.schema.field("onset_step").type == pa.int64()


def test_a_component_of_a_signal_that_is_on_no_shelf_is_kept(tmp_path):
    """A preset has signals of its own."""
    history = History(tmp_path)
    plain = [unjudged(row) for row in statistics("u", 3)]
    history.append([plain[0], replace(plain[1], components={"own": 1.5})])
    history.append(plain[2:])
    for _ in ("tail", "chunk"):
        assert [row["u_own"] for row in read_history(tmp_path)] == [None, 1.5, None]
        history.close()
    assert read_tail(tmp_path) == []


def test_what_a_trainer_adds_to_a_record_takes_no_room_in_the_history(tmp_path):
    row = stats_to_wire(statistics("u", 1)[0])
    own = row.SerializeToString() + b"\xfa\x3f\xa0\x8d\x06" + b"x" * 100_000  # field 1023
    assert len(type(row).FromString(own).SerializeToString()) > 100_000
    history = History(tmp_path)
    history.append([Row(type(row).FromString(own))])
    assert history.size < 1000
