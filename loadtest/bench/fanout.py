"""Measures what one alert to all phones of a department costs chatd, and what it costs servers made for such things.

For each number of subscribers: server CPU microseconds per delivered frame at full speed and at a steady rate, latency
from the publisher's send to a subscriber's read at that rate (p50, p99), CPU per handshake, resident memory per idle
connection. Then, of chatd alone: 10,000 phones held at once, and a phone that never reads among others that do. Prints
tables and writes ``out/bench/fanout.json`` and ``fanout.png``.

chatd is the real gateway with everything on: tokens, sessions in Redis, lanes, ``alert_seq``, and each alert raised by
one of the phones and committed to SQLite before anybody hears of it, so its figure holds what an alert costs by itself
too. "chatd, fan-out alone" is the part of it that does what the peers do: its protocol, pools and outboxes, passing on
what is posted. The peers, where they are installed (``scripts/bench-peers``): nginx with nchan, mosquitto over
WebSocket, Node with ws, and a plain loop of ``send_text`` in Starlette on the same uvicorn. All send messages of the
size of chatd's.

Everything runs on this machine, on the loopback interface, the servers on one core and the subscribers on another
where there are two. All that it starts ends with it. Compare within one run only.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import getpass
import json
import os
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from chatd.gateway.auth import mint  # noqa: E402
from loadtest.bench.questions import gateway_pid  # noqa: E402
from protocols.frames import SystemNotification  # noqa: E402
from tests.server import hospital  # noqa: E402

#: Delivered frames of one round at full speed, whatever the number of subscribers; messages are at least 20.
FRAMES = 100_000
#: Subscribers that connect at once.
AT_A_TIME = 32
#: Messages on their way at full speed.
WINDOW = 4
#: The steady rate: messages a second for so long, and at most so many frames a second, which all servers can do.
RATE, RATE_S, RATE_FRAMES = 20, 3.0, 20_000
#: A server that delivers nothing for this long has failed.
WAIT_S = 30.0
#: Alerts of one raiser in a run; chatd bundles what one raiser sends in a storm.
RAISES_EACH = 3
#: Phones that are held at once, and alerts to all of them.
HELD, HELD_ALERTS = 10_000, 3
#: Readers beside a phone that never reads, alerts to them before and after it has come, and their length.
READERS, DEAF_ALERTS, DEAF_CHARS = 200, 200, 3_000
#: The deaf phone's own buffer, as small as the system lets it be: what it does not read waits at the server.
DEAF_BUFFER_BYTES = 4_096
MARK = b"at="
TICKS = os.sysconf("SC_CLK_TCK")


# --- a subscriber -------------------------------------------------------------------------------------------


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame. The mask is zero: it costs nothing, and the server unmasks all the same."""
    size = len(payload)
    head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 254)) + size.to_bytes(2, "big")
    return head + bytes(4) + payload


class Phone:
    """One WebSocket of the load: a plain socket and the frames that came."""

    def __init__(self, port: int, path: str, *, subprotocol: str = "", buffer_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(WAIT_S)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        offered = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offered}\r\n".encode()
        )
        self._rest = b""
        self.close_code = 0
        while b"\r\n\r\n" not in self._rest:
            got = self.socket.recv(65536)
            if not got:
                raise SystemExit(f"no WebSocket: {self._rest[:200]!r}")
            self._rest += got
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise SystemExit(f"no WebSocket: {head[:200]!r}")

    def send(self, payload: bytes, opcode: int = 1) -> None:
        self.socket.sendall(masked(payload, opcode))

    def messages(self, data: bytes) -> list[bytes]:
        """The whole messages in what has come; a ping is answered."""
        if (
            not self._rest
            and data[:2] in (b"\x81\x7e", b"\x82\x7e")
            and len(data) == 4 + int.from_bytes(data[2:4], "big")
        ):
            # Nearly always: one message. The subscribers must cost less than the servers.
            return [data[4:]]
        data = self._rest + data
        at, found = 0, []
        while len(data) >= at + 2:
            size, head = data[at + 1] & 0x7F, 2
            if size >= 126:
                head = 4 if size == 126 else 10
                if len(data) < at + head:
                    break
                size = int.from_bytes(data[at + 2 : at + head], "big")
            if len(data) < at + head + size:
                break
            payload = data[at + head : at + head + size]
            opcode = data[at] & 0x0F
            if opcode == 9:
                self.send(payload, 10)
            elif opcode == 8:
                self.close_code = int.from_bytes(payload[:2], "big")
                raise SystemExit(f"a subscriber was closed: {self.close_code} {payload[2:].decode(errors='replace')}")
            else:
                found.append(payload)
            at += head + size
        self._rest = data[at:]
        return found

    def next(self) -> bytes:
        """Wait for one message; what came with it is kept for ``take``."""
        waiting: list[bytes] = self.messages(b"")
        while not waiting:
            got = self.socket.recv(65536)
            if not got:
                raise SystemExit("a subscriber was cut off")
            waiting = self.messages(got)
        for later in reversed(waiting[1:]):
            self._rest = bytes((0x82, 127)) + len(later).to_bytes(8, "big") + later + self._rest
        return waiting[0]


