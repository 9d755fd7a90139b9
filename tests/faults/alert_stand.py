"""What the alert campaign works on: gateways with Redis and ledger, phones in processes of their own, a raiser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from chatd import tasks
from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.settings import Settings
from tests.chatd.pg import PostgresServer, postgres_folder
from tests.faults.alert_promises import Came, Got, Judge, Report
from tests.faults.phones import DEPARTMENT
from tests.redis_server import RedisServer
from tests.server import ROOT, Process, clean_environment

Name = Literal["pg", "sqlite"]

#: chatd's own times, shorter than in service, so that hundreds of faults fit into an hour. The fixed ones stay as they
#: are: the sweep of alerts (2 s), of timers (1 s), presence (4 s).
ENV: Final = {
    "CHATD_DEMO": "true",
    "CHATD_PING_INTERVAL_S": "1",
    "CHATD_PING_TIMEOUT_S": "2",
    "CHATD_REDIS_TIMEOUT_S": "0.5",
    "CHATD_SWEEP_INTERVAL_S": "0.5",
    "CHATD_DRAIN_SPREAD_S": "1",
    # The campaign raises more than a ward does.
    "CHATD_ALERT_RAISES_PER_MINUTE": "1000000",
}
GATEWAYS: Final[Mapping[Name, int]] = {"pg": 2, "sqlite": 1}
#: The ledger's disk on SQLite, so that it can be filled.
DISK_MIB: Final = 192
#: A machine that raises waits so long for an answer; then it tries the next gateway, under the same key.
ANSWER_S: Final = 2.5
RETRY_S: Final = 0.1
#: Time between two raises, and how many may wait for their acceptance at once.
RAISE_EVERY_S: Final = (0.1, 0.5)
MOST_RAISING: Final = 8
#: One raise of so many goes over a WebSocket, and one of so many asks for an answer, which makes it ring again.
WEBSOCKET_EVERY: Final = 5
ACTION_EVERY: Final = 8

_encode = msgspec.json.encode


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- gateways, Redis, ledger --------------------------------------------------------------------------------


class Gateway:
    """One ``chatd serve`` on a port of its own, to kill and start again."""

    def __init__(self, arguments: list[str], port: int, env: Mapping[str, str]) -> None:
        self.port = port
        self._arguments = ["serve", *arguments, "--port", str(port)]
        self._env = env
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the gateway is not running"
        return self._process.process.pid

    def start(self) -> None:
        """Start it and wait until it is ready; one that runs is left alone."""
        if self._process is None:
            self._process = Process(self._arguments, self._env)
            self._process.wait_ready()

    def kill(self) -> None:
        """SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            send(process.process.pid, signal.SIGCONT)
            process.kill()
            process.close()

    def stop(self) -> int:
        """SIGTERM, and wait for the drain; returns the exit status."""
        process, self._process = self._process, None
        return 0 if process is None else process.stop()

    def log(self) -> str:
        return "" if self._process is None else self._process.log()


