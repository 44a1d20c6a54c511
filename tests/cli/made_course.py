"""A made log: a falling loss with noise, and six high rows."""

import json
import math
import random

from tests.cli.log_samples import text


def course(steps=400, spike=300, *, every=1, first=0):
    """Rows of a loop of one's own: a falling loss with noise, and six high rows from ``spike`` on."""
    noise = random.Random(7)
    for n in range(steps):
        level = 3.0 + math.exp(-n / 60) + noise.gauss(0, 0.02)
        high = 4.0 if spike <= n < spike + 6 else 0.0
        yield {
            "epoch": round(n / 3000, 4),
            "grad_norm": round(1.0 + noise.gauss(0, 0.05) + 20 * high, 4),
            "learning_rate": 1e-4,
            "loss": round(level + high, 6),
            "step": first + n * every,
        }


def lines(rows):
    return text(map(json.dumps, rows))
