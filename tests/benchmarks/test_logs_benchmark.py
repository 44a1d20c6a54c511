"""benchmarks/logs.py: each of its made logs is one that is read, and its table says so."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/logs.py"


def test_it_measures_a_format(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, SCRIPT, "--megabytes", "0", "--only", "olmo", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())
    assert (row["format"], row["rows"]) == ("olmo", 1)
    assert "olmo" in done.stdout
