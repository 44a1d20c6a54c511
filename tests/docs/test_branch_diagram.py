"""The diagram of the branch machine is the one its table of moves draws."""

import subprocess
import sys
from pathlib import Path

from forkcast.phases import MOVES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/draw_branch.py"


def test_the_documents_show_the_moves_of_today():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], check=False)
    assert done.returncode == 0, "run scripts/draw_branch.py"
    page = (ROOT / "docs/concepts.md").read_text()
    moves = [f"{a.__name__} --> {b.__name__}" for a, following in MOVES.items() for b in following]
    assert all(move in page for move in moves)
