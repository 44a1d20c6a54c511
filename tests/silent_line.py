"""A TCP line that can go dead without a word: what it carries is dropped, nobody is told."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Line:
    """A TCP proxy whose present connections can be made silent, both ways, while new ones pass."""

    def __init__(self, port: int) -> None:
        self._to, self._silent, self._open = port, set(), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                key = object()
                self._open.append(key)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._pump, args=(key, source, sink), daemon=True
                    ).start()

    def _pump(self, key, source, sink) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if key not in self._silent:
                    sink.sendall(data)
            if key not in self._silent:
                sink.shutdown(socket.SHUT_WR)

    def silence(self) -> int:
        """Drop what the present connections carry; nobody is told. Returns how many there are."""
        self._silent.update(self._open)
        return len(self._silent)

    def close(self) -> None:
        self._listener.close()
