"""``chatd hl7 serve``: MLLP connections of interface engines, around ``chatd.hl7``."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, cast

import structlog
from hl7.mllp import HL7StreamReader, HL7StreamWriter, start_hl7_server  # type: ignore[import-untyped]

from chatd import metrics, tasks
from chatd.hl7 import Config
from chatd.logs import error_name
from context.hl7_files import FOLDER_NAME

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
