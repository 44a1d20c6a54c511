"""The number of a start: counted, and found again in what a run has written."""

import json

import pytest

from forkcast_watch.run_folder import open_folder
from forkcast_watch.settings import Settings
from forkcast_wire.attempt_numbers import next_attempt
from forkcast_wire.codec import stats_to_wire
from forkcast_wire.statistics import tail_of
from forkcast_wire.tail import Row, encoded
from tests.make import step_stats


def write_tail(folder, attempt):
    """Rows that are in no Parquet file yet."""
    (folder / "statistics").mkdir(parents=True)
    rows = [Row(stats_to_wire(step_stats(n, attempt=attempt))) for n in range(3)]
    tail_of(folder / "statistics").write_bytes(encoded(rows, ()))


@pytest.mark.parametrize("count", [b"", b"{", b"true", b"null", b"[3]", None])
def test_a_lost_count_is_found_in_the_open_tail(tmp_path, count):
    write_tail(tmp_path, 4)
    if count is not None:
        (tmp_path / "attempts.json").write_bytes(count)
    assert [next_attempt(tmp_path), next_attempt(tmp_path)] == [5, 6]


def test_a_watched_run_finds_its_count_there_too(tmp_path):
    """Regression: it took the first number again, and its rows those of the first attempt's place."""
    folder = tmp_path / "run"
    open_folder(Settings(folder=folder)).close()
    assert json.loads((folder / "attempts.json").read_text()) == 0
    (folder / "attempts.json").unlink()
    write_tail(folder, 4)
    opened = open_folder(Settings(folder=folder))
    opened.close()
    assert opened.attempt == 5
