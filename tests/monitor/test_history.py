"""The record of the accepted steps: what a restart knows of it."""

from dataclasses import replace

from forkcast.records import Index
from forkcast_monitor.history import History
from forkcast_wire.statistics import last_steps, read_history, read_tail

from .conftest import statistics


def test_a_restart_knows_the_last_step_of_each_attempt_from_chunks_and_tail(tmp_path):
    rows = statistics("u", 1100)
    one = History(tmp_path)
    for row in rows[:1024]:
        one.append(row, None)
    assert list(tmp_path.glob("*.parquet"))
    assert not read_tail(tmp_path)
    for row in rows[1024:]:
        one.append(replace(row, attempt=1), None)
    again = History(tmp_path)
    assert again.last_steps == one.last_steps == {(0, 0): 1023, (0, 1): 1099}
    assert last_steps(tmp_path) == {(0, 0): 1023}
    assert again.rows_to_chunk == 1024 - 76
    again.close()
    assert last_steps(tmp_path) == one.last_steps
    assert [row["step"] for row in read_history(tmp_path)] == list(range(1100))


def test_a_chunk_holds_what_was_appended_bit_for_bit(tmp_path):
    rows = statistics("u", 1024, seed=3)
    one = History(tmp_path)
    index = Index(
        step=0, epoch=0, components={"volatility": 2 / 3}, index=0.1 + 0.2, z=1 / 3, ready=True
    )
    for row in rows:
        one.append(row, index)
    found = read_history(tmp_path)
    assert [row["loss"] for row in found] == [row.loss for row in rows]
    assert {(row["index"], row["z"], row["u_volatility"]) for row in found} == {
        (0.1 + 0.2, 1 / 3, 2 / 3)
    }
