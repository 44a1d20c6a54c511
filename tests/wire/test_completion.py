"""Whether a run has ended: relative to the steps that are wanted now."""

import pytest

from forkcast_wire import keys
from forkcast_wire.completion import completion, ended, record
from forkcast_wire.documents import Complete
from forkcast_wire.store import FolderStore, StoreError, read_document


def done(step, epoch=0, loss=2.0):
    return Complete(epoch=epoch, step=step, tokens=step, validation_loss=loss, seconds=1.0)


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path)


def test_the_end_is_relative_to_the_steps_wanted_now():
    assert ended(done(40), 40)
    assert not ended(done(40), 41)
    assert not ended(None, 1)


def test_a_run_that_is_wanted_longer_has_not_ended(store):
    assert completion(store, 40) is None
    assert record(store, done(40))
    assert completion(store, 40) == done(40)
    assert completion(store, 80) is None


def test_a_longer_runs_end_replaces_the_earlier_and_never_the_other_way_round(store):
    record(store, done(40))
    assert record(store, done(80, loss=1.5))
    assert completion(store, 80) == done(80, loss=1.5)
    assert not record(store, done(40))  # of a trainer that was left over
    assert not record(store, done(80, loss=9.0))
    assert read_document(store, Complete, keys.COMPLETE) == done(80, loss=1.5)


def test_the_end_of_a_newer_epoch_replaces_that_of_an_older_one(store):
    record(store, done(40))
    assert record(store, done(40, epoch=1))
    assert not record(store, done(40))


@pytest.mark.parametrize("data", [b"", b"{", b'{"step": 40}', b"[]", b"\xff"])
def test_a_damaged_end_is_none_and_is_written_again(store, data):
    store.put(keys.COMPLETE, data)
    assert completion(store, 40) is None
    assert record(store, done(40))
    assert completion(store, 40) == done(40)


def test_what_can_be_neither_read_nor_written_is_an_error_and_not_a_loop(store, tmp_path):
    (tmp_path / keys.COMPLETE).mkdir()
    with pytest.raises(StoreError, match=r"complete\.json"):
        record(store, done(40))
