"""On PYTHONPATH of a storm: every fsync of every process takes up to SLOW_FSYNC seconds longer."""

import os
import random
import time

_fsync, _most = os.fsync, float(os.environ.get("SLOW_FSYNC", "0"))


def _slow(descriptor):
    time.sleep(random.random() * _most)
    return _fsync(descriptor)


if _most:
    os.fsync = _slow
