"""Micro-batches are read ahead of their time, and nobody can tell by what a step sees."""

from __future__ import annotations

import copy
import os
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from forkcast_trainer.data.batches import Batches, Windows
from forkcast_trainer.data.feed import Feed
from forkcast_trainer.data.mixture import sampler_of
from forkcast_trainer.data.token_file import TokenFile
from forkcast_trainer.data.tokens import Tokens
from forkcast_trainer.stressors.block_shuffle import BlockShuffle
from forkcast_wire.manifest import Stressor
from tests.waiting import until

LENGTH, COUNT = 8, 3


@pytest.fixture
def batches(tmp_path):
    np.arange(4000, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    facts = {"dtype": "uint16", "count": 4000, "vocabulary_size": 4000, "end_of_text": None}
    file = TokenFile(path=tmp_path / "ids.bin", name="ids", sha256="", **facts)
    texts = [Tokens("a", 2.0, [file.part(0, 3000)]), Tokens("b", 1.0, [file.part(3000, 4000)])]
    stressor = BlockShuffle(Stressor(type="BlockShuffle", probability="0.5"))
    return Batches(Windows(texts, LENGTH), [stressor])


def sampler(batches, seed=3):
    return sampler_of(batches.text.counts, batches.text.weights, seed)


def plain(batches, mine, step, own):
    """What a step sees without any reading ahead."""
    found = []
    for number, computed in enumerate(own):
        ids = batches.draw(step, mine, COUNT)
        if computed:
            found.append((number, batches.read(step, ids)))
    return found


OWN = [[True], [True, True], [True, False], [False, True], [False, False, True, False]]


@pytest.mark.parametrize("own", OWN)
def test_each_step_sees_what_it_would_see_and_ends_where_it_would_end(batches, own):
    mine, theirs = sampler(batches), sampler(batches)
    feed = Feed(batches, COUNT, own, pin=False)
    for step in range(40):
        seen = list(feed.step(step, mine))
        expected = plain(batches, theirs, step, own)
        assert [number for number, _ in seen] == [number for number, _ in expected]
        for (_, ids), (_, rows) in zip(seen, expected, strict=True):
            assert ids.dtype == torch.int64
            assert np.array_equal(ids.numpy(), rows)
        assert mine.state == theirs.state


def test_the_ranks_of_a_run_read_what_one_process_reads_each_its_own(batches):
    whole = Feed(batches, COUNT, [True] * 4, pin=False)
    ranks = [Feed(batches, COUNT, [n % 2 == rank for n in range(4)], pin=False) for rank in (0, 1)]
    samplers = [sampler(batches) for _ in range(3)]
    for step in range(10):
        expected = {number: ids.tolist() for number, ids in whole.step(step, samplers[2])}
        found = {}
        for feed, one in zip(ranks, samplers[:2], strict=True):
            found |= {number: ids.tolist() for number, ids in feed.step(step, one)}
        assert found == expected
        assert samplers[0].state == samplers[1].state == samplers[2].state


def test_the_next_is_read_while_the_one_before_is_computed(batches, monkeypatch):
    threads, read = [], batches.read

    def noted(step, ids):
        threads.append((step, threading.current_thread() is threading.main_thread()))
        return read(step, ids)

    monkeypatch.setattr(batches, "read", noted)
    feed, mine = Feed(batches, COUNT, [True, False], pin=False), sampler(batches)
    for step in range(3):
        (_,) = feed.step(step, mine)
    until(lambda: len(threads) == 4, "the micro-batch of the next step")
    assert threads == [(0, True), (1, False), (2, False), (3, False)]


@pytest.mark.parametrize("change", ["reorder", "skip", "restore", "step", "none"])
def test_what_was_read_ahead_of_another_course_is_thrown_away(batches, change):
    own = [True, False]
    feed, mine, theirs = Feed(batches, COUNT, own, pin=False), sampler(batches), sampler(batches)
    early = copy.copy(mine)
    for step in range(3):
        list(feed.step(step, mine))
        plain(batches, theirs, step, own)
    step = 3
    if change == "reorder":
        mine.reorder(9)
        theirs.reorder(9)
    elif change == "skip":
        mine.skip(5)
        theirs.skip(5)
    elif change == "restore":
        mine, theirs, step = copy.copy(early), copy.copy(early), 0
    elif change == "step":
        step = 150
    for number in range(step, step + 3):
        ((_, ids),) = feed.step(number, mine)
        ((_, rows),) = plain(batches, theirs, number, own)
        assert np.array_equal(ids.numpy(), rows)
    assert mine.state == theirs.state


def test_a_failure_ahead_is_told_when_it_is_its_turn(batches, monkeypatch):
    read = batches.read
    calls = Counter()

    def fails(step, ids):
        calls[step] += 1
        if step == 1:
            raise OSError("gone")
        return read(step, ids)

    monkeypatch.setattr(batches, "read", fails)
    feed, mine = Feed(batches, COUNT, [True], pin=False), sampler(batches)
    assert len(list(feed.step(0, mine))) == 1
    before = mine.state
    with pytest.raises(OSError, match="gone"):
        list(feed.step(1, mine))
    assert mine.state == before
    assert calls[1] == 2


def test_a_child_of_a_fork_reads_by_itself(batches):
    feed, mine, theirs = Feed(batches, COUNT, [True], pin=False), sampler(batches), sampler(batches)
    list(feed.step(0, mine))
    plain(batches, theirs, 0, [True])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for step in (1, 2):
                ((_, ids),) = feed.step(step, mine)
                ((_, rows),) = plain(batches, theirs, step, [True])
                code = 0 if np.array_equal(ids.numpy(), rows) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_step_without_a_micro_batch_is_refused(batches):
    with pytest.raises(ValueError, match="without a micro-batch"):
        Feed(batches, COUNT, [False, False], pin=False)
