"""Make training runs go wrong on purpose, on GPUs, and record what a detector can see of them.

A GPT-2 of 51M or 124M parameters trains on text; at its *fork step* the state is kept, and from it
each fault of the unit is played, and the same steps without a fault (the control, so that a
reader sees when the fault's loss left its own course). One record a run: ``NAME.npz`` with the
columns of `training.COLUMNS` ([steps], float32) and what was sampled inside the model, and
``NAME.json`` with the labels. Needs torch and numpy alone, except `prepare` (tokenizers) and `label`
(pyarrow). In scripts/:

    python -m instabilities prepare --to DIR --text FILE_OR_FOLDER ... --bpe FOLDER
    python -m instabilities plans --to DIR
    python -m instabilities drive --plan DIR/a.json --data DIR --seconds 500 --out OUT
    python -m instabilities label --records FOLDER ... --to ../tests/data/instabilities --card TEXT
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from instabilities.drive import drive, work
from instabilities.text import prepare
from instabilities.units import write_plans


def _label(options: argparse.Namespace) -> None:
    from instabilities.labels import label

    label(options.records, options.to, options.card)


def main() -> None:
    """The commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)

    def command(name: str, call: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(call=call)
        return added

    made = command("prepare", prepare)
    made.add_argument("--to", type=Path, required=True)
    made.add_argument("--text", type=Path, nargs="+", required=True)
    made.add_argument("--bpe", type=Path, required=True)
    command("plans", write_plans).add_argument("--to", type=Path, required=True)
    for name, call in (("drive", drive), ("work", work)):
        added = command(name, call)
        added.add_argument("--plan", type=Path, required=True)
        added.add_argument("--data", type=Path, required=True)
        added.add_argument("--eager", action="store_true", help="without torch.compile")
        if name == "work":
            added.add_argument("--slot", type=int, required=True)
            added.add_argument("--end", type=float, required=True)
            added.add_argument("--work", type=Path, required=True)
        else:
            added.add_argument("--gpu", type=int, help="this GPU alone; default all")
            added.add_argument("--processes", type=int, default=3, help="side by side on a GPU")
            added.add_argument("--seconds", type=float, required=True)
            added.add_argument("--scratch", default="/tmp/instabilities")
            added.add_argument("--out", type=Path, required=True)
    labelled = command("label", _label)
    labelled.add_argument("--records", type=Path, nargs="+", required=True)
    labelled.add_argument("--to", type=Path, required=True)
    labelled.add_argument("--card", required=True, help="what they ran on, and when")
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
