"""What commands write: nothing stored is obeyed, and nothing unexpected is a traceback."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from forkcast_cli.__main__ import app
from forkcast_cli.terminal import UNEXPECTED, shown

FAILING = """
import sys
from forkcast_cli.terminal import carry_out
def fail():
    {body}
carry_out(fail, "forkcast")
"""


def fails(body, **options):
    return subprocess.run(
        [sys.executable, "-c", FAILING.format(body=body)],
        check=False,
        text=True,
        **{"capture_output": True, **options},
    )


def test_what_nobody_expected_is_one_line_and_the_traceback_is_in_a_file(tmp_path):
    done = fails("raise KeyError('x\\x1b[31m')", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == UNEXPECTED
    (line,) = done.stderr.splitlines()
    (file,) = tmp_path.iterdir()
    assert line.startswith("error: unexpected KeyError: ")
    assert str(file) in line
    assert "\x1b" not in line
    assert "Traceback" in file.read_text()


def test_a_refusal_of_the_system_names_the_file():
    done = fails("open('/nowhere/at/all')")
    assert done.returncode == UNEXPECTED
    assert done.stderr.startswith(
        "error: /nowhere/at/all: No such file or directory (traceback in "
    )


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_is_said_in_one_line(code, unbuffered):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = fails(
            f"print('figures'); sys.exit({code})",
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
            env={"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == (1 if unbuffered else code or 1)
    assert done.stderr == "error: output: No space left on device\n"


def test_a_reader_that_has_gone_ends_the_command_quietly():
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING.format(body="print('x' * 10**6); sys.exit(0)")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_control_characters_and_passwords_are_not_shown():
    assert shown("a\x1b]0;t\x07\x9b\u202eb\nc") == "a\ufffd]0;t\ufffd\ufffd\ufffdb\nc"
    assert shown("got 'http://user:hunter2@h/x'") == "got 'http://***@h/x'"


@pytest.mark.parametrize(
    "text", ["[/x]", "[red]x", "[link=http://h]x[/link]", ":warning:", "\x1b[2J"]
)
def test_stored_text_is_shown_and_not_obeyed(made_run, text):
    for name, field in (("outcome.json", "outcome"), ("phase.json", "kind")):
        path = made_run / "branches/e0-t150" / name
        path.write_text(json.dumps({field: text}))
    path = made_run / "branches/e0-t150/decision.json"
    decision = json.loads(path.read_text())
    decision["judgements"][0] |= {"verdict": "Risk", "reason": text}
    path.write_text(json.dumps(decision))
    (made_run / "progress.json").write_text(
        json.dumps({"state": text, "loss": 3.0, "device": text, "tokens_per_second": 1.0})
    )
    (made_run / "complete.json").unlink()
    for command in ("status", "branches", "runs", "explain e0-t150 -d"):
        done = CliRunner().invoke(app, [*command.split(), str(made_run)], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output
    assert f"({shown(text)})" in done.output  # why the first candidate was refused


def test_what_goes_into_a_file_is_not_broken_into_lines(made_run, monkeypatch):
    """Regression: lines in files and pipes were broken at the 80th column of no terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    (branch, *_) = [path.name for path in sorted((made_run / "branches").iterdir())]
    for command in (["status", str(made_run)], ["explain", branch, "-d", str(made_run)]):
        whole = CliRunner().invoke(app, command).output.splitlines()
        broken = CliRunner().invoke(app, command, env={"COLUMNS": "30"}).output.splitlines()
        assert len(whole) < len(broken)
        assert max(map(len, broken)) <= 30
        assert max(map(len, whole)) < 400  # nor filled up with blanks
