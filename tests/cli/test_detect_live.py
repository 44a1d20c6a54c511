"""`forkcast detect` beside a program that is still printing: what it reports at once, and that it never
stops the program.
"""

import json
import os
import signal
import subprocess
import sys

from tests.cli.log_samples import event
from tests.cli.made_course import course, lines
from tests.waiting import HANG_SECONDS


def started(*arguments, **options):
    command = [sys.executable, "-m", "forkcast_cli", "detect", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        **options,
    )


def until(pipe, wanted):
    """Read lines until one holds it."""
    for line in iter(pipe.readline, b""):
        if wanted in line:
            return line.decode()
    raise AssertionError(f"{wanted!r} never came")


def test_an_event_of_a_pipe_is_told_while_it_is_open():
    with started("-") as process:
        process.stdin.write(lines(course(310)))
        process.stdin.flush()
        until(process.stdout, b"step 30")
        process.stdin.write(lines(course(320, first=0))[-2000:])
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"rows, steps 0 to 319" in out


def test_a_pipe_is_passed_on_unchanged_and_events_go_beside_it():
    content = b"a banner \xff\x00\n" + lines(course())
    with started("-", "--tee") as process:
        out, err = process.communicate(content)
    assert (process.returncode, out) == (0, content)
    assert b"  step 30" in err or b"step 30" in err


def test_a_program_is_not_killed_by_a_log_that_fits_nothing():
    """What is piped in is read to its end, whatever comes of it."""
    script = "import sys\nfor n in range(20000): print('nothing here', n)\nsys.stderr.write('done')"
    with started("-") as process:
        program = subprocess.run(
            [sys.executable, "-c", script],
            stdout=process.stdin,
            stderr=subprocess.PIPE,
            check=False,
        )
        _, err = process.communicate()
    assert (program.returncode, program.stderr) == (0, b"done")
    assert process.returncode == 3
    assert err.startswith(b"error: standard input: nothing in it")


def test_a_program_is_not_killed_by_a_reader_that_goes_away():
    with started("-") as process:
        process.stdout.close()
        process.stdin.write(lines(course()))
        process.stdin.write(lines(course())[:-1] * 50)
        process.stdin.close()
        process.wait(HANG_SECONDS)
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_growing_file_is_followed_until_an_interrupt(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(lines(course(310)))
    with started("--follow", path) as process:
        until(process.stdout, b"step 30")
        with path.open("ab") as file:
            file.write(lines(course(330)))  # another run: told of by a detector of its own
        until(process.stdout, b"step 30")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"310 rows" in out
    assert b"330 rows" in out


def test_a_followed_file_that_is_replaced_is_read_from_its_start(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(lines(course(310)))
    with started("--follow", path) as process:
        until(process.stdout, b"step 30")
        path.rename(tmp_path / "log.1")
        path.write_bytes(lines(course(330)))
        until(process.stdout, b"step 30")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"330 rows" in out


def test_an_event_file_that_grows_is_followed(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    rows = list(course(320))
    path.write_bytes(b"".join(event(row["step"], "loss", row["loss"]) for row in rows[:200]))
    with started("--follow", path) as process:
        until(process.stdout, b"columns: step = step, loss = loss")
        with path.open("ab") as file:
            file.write(b"".join(event(row["step"], "loss", row["loss"]) for row in rows[200:]))
        until(process.stdout, b"step 30")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"320 rows" in out


def test_live_events_are_a_line_of_json_each(tmp_path):
    with started("-", "--json") as process:
        out, _ = process.communicate(lines(course()))
    *events, last = map(json.loads, out.splitlines())
    assert [one["event"]["step"] for one in events]
    assert last["runs"][0]["rows"] == 400
