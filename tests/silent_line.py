"""A TCP line to a server that can be made silent: it accepts, reads, and never answers."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Line:
    """A line to 127.0.0.1:``port``, itself at 127.0.0.1:`Line.port`. Present connections can be made
    silent, both ways, while new ones pass; or new ones, too.
    """

    def __init__(self, port: int) -> None:
        self._to, self._deaf = port, False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent: set[socket.socket] = set()  # their near ends
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> int:
        """Drop what the present connections carry; nobody is told. Returns how many there are."""
        self._silent.update(near for near, _ in self._pairs)
        return len(self._silent)

    def fall_silent(self) -> None:
        """From now on nobody gets an answer."""
        self._deaf = True
        self.silence()

    def speak(self, *, hang_up: bool = False) -> None:
        """New connections pass again; those of the silence stay dead. hang_up: they are closed."""
        self._deaf = False
        if hang_up:
            self._hang_up()

    def close(self) -> None:
        """End the line and all that goes over it."""
        self._listener.close()
        self._hang_up()

    def _hang_up(self) -> None:
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._pairs.append((near, far))
                if self._deaf:
                    self._silent.add(near)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(near, *ends), daemon=True).start()

    def _pump(self, near: socket.socket, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if near not in self._silent:
                    sink.sendall(data)
            if near not in self._silent:
                sink.shutdown(socket.SHUT_WR)
