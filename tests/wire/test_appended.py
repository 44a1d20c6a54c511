"""A file that is only added to: a piece is in it whole, or not at all."""

import os
import subprocess
import sys

import pytest

from forkcast_wire.appended import AppendedFile


def test_a_file_opens_again_after_it_has_rested(tmp_path):
    file = AppendedFile(tmp_path / "pieces")
    file.append(b"a")
    file.rest()
    assert not file.unsynced
    file.append(b"b")
    assert file.unsynced
    file.rest()
    assert (tmp_path / "pieces").read_bytes() == b"ab"


def test_what_a_killed_process_left_is_synced_before_it_counts(tmp_path, monkeypatch):
    """It may be with the operating system only; the hello of the next process acknowledges it."""
    AppendedFile(tmp_path / "pieces").append(b"a")
    synced, original = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda one: (synced.append(one), original(one)))
    file = AppendedFile(tmp_path / "pieces")
    assert file.unsynced
    file.sync()
    assert len(synced) == 1
    assert not file.unsynced


def test_a_piece_that_the_disk_took_in_part_leaves_the_file_as_it_was(tmp_path):
    """A limit on the file's size, as a quota has it: the write that crosses it is short."""
    program = (
        "import resource, signal, sys\n"
        "from forkcast_wire.appended import AppendedFile\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "file = AppendedFile(Path(sys.argv[1]))\n"
        "for n in range(3):\n"
        "    try:\n"
        "        file.append(b'x' * 400)\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    path = tmp_path / "f"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert "No space left on device" in done.stdout, done.stderr
    assert path.stat().st_size == 800


def test_what_cannot_be_taken_back_is_not_cut_off_with_a_later_piece(tmp_path, monkeypatch):
    """A disk that fails half-way through a piece, and then to shorten the file."""
    path = tmp_path / "pieces"
    file = AppendedFile(path)
    file.append(b"a")

    def broken(*_given):
        raise OSError(5, "Input/output error")

    def half(piece):
        path.write_bytes(path.read_bytes() + piece[:1])
        broken()

    class Failing:
        def __init__(self, real):
            self.real, self.fileno = real, real.fileno
            self.write = half

        def close(self):
            self.real.close()

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", broken)
        patch.setattr(file, "_file", Failing(file._file))
        with pytest.raises(OSError, match="Input/output error"):
            file.append(b"bb")
    file.append(b"c")
    with monkeypatch.context() as patch:
        patch.setattr(file, "_file", Failing(file._file))
        with pytest.raises(OSError, match="Input/output error"):
            file.append(b"dd")
    assert path.read_bytes() == b"abc"


def test_a_file_is_made_with_its_folder_before_the_first_piece(tmp_path):
    path = tmp_path / "runs" / "x"
    file = AppendedFile(path)
    file.create()
    assert path.read_bytes() == b""
    file.close()
    with pytest.raises(OSError, match="directory"):
        AppendedFile(tmp_path / "runs").create()
