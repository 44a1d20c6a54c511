"""The statistics history: a damaged chunk or tail is named in the log and costs its own rows."""

import pytest

from forkcast_monitor.config import configure
from forkcast_monitor.detector import Detector
from forkcast_monitor.history import History
from forkcast_wire.manifest import Uncertainty
from forkcast_wire.statistics import chunk_name, newest_steps, read_history, row_to_stats

from .harness import CORPUS, fuzz


@pytest.mark.parametrize("target", ["history_chunk", "history_tail"])
def test_any_file_of_a_history_is_read(tmp_path, target):
    name = "tail.jsonl" if target == "history_tail" else chunk_name(0, 0, 20)
    sound = (CORPUS / "history_chunk" / "chunk.parquet").read_bytes()
    tried = iter(range(10**9))

    def read(data):
        folder = tmp_path / str(next(tried))
        folder.mkdir()
        (folder / chunk_name(0, 0, 0)).write_bytes(sound)
        (folder / name).write_bytes(data)
        rows = read_history(folder)
        assert [row for row in rows if row["tokens"] < 20 * 64], "the sound chunk's"
        newest_steps(folder)
        detector = Detector(configure(Uncertainty()), "a")
        for row in rows:
            detector.fold(row_to_stats(row))
        history = History(folder)
        history.close()
        assert len(read_history(folder)) == len(rows)

    fuzz(target, read, ())
