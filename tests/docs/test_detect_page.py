"""The snippets of docs/detect.md run as they stand, on logs of a few rows; its table names every format."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forkcast_cli.__main__ import app
from forkcast_cli.logs import TEXT, WHOLE
from tests.cli.log_samples import SAMPLES

PAGE = (Path(__file__).parents[2] / "docs/detect.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
LOGS = {
    "trainer_state.json": "JSON document",
    "log.csv": "CSV table",
    "out/main.log": "llm.c main.log",
}
#: Not the name that the command prints.
_CALLED = {
    "JSON document": "trainer_state.json",
    "Hugging Face Trainer's output": "what the Trainer prints",
    "W&B export": "the CSV export",
    "W&B run file": ".wandb",
    "TensorBoard events": "event files",
    "CSV table": "CSV",
    "text with names and numbers": "any text",
    "Megatron-LM or GPT-NeoX": "Megatron-LM",
    "build-nanogpt log.txt": "`log.txt`",
    "llm.c main.log": "`main.log`",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, sample in LOGS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(
            SAMPLES[sample][0].replace(b"step,train_loss", b"iter,objective")
        )
    (tmp_path / "train.py").write_bytes(b"for n in range(30): print('step', n, 'loss', 3.0)\n")
    return tmp_path


def plain(command):
    return not any(mark in command for mark in ("|", "--follow", ">", "runs/", "--columns"))


@pytest.mark.parametrize("command", [one for one in COMMANDS if plain(one)])
def test_a_command_runs(folder, command):
    program, *arguments = shlex.split(command)
    assert program == "forkcast"
    text = (folder / "log.csv").read_text().replace("iter,objective", "step,train_loss")
    (folder / "log.csv").write_text(text)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


def test_columns_can_be_named_as_shown(folder):
    plainly, by_layer = (line for line in COMMANDS if "--columns" in line)
    done = CliRunner().invoke(app, shlex.split(plainly)[1:])
    assert done.exit_code == 0, done.output
    assert "columns: step = iter, loss = objective" in done.output
    head, *rows = (folder / "log.csv").read_text().replace("iter,objective", "step,loss").split()
    layers = [f"{row},0.8,0.02" for row in rows]
    (folder / "log.csv").write_text("\n".join([f"{head},attn/ent_0,attn/ent_1", *layers]))
    done = CliRunner().invoke(
        app, [*shlex.split(by_layer)[1:], "--json", "--rule", "warmupSteps=4"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["columns"]["attention_entropy"] == "attn/ent_*"


def test_a_program_can_be_piped_as_shown(folder):
    assert "python train.py | forkcast detect -" in COMMANDS
    command = f"{sys.executable} train.py | {sys.executable} -m forkcast_cli detect -"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "30 rows, steps 0 to 29: no event" in done.stdout


def test_the_document_is_read_as_shown(folder, capsys):
    from tests.cli.made_course import course, lines

    (folder / "log.jsonl").write_bytes(lines(course()))
    found = CliRunner().invoke(app, ["detect", "log.jsonl", "--json"])
    (folder / "found.json").write_text(found.output)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(snippet, "docs/detect.md", "exec"), {})
    assert re.match(r"run 30\d (event|branch) volatility ", capsys.readouterr().out)


@pytest.mark.parametrize("name", [one.name for one in (*TEXT, *WHOLE)])
def test_every_format_is_in_the_table(name):
    (table,) = re.findall(r"\| of \| what \|\n(.*?)\n\n", PAGE, re.DOTALL)
    assert _CALLED.get(name, name) in table
