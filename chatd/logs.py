"""Structured logs: JSON lines with ids, sizes and durations, and never a word of a patient's or doctor's.

Writing never blocks the event loop: lines go through a bounded queue to a thread, and when the reader of the
log has stopped reading they are dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from typing import TextIO

import structlog

from chatd import metrics

#: Lines waiting for the writer; beyond it lines are dropped. 10,000 lines of 300 bytes are 3 MB.
QUEUE_LINES = 10_000


class LineWriter:
    """A thread that writes lines to a stream; ``write`` never waits."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._run, name="chatd-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            metrics.LOG_LINES_DROPPED.inc()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, at most ``timeout_s`` seconds; twice does no harm."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                # The reader is gone; the server goes on without its log.
                metrics.LOG_LINES_DROPPED.inc()
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


class _Forward(logging.Handler):
    """Lines of the libraries' own loggers, in the same form. Exceptions keep their type and lose their text:
    a library's message or traceback may hold what a person typed."""

    def emit(self, record: logging.LogRecord) -> None:
        error = error_name(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
        logger = structlog.get_logger(record.name)
        event = "library_error" if error else "library"
        # A format string with arguments is the library's own words, and the arguments are not written. Without
        # arguments the message was put together before, as asyncio does it, and may quote what it was about.
        message = str(record.msg)[:200] if record.args else None
        where = f"{record.filename}:{record.lineno}"
        logger.log(record.levelno, event, message=message, where=where, error=error)


def set_up(level: str, stream: TextIO | None = None) -> LineWriter:
    """Configure structlog and the standard library's logging once per process; returns the writer to close at exit."""
    writer = LineWriter(stream or sys.stderr)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _WriterLogger(writer),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(number, logging.WARNING))
    # uvicorn writes a traceback for each invalid UTF-8 message, with the bytes in it.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn.access").disabled = True
    return writer


class _WriterLogger:
    def __init__(self, writer: LineWriter) -> None:
        self._write = writer.write

    def msg(self, message: str) -> None:
        self._write(message)

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = msg


def error_name(error: BaseException) -> str:
    """What may be logged of an exception: its type and where it was raised, never its text or locals."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}"
