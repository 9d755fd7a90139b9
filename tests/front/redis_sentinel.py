"""One Redis primary, one replica and three Sentinels, as deploy/redis has them but without TLS, on this machine."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.front.front_nginx import free_port
from tests.redis_server import USER_RULES, redis_executable

NAME = "chatd"
START_S, STOP_S = 20.0, 20.0
CONF = (Path(__file__).resolve().parents[2] / "deploy" / "redis" / "sentinel.conf").read_text()


def _of_conf(option: str) -> int:
    found = re.search(rf"^sentinel {option} {NAME} (\d+)$", CONF, re.MULTILINE)
    assert found is not None, option
    return int(found[1])


DOWN_AFTER_MS, FAILOVER_TIMEOUT_MS = _of_conf("down-after-milliseconds"), _of_conf("failover-timeout")
PROMOTED_S = 60.0


class Kept:
    """Two Redis that three Sentinels keep; ``close`` ends all of it."""

    def __init__(self, down_after_ms: int = DOWN_AFTER_MS) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sent-"))
        self.ports = [free_port(), free_port()]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for port in self.ports:
                self.start(port, () if port == self.ports[0] else ("--replicaof", "127.0.0.1", str(self.ports[0])))
            for port in self.sentinel_ports:
                self._start_sentinel(port, down_after_ms)
            self._until("the replica and the Sentinels know each other", self._is_whole)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The address for chatd, as its own user."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"sentinel://chatd@{hosts}/{NAME}"

    def start(self, port: int, extra: tuple[str, ...] = ()) -> None:
        """Start a Redis there, empty; later ones become replicas by Sentinel's word."""
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        options = [
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no"),
            *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb"),
            *("--slowlog-log-slower-than", "-1", "--user", "chatd", *USER_RULES.split(), *extra),
        ]
        self._processes[port] = _started([redis_executable(), *options], folder)
        self._until("Redis answers", lambda: bool(self.ask(port, "PING")))

    def _start_sentinel(self, port: int, down_after_ms: int) -> None:
        folder = self.folder / str(port)
        folder.mkdir()
        conf = folder / "sentinel.conf"
        conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.ports[0]} 2\n"
            f"sentinel down-after-milliseconds {NAME} {down_after_ms}\n"
            f"sentinel failover-timeout {NAME} {FAILOVER_TIMEOUT_MS}\nsentinel parallel-syncs {NAME} 1\n"
        )
        self._processes[port] = _started([redis_executable(), str(conf), "--sentinel"], folder)

    def ask(self, port: int, *command: str) -> object:
        """What the Redis or Sentinel there answers; None where it does not."""
        with Redis(port=port, socket_timeout=2.0, retry=Retry(NoBackoff(), 0), decode_responses=True) as client:
            try:
                return client.execute_command(*command)
            except (RedisError, OSError):
                return None

    def primary(self) -> int:
        """The port of the primary, as the first Sentinel knows it."""
        address = self.ask(self.sentinel_ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        assert isinstance(address, (list, tuple)), address
        return int(address[1])

    def kill_primary(self) -> int:
        """SIGKILL; returns its port."""
        port = self.primary()
        process = self._processes.pop(port)
        process.kill()
        process.wait(STOP_S)
        return port

    def cut_replica_off(self) -> None:
        """From here on the replica gets nothing more of the primary: it may not sign in there any more."""
        port = next(each for each in self.ports if each != self.primary())
        for option in (("masteruser", "nobody"), ("masterauth", "wrong")):
            assert self.ask(port, "CONFIG", "SET", *option)
        assert self.ask(port, "CLIENT", "KILL", "TYPE", "master")
        self._until("a replica on its own", lambda: not self._is_following(port))

    def await_other(self, port: int) -> int:
        """Wait until the Sentinels name another primary that takes writes; returns its port."""
        self._until(
            "another primary", lambda: self.primary() != port and self._role(self.primary()) == "master", PROMOTED_S
        )
        return self.primary()

    def await_replica(self, port: int) -> None:
        """Wait until the Redis there follows the primary."""
        self._until("a replica again", lambda: self._is_following(port), PROMOTED_S)

    def _is_following(self, port: int) -> bool:
        role = self.ask(port, "ROLE")
        return isinstance(role, (list, tuple)) and role[0] == "slave" and role[3] == "connected"

    def _role(self, port: int) -> str:
        role = self.ask(port, "ROLE")
        return str(role[0]) if isinstance(role, (list, tuple)) else ""

    def _is_whole(self) -> bool:
        if not self._is_following(self.ports[1]):
            return False
        for port in self.sentinel_ports:
            seen = self.ask(port, "SENTINEL", "CKQUORUM", NAME)
            replicas = self.ask(port, "SENTINEL", "REPLICAS", NAME)
            if not str(seen).startswith(("OK 3", "True")) or not isinstance(replicas, list) or not replicas:
                return False
        return True

    @staticmethod
    def _until(what: str, holds: Callable[[], bool], within_s: float = START_S) -> None:
        give_up = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < give_up, f"not within {within_s:g} s: {what}"
            time.sleep(0.05)

    def files(self) -> set[str]:
        """Names of what the two Redis have left on the disk."""
        return {path.name for port in self.ports for path in (self.folder / str(port)).iterdir()} - {"log"}

    def close(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait(STOP_S)
        shutil.rmtree(self.folder, ignore_errors=True)


def _started(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)
