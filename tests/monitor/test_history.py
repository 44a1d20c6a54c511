"""The record of the accepted steps: what a restart knows of it."""

from dataclasses import replace

import pytest

from forkcast.records import Index
from forkcast_monitor.history import History
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import chunk_name, last_steps, read_history, read_tail, tail_of
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
