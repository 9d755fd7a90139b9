"""Measures what one alert to all phones of a department costs chatd, and what it costs servers made for such things.

For each number of subscribers: server CPU microseconds per delivered frame at full speed and at 20 messages a second,
latency from the publisher's send to a subscriber's read (p50, p99), CPU per handshake, resident memory per idle
connection. Prints tables and writes ``out/bench/fanout.json`` and ``fanout.png``.

chatd is the real gateway with everything on: tokens, sessions in Redis, lanes, ``alert_seq``, and each alert raised by
one of the phones and committed to SQLite before anybody hears of it. Its cost has two parts, told apart by raising the
same alerts with few phones connected: what an alert costs by itself (checking, sealing, committing), and what each
phone adds. The peers, where they are installed (``scripts/bench-peers``), only pass a message on: nginx with nchan,
mosquitto over WebSocket, Node with ws, and a plain loop of ``send_text`` in Starlette on the same uvicorn. All send
messages of the size of chatd's.

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
from tests.server import hospital  # noqa: E402

#: Delivered frames of one round at full speed, whatever the number of subscribers; messages are at least 20.
FRAMES = 200_000
#: Messages on their way at full speed.
WINDOW = 4
#: The slow rate: messages a second, for so long.
RATE, RATE_S = 20, 4.0
#: A server that delivers nothing for this long has failed.
WAIT_S = 30.0
#: Alerts of one raiser in a run; chatd bundles what one raiser sends in a storm.
RAISES_EACH = 3
#: Phones while the alerts' own cost is measured.
FEW = 50
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

    def __init__(self, port: int, path: str, *, subprotocol: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(WAIT_S)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        offered = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offered}\r\n".encode()
        )
        self._rest = b""
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
                raise SystemExit(f"a subscriber was closed: {payload!r}")
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
                data = phone.socket.recv(1 << 18)
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


def _cores_are_free() -> bool:
    """Whether the server gets a core of its own; on a busy machine it would only wait for that one."""
    return os.getloadavg()[0] < len(os.sched_getaffinity(0)) > 1


def _pin(core: int) -> Callable[[], None]:
    cores, is_free = os.sched_getaffinity(0), _cores_are_free()

    def pin() -> None:
        # The child dies with the benchmark, however that ends (PR_SET_PDEATHSIG).
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if is_free:
            os.sched_setaffinity(0, {sorted(cores)[core]})

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
    # Nothing here has threads, so the child may set itself up.
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

    def subscribe(self, number: int) -> Phone:
        user = f"dr.bench.{number}"
        token = mint(
            self._secret,
            user_id=user,
            departments=("cardiology",),
            roles=("physician",),
            ttl_s=3600,
            now=datetime.now(UTC),
        )
        phone = Phone(self._port, f"/chat/cardiology/{user}", subprotocol="chatd.v1")
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
            "content": f"New STEMI patient, cath lab 2, at={round(time.perf_counter() * 1e6):016d}",
        }
        phone.send(json.dumps(alert).encode())


@contextlib.contextmanager
def chatd(subscribers: int, size: int) -> Iterator[Server | None]:
    """``chatd up`` with the demo hospital; its gateway is pinned and measured, Redis is not."""
    env = {
        "CHATD_MAX_CONNECTIONS": str(subscribers + 100),
        # One process answers the pings of all phones, maybe on a machine that others use too.
        "CHATD_PING_TIMEOUT_S": "120",
    }
    with hospital(env=env) as place:
        pid = gateway_pid(place.up.process.pid)
        cores = sorted(os.sched_getaffinity(0))
        if _cores_are_free():
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {cores[0]})
        secret = (place.data / "keys" / "jwt.key").read_text().strip().encode()
        yield Chatd(place.url, pid, secret)


SERVERS: tuple[Callable[[int, int], Any], ...] = (chatd, nchan, mosquitto, node_ws, starlette_loop)


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
    crowd = Crowd()
    for number in range(subscribers):
        crowd.add(server.subscribe(number))
        if number % 10 == 9:
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
    slow_messages = min(round(RATE * RATE_S), subscribers * RAISES_EACH)
    slow_s = deliver(server, crowd, slow_messages, rate=RATE)
    slow_ms = sorted(crowd.took_ms)
    figures = {
        "server": server.name,
        "subscribers": subscribers,
        "bytes": crowd.bytes_each,
        "messages": messages,
        "us_per_frame": fast_s * 1e6 / (messages * subscribers),
        "us_per_frame_at_20": slow_s * 1e6 / (slow_messages * subscribers),
        "p50_ms": quantile(slow_ms, 0.5),
        "p99_ms": quantile(slow_ms, 0.99),
        "p99_ms_full_speed": quantile(fast_ms, 0.99),
        "handshake_us": handshake_us,
        "rss_kib_each": rss_each,
    }
    crowd.close()
    if isinstance(server, Chatd):
        figures |= apart(server, fast_s / messages, subscribers)
    return figures


def apart(server: Server, alert_s: float, subscribers: int) -> dict[str, float]:
    """What an alert costs by itself and what each phone adds, from the same alerts with few phones."""
    time.sleep(2)
    few = crowd_of(server, FEW)
    messages = FEW * RAISES_EACH
    few_s = deliver(server, few, messages) / messages
    few.close()
    each_s = (alert_s - few_s) / (subscribers - FEW)
    return {"us_per_frame_fan_out": each_s * 1e6, "us_per_alert": (few_s - each_s * FEW) * 1e6}


def show(rows: list[dict[str, Any]], console: Console) -> None:
    for subscribers in sorted({row["subscribers"] for row in rows}):
        table = Table(title=f"{subscribers} subscribers")
        columns = ("server", "bytes", "µs/frame", "at 20/s", "p50 ms", "p99 ms", "p99 full", "handshake µs", "KiB each")
        for column in columns:
            table.add_column(column, justify="left" if column == "server" else "right")
        for row in (each for each in rows if each["subscribers"] == subscribers):
            if "us_per_frame_fan_out" in row:
                table.add_row("chatd, fan-out alone", "", f"{row['us_per_frame_fan_out']:.1f}", *[""] * 6)
            table.add_row(
                row["server"] + (", whole" if "us_per_alert" in row else ""),
                str(row["bytes"]),
                f"{row['us_per_frame']:.1f}",
                f"{row['us_per_frame_at_20']:.1f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['p99_ms_full_speed']:.1f}",
                f"{row['handshake_us']:.0f}",
                f"{row['rss_kib_each']:.1f}",
            )
        console.print(table)
        mine = next((row for row in rows if row["subscribers"] == subscribers and "us_per_alert" in row), None)
        if mine is not None:
            console.print(
                f"an alert by itself (checked, sealed, committed): {mine['us_per_alert'] / 1000:.2f} ms of CPU"
            )
            for row in rows:
                if row["subscribers"] == subscribers and row is not mine:
                    ratio = mine["us_per_frame_fan_out"] / row["us_per_frame"]
                    console.print(f"chatd's fan-out ÷ {row['server']}: {ratio:.2f}")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost of a delivered frame and latency against the number of subscribers."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (cost, wait) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in dict.fromkeys(row["server"] for row in rows):
        mine = [row for row in rows if row["server"] == name]
        at = [row["subscribers"] for row in mine]
        cost.plot(at, [row["us_per_frame"] for row in mine], marker="o", label=name)
        wait.plot(at, [row["p99_ms"] for row in mine], marker="o", label=name)
        if name == "chatd":
            alone = [row["us_per_frame_fan_out"] for row in mine]
            cost.plot(at, alone, marker="o", linestyle="--", label="chatd, fan-out alone")
    cost.set(title="one delivered frame, full speed", ylabel="server CPU, µs", ylim=(0, None))
    wait.set(title="sent to read, 20 messages a second", ylabel="p99, ms", yscale="log")
    for axes in (cost, wait):
        axes.set(xscale="log", xlabel="subscribers")
        axes.set_xticks(sorted({row["subscribers"] for row in rows}))
        axes.get_xaxis().set_major_formatter(mpl.ticker.ScalarFormatter())
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--servers", nargs="+", choices=[each.__name__ for each in SERVERS])
    parser.add_argument("--serve-plain", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_plain:
        serve_plain(arguments.serve_plain)
        return 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    console, rows = Console(), []
    cores = sorted(os.sched_getaffinity(0))
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    for subscribers in arguments.subscribers:
        if subscribers + 500 > most:
            console.print(f"{subscribers} subscribers: at most {most} files may be open here; left out")
            continue
        size = 0
        for open_server in SERVERS:
            if arguments.servers and open_server.__name__ not in arguments.servers:
                continue
            with open_server(subscribers, size or 600) as server:
                if server is None:
                    console.print(f"{open_server.__name__}: not installed here; left out")
                    continue
                if _cores_are_free():
                    os.sched_setaffinity(0, set(cores[1:]))
                try:
                    rows.append(measure(server, subscribers))
                finally:
                    os.sched_setaffinity(0, set(cores))
            size = size or rows[-1]["bytes"]
            console.print(f"{rows[-1]['server']}, {subscribers}: {rows[-1]['us_per_frame']:.1f} µs per frame")
            (out / "fanout.json").write_text(json.dumps(rows, indent=2) + "\n")
    show(rows, console)
    if rows:
        plot(rows, out / "fanout.png")
        print(f"wrote {out / 'fanout.json'} and fanout.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
