"""docs/trackers.md names the shelf as it is, and the commands that it shows are taken."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from forkcast_cli.__main__ import app
from forkcast_watch.trackers import TRACKERS
from forkcast_watch.trackers.queued import MOST_WAITING
from tests.cli.conftest import made_run

__all__ = ["made_run"]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/trackers.md").read_text()


def test_the_table_is_the_shelf():
    assert re.findall(r"^\| `(\w+):", PAGE, re.MULTILINE) == list(TRACKERS)
    assert f"queue of {MOST_WAITING:,} records" in PAGE
    extras = re.findall(r"forkcast\[(\w+)\]", PAGE)
    project = (ROOT / "pyproject.toml").read_text()
    assert extras
    assert [one for one in extras if f"\n{one} = [" not in project] == []


def test_the_first_command_runs_as_it_stands(made_run, tmp_path, monkeypatch):
    made_run.rename(tmp_path / "DIR")
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"^forkcast (export DIR .*)$", PAGE, re.MULTILINE)
    done = CliRunner().invoke(app, shlex.split(shown))
    assert (done.exit_code, done.output) == (0, "tensorboard:tb: 300 steps and 2 events added\n")
