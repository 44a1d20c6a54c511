"""`python -m tests.fuzz NAME [--seconds N | --runs N] [--seed N]`: one target under a coverage-guided fuzzer.

Exit code 0 if nothing but refusals came of it. An input that breaks the target is written to
tests/fuzz/corpus/NAME/, where the tests feed it from then on.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"
_OURS = [
    "forkcast",
    "forkcast_wire",
    "forkcast_trainer.checkpoint",
    "forkcast_trainer.container",
    "forkcast_trainer.container_v1",
    "forkcast_trainer.container_v2",
    "forkcast_trainer.frame_codecs",
    "forkcast_trainer.table",
    "forkcast_monitor",
    "forkcast_cli",
]
_MEMORY_MB, _STUCK_SECONDS, _LONGEST = 3072, 300, 1 << 16


def main() -> None:
    """Fuzz one target; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=0, help="0: no limit")
    parser.add_argument("--runs", type=int, default=-1, help="inputs tried; -1: no limit")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the mutations; 0: another each time"
    )
    given = parser.parse_args()
    with atheris.instrument_imports(include=_OURS):
        target = importlib.import_module(f"tests.fuzz.targets.{given.target}")
    found = CORPUS / given.target
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.seeds()):
            Path(folder, f"seed{number}").write_bytes(seed)
        options = [
            f"-max_total_time={given.seconds}",
            f"-runs={given.runs}",
            f"-seed={given.seed}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-timeout={_STUCK_SECONDS}",
            f"-max_len={_LONGEST}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
            "-verbosity=0",
        ]
        atheris.Setup([sys.argv[0], *options, folder, str(found)], fed(target))
        atheris.Fuzz()


def fed(target):
    """What the fuzzer calls: refusals are answers."""

    def feed(data: bytes) -> None:
        try:
            target.feed(data)
        except target.REFUSALS:
            return

    return feed


if __name__ == "__main__":
    main()
