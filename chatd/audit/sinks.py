"""Where checkpoints go, so that whoever owns this machine does not own them: a file on another mount, a syslog server.

A sink that is slow or away holds up nobody: what waits is bounded, and the newest says all that the older ones said.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from chatd import metrics
from chatd.audit.chain import Checkpoint, encode_checkpoint
from chatd.clock import iso_ms
from chatd.logs import error_name

log = structlog.get_logger(__name__)

#: Checkpoints that wait for one sink: an hour of them.
MAX_WAITING: Final = 64
WITHIN_S: Final = 10.0
AGAIN_S: Final = 5.0

#: Facility 13 ("log audit"), severity 5 ("notice"). Source: RFC 5424, section 6.2.1.
_PRIORITY: Final = 13 * 8 + 5
#: The port of syslog over TLS. Source: RFC 5425, section 4.1.
SYSLOG_PORT: Final = 6514
_MAX_HOST_CHARS: Final = 255


class Sink(Protocol):
    """One place elsewhere. ``name`` is a label: "file" or "syslog"."""

    name: str

    async def deliver(self, line: bytes, at: datetime) -> None:
        """Put one checkpoint there. Raises OSError or TimeoutError; then it is tried again."""
        ...

    async def close(self) -> None: ...


class FileSink:
    """Appends lines to a file and syncs each; the folder is meant to be another machine's."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        # Of its own: a network mount that hangs keeps its thread for good.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    async def deliver(self, line: bytes, at: datetime) -> None:
        async with asyncio.timeout(WITHIN_S):
            await asyncio.wrap_future(self._thread.submit(self._append, line))

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            os.write(descriptor, line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class SyslogSink:
    """Sends messages of RFC 5424 over TLS, framed by RFC 5425. What TCP has taken counts as sent: there is no reply."""

    name = "syslog"

    def __init__(self, host: str, port: int, tls: ssl.SSLContext, *, hostname: str | None = None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._hostname = _printable(hostname or socket.gethostname())
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def deliver(self, line: bytes, at: datetime) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                writer = await self._connected()
                writer.write(framed(message(line, at, self._hostname, os.getpid())))
                await writer.drain()
        except (OSError, TimeoutError):
            await self.close()
            raise

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()

    async def _connected(self) -> asyncio.StreamWriter:
        # A server that has closed is noticed by its end of file, and not by the first message that is lost.
        if self._writer is None or self._writer.is_closing() or (self._reader is not None and self._reader.at_eof()):
            await self.close()
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._tls, server_hostname=self._host
            )
        return self._writer


def message(line: bytes, at: datetime, hostname: str, process: int) -> bytes:
    """One message of RFC 5424, section 6: header, no structured data, the line as it is."""
    return f"<{_PRIORITY}>1 {iso_ms(at)} {hostname} chatd {process} audit-checkpoint - ".encode() + line


def framed(said: bytes) -> bytes:
    """A message with its length before it. Source: RFC 5425, section 4.3."""
    return str(len(said)).encode() + b" " + said


def _printable(hostname: str) -> str:
    kept = "".join(char for char in hostname if "!" <= char <= "~")
    return kept[:_MAX_HOST_CHARS] or "-"


def tls_context(ca_file: str, cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """TLS 1.2 or newer to a server of ``ca_file`` (empty: the system's authorities), with a certificate of one's own
    where given. Raises OSError (ssl.SSLError)."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_file:
        context.load_cert_chain(cert_file, key_file or None)
    return context


class Carrier:
    """Carries checkpoints to one sink: ``offer`` never waits, ``run`` tries until the sink has taken each or lost its
    place to newer ones."""

    def __init__(self, sink: Sink, *, again_s: float = AGAIN_S) -> None:
        self._sink = sink
        self._again_s = again_s
        self._waiting: deque[Checkpoint] = deque(maxlen=MAX_WAITING)
        self._has_some = asyncio.Event()
        #: Whether the last try went through.
        self.is_well = True

    @property
    def waiting(self) -> int:
        """Checkpoints that the sink has not taken."""
        return len(self._waiting)

    def offer(self, made: Checkpoint) -> None:
        if len(self._waiting) == MAX_WAITING:
            # The oldest goes. What it said, the newer ones say too: their trees contain its rows.
            metrics.AUDIT_CHECKPOINTS.labels(self._sink.name, "dropped").inc()
        self._waiting.append(made)
        self._has_some.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._has_some.wait()
                self._has_some.clear()
                while self._waiting:
                    made = self._waiting[0]
                    try:
                        at = datetime.fromtimestamp(made.at_ms / 1000, UTC)
                        await self._sink.deliver(encode_checkpoint(made), at)
                    except (OSError, TimeoutError) as error:
                        self.is_well = False
                        metrics.AUDIT_CHECKPOINTS.labels(self._sink.name, "failed").inc()
                        log.error("audit_checkpoint_not_sent", sink=self._sink.name, error=error_name(error))
                        await asyncio.sleep(self._again_s)
                        continue
                    self.is_well = True
                    metrics.AUDIT_CHECKPOINTS.labels(self._sink.name, "sent").inc()
                    if self._waiting and self._waiting[0] is made:
                        self._waiting.popleft()
        finally:
            await self._sink.close()
