"""Text to tokens: speed and memory beside a plain loop over the same tokenizer.

    python benchmarks/tokens.py --tokenizer FOLDER [--text FILE] [--megabytes 300] [--workers 1,2] [--json FILE]
    python benchmarks/tokens.py --tokenizer FOLDER --sources [--megabytes 300]

--sources: the same text as a file, as Parquet, and both in a bucket of a real S3 server on this machine (versitygw),
by one process each.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import machine
from rich.console import Console
from rich.table import Table

_MEGABYTE = 1_000_000
#: Characters of a document of the Parquet file, about.
_ROW = 100_000
sys.path.insert(0, str(Path(__file__).parents[1]))
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


def ours(text: str, tokenizer: str, folder: Path, workers: int, endpoint: str) -> Path:
    """The token file of `prepare`. endpoint: of the S3 API of a text in a bucket."""
    from forkcast_trainer.data.tokens import prepare
    from forkcast_wire.manifest import Data

    given: dict[str, object] = {
        "train": {"uri": text},
        "tokenizer": tokenizer,
        "sequenceLength": 64,
    }
    if endpoint:
        given["s3"] = {"endpoint": endpoint}
    found = prepare(Data.model_validate(given), folder, progress=False, workers=workers)
    return found.files[0].path


def as_parquet(text: Path, target: Path) -> None:
    """The lines of the text in documents of a hundred thousand characters, a row each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("text", pa.string())])
    with text.open(encoding="utf-8") as file, pq.ParquetWriter(target, schema) as writer:
        while rows := [row for _ in range(64) if (row := "".join(file.readlines(_ROW)))]:
            writer.write_table(pa.table({"text": rows}, schema))


@contextmanager
def served(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """The endpoint of a real S3 server that has the files in its bucket `texts`."""
    from tests.versitygw import ACCESS, SECRET, Versitygw

    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    import boto3

    folder.mkdir()
    server = Versitygw(folder)
    server.start()
    try:
        server.make_bucket("texts")
        client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
        for one in files:
            client.upload_file(str(one), "texts", one.name)
        yield server.endpoint
    finally:
        server.kill()


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
        path = plain(Path(given.text), given.tokenizer, folder)
    else:
        path = ours(given.text, given.tokenizer, folder, int(given.contestant), given.endpoint)
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


def measured(
    name: str, text: str, tokenizer: str, folder: Path, endpoint: str = ""
) -> dict[str, float | str]:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, "--text", text]
    command += ["--tokenizer", tokenizer, "--folder", str(folder), "--endpoint", endpoint]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, float | str] = json.loads(ended.stdout.splitlines()[-1])
    return row


def by_source(text: Path, tokenizer: str, folder: Path) -> dict[str, dict[str, float | str]]:
    """The same text from each place."""
    table = text.with_suffix(".parquet")
    as_parquet(text, table)
    rows = {}
    with served(folder / "s3", [text, table]) as endpoint:
        for name, uri in {
            "file": str(text),
            "Parquet": str(table),
            "s3, text": f"s3://texts/{text.name}",
            "s3, Parquet": f"s3://texts/{table.name}",
        }.items():
            beside = endpoint if uri.startswith("s3:") else ""
            tokens = folder / name.replace(", ", "-")
            rows[name] = measured("1", uri, tokenizer, tokens, beside)
    return rows


def main() -> int:
    """0; 1 if two contestants come to different tokens."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", default="bytes", help="bytes or a folder")
    parser.add_argument("--text", help="a file or folder of text")
    parser.add_argument("--sources", action="store_true", help="compare where text comes from")
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--json", type=Path, help="write rows and machine there")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    machine.pin_threads()
    if given.contestant:
        print(json.dumps(contestant(given)))
        return 0
    names = [*([] if given.no_plain else ["plain"]), *given.workers.split(",")]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        text = folder / "text.txt"
        write_text(text, int(given.megabytes * _MEGABYTE), Path(given.text) if given.text else None)
        size = text.stat().st_size / _MEGABYTE
        if given.sources:
            rows = by_source(text, given.tokenizer, folder)
        else:
            rows = {
                name: measured(name, str(text), given.tokenizer, folder / name) for name in names
            }
    table = Table(title=f"{size:,.0f} MB, load {machine.load_average():.1f}", title_justify="left")
    for column in ("", "MB/s", "MB per CPU s", "peak MB", "each worker at most"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        shown = f"ours, {name} workers" if name.isdecimal() else name
        speeds = (size / float(row[key]) for key in ("seconds", "cpu_seconds"))
        memory = (f"{float(row[key]):,.0f}" for key in ("peak_mb", "worker_mb"))
        table.add_row(shown, *(f"{speed:.2f}" for speed in speeds), *memory)
    Console(width=100).print(table)
    if given.json:
        document = {"machine": machine.described(), "megabytes": size, "rows": rows}
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(not given.sources and len({row["sha256"] for row in rows.values()}) > 1)


if __name__ == "__main__":
    sys.exit(main())
