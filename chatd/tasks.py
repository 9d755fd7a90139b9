"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from chatd.logs import error_name

log = structlog.get_logger(__name__)

#: What has failed begins anew after this.
_ANEW_S = 1.0
#: A task that has swallowed its cancellation is asked again after this. Longer than what tasks do when they end: asking
#: again breaks that off too.
_AGAIN_S = 0.5


async def keep(name: str, run: Callable[[], Awaitable[object]]) -> None:
    """Run what must not end while the process lives; ends by cancellation.

    A fault of it is told, and a second later it begins anew: what rings, heals or wakes others must not stay silent
    because of one fault.
    """
    while True:
        try:
            await run()
        except Exception as error:
            log.error("background_task_failed", task=name, error=error_name(error))
        await asyncio.sleep(_ANEW_S)


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended; what they raise is not told. Twice does no harm.

    Cancelled itself, it still waits until they have ended, and then is cancelled: a task that ends its own tasks so
    leaves none of them behind, whoever is in a hurry.

    One ``cancel`` is not enough: before Python 3.12 ``asyncio.wait_for`` swallows a cancellation that comes just as
    what it waits for is done, and redis-py sends each command through it. A loop would simply go on.
    Source: https://github.com/python/cpython/issues/81839
    """
    pending = set(tasks)
    is_cancelled = False
    while pending:
        for task in pending:
            task.cancel()
        try:
            ended, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        except asyncio.CancelledError:
            is_cancelled = True
            continue
        for task in ended:
            if not task.cancelled():
                task.exception()  # seen, so that asyncio does not complain about it later
    if is_cancelled:
        raise asyncio.CancelledError
