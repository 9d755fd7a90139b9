"""``chatd up``: all that one machine needs in one command, supervised, and stopped with it.

The worker with the language model has a supervisor of its own (``chatd infer``), a process beside the gateway: when
it fails, or its model cannot be loaded, the gateway goes on with facts.
"""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import IO

from chatd.hardening import no_core_dumps
from chatd.places import Places, RunFile
from chatd.private_redis import PrivateRedis, RedisNotStarted
from chatd.settings import Settings

_TICK_S = 0.2
#: A gateway that dies at once is started again, not more often than this.
_RESTART_PAUSE_S = 1.0
#: The port may be held for a moment by the gateway of a killed predecessor that is still draining.
_PORT_WAIT_S = 20.0
_READY_WAIT_S = 120.0
#: The worker's supervisor restarts the worker; if it ends itself, it is started again with growing pauses.
_INFER_PAUSES_S = (1.0, 5.0, 15.0, 30.0)
_INFER_STEADY_S = 60.0
#: Drain, its spread and a margin.
_STOP_WAIT_S = 15.0


class UpError(Exception):
    """``chatd up`` cannot start; the text says why."""


class Supervisor:
    """Starts Redis (unless one is given) and a gateway, starts them again when they die, stops what it started."""

    def __init__(self, settings: Settings, places: Places, *, own_redis: bool) -> None:
        self._settings = settings
        self._places = places
        self._redis = PrivateRedis(settings.data_path) if own_redis else None
        self._gateway: subprocess.Popen[str] | None = None
        self._infer: subprocess.Popen[bytes] | None = None
        self._infer_started_s = 0.0
        self._infer_again_s = 0.0
        self._infer_ends = 0
        self._lines: queue.Queue[str] = queue.Queue(1000)
        self._stop = threading.Event()
        self._port = settings.port
        self._started_at = datetime.now(UTC)

    def run(self) -> int:
        """Run until SIGINT or SIGTERM; returns the exit status.

        Raises:
            UpError: another ``chatd up`` holds the directory, the port is taken, or the gateway does not start.
        """
        no_core_dumps()
        self._places.prepare()
        lock = self._lock()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        try:
            self._wait_for_port()
            if self._redis is not None:
                self._redis.start()
            redis_url = self._redis.url if self._redis is not None else self._settings.redis_url
            self._write_run_file(redis_url)
            # The keys are made before two processes look for them.
            self._places.key_ring()
            self._start_infer()
            self._start_gateway()
            self._port = self._await_ready()
            self._write_run_file(redis_url)
            print(f"ready http://{_shown(self._settings.host)}:{self._port}", flush=True)
            self._watch()
            return 0
        finally:
            self._shut_down()
            self._places.run_file.unlink(missing_ok=True)
            lock.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _lock(self) -> IO[str]:
        lock = (self._places.data / "up.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            running = self._places.running()
            where = f" (pid {running.pid}, http://{running.host}:{running.port})" if running else ""
            raise UpError(f"chatd up is already running on {self._places.data}{where}") from None
        return lock

    def _wait_for_port(self) -> None:
        """Wait until the port is free; a draining predecessor lets go of it by itself."""
        if self._port == 0:
            return
        give_up = time.monotonic() + _PORT_WAIT_S
        told = False
        while not self._stop.is_set():
            family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._settings.host, self._port))
                    return
                except OSError as error:
                    if time.monotonic() > give_up:
                        raise UpError(
                            f"{self._settings.host}:{self._port} is taken ({error.strerror}); choose another --port"
                        ) from None
            if not told:
                print(f"waiting for {self._settings.host}:{self._port} to become free ...", file=sys.stderr)
                told = True
            self._stop.wait(_TICK_S)

    def _write_run_file(self, redis_url: str) -> None:
        self._places.write_run_file(
            RunFile(
                pid=os.getpid(),
                redis_url=redis_url,
                ledger_url=self._places.ledger_url,
                demo=self._settings.demo,
                host=self._settings.host,
                port=self._port,
                started_at=self._started_at,
                engine=self._settings.engine,
            )
        )

    def _start_gateway(self) -> None:
        command: Sequence[str] = [
            *(sys.executable, "-m", "chatd", "serve", "--supervised"),
            *("--data-dir", str(self._places.data)),
            *("--host", self._settings.host),
            *("--port", str(self._port)),
        ]
        self._gateway = subprocess.Popen(  # noqa: S603 - this very program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment()
        )
        threading.Thread(target=self._read_lines, args=(self._gateway.stdout,), daemon=True).start()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._places.environment()}

    def _start_infer(self) -> None:
        """Start the worker's supervisor, where an engine is named."""
        if not self._settings.model_configured:
            return
        self._infer_started_s = time.monotonic()
        self._infer = subprocess.Popen(
            [sys.executable, "-m", "chatd", "infer", "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._environment(),
            # Ctrl-C in the terminal goes to chatd, which says when the worker is to stop.
            start_new_session=True,
        )

    def _watch_infer(self) -> None:
        """The gateway goes on whatever happens to the worker."""
        now_s = time.monotonic()
        if self._infer is not None and self._infer.poll() is not None:
            if now_s - self._infer_started_s > _INFER_STEADY_S:
                self._infer_ends = 0
            pause_s = _INFER_PAUSES_S[min(self._infer_ends, len(_INFER_PAUSES_S) - 1)]
            self._infer_ends += 1
            self._infer_again_s = now_s + pause_s
            status = self._infer.returncode
            print(f"chatd infer has ended ({status}), starting it again in {pause_s:.0f} s", file=sys.stderr)
            self._close_infer()
        if self._infer is None and now_s >= self._infer_again_s:
            self._start_infer()

    def _close_infer(self) -> None:
        infer, self._infer = self._infer, None
        if infer is not None and infer.stdin is not None:
            infer.stdin.close()

    def _read_lines(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                self._lines.put_nowait(line.strip())
            except queue.Full:
                return

    def _await_ready(self) -> int:
        give_up = time.monotonic() + _READY_WAIT_S
        while not self._stop.is_set():
            try:
                line = self._lines.get(timeout=_TICK_S)
            except queue.Empty:
                if self._gateway is not None and self._gateway.poll() is not None:
                    raise UpError("the gateway did not start; the reason is above") from None
                if time.monotonic() > give_up:
                    raise UpError(f"the gateway was not ready within {_READY_WAIT_S:.0f} s") from None
                continue
            if line.startswith("ready "):
                return int(line.rsplit(":", 1)[1])
        raise UpError("stopped before it was ready")

    def _watch(self) -> None:
        """Start again what dies: phones come back by themselves, layers are loaded again, sessions begin anew."""
        while not self._stop.wait(_TICK_S):
            self._watch_infer()
            if self._redis is not None and not self._redis.is_answering():
                self._redis.reap()
                # One that is only slow answers again; starting beside it would split the state in two.
                if not self._redis.is_running():
                    print("redis has ended, starting it again", file=sys.stderr)
                    self._start_redis_again(self._redis)
            if self._gateway is not None and self._gateway.poll() is not None:
                print(f"gateway has ended ({self._gateway.returncode}), starting it again", file=sys.stderr)
                if self._stop.wait(_RESTART_PAUSE_S):
                    return
                self._start_gateway()

    def _start_redis_again(self, redis: PrivateRedis) -> None:
        """One failure to start must not take the gateway and its phones along; the next round tries again."""
        try:
            redis.start()
        except (RedisNotStarted, OSError) as error:
            print(f"chatd: {error}", file=sys.stderr)
            redis.reap()
            self._stop.wait(_RESTART_PAUSE_S)

    def _shut_down(self) -> None:
        """Gateway and worker end side by side: what is being written can still be shown."""
        started: list[subprocess.Popen[str] | subprocess.Popen[bytes]] = []
        for process in (self._gateway, self._infer):
            if process is not None and process.poll() is None:
                process.terminate()
                started.append(process)
        give_up = time.monotonic() + _STOP_WAIT_S
        for process in started:
            try:
                process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_WAIT_S)
        if self._gateway is not None and self._gateway.stdin is not None:
            self._gateway.stdin.close()
        self._close_infer()
        if self._redis is not None:
            self._redis.stop()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
