"""A TCP relay on loopback that a test can cut: the network between a phone and chatd."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Relay:
    """Passes bytes between clients and one server; ``cut`` ends every connection and refuses new ones."""

    def __init__(self, target_url: str) -> None:
        parts = urlsplit(target_url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._is_cut = False
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections without a word; new ones are closed at once."""
        with self._lock:
            self._is_cut = True
            pairs = tuple(self._pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._is_cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                is_cut = self._is_cut
            if is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            left = threading.Semaphore(0)
            for one, other in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(one, other, left), daemon=True).start()
            threading.Thread(target=self._end, args=(pair, left), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: threading.Semaphore) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        left.release()

    def _end(self, pair: tuple[socket.socket, socket.socket], left: threading.Semaphore) -> None:
        left.acquire()
        left.acquire()
        for end in pair:
            end.close()
        with self._lock:
            self._pairs.discard(pair)