class Postgres(PostgresServer):
    """The tests' PostgreSQL, to crash and to freeze with all of its processes."""

    def _pids(self) -> list[int]:
        assert self._process is not None
        listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return [self._process.pid, *(pid for pid, parent in pairs if parent == self._process.pid)]

    def crash(self) -> None:
        """SIGKILL to every process of it; what is left is what was on disk or with the kernel."""
        assert self._process is not None
        # Stopped first: it would start its children again.
        send(self._process.pid, signal.SIGSTOP)
        for pid in reversed(self._pids()):
            send(pid, signal.SIGKILL)
        process, self._process = self._process, None
        process.wait(10)

    def freeze(self) -> None:
        for pid in self._pids():
            send(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in reversed(self._pids()):
            send(pid, signal.SIGCONT)


class Stand:
    """Gateways on one Redis and one ledger. ``gateways`` of "pg": two, of "sqlite": one."""

    def __init__(self, name: Name, host: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="caf-"))
        self.redis = RedisServer("--maxclients", "2000")
        self.postgres: Postgres | None = None
        #: Of SQLite: the folder that is a small disk of its own; None where nothing can be mounted.
        self.disk: Path | None = None
        self._host = host
        self.gateways: list[Gateway] = []
        self.ledger_url = ""

    def start(self) -> None:
        """Start everything; raises RuntimeError where PostgreSQL is not installed."""
        self.redis.start()
        if self.name == "pg":
            binaries = postgres_folder()
            if binaries is None:
                raise RuntimeError("PostgreSQL is not installed")
            self.postgres = Postgres(binaries)
            self.postgres.start()
            self.ledger_url = self.postgres.new_database()
        else:
            self._mount()
            self.ledger_url = f"sqlite:///{(self.disk or self.folder) / 'ledger.sqlite3'}"
        settings = Settings(data_dir=str(self.folder), demo=True)
        self.secret = Places(settings).jwt_secret()
        Places(settings).key_ring()
        arguments = ["--data-dir", str(self.folder), "--redis", self.redis.chatd_url, "--ledger", self.ledger_url]
        arguments += ["--host", self._host]
        self.gateways = [Gateway(arguments, free_port(), ENV) for _ in range(GATEWAYS[self.name])]
        for gateway in self.gateways:
            gateway.start()

    def _mount(self) -> None:
        disk = self.folder / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "chatd-faults", str(disk)]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(command, check=True, capture_output=True)
            self.disk = disk

    def stop(self) -> None:
        """End everything that was started and remove its files."""
        for gateway in self.gateways:
            gateway.kill()
        if self.postgres is not None:
            with contextlib.suppress(AssertionError):
                self.postgres.thaw()
            self.postgres.close()
        self.redis.close()
        if self.disk is not None:
            subprocess.run(["umount", str(self.disk)], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def token(self, user: str, *roles: str) -> str:
        return mint(
            self.secret,
            user_id=user,
            departments=(DEPARTMENT,),
            roles=roles,
            ttl_s=43_000,
            now=datetime.now(UTC),
        )

    def logs(self) -> str:
        """What the gateways that run have warned of last."""
        lines = [
            f"{gateway.port} {line}"
            for gateway in self.gateways
            for line in gateway.log().splitlines()
            if '"level":"info"' not in line.replace(" ", "")
        ]
        return "\n".join(lines[-40:])


@contextlib.contextmanager
def standing(name: Name, host: str = "127.0.0.1") -> Iterator[Stand]:
    """A stand that runs; ended whatever happens."""
    stand = Stand(name, host)
    try:
        stand.start()
        yield stand
    finally:
        stand.stop()


# --- phones -------------------------------------------------------------------------------------------------


class Group:
    """Phones in a process of their own. ``take`` gets each report as it comes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, urls: Sequence[str], tokens: Mapping[str, str], prefix: Sequence[str], take: Take) -> None:
        """Run the phones; ``prefix`` goes before the command, as in ``Network.run_in``."""
        self._process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-m",
            "tests.faults.phones",
            *urls,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=clean_environment(),
            cwd=ROOT,
            limit=1 << 24,
        )
        await self._write({name: tokens[name] for name in self.names})
        self._reading = asyncio.create_task(self._read(take))

    async def _write(self, line: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(_encode(line) + b"\n")
        await self._process.stdin.drain()

    async def tell(self, do: Literal["cut", "away", "back"], names: Sequence[str]) -> None:
        await self._write((do, list(names)))

    async def _read(self, take: Take) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        decode = msgspec.json.Decoder(list[Report]).decode
        while line := await self._process.stdout.readline():
            for report in decode(line):
                take(report)

    async def stop(self) -> None:
        """End the process and take its last reports."""
        if self._process is None or self._process.stdin is None or self._reading is None:
            return
        send(self._process.pid, signal.SIGCONT)
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
                await self._reading
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            self._reading.cancel()


Take = Callable[[Report], None]


# --- who raises ---------------------------------------------------------------------------------------------


class Raised(msgspec.Struct, frozen=True):
    """What a raiser was told. ``at``: when, in seconds of the monotonic clock."""

    alert_id: str
    alert_seq: int | None
    at: float


class Refused(Exception):
    """The gateway refuses for good; the text is its code."""


async def post(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """One HTTP request on a connection of its own; raises OSError where no whole answer comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        answer = await reader.read()
    finally:
        writer.transport.abort()
    return whole(answer)


def whole(answer: bytes) -> tuple[int, bytes]:
    """Status and body of an HTTP answer; raises ConnectionError for the half one of a gateway killed while it spoke."""
    head, found, rest = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not found or (lengths and len(rest) < int(lengths[0].partition(b":")[2])):
        raise ConnectionError("no whole answer")
    return int(head.split(b" ", 2)[1]), rest


class Caller:
    """A colleague's phone that raises and ends alerts over a WebSocket, and sends again what was not answered."""

    def __init__(self, user: str, token: str, ports: Sequence[int]) -> None:
        self._user, self._token, self._ports = user, token, ports
        #: What has no answer yet, by id and in order.
        self._outbox: dict[str, tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = {}
        self._socket: ClientConnection | None = None
        self._turn = 0
        #: How often an id was answered, refusals that are tried again among them.
        self._heard: dict[str, int] = {}
        #: Commands that had no answer within ``3 * ANSWER_S`` although the line lived; they are sent again.
        self.unanswered = 0

    async def command(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Send until it is accepted; returns ``accepted``. Raises Refused."""
        key = frame["client_msg_id"]
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._outbox[key] = frame, answered
        try:
            await self._send(frame)
            while True:
                line, heard = self._socket, self._heard.get(key, 0)
                done, _ = await asyncio.wait([answered], timeout=3 * ANSWER_S)
                if done:
                    return answered.result()
                if line is not None and line is self._socket and heard == self._heard.get(key, 0):
                    self.unanswered += 1
                    await self._send(frame)
        finally:
            self._outbox.pop(key, None)
            self._heard.pop(key, None)

    async def _send(self, frame: dict[str, Any]) -> None:
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(_encode(frame).decode())

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            with contextlib.suppress(OSError, TimeoutError, InvalidHandshake, InvalidMessage, ConnectionClosed):
                await self._converse()
            self._socket = None
            self._turn += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _converse(self) -> None:
        port = self._ports[self._turn % len(self._ports)]
        async with (
            asyncio.timeout(None) as limit,
            connect(
                f"ws://127.0.0.1:{port}/chat/{DEPARTMENT}/{self._user}",
                subprotocols=["chatd.v1"],  # type: ignore[list-item]
                compression=None,
                ping_interval=1.0,
                ping_timeout=2.0,
                open_timeout=2.0,
                close_timeout=0.1,
            ) as socket,
        ):
            hello = {"type": "hello", "token": self._token, "session_id": f"sess_{self._user}"}
            await socket.send(_encode(hello).decode())
            limit.reschedule(asyncio.get_running_loop().time() + 3 * ANSWER_S)
            while msgspec.json.decode(await socket.recv(decode=False))["type"] != "welcome":
                pass
            limit.reschedule(None)
            self._socket = socket
            for frame, _ in list(self._outbox.values()):
                await self._send(frame)
            async for raw in socket:
                self._hear(msgspec.json.decode(raw))

    def _hear(self, frame: dict[str, Any]) -> None:
        waiting = self._outbox.get(frame.get("client_msg_id") or "")
        if waiting is None or waiting[1].done():
            return
        self._heard[frame["client_msg_id"]] = self._heard.get(frame["client_msg_id"], 0) + 1
        if frame["type"] == "accepted":
            waiting[1].set_result(frame)
        elif frame["type"] == "error" and frame["retryable"]:
            wait_s = (frame["retry_after_ms"] or 1000 * RETRY_S) / 1000
            loop = asyncio.get_running_loop()
            loop.call_later(wait_s, lambda: loop.create_task(self._send(waiting[0])))
        elif frame["type"] == "error":
            waiting[1].set_exception(Refused(frame["code"]))


class Raiser:
    """Raises alerts all along, each until it is accepted, and tells the judge what was accepted."""

    def __init__(self, stand: Stand, judge: Judge, chance: random.Random, label: str) -> None:
        self._judge = judge
        self._ports = [gateway.port for gateway in stand.gateways]
        self._token = stand.token("lab", "service")
        self._chance = chance
        self._label = label
        self._count = 0
        #: Attempts that were refused or not answered: they show that a fault was felt.
        self.failed = 0
        self.sent = asyncio.Event()
        self.is_paused = False
        self._raising: set[asyncio.Task[Raised]] = set()
        self._turn = 0
        self.caller = Caller("dr.lima.cardio", stand.token("dr.lima.cardio", "physician", "charge_nurse"), self._ports)

    async def run(self) -> None:
        """Raise until cancelled."""
        calling = asyncio.create_task(self.caller.run())
        try:
            while True:
                await asyncio.sleep(self._chance.uniform(*RAISE_EVERY_S))
                if not self.is_paused and len(self._raising) < MOST_RAISING:
                    self._start()
                for task in [task for task in self._raising if task.done()]:
                    self._raising.discard(task)
                    task.result()
                if calling.done():
                    calling.result()
        finally:
            await tasks.end([calling, *self._raising])

    def _start(self) -> None:
        words = self.words()
        is_by_socket = self._count % WEBSOCKET_EVERY == 0
        self._raising.add(asyncio.create_task(self.by_socket(words) if is_by_socket else self.by_http(words)))

    def words(self) -> str:
        """The words of the next alert; no other has them."""
        self._count += 1
        return f"{self._label} {self._count}"

    def _body(self, words: str) -> dict[str, Any]:
        number = words.rpartition(" ")[2]
        # Each about a patient of its own: otherwise so many at once would be joined into one alert.
        body: dict[str, Any] = {"content": words, "priority": "normal", "patient_id": f"p{number}"}
        if int(number) % ACTION_EVERY == 0:
            body |= {"priority": "high", "requires_action": True}
        return body

    async def by_http(self, words: str) -> Raised:
        """Raise by HTTP until 201, at one gateway after the other under one key."""
        above = self._judge.highest
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Idempotency-Key": words.replace(" ", "-"),
        }
        body = _encode(self._body(words))
        self._turn += 1
        attempt = self._turn
        self.sent.set()
        while True:
            status, raw = 0, b""
            port = self._ports[attempt % len(self._ports)]
            attempt += 1
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    status, raw = await post(port, f"/v1/departments/{DEPARTMENT}/alerts", body, headers)
            if status == 201:
                told = msgspec.json.decode(raw)
                raised = Raised(told["alert_id"], told["alert_seq"], time.monotonic())
                self._judge.accepted(words, raised.alert_id, raised.alert_seq, above=above)
                return raised
            if status not in (0, 429, 500, 503):
                raise Refused(f"HTTP {status}: {raw[:200].decode(errors='replace')}")
            self.failed += 1
            await asyncio.sleep(RETRY_S)

    async def by_socket(self, words: str) -> Raised:
        """Raise over the WebSocket until ``accepted``."""
        above = self._judge.highest
        frame = {
            "type": "alert_raise",
            "client_msg_id": words.replace(" ", "-"),
            "to": {"department": DEPARTMENT},
            **self._body(words),
        }
        self.sent.set()
        told = await self.caller.command(frame)
        raised = Raised(told["alert_id"], None, time.monotonic())
        self._judge.accepted(words, raised.alert_id, None, above=above)
        return raised

    async def stand_down(self, alert_ids: Sequence[str]) -> None:
        """End alerts, so that a ward is never full of them; returns when all are ended."""

        async def one(alert_id: str) -> None:
            frame = {"type": "alert_response", "client_msg_id": f"end-{alert_id}", "alert_id": alert_id}
            await self.caller.command({**frame, "answer": "stand_down"})

        await asyncio.gather(*(one(alert_id) for alert_id in alert_ids))


class Watch:
    """Waits until some words are on the screens of some phones, and when the last of them showed them."""

    def __init__(self, words: str, phones: Sequence[str]) -> None:
        self._words = words
        self._lacking = set(phones)
        self.at = 0.0
        self.done = asyncio.Event()

    @property
    def lacking(self) -> list[str]:
        return sorted(self._lacking)

    def take(self, report: Report) -> None:
        if report.phone not in self._lacking:
            return
        shows = (isinstance(report, Got) and self._words in report.words.split("\n")) or (
            isinstance(report, Came) and any(self._words in words.split("\n") for _, words in report.open)
        )
        if shows:
            self._lacking.discard(report.phone)
            self.at = max(self.at, report.at)
            if not self._lacking:
                self.done.set()
