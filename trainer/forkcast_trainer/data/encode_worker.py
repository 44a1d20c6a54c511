"""`python -m forkcast_trainer.data.encode_worker`: batches of text on standard input, their ids on standard
output, until the input ends, which it does when the process that started this one dies.

The first frame is the tokenizer's description, the end-of-text id and the type of the ids.
"""

from __future__ import annotations

import signal
import sys

from forkcast_trainer.data.batch import encode, read_frame, unpack, write_frame
from forkcast_trainer.data.encoder import restored


def main() -> int:
    """0 when the input has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides what an interrupt ends
    read, write = sys.stdin.buffer, sys.stdout.buffer
    try:
        described, end, dtype = (part.decode() for part in read_frame(read))
        encoder = restored(described)
        while True:
            ids = encode(unpack(read_frame(read)), encoder, int(end), dtype)
            write_frame(write, [ids])
    except (EOFError, BrokenPipeError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
