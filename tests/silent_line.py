"""A TCP line to a server that can be made silent: it accepts, reads, and never answers."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class SilentLine:
    """A line to 127.0.0.1:``port``. While silent no byte passes, on old connections and on new."""

    def __init__(self, port: int) -> None:
        self._to, self._silent = port, threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """From here on nothing passes."""
        self._silent.set()

    def speak(self) -> None:
        """New connections pass again; those that lost bytes are closed."""
        self._silent.clear()
        self._hang_up()

    def close(self) -> None:
        """End the line."""
        with suppress(OSError):
            self._listener.close()
        self._hang_up()

    def _hang_up(self) -> None:
        opened, self._open = self._open, []
        for one in opened:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._silent.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Line:
    """Present connections can be made silent, both ways, while new ones pass; or new ones, too:
    they are accepted, and nothing comes back.
    """

    def __init__(self, port: int) -> None:
        self._to, self._silent, self._open, self._deaf = port, set(), [], False
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
                if self._deaf:
                    self._silent.add(key)
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

    def fall_silent(self) -> None:
        """From now on nobody gets an answer."""
        self._deaf = True
        self.silence()

    def speak(self) -> None:
        """New connections pass again; those of the silence stay dead."""
        self._deaf = False

    def close(self) -> None:
        self._listener.close()
