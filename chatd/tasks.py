"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

#: A task that has swallowed its cancellation is asked again after this.
_AGAIN_S = 0.05


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended; what they raise is not told. Twice does no harm.

    One ``cancel`` is not enough: before Python 3.12 ``asyncio.wait_for`` swallows a cancellation that comes just as
    what it waits for is done, and redis-py sends each command through it. A loop would simply go on.
    Source: https://github.com/python/cpython/issues/81839
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # seen, so that asyncio does not complain about it later
