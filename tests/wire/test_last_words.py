"""A trainer's last words: said as one line, found again among others."""

import pytest

from forkcast_wire import last_words
from forkcast_wire.last_words import Ended, LastWords, heard, say


@pytest.mark.parametrize("reason", Ended)
def test_what_is_said_is_heard_among_other_lines(reason, capsys):
    say(reason, "rank 0:\n  nothing")
    lines = ["{}", "ended: Hung: before", *capsys.readouterr().err.splitlines(), "Traceback"]
    assert heard(lines) == LastWords(reason, "rank 0: nothing")


@pytest.mark.parametrize("line", ["", "ended: Else: x", "ended: Hung:", "it ended: Hung: x"])
def test_other_lines_are_no_last_words(line):
    assert heard([line]) is None


def test_a_container_says_it_to_its_kubelet_too(tmp_path, monkeypatch):
    log = tmp_path / "termination-log"
    monkeypatch.setattr(last_words, "TERMINATION_LOG", log)
    say(Ended.HUNG, "x")
    assert not log.exists()  # no container
    log.write_text("")
    say(Ended.HUNG, "x")
    assert heard(log.read_text().splitlines()) == LastWords(Ended.HUNG, "x")
