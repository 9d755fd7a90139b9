"""What a node needs before phones should be sent to it, checked within a bound."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from context.store import StoreError

if TYPE_CHECKING:
    from chatd.gateway.node import Node

#: A health check that hangs is a failed one.
_WITHIN_S = 3.0


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``ready``: questions can be answered. The ledger is not part of it: without it only actions are refused."""

    ready: bool
    draining: bool
    redis: bool
    context: bool
    ledger: bool
    mode: str = "facts_only"


async def readiness(node: Node) -> Readiness:
    """Check Redis, the loaded layers and the ledger, at most 3 s."""
    redis = context = ledger = False
    with contextlib.suppress(TimeoutError, RedisError, OSError, StoreError):
        async with asyncio.timeout(_WITHIN_S):
            redis = bool(await node.redis.ping())
            context = await node.store.is_loaded()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WITHIN_S):
            ledger = await node.ledger.healthy()
    return Readiness(
        ready=redis and context and not node.draining,
        draining=node.draining,
        redis=redis,
        context=context,
        ledger=ledger,
    )
