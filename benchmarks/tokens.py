"""Text to tokens: speed and memory beside a plain loop over the same tokenizer.

    python benchmarks/tokens.py --tokenizer FOLDER [--text FILE] [--megabytes 300] [--workers 1,2] [--json FILE]

The text is repeated to the size; without one it is that of the standard library. Every contestant is a process of
its own that writes its tokens to a file; all must come to the same ones. Peak memory: the kernel's VmHWM of the
process, and for each of its workers the largest ru_maxrss among them, an upper bound: it counts the process that
started the worker, too. The plain loop reads the whole file, calls the
tokenizers library once a megabyte, and writes an array of all ids at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from rich.console import Console
from rich.table import Table

_MEGABYTE = 1_000_000
_FIELD = "spec.data.train"


def write_text(target: Path, size: int, source: Path | None) -> None:
    """A file of ``size`` bytes: real text, again and again."""
    from forkcast_trainer.data.text import pieces
    from forkcast_wire.manifest import TextSource

    found = pieces(TextSource(uri=str(source) if source else "python-stdlib:"), _FIELD)
    text = "".join(text for text, _ in found).encode()
    with target.open("wb") as file:
        for left in range(size, 0, -len(text)):
            file.write(text[:left].decode(errors="ignore").encode())


def ours(text: Path, tokenizer: str, folder: Path, workers: int) -> Path:
    """The token file of `prepare`."""
    from forkcast_trainer.data.tokens import prepare
    from forkcast_wire.manifest import Data, TextSource

    data = Data(train=TextSource(uri=str(text)), tokenizer=tokenizer, sequence_length=64)
    return prepare(data, folder, progress=False, workers=workers)[0].file.path


def plain(text: Path, tokenizer: str, folder: Path) -> Path:
    """The simplest loop that comes to the same tokens."""
    import numpy as np
    from tokenizers import Tokenizer

    from forkcast_trainer.data import decode
    from forkcast_trainer.data.tokenizer import open_tokenizer

    opened, found = open_tokenizer(tokenizer), []
    if opened.described is None:
        raise SystemExit("the plain loop wants a tokenizer folder; give --no-plain")
    fast = Tokenizer.from_str(opened.described)
    decode.PIECE = 1 << 20  # at these places a megabyte gives the tokens of the whole
    for part in decode.cut(text.read_text(encoding="utf-8")):
        found.append(np.array(fast.encode(part).ids, dtype=opened.dtype))
    found.append(np.array([opened.end_of_text], dtype=opened.dtype))
    folder.mkdir()
    np.concatenate(found).tofile(folder / "plain.bin")
    return folder / "plain.bin"


def contestant(given: argparse.Namespace) -> dict[str, float | str]:
    """What this process needed."""
    began, folder = time.perf_counter(), Path(given.folder)
    if given.contestant == "plain":
        path = plain(given.text, given.tokenizer, folder)
    else:
        path = ours(given.text, given.tokenizer, folder, int(given.contestant))
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    own = int(found[1]) if found else 0
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers = 0 if given.contestant in ("plain", "1") else int(given.contestant)
    spent = os.times()
    return {
        "seconds": seconds,
        "cpu_seconds": spent.user + spent.system + spent.children_user + spent.children_system,
        "own_mb": own * 1024 / _MEGABYTE,
        "worker_mb": child.ru_maxrss * 1024 / _MEGABYTE if workers else 0.0,
        "peak_mb": (own + workers * child.ru_maxrss) * 1024 / _MEGABYTE,
        "sha256": hashlib.file_digest(path.open("rb"), "sha256").hexdigest(),
    }


def measured(name: str, text: Path, tokenizer: str, folder: Path) -> dict[str, float | str]:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, "--text", str(text)]
    command += ["--tokenizer", tokenizer, "--folder", str(folder / name)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, float | str] = json.loads(ended.stdout.splitlines()[-1])
    return row


def main() -> int:
    """0; 1 if two contestants come to different tokens."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", default="bytes", help="bytes or a folder")
    parser.add_argument("--text", type=Path, help="a file or folder of text")
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--json", type=Path, help="write rows and machine there")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    machine.pin_threads()
    if given.contestant:
        print(json.dumps(contestant(given)))
        return 0
    names = [*([] if given.no_plain else ["plain"]), *given.workers.split(",")]
    with tempfile.TemporaryDirectory() as made:
        text = Path(made) / "text.txt"
        write_text(text, int(given.megabytes * _MEGABYTE), given.text)
        size = text.stat().st_size / _MEGABYTE
        rows = {name: measured(name, text, given.tokenizer, Path(made)) for name in names}
    table = Table(title=f"{size:,.0f} MB, load {machine.load_average():.1f}", title_justify="left")
    for column in ("", "MB/s", "MB per CPU s", "peak MB", "each worker at most"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        shown = "plain loop" if name == "plain" else f"ours, {name} workers"
        speeds = (size / float(row[key]) for key in ("seconds", "cpu_seconds"))
        memory = (f"{float(row[key]):,.0f}" for key in ("peak_mb", "worker_mb"))
        table.add_row(shown, *(f"{speed:.2f}" for speed in speeds), *memory)
    Console(width=100).print(table)
    if given.json:
        document = {"machine": machine.described(), "megabytes": size, "rows": rows}
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(len({row["sha256"] for row in rows.values()}) > 1)


if __name__ == "__main__":
    sys.exit(main())
