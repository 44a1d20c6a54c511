"""TFRecords: what is written is read back, up to what is damaged or cut short."""

import io

import pytest

from forkcast_wire.tfrecords import CutShortError, RecordError, begins, record, records

DATA = [b"", b"a", b"\x00" * 100, bytes(range(256))]
FILE = b"".join(map(record, DATA))


def read(data):
    """The records, and the error at which they end."""
    found = []
    try:
        found.extend(records(io.BytesIO(data).read))
    except RecordError as error:
        return found, error
    return found, None


def test_records_are_read_back():
    assert read(FILE) == (DATA, None)
    assert read(b"") == ([], None)


@pytest.mark.parametrize("at", range(1, len(FILE)))
def test_a_file_that_is_cut_gives_what_is_whole(at):
    found, error = read(FILE[:at])
    assert found == DATA[: len(found)]
    whole = FILE[:at] == b"".join(map(record, found))
    assert (type(error) is CutShortError) == (not whole)


@pytest.mark.parametrize("at", range(len(FILE)))
def test_a_byte_that_is_turned_ends_the_reading(at):
    found, error = read(FILE[:at] + bytes([FILE[at] ^ 1]) + FILE[at + 1 :])
    assert found == DATA[: len(found)]
    assert len(found) < len(DATA)
    assert type(error) is RecordError
    assert error.number == len(found) + 1
    assert begins(FILE[:at] + bytes([FILE[at] ^ 1]) + FILE[at + 1 :]) == (at >= 12)


def test_a_length_that_no_record_has_is_refused_before_it_is_read():
    huge = b"\xff" * 12
    assert not begins(huge)
    assert type(read(huge)[1]) is RecordError
