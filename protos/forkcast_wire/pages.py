"""Plain HTTP for a kubelet and for Prometheus, which anybody in the network may ask: bounded in
connections, in all and of each address, and in the time that one of them may take.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

#: From the connection to the end of the answer; a scraper or a probe takes some milliseconds.
REQUEST_SECONDS: Final = 5.0
MOST_CONNECTIONS: Final = 64
#: Of one address: whoever opens more leaves places to a kubelet and a scraper.
MOST_PER_ADDRESS: Final = 8
_SWEEP_SECONDS: Final = 0.5


class Places:
    """Which connections are open. Pure: times are the caller's, seconds; not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[Any, tuple[str, float]] = {}
        self._of = Counter[str]()

    def take(self, connection: Any, address: str, now: float) -> bool:
        """Whether there is a place for the connection; then it is taken."""
        if len(self._open) >= MOST_CONNECTIONS or self._of[address] >= MOST_PER_ADDRESS:
            return False
        self._open[connection] = address, now
        self._of[address] += 1
        return True

    def free(self, connection: Any) -> None:
        """The connection is closed; one that had no place frees none."""
        address, _ = self._open.pop(connection, ("", 0.0))
        self._of[address] -= 1
        if self._of[address] <= 0:
            del self._of[address]

    def overdue(self, now: float) -> list[Any]:
        """The connections whose time is over."""
        return [one for one, (_, since) in self._open.items() if now - since >= REQUEST_SECONDS]


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS  # of one read or write; the whole is bounded by the sweep

    def log_message(self, *_: Any) -> None:
        """A probe every second is no news."""


class Pages(ThreadingMixIn, WSGIServer):
    """Serves ``app`` on a port of every address, of IPv4 and of IPv6, from `start` to `close`; each
    request in a thread. A connection without a place is closed unanswered.
    """

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, app: WSGIApplication) -> None:
        """Raises OSError if the port cannot be had."""
        self._places, self._lock = Places(), threading.Lock()
        super().__init__(("", port), _Handler)
        self.set_app(app)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_SWEEP_SECONDS,), name="pages", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End; requests under way are not waited for."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    # -------------------------------------------------------------------- what socketserver calls

    def server_bind(self) -> None:
        """Without the look-up of the machine's name that the library makes here."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a thread is made for the connection."""
        with self._lock:
            return self._places.take(request, str(client_address[0]), time.monotonic())

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        super().shutdown_request(request)
        with self._lock:
            self._places.free(request)

    def service_actions(self) -> None:
        """Every `_SWEEP_SECONDS`, and after each connection: end what takes too long."""
        with self._lock:
            for request in self._places.overdue(time.monotonic()):
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that is slow or gone is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _hang_up(connection: Any) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed meanwhile
        return
