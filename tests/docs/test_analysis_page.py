"""The snippets of docs/analysis.md run as they stand, on a run of ours."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from forkcast_wire.loaded_run import LoadedRun
from forkcast_wire.run_events import RunEvent
from tests.cli.conftest import made_run

__all__ = ["made_run"]
PAGE = (Path(__file__).parents[2] / "docs/analysis.md").read_text()


def test_the_snippets_run(made_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    made_run.rename(tmp_path / "runs/quickstart")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 2
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/analysis.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "150 " in printed
    assert "e0-t150 Accepted" in printed
    assert " 300\n" in printed


def test_every_call_of_the_page_exists(made_run):
    import forkcast

    run = forkcast.load_run(made_run)
    assert isinstance(run, LoadedRun)
    named = set(re.findall(r"`run\.(\w+)(?:\(\))?`", PAGE))
    assert named
    assert [name for name in sorted(named) if not hasattr(run, name)] == []
    assert run.events().column_names == [field.name for field in fields(RunEvent)]