class Crowd:
    """All subscribers of one server, read by one loop."""

    def __init__(self) -> None:
        self.phones: list[Phone] = []
        self._poll = select.epoll()
        self._by_fd: dict[int, Phone] = {}
        self.took_ms: list[float] = []
        self.delivered = 0
        #: Messages that the server did not take; on a busy machine a commit may take too long.
        self.refused = 0
        self.bytes_each = 0

    def add(self, phone: Phone) -> None:
        phone.socket.setblocking(False)
        self.phones.append(phone)
        self._by_fd[phone.socket.fileno()] = phone
        self._poll.register(phone.socket.fileno(), select.EPOLLIN)

    def read(self, wait_s: float) -> None:
        """One turn: whatever has come within ``wait_s``."""
        for fd, _ in self._poll.poll(wait_s, 4096):
            phone = self._by_fd[fd]
            try:
                data = phone.socket.recv(65536)
            except BlockingIOError:
                continue
            if not data:
                raise SystemExit("a subscriber was cut off")
            now = time.perf_counter()
            for message in phone.messages(data):
                found = message.find(MARK)
                if message.startswith(b'{"type":"error"'):
                    self.refused += 1
                elif found >= 0:
                    self.delivered += 1
                    self.bytes_each = len(message)
                    self.took_ms.append((now - int(message[found + 3 : found + 19]) / 1e6) * 1000)

    def close(self) -> None:
        self._poll.close()
        for phone in self.phones:
            phone.socket.close()


def text(size: int) -> bytes:
    """A message with the moment of its sending in it, padded to ``size`` bytes."""
    marked = b'{"type":"message","content":"at=%016d %s"}' % (
        round(time.perf_counter() * 1e6),
        secrets.token_hex(4).encode(),
    )
    return marked[:-2] + b"x" * max(0, size - len(marked)) + b'"}'


# --- servers ------------------------------------------------------------------------------------------------


