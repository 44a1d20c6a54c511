"""Ports for servers that are told theirs before they bind it."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from typing import Final

#: Below what systems give to outgoing connections: those would take a port before its server does.
_FIRST, _LAST = 10_000, 32_000
#: Test processes that run at once: each has every sixteenth port.
_PROCESSES = 16
_OWN: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
_given: set[int] = set()
_dice = random.SystemRandom()  # several suites may run on one machine


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that is given once."""
    while True:
        port = _dice.randrange(_FIRST + _OWN, _LAST, _PROCESSES)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
