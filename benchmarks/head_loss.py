"""The loss of a head of 50,257 columns, forward and backward, beside `F.cross_entropy` on full logits and
torch's own `linear_cross_entropy`: peak memory and time of a step, each in a process of its own.

    python benchmarks/head_loss.py --json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

_WAYS = ("plain", "ours", "torch")
_VOCABULARY = 50_257


def _measure(way: str, rows: int, width: int, dtype: str, rounds: int) -> dict[str, float | str]:
    """MiB above what stood before the first loss, and the median seconds of a step."""
    import torch
    from torch.nn import functional

    from forkcast_trainer.models import Head
    from forkcast_trainer.objectives import head_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = (torch.randn(_VOCABULARY, width) * 0.02).requires_grad_()
    targets = torch.randint(_VOCABULARY, (rows,))
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
    if way == "torch" and not hasattr(functional, "linear_cross_entropy"):
        return {"way": way, "missing": f"torch {torch.__version__} has none"}

    def loss() -> torch.Tensor:
        if way == "ours":
            return head_loss(hidden, Head(weight), targets).value
        if way == "torch":
            inputs, matrix = (one.to(kind) for one in (hidden, weight))
            options = torch.nn.LinearCrossEntropyOptions()
            return functional.linear_cross_entropy(inputs, matrix, targets, options=options)
        return functional.cross_entropy(functional.linear(hidden, weight).float(), targets)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=kind, enabled=kind is not torch.float32):
            value = loss()
        value.backward()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "way": way,
        "dtype": dtype,
        "loss": value.item(),
        "peak_mib": (peak - before) / 1024,
        "seconds": sorted(seconds)[len(seconds) // 2],
    }


def main() -> int:
    """0: measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rows", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--width", type=int, default=64, help="of the hidden states")
    parser.add_argument("--rounds", type=int, default=2, help="steps of each way")
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        found = _measure(given.way, given.rows, given.width, given.dtype, given.rounds)
        sys.stdout.write(json.dumps(found))
        return 0
    rows = []
    for dtype in ("float32", "bfloat16"):
        for way in _WAYS:
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--way", way]
            done = subprocess.run(
                [*command, "--dtype", dtype], check=True, capture_output=True, text=True
            )
            rows.append(json.loads(done.stdout))
    for row in () if given.json else rows:
        sys.stdout.write(f"{row}\n")
    if given.json:
        sys.stdout.write(json.dumps({"benchmark": "head_loss", "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