class Server:
    """A server under test: its processes, a way to subscribe and a way to publish."""

    name = ""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.size = 0

    def subscribe(self, number: int) -> Phone:
        raise NotImplementedError

    def publish(self, crowd: Crowd) -> None:
        """Send one message; must not wait for its delivery."""
        raise NotImplementedError

    def cpu_s(self) -> float:
        """CPU seconds of all threads of its processes so far."""
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def rss_kib(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _pin(core: int) -> Callable[[], None]:
    cores = _cores()

    def pin() -> None:
        # The child dies with the benchmark, however that ends (PR_SET_PDEATHSIG).
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        os.sched_setaffinity(0, {cores[core]})

    return pin


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


@contextlib.contextmanager
def _process(command: list[str], port: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    # No thread runs here at this moment, so the child may set itself up.
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, preexec_fn=_pin(0), **quiet, **options)  # noqa: PLW1509
    try:
        _wait_for(port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _children(pid: int) -> list[int]:
    """The processes that it has started, once there is one."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if found:
            return found
        time.sleep(0.05)
    raise SystemExit("no worker was started")


class Posted(Server):
    """One that takes messages by HTTP POST on a connection that stays open."""

    def __init__(self, name: str, port: int, pids: list[int], size: int, *, subscribe: str, publish: str) -> None:
        super().__init__()
        self.name, self.port, self.pids, self.size = name, port, pids, size
        self._path, self._to = subscribe, publish
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def subscribe(self, number: int) -> Phone:
        return Phone(self.port, self._path)

    def publish(self, crowd: Crowd) -> None:
        body = text(self.size)
        head = f"POST {self._to} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self._socket.sendall(head + body)
        # The answers are read so that they do not fill the socket; what they say is told by the deliveries.
        with contextlib.suppress(BlockingIOError):
            self._socket.recv(65536, socket.MSG_DONTWAIT)


NGINX = """
user {user}; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
{module}
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_requests 10000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  nchan_max_reserved_memory 64M;
  server {{
    listen 127.0.0.1:{port};
    location /pub {{ nchan_publisher; nchan_channel_id all; nchan_message_buffer_length 100; }}
    location /sub {{ nchan_subscriber websocket; nchan_channel_id all; nchan_subscriber_first_message newest; }}
  }}
}}
"""


@contextlib.contextmanager
def nchan(subscribers: int, size: int) -> Iterator[Server | None]:
    """nginx with nchan, one worker."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    module = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
    if not Path(nginx).exists() or not module.exists():
        yield None
        return
    folder, port = tempfile.mkdtemp(prefix="fanout-"), _free_port()
    settings = NGINX.format(
        folder=folder,
        user=getpass.getuser(),
        port=port,
        module=f"load_module {module};",
        files=subscribers + 1000,
        connections=subscribers + 500,
    )
    (Path(folder) / "nginx.conf").write_text(settings)
    try:
        with _process([nginx, "-p", folder, "-c", f"{folder}/nginx.conf"], port) as process:
            yield Posted(
                "nginx + nchan", port, [process.pid, *_children(process.pid)], size, subscribe="/sub", publish="/pub"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


NODE = """
const { WebSocketServer } = require('ws');
const http = require('http');
const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const text = Buffer.concat(parts);
    for (const client of wss.clients) client.send(text, { binary: false });
    response.end();
  });
});
const wss = new WebSocketServer({ server, perMessageDeflate: false });
server.keepAliveTimeout = 0;
server.listen(+process.argv.at(-1), '127.0.0.1', 2048);
"""


@contextlib.contextmanager
def node_ws(subscribers: int, size: int) -> Iterator[Server | None]:
    """Node with ws, a loop over its clients."""
    node = shutil.which("node")
    if node is None or not Path("/usr/share/nodejs/ws").exists():
        yield None
        return
    port = _free_port()
    env = {**os.environ, "NODE_PATH": "/usr/share/nodejs"}
    with _process([node, "-e", NODE, "--", str(port)], port, env=env) as process:
        yield Posted("Node ws", port, [process.pid], size, subscribe="/", publish="/pub")


@contextlib.contextmanager
def starlette_loop(subscribers: int, size: int) -> Iterator[Server | None]:
    """Starlette on uvicorn, ``send_text`` to each subscriber in turn."""
    port = _free_port()
    command = [sys.executable, str(Path(__file__).resolve()), "--serve-plain", str(port)]
    with _process(command, port, cwd=str(ROOT)) as process:
        yield Posted("Starlette loop", port, [process.pid], size, subscribe="/sub", publish="/pub")


def serve_plain(port: int) -> None:
    """The plain loop as a process of its own, with the options of ``chatd.serve``."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    sockets: set[WebSocket] = set()

    async def subscribe(websocket: WebSocket) -> None:
        await websocket.accept()
        sockets.add(websocket)
        with contextlib.suppress(WebSocketDisconnect):
            await websocket.receive_text()
        sockets.discard(websocket)

    async def publish(request: Request) -> Response:
        message = (await request.body()).decode()
        for each in tuple(sockets):
            await each.send_text(message)
        return Response(status_code=204)

    app = Starlette(routes=[WebSocketRoute("/sub", subscribe), Route("/pub", publish, methods=["POST"])])
    uvicorn.run(
        app,
        port=port,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        access_log=False,
        backlog=2048,
        # The publisher's connection rests while the subscribers come.
        timeout_keep_alive=3600,
    )


@contextlib.contextmanager
def chatd_pools(subscribers: int, size: int) -> Iterator[Server | None]:
    """chatd's fan-out without the rest: its protocol, pools and outboxes, and numbered events passed on."""
    port = _free_port()
    command = [sys.executable, str(Path(__file__).resolve()), "--serve-pools", str(port)]
    with _process(command, port, cwd=str(ROOT)) as process:
        # What is posted becomes the text of a notification, so that as many bytes are sent as of the others.
        more = len(_notification("", 1000)) - len(text(0)) + len(msgspec.json.decode(text(0))["content"])
        name = "chatd, fan-out alone"
        yield Posted(name, port, [process.pid], size - more, subscribe="/sub", publish="/pub")


def _notification(content: str, alert_seq: int) -> bytes:
    """An alert as chatd stores it."""
    return msgspec.json.encode(
        SystemNotification(
            priority="normal",
            content=content,
            department="cardiology",
            requires_action=False,
            alert_seq=alert_seq,
            alert_id="a-1",
        )
    )


def serve_pools(port: int) -> None:
    """The pools as a process of their own; what the ledger would have numbered is numbered here."""
    import asyncio
    import gc

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    from chatd.alerts.model import Recorded, Span
    from chatd.clock import SystemClock
    from chatd.gateway.outbox import Outbox
    from chatd.gateway.pools import Member, Pools, Variant
    from chatd.gateway.transport import EXTENSION, ChatdProtocol
    from protocols.session import Session, SessionRules

    class Log:
        """As the ledger, without one: nothing has to be read again here."""

        last_seq = 0

        async def since(self, department: str, after_seq: int, limit: int = 0) -> tuple[Recorded, ...]:
            return ()

        async def span(self, department: str) -> Span:
            return Span(first_seq=1, last_seq=self.last_seq)

        async def open_alerts(self, department: str) -> tuple[SystemNotification, ...]:
            return ()

    log = Log()
    pools = Pools(log, SystemClock())
    running: list[asyncio.Task[None]] = []

    async def subscribe(websocket: WebSocket) -> None:
        await websocket.accept()
        if not running:
            running.append(asyncio.create_task(pools.run()))
        session = Session(compat=True, now_ms=0, rules=SessionRules())
        outbox = Outbox(1 << 20)
        transport = websocket.scope["extensions"][EXTENSION]
        session.opened("e-1", 0, log.last_seq)
        member = Member(
            session=session, outbox=outbox, variant=Variant(), close_soon=lambda code: None, transport=transport
        )
        transport.on_writable = member.on_writable
        pools.join("cardiology", member)
        await pools.span("cardiology")
        pools.place(member)
        with contextlib.suppress(WebSocketDisconnect):
            await websocket.receive_text()
        pools.leave(member)

    async def publish(request: Request) -> Response:
        body = msgspec.json.decode(await request.body())
        log.last_seq += 1
        frame = _notification(body["content"], log.last_seq)
        pools.fan_out("cardiology", [Recorded(alert_seq=log.last_seq, frame=frame)])
        return Response(status_code=204)

    gc.freeze()
    app = Starlette(routes=[WebSocketRoute("/sub", subscribe), Route("/pub", publish, methods=["POST"])])
    uvicorn.run(
        app,
        port=port,
        ws=ChatdProtocol,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        access_log=False,
        backlog=2048,
        # The publisher's connection rests while the subscribers come.
        timeout_keep_alive=3600,
    )


def _mqtt(kind: int, body: bytes) -> bytes:
    """An MQTT 3.1.1 packet. Source: MQTT 3.1.1, section 2."""
    size, head = len(body), bytearray((kind,))
    while True:
        head.append(size % 128 | (0x80 if size >= 128 else 0))
        size //= 128
        if not size:
            return bytes(head) + body


def _mqtt_connect(name: str) -> bytes:
    return _mqtt(0x10, b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name.encode())


class Mosquitto(Server):
    """The broker, published to over TCP with QoS 0."""

    name = "mosquitto"

    def __init__(self, port: int, publish_port: int, pids: list[int], size: int) -> None:
        super().__init__()
        self.pids, self.size, self._port = pids, size, port
        self._socket = socket.create_connection(("127.0.0.1", publish_port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(_mqtt_connect("publisher"))
        self._socket.recv(4)

    def subscribe(self, number: int) -> Phone:
        phone = Phone(self._port, "/", subprotocol="mqtt")
        phone.send(_mqtt_connect(f"s{number}"), 2)
        phone.next()
        phone.send(_mqtt(0x82, b"\x00\x01\x00\x03all\x00"), 2)
        phone.next()
        return phone

    def publish(self, crowd: Crowd) -> None:
        self._socket.sendall(_mqtt(0x30, b"\x00\x03all" + text(self.size)))


@contextlib.contextmanager
def mosquitto(subscribers: int, size: int) -> Iterator[Server | None]:
    """mosquitto over WebSocket."""
    binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    if not Path(binary).exists():
        yield None
        return
    port, publish_port, folder = _free_port(), _free_port(), tempfile.mkdtemp(prefix="fanout-")
    settings = "\n".join(
        (
            f"user {getpass.getuser()}",
            "persistence false",
            "allow_anonymous true",
            "log_dest none",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            f"listener {publish_port} 127.0.0.1",
            f"listener {port} 127.0.0.1",
            "protocol websockets",
        )
    )
    (Path(folder) / "mosquitto.conf").write_text(settings)
    try:
        with _process([binary, "-c", f"{folder}/mosquitto.conf"], port) as process:
            yield Mosquitto(port, publish_port, [process.pid], size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Chatd(Server):
    """The real gateway; its phones raise the alerts in turn."""

    name = "chatd"

    def __init__(self, url: str, pid: int, secret: bytes) -> None:
        super().__init__()
        self.pids = [pid]
        self._port = int(url.rsplit(":", 1)[1])
        self._secret = secret
        self._raised = 0
        #: Of each alert's text; 0: as short as it is.
        self.chars = 0

    def subscribe(self, number: int, *, buffer_bytes: int = 0) -> Phone:
        user = f"dr.bench.{number}"
        token = mint(
            self._secret,
            user_id=user,
            departments=("cardiology",),
            roles=("physician",),
            ttl_s=3600,
            now=datetime.now(UTC),
        )
        phone = Phone(self._port, f"/chat/cardiology/{user}", subprotocol="chatd.v1", buffer_bytes=buffer_bytes)
        phone.send(json.dumps({"type": "hello", "token": token}).encode())
        for expected in ("welcome", "snapshot"):
            frame = msgspec.json.decode(phone.next())
            if frame["type"] != expected:
                raise SystemExit(f"expected {expected}, got {frame}")
        return phone

    def publish(self, crowd: Crowd) -> None:
        phone = crowd.phones[self._raised % len(crowd.phones)]
        self._raised += 1
        alert = {
            "type": "alert_raise",
            "client_msg_id": f"b-{self._raised}",
            "to": {"department": "cardiology"},
            "priority": "normal",
            "content": f"New STEMI patient, cath lab 2, at={round(time.perf_counter() * 1e6):016d}".ljust(
                self.chars, "."
            ),
        }
        phone.send(json.dumps(alert).encode())


@contextlib.contextmanager
def chatd(subscribers: int, size: int) -> Iterator[Chatd]:
    """``chatd up`` with the demo hospital; its gateway is pinned and measured, Redis is not."""
    env = {
        "CHATD_MAX_CONNECTIONS": str(subscribers + 100),
        # One process answers the pings of all phones, maybe on a machine that others use too.
        "CHATD_PING_TIMEOUT_S": "120",
    }
    with hospital(env=env) as place:
        pid = gateway_pid(place.up.process.pid)
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {_cores()[0]})
        secret = (place.data / "keys" / "jwt.key").read_text().strip().encode()
        try:
            yield Chatd(place.url, pid, secret)
        except SystemExit:
            told = [line for line in place.up.log().splitlines() if '"info"' not in line or '"closed"' in line]
            print("\n".join(told[-20:]), file=sys.stderr)
            raise


SERVERS: tuple[Callable[[int, int], Any], ...] = (chatd, chatd_pools, nchan, mosquitto, node_ws, starlette_loop)


# --- measuring ----------------------------------------------------------------------------------------------


def deliver(server: Server, crowd: Crowd, messages: int, *, rate: float | None = None) -> float:
    """Publish and wait until all have all; returns the server's CPU seconds. ``rate``: messages a second."""
    crowd.took_ms.clear()
    crowd.delivered = crowd.refused = 0
    each = len(crowd.phones)
    before, begin = server.cpu_s(), time.perf_counter()
    sent, last, moved = 0, 0, begin
    while crowd.delivered < messages * each:
        now = time.perf_counter()
        if crowd.refused:
            sent, crowd.refused = sent - crowd.refused, 0
        if sent < messages and (
            sent - crowd.delivered // each < WINDOW if rate is None else now >= begin + sent / rate
        ):
            server.publish(crowd)
            sent += 1
            continue
        crowd.read(0.005 if rate is not None and sent < messages else 1.0)
        if crowd.delivered > last:
            last, moved = crowd.delivered, now
        elif now - moved > WAIT_S:
            raise SystemExit(f"{server.name}: {crowd.delivered} of {messages * each} frames came")
    return server.cpu_s() - before


def quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def crowd_of(server: Server, subscribers: int) -> Crowd:
    """So many subscribers, some dozens of them connecting at a time."""
    crowd = Crowd()
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        for first in range(0, subscribers, AT_A_TIME):
            numbers = range(first, min(first + AT_A_TIME, subscribers))
            for phone in threads.map(server.subscribe, numbers):
                crowd.add(phone)
            crowd.read(0)
    return crowd


def measure(server: Server, subscribers: int) -> dict[str, Any]:
    """All figures of one server with so many subscribers."""
    warm = crowd_of(server, 5)
    deliver(server, warm, 5)
    warm.close()
    time.sleep(1)
    rss, cpu = server.rss_kib(), server.cpu_s()
    crowd = crowd_of(server, subscribers)
    handshake_us = (server.cpu_s() - cpu) * 1e6 / subscribers
    end = time.monotonic() + 2
    while time.monotonic() < end:
        crowd.read(0.1)
    rss_each = (server.rss_kib() - rss) / subscribers
    messages = max(20, min(FRAMES // subscribers, subscribers * RAISES_EACH))
    fast_s = deliver(server, crowd, messages)
    fast_ms = sorted(crowd.took_ms)
    rate = min(RATE, RATE_FRAMES / subscribers)
    slow_messages = min(round(rate * RATE_S), subscribers * RAISES_EACH)
    slow_s = deliver(server, crowd, slow_messages, rate=rate)
    slow_ms = sorted(crowd.took_ms)
    figures = {
        "server": server.name,
        "subscribers": subscribers,
        "bytes": crowd.bytes_each,
        "messages": messages,
        "us_per_frame": fast_s * 1e6 / (messages * subscribers),
        "us_per_frame_at_rate": slow_s * 1e6 / (slow_messages * subscribers),
        "p50_ms": quantile(slow_ms, 0.5),
        "p99_ms": quantile(slow_ms, 0.99),
        "p99_ms_full_speed": quantile(fast_ms, 0.99),
        "handshake_us": handshake_us,
        "rss_kib_each": rss_each,
    }
    crowd.close()
    return figures


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """The subscribers' side: off the servers' core."""
    cores = _cores()
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))


def held() -> dict[str, Any]:
    """So many phones at once: what they cost at rest, and that an alert reaches each."""
    with chatd(HELD, 0) as server, _aside():
        few = crowd_of(server, 5)
        deliver(server, few, 2)
        few.close()
        rss, cpu = server.rss_kib(), server.cpu_s()
        crowd = crowd_of(server, HELD)
        handshake_us = (server.cpu_s() - cpu) * 1e6 / HELD
        rss_each = (server.rss_kib() - rss) / HELD
        cpu, begin = server.cpu_s(), time.monotonic()
        while time.monotonic() < begin + 10:
            crowd.read(0.1)
        idle = (server.cpu_s() - cpu) / (time.monotonic() - begin)
        alert_s = deliver(server, crowd, HELD_ALERTS) / HELD_ALERTS
        took = sorted(crowd.took_ms)
        crowd.close()
    return {
        "phones": HELD,
        "handshake_us": handshake_us,
        "rss_kib_each": rss_each,
        "idle_cpu_percent": idle * 100,
        "us_per_frame": alert_s * 1e6 / HELD,
        "p50_ms": quantile(took, 0.5),
        "p99_ms": quantile(took, 0.99),
    }


def deaf() -> dict[str, Any]:
    """A phone that never reads, among others that do: what they lose by it, and what it costs."""
    with chatd(READERS, 0) as server, _aside():
        server.chars = DEAF_CHARS
        crowd = crowd_of(server, READERS)
        # The same alerts without it first: what the server keeps of them is no part of what the phone costs.
        deliver(server, crowd, DEAF_ALERTS)
        before = server.rss_kib()
        # One more that reads, which is shown the open alerts as the other will be, and the same alerts.
        crowd.add(server.subscribe(READERS))
        deliver(server, crowd, DEAF_ALERTS)
        without = server.rss_kib()
        phone = server.subscribe(READERS + 1, buffer_bytes=DEAF_BUFFER_BYTES)
        most = without

        delivered = 0
        for _ in range(10):
            deliver(server, crowd, DEAF_ALERTS // 10)
            delivered += crowd.delivered
            most = max(most, server.rss_kib())
        # Until it is given up: 8 s without reading anything.
        end = time.monotonic() + 12
        while time.monotonic() < end:
            crowd.read(0.1)
        # What it is given now, or its end; pings would go on for ever.
        phone.socket.settimeout(3)
        got = 0
        try:
            while data := phone.socket.recv(65536):
                got += sum(MARK in message for message in phone.messages(data))
        except (OSError, SystemExit):
            pass
        crowd.close()
        phone.socket.close()
    return {
        "readers": READERS + 1,
        "alerts": DEAF_ALERTS,
        "alert_bytes": crowd.bytes_each,
        "lost_to_others": DEAF_ALERTS * (READERS + 1) - delivered,
        "growth_kib": most - without,
        "growth_without_kib": without - before,
        "deaf_had_waiting": got,
        "deaf_close_code": phone.close_code,
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    for subscribers in sorted({row["subscribers"] for row in rows}):
        of_number = {row["server"]: row for row in rows if row["subscribers"] == subscribers}
        table = Table(title=f"{subscribers} subscribers")
        columns = ("server", "bytes", "µs/frame", "steady", "p50 ms", "p99 ms", "p99 full", "handshake µs", "KiB each")
        for column in columns:
            table.add_column(column, justify="left" if column == "server" else "right")
        for row in of_number.values():
            table.add_row(
                row["server"],
                str(row["bytes"]),
                f"{row['us_per_frame']:.1f}",
                f"{row['us_per_frame_at_rate']:.1f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['p99_ms_full_speed']:.1f}",
                f"{row['handshake_us']:.0f}",
                f"{row['rss_kib_each']:.1f}",
            )
        console.print(table)
        for mine in ("chatd", "chatd, fan-out alone"):
            for other in ("nginx + nchan", "Starlette loop"):
                if mine in of_number and other in of_number:
                    ratio = of_number[mine]["us_per_frame"] / of_number[other]["us_per_frame"]
                    console.print(f"{mine} ÷ {other}: {ratio:.2f}")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost of a delivered frame and latency against the number of subscribers."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, ((cost, wait), (memory, hello)) = pyplot.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    for name in dict.fromkeys(row["server"] for row in rows):
        mine = sorted((row for row in rows if row["server"] == name), key=lambda row: int(row["subscribers"]))
        at = [row["subscribers"] for row in mine]
        cost.plot(at, [row["us_per_frame"] for row in mine], marker="o", label=name)
        (line,) = wait.plot(at, [row["p99_ms"] for row in mine], marker="o", label=name)
        wait.plot(at, [row["p50_ms"] for row in mine], marker=".", linestyle=":", color=line.get_color())
        memory.plot(at, [row["rss_kib_each"] for row in mine], marker="o", label=name)
        hello.plot(at, [row["handshake_us"] / 1000 for row in mine], marker="o", label=name)
    cost.set(title="one delivered frame, full speed", ylabel="server CPU, µs", yscale="log")
    wait.set(title="sent to read at a steady rate (dotted: p50)", ylabel="ms", yscale="log")
    memory.set(title="resident memory of an idle connection", ylabel="KiB", ylim=(0, None))
    hello.set(title="one handshake", ylabel="server CPU, ms", ylim=(0, None))
    for axes in (cost, wait, memory, hello):
        axes.set(xscale="log", xlabel="subscribers")
        axes.set_xticks(sorted({row["subscribers"] for row in rows}))
        axes.get_xaxis().set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    handles, names = cost.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def compare(subscribers: list[int], servers: list[str], most: int, console: Console) -> list[dict[str, Any]]:
    """Every server with every number of subscribers, one after the other."""
    rows: list[dict[str, Any]] = []
    for number in subscribers:
        if number + 500 > most:
            console.print(f"{number} subscribers: at most {most} files may be open here; left out")
            continue
        size = 0
        for open_server in SERVERS:
            if servers and open_server.__name__ not in servers:
                continue
            with open_server(number, size or 600) as server:
                if server is None:
                    console.print(f"{open_server.__name__}: not installed here; left out")
                    continue
                with _aside():
                    try:
                        rows.append(measure(server, number))
                    except SystemExit as failed:
                        # One server's failure is told, and leaves the others their figures.
                        console.print(f"{server.name}, {number}: [red]failed[/red], {failed}")
                        continue
            size = size or rows[-1]["bytes"]
            console.print(f"{rows[-1]['server']}, {number}: {rows[-1]['us_per_frame']:.1f} µs per frame")
            save({"servers": rows})
    return rows


OUT = ROOT / "out" / "bench"


def save(part: dict[str, Any]) -> dict[str, Any]:
    """Put figures beside those that are there, and return all."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "fanout.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept = (kept if isinstance(kept, dict) else {}) | part
    path.write_text(json.dumps(kept, indent=2) + "\n")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--servers", nargs="+", default=[], choices=[each.__name__ for each in SERVERS])
    parser.add_argument("--parts", nargs="+", choices=["servers", "held", "deaf"], default=["servers", "held", "deaf"])
    parser.add_argument("--serve-plain", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve-pools", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_plain:
        serve_plain(arguments.serve_plain)
        return 0
    if arguments.serve_pools:
        serve_pools(arguments.serve_pools)
        return 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    console = Console()
    if "servers" in arguments.parts:
        rows = compare(arguments.subscribers, arguments.servers, most, console)
        show(rows, console)
        if rows:
            plot(rows, OUT / "fanout.png")
    parts: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (("held", held), ("deaf", deaf))
    for name, measured in parts:
        if name not in arguments.parts:
            continue
        if name == "held" and most < HELD + 500:
            console.print(f"{HELD} phones: at most {most} files may be open here; left out")
            continue
        try:
            figures = measured()
        except SystemExit as failed:
            console.print(f"{name}: [red]failed[/red], {failed}")
            continue
        save({name: figures})
        console.print(name, {key: round(value, 1) for key, value in figures.items()})
    print(f"wrote {OUT / 'fanout.json'} and fanout.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
