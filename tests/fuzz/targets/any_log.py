"""A log of any format, as `forkcast detect` takes it."""

from forkcast_cli.detect.session import Session
from forkcast_cli.logs.base import LogError
from forkcast_cli.logs.columns import Columns
from forkcast_cli.logs.opening import open_log
from forkcast_cli.logs.stream import Stream
from forkcast_monitor.config import configure
from forkcast_wire.manifest import Uncertainty
from tests.cli.log_samples import SAMPLES

REFUSALS = (LogError,)
_CONFIG = configure(Uncertainty())


def seeds():
    """A few rows of every format."""
    for data, _, _ in SAMPLES.values():
        yield data
    for entropies in (
        '"attn_entropy/0": 0.7, "attn_entropy/1": 0',
        '"attention_entropy": [0.7, 0]',
    ):
        rows = (f'{{"step": {n}, "loss": 3, {entropies}, "max_attn_logit": 9}}' for n in range(30))
        yield "\n".join(rows).encode()


def feed(data):
    """It is read, or refused by name."""
    chunks = iter([data])
    session = Session({"ours": _CONFIG}, lambda _run, _happening: None)
    session.take(open_log(Stream(lambda: next(chunks, b""), "log"), Columns()))
    assert sum(run.rows for run in session.runs) > 0
    list(session.remarks())
