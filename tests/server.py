"""Starts the real chatd for whole stories: ``chatd up`` on a private directory, further gateways beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).resolve().parent.parent
#: Set-up of a demo hospital on a busy machine.
START_S = 90.0
STOP_S = 20.0
#: Tests have few people with many phones; how many one person may hold has a journey of its own.
ENV = {"CHATD_CONNECTIONS_PER_USER": "1000"}


def clean_environment() -> dict[str, str]:
    """The environment without settings, and with this checkout's packages wherever a process is started."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHATD_")}
    return {**clean, "PYTHONPATH": str(ROOT)}


class Process:
    """One chatd process that prints ``ready URL``."""

    def __init__(self, arguments: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        clean = clean_environment()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chatd", *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**clean, **ENV, **(env or {})},
            cwd=cwd,
        )
        self.url = ""

    def wait_ready(self) -> str:
        """Wait for the ready line; returns the URL."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_S
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.url = line.split()[1]
                return self.url
            if time.monotonic() > deadline:
                break
        raise AssertionError(f"chatd did not become ready: {self.log()[-3000:]}")

    def log(self) -> str:
        """Everything it has written to standard error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut does it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_S)
        self.close()
        return status

    def close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


class Hospital:
    """A ``chatd up`` on a directory of its own, with commands to run beside it."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="chatd-"))
        self.env = dict(env or {})
        self.cwd = cwd
        self.up = Process(["up", "--data-dir", str(self.data), "--port", "0", *arguments], self.env, cwd)
        self._others: list[Process] = []

    @property
    def url(self) -> str:
        return self.up.url

    def redis(self) -> Redis:
        """A client on the private Redis, closed by its user; it shows the first failure."""
        return Redis(unix_socket_path=str(self.data / "redis.sock"), socket_timeout=STOP_S, retry=Retry(NoBackoff(), 0))

    def serve(self, env: Mapping[str, str] | None = None) -> Process:
        """A further gateway on the same Redis and ledger; ready when this returns."""
        other = Process(["serve", "--data-dir", str(self.data), "--port", "0"], {**self.env, **(env or {})}, self.cwd)
        self._others.append(other)
        other.wait_ready()
        return other

    def forget(self, other: Process) -> None:
        """Kill a further gateway and let go of it."""
        other.kill()
        other.close()
        self._others.remove(other)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One chatd command; the data directory is given to it by the caller's arguments' place ``DIR``."""
        command = [sys.executable, "-m", "chatd", *(str(self.data) if a == "DIR" else a for a in arguments)]
        env = {**clean_environment(), **self.env}
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=120, env=env, cwd=self.cwd)

    def token(self, user: str = "dr.santos.cardio", department: str = "cardiology", **options: str) -> str:
        extra = [word for name, value in options.items() for word in (f"--{name}", value)]
        arguments = ["token", "--data-dir", "DIR", "--user", user, "--department", department, *extra]
        return self.run(*arguments).stdout.strip()

    def stop(self) -> None:
        for other in self._others:
            other.kill()
            other.close()
        try:
            self.up.stop()
        finally:
            shutil.rmtree(self.data, ignore_errors=True)


@contextlib.contextmanager
def hospital(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Iterator[Hospital]:
    """A running demo hospital, stopped at the end."""
    place = Hospital(*arguments, env=env, cwd=cwd)
    try:
        place.up.wait_ready()
        yield place
    finally:
        place.stop()
