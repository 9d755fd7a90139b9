"""``chatd hl7 serve``: MLLP connections of interface engines, around ``chatd.hl7``."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, cast

import msgspec
import structlog
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server  # type: ignore[import-untyped]
from prometheus_client import start_http_server
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import logs, metrics, tasks
from chatd.alerts.model import Recorded
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Presence
from chatd.alerts.service import Alerts
from chatd.audit_place import audit_of
from chatd.clock import SystemClock
from chatd.gateway.alerting import Departments
from chatd.gateway.node import ALERT_DOORBELL
from chatd.hardening import no_core_dumps
from chatd.hl7 import Config, Intake, on_broken_file
from chatd.ledger import Ledger
from chatd.ledger.day_keys import DayKeys
from chatd.logs import error_name
from chatd.places import Places
from chatd.records import configured
from chatd.replies.sessions import Sessions
from chatd.replies.stale import Rests
from chatd.settings import Settings
from context import fhir
from context.hl7_files import FOLDER_NAME, HeardFiles
from context.store import ContextStore, connect
from protocols.errors import ChatdError

log = structlog.get_logger(__name__)

#: A message with a long report is some hundred kilobytes; documents inside messages are not read anyway.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
#: An interface engine holds one connection per feed; a hospital has dozens.
MAX_CONNECTIONS: Final = 64
#: From the first byte of a message to its last. Between two of them a connection may be silent as long as it likes.
MESSAGE_S: Final = 30.0
#: How long a sender may leave an answer unread.
ANSWER_S: Final = 10.0
#: At the end, how long messages in progress may take.
STOP_S: Final = 10.0

_START, _END = b"\x0b", b"\x1c\r"
_BETWEEN: Final = b"\r\n"

#: Of a message that is too long, its MSH segment is kept, to answer it.
_HEAD_BYTES: Final = 4096


class Taker(Protocol):
    """What answers messages: ``chatd.hl7.Intake``."""

    async def handle(self, block: bytes) -> bytes: ...

    def refuse_large(self, head: bytes, size_bytes: int) -> bytes: ...


class MllpServer:
    """Reads one message after the other from each connection and writes each one's answer before the next is read.

    A connection that breaks the framing, sends too much, or stops in the middle of a message is closed and counted;
    the others notice nothing.
    """

    def __init__(
        self,
        taker: Taker,
        *,
        config: Config,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_connections: int = MAX_CONNECTIONS,
        message_s: float = MESSAGE_S,
        answer_s: float = ANSWER_S,
        stop_s: float = STOP_S,
    ) -> None:
        self._taker = taker
        self._networks = config.networks()
        self._max_message_bytes = max_message_bytes
        self._max_connections = max_connections
        self._message_s = message_s
        self._answer_s = answer_s
        self._stop_s = stop_s
        self._server: asyncio.Server | None = None
        #: Each connection's task, and whether it is at work on a message.
        self._open: dict[asyncio.Task[None], bool] = {}
        self._is_stopping = False

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Listen; returns the address. Raises OSError."""
        self._server = await start_hl7_server(
            self._connected, host, port, limit=self._max_message_bytes, ssl=tls, start_serving=True
        )
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop(self) -> None:
        """Take no more messages, answer those in progress, then close; twice does no harm."""
        self._is_stopping = True
        if self._server is not None:
            self._server.close()
        await tasks.end([task for task, is_busy in self._open.items() if not is_busy])
        if self._open:
            await asyncio.wait(list(self._open), timeout=self._stop_s)
        await tasks.end(list(self._open))

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    async def _connected(self, reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        refusal = self._refusal(writer)
        if refusal:
            metrics.HL7_FAULTS.labels(refusal).inc()
            log.warning("hl7_connection_refused", reason=refusal)
            writer.transport.abort()
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = False
        metrics.HL7_CONNECTIONS.set(len(self._open))
        # A sender whose machine was switched off would keep its place for ever.
        with contextlib.suppress(OSError, AttributeError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        reason = "error"
        try:
            reason = await self._converse(reader, writer, task)
        except (OSError, ssl.SSLError):
            reason = "lost"
        except TimeoutError:
            reason = "slow"
        except asyncio.CancelledError:
            reason = "stopped"
        except Exception as error:
            log.error("hl7_error", control_id="?", error=error_name(error))
        finally:
            self._open.pop(task, None)
            metrics.HL7_CONNECTIONS.set(len(self._open))
            if reason not in ("end", "stopped"):
                metrics.HL7_FAULTS.labels(reason).inc()
                log.warning("hl7_connection_closed", reason=reason)
            writer.close()
            if reason not in ("end", "stopped"):
                writer.transport.abort()

    def _refusal(self, writer: HL7StreamWriter) -> str:
        if self._is_stopping:
            return "stopped"
        if len(self._open) >= self._max_connections:
            return "full"
        peer = writer.get_extra_info("peername")
        try:
            address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
        except (TypeError, ValueError, IndexError):
            return "sender"
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return "" if any(address in network for network in self._networks) else "sender"

    async def _converse(self, reader: HL7StreamReader, writer: HL7StreamWriter, task: asyncio.Task[None]) -> str:
        """Until the sender ends; returns why it did."""
        while not self._is_stopping:
            first = await reader.read(1)
            if not first:
                return "end"
            if first in _BETWEEN:
                continue  # some senders end their lines behind the frame
            if first != _START:
                return "framing"
            try:
                async with asyncio.timeout(self._message_s):
                    block, size_bytes = await self._block(reader)
            except asyncio.IncompleteReadError:
                return "truncated"
            if _START in block:
                # A second message began within the first: where that one ended, nobody knows.
                return "framing"
            self._open[task] = True
            try:
                if size_bytes > self._max_message_bytes:
                    writer.writeblock(self._taker.refuse_large(block, size_bytes))
                else:
                    writer.writeblock(await self._taker.handle(block))
                async with asyncio.timeout(self._answer_s):
                    await writer.drain()
            finally:
                self._open[task] = False
        return "stopped"

    async def _block(self, reader: HL7StreamReader) -> tuple[bytes, int]:
        """What stands before the end of the frame, and its size; of what is too large only the beginning.

        The whole is read all the same: the connection goes on with the next message.
        """
        head, dropped_bytes = b"", 0
        while True:
            try:
                found = (await reader.readuntil(_END))[: -len(_END)]
            except asyncio.LimitOverrunError as overrun:
                part = await reader.readexactly(overrun.consumed)
                head = head or part[:_HEAD_BYTES]
                dropped_bytes += len(part)
                continue
            return (head, dropped_bytes + len(found)) if dropped_bytes else (found, len(found))


@contextlib.contextmanager
def alone(data: Path) -> Iterator[bool]:
    """Whether this process is the one that takes the messages of an installation; it is so until the block ends."""
    folder = data / FOLDER_NAME
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


# --- the process --------------------------------------------------------------------------------------------


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, and how. ``tls_ca``: only senders with a certificate of this authority may connect.
    ``metrics_port``: None: metrics are not served; they are on the same address."""

    host: str = "127.0.0.1"
    port: int = 2575
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    metrics_port: int | None = None

    def context(self) -> ssl.SSLContext | None:
        """None without a certificate. Raises OSError and ssl.SSLError for files that cannot be used."""
        if not self.tls_cert:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.tls_cert, self.tls_key or None)
        if self.tls_ca:
            context.load_verify_locations(self.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _Bell:
    """Tells the gateways which alerts are new; a ring that is lost costs their sweep's two seconds."""

    def __init__(self, redis: Redis, node_id: str) -> None:
        self._redis = redis
        self._node_id = node_id
        self._last: dict[str, int] = {}
        self._has_news = asyncio.Event()

    def ring(self, department: str, recorded: tuple[Recorded, ...]) -> None:
        """Note the newest number of a department; it is told at once by ``run``."""
        self._last[department] = max(each.alert_seq for each in recorded)
        self._has_news.set()

    async def run(self) -> None:
        """Ring until cancelled."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            news, self._last = self._last, {}
            try:
                for department, alert_seq in news.items():
                    await self._redis.publish(ALERT_DOORBELL, f"{department} {alert_seq} {self._node_id}")
            except (RedisError, OSError, TimeoutError):
                metrics.REDIS_ERRORS.inc()


def serve(settings: Settings, places: Places, where: Where) -> int:
    """Take messages until SIGTERM or SIGINT; returns the exit status.

    Prints ``ready mllp://HOST:PORT`` once messages are taken.
    """
    no_core_dumps()
    writer = logs.set_up(settings.log_level)
    try:
        with alone(places.data) as is_alone:
            if not is_alone:
                return _fail(f"another chatd hl7 serve takes the messages of {places.data}")
            policies = settings.alert_policies_file
            own = Path(policies).read_bytes() if policies else None
            asyncio.run(_serve(settings, places, where, Policies(own)))
    except ssl.SSLError:
        return _fail("the certificate, its key or the authority's certificate cannot be used")
    except (ChatdError, OSError, ValueError) as error:
        return _fail(str(error) or type(error).__name__)
    finally:
        writer.close()
    return 0


async def _serve(settings: Settings, places: Places, where: Where, policies: Policies) -> None:
    clock, node_id = SystemClock(), f"n-{secrets.token_hex(6)}"
    found = configured(places.data, is_demo=settings.demo, now=clock.now())
    departments = tuple(department.department_id for department in found.departments)
    config = Config.load(places.data, departments)
    tls = where.context()
    sealer = places.live_keys().sealer
    redis = connect(
        places.redis_url, timeout_s=settings.redis_timeout_s, max_connections=settings.redis_max_connections
    )
    ledger = Ledger.open(places.ledger_url, timeout_s=settings.ledger_timeout_s)
    store = ContextStore(redis, sealer, timeout_s=settings.redis_timeout_s)
    alerts = Alerts(
        ledger,
        DayKeys(sealer),
        policies,
        Presence(redis),
        clock=clock,
        mac_key=sealer.derive("alert-command"),
        node_id=node_id,
        retention_days=settings.alert_retention_days,
        raises_per_minute=settings.alert_raises_per_minute,
    )
    alerts.is_department = Departments(store).has
    audit = audit_of(places, sealer, ledger, clock=clock, node_id=node_id)
    alerts.on_record = audit.of_alert
    bell = _Bell(redis, node_id)
    ttl_ms = round(settings.session_timeout_s * 1000)
    sessions = Sessions(
        redis,
        sealer,
        sealer.derive("client-message-digest"),
        node_id=node_id,
        ttl_ms=ttl_ms,
        max_events=settings.session_log_events,
    )
    rests = Rests(redis, sealer, ttl_ms=ttl_ms)
    alerts.on_recorded = bell.ring
    intake = Intake(
        store=store,
        files=HeardFiles(places.data, sealer, on_broken_file),
        alerts=alerts,
        config=config,
        hospital=found.hospital,
        departments=departments,
        clock=clock,
        on_layer=lambda layer: rests.tell(sessions, layer, clock.now()),
    )
    server = MllpServer(intake, config=config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # The models of FHIR take a second to load: now, not while the first critical result waits.
    await asyncio.to_thread(fhir.warm_up)
    loops = [
        asyncio.create_task(tasks.keep(name, run), name=name)
        for name, run in (("hl7", intake.run), ("bell", bell.run), ("time", alerts.keep_hearing), ("audit", audit.run))
    ]
    metrics_server = None
    try:
        if where.metrics_port is not None:
            metrics_server, _ = start_http_server(where.metrics_port, where.host, metrics.REGISTRY)
        host, port = await server.start(where.host, where.port, tls=tls)
        shown = f"[{host}]" if ":" in host else host
        print(f"ready mllp://{shown}:{port}", flush=True)
        await stopped.wait()
    finally:
        await server.stop()
        await tasks.end(loops)
        if metrics_server is not None:
            await asyncio.to_thread(metrics_server.shutdown)
            metrics_server.server_close()
        await audit.flush()
        await ledger.close()
        await redis.aclose()


def _fail(text: str) -> int:
    print(f"chatd hl7: {text}", file=sys.stderr, flush=True)
    return 1
