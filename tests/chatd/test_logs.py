"""What goes to the log: chatd's own words, a library's format strings, and never what they were filled with."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from chatd import logs

SECRET = "CANARY-4711"
Log = tuple[io.StringIO, logs.LineWriter]


@pytest.fixture
def log() -> Iterator[Log]:
    """Where the log goes, and who writes it."""
    written = io.StringIO()
    writer = logs.set_up("debug", written)
    yield written, writer
    writer.close()


def lines(stream: io.StringIO, writer: logs.LineWriter) -> list[dict[str, object]]:
    """All lines, once the writer's thread has written them; each is one JSON object."""
    writer.close(10.0)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_library_line_keeps_its_format_and_loses_its_arguments(log: Log) -> None:
    """A library's warning is told by its own words and place, without what it was about."""
    logging.getLogger("some.library").warning("cannot read %s", SECRET)
    (line,) = lines(*log)
    assert line["message"] == "cannot read %s"
    assert str(line["where"]).startswith("test_logs.py:")


def test_library_line_that_was_put_together_before_is_left_out(log: Log) -> None:
    """A message without arguments may quote anything: only its place is told."""
    logging.getLogger("some.library").error(f"cannot read {SECRET}")
    (line,) = lines(*log)
    assert line["message"] is None
    assert SECRET not in log[0].getvalue()


def test_exception_keeps_its_type_and_place_only(log: Log) -> None:
    """An exception's text and traceback stay out; its type and its place are told."""
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("some.library").exception("failed: %s", SECRET)
    (line,) = lines(*log)
    assert line["event"] == "library_error"
    assert line["error"].startswith("ValueError at test_logs.py:")
    assert SECRET not in log[0].getvalue()


async def test_loop_that_finds_a_lost_exception_tells_no_text(log: Log) -> None:
    """asyncio's own report of a failed callback, which quotes it, becomes a line without a word of it."""
    context = {"message": f"Exception in callback f({SECRET})", "exception": ValueError(SECRET)}
    asyncio.get_running_loop().default_exception_handler(context)
    (line,) = lines(*log)
    assert line["error"] == "ValueError at ?"
    assert SECRET not in log[0].getvalue()
