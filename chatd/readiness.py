"""What a node needs before phones should be sent to it, checked within a bound."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from chatd.audit.service import AuditState
from context.store import StoreError
from protocols.frames import Mode

if TYPE_CHECKING:
    from chatd.clock import Clock
    from chatd.gateway.node import Node
    from chatd.ledger import Ledger

#: A health check that hangs is a failed one.
_WITHIN_S = 3.0
#: Asking the ledger costs a commit in the line in which confirmations wait: whoever asks, it is asked this often.
_LEDGER_EVERY_MS = 2_000


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``ready``: questions can be answered. Ledger and model are not part of it: without the one only actions are
    refused, without the other answers come from facts (``mode``).

    ``clock_stepped`` is not part of it either: this machine's wall clock, or the ledger's, was set, and it cannot be
    told which of the two is right. A proxy that took away all gateways that differ could take all there are.
    """

    ready: bool
    draining: bool
    redis: bool
    context: bool
    ledger: bool
    mode: Mode = "facts_only"
    model: str = "none"
    #: Tokens can be checked; the list of what was revoked is that of all gateways, not only the last one seen.
    keys: bool = True
    revocations: bool = True
    clock_stepped: bool = False
    #: Not part of it either: while it is ``closed`` questions are refused, and alerts go on over this gateway.
    audit: AuditState = "ok"


class LedgerCheck:
    """Whether the ledger takes writes, as it was at most 2 s ago; callers that come at once share one question."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._asked_ms = 0
        self._asking: asyncio.Task[bool] | None = None

    async def healthy(self) -> bool:
        """True if a write was taken. Ends as the ledger's own wait does; cancelling it disturbs no other caller."""
        now_ms = self._clock.monotonic_ms()
        if self._asking is None or (self._asking.done() and now_ms - self._asked_ms >= _LEDGER_EVERY_MS):
            self._asked_ms = now_ms
            self._asking = asyncio.create_task(self._ledger.healthy())
        return await asyncio.shield(self._asking)


async def readiness(node: Node) -> Readiness:
    """Check Redis, the loaded layers and the ledger, at most 3 s."""
    redis = context = ledger = False
    with contextlib.suppress(TimeoutError, RedisError, OSError, StoreError):
        async with asyncio.timeout(_WITHIN_S):
            redis = bool(await node.redis.ping())
            context = await node.store.is_loaded()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WITHIN_S):
            ledger = await node.ledger_check.healthy()
    keys = node.gate.has_keys
    return Readiness(
        ready=redis and context and keys and not node.draining,
        draining=node.draining,
        redis=redis,
        context=context,
        ledger=ledger,
        mode=node.watch.mode,
        model=node.watch.state.state,
        keys=keys,
        revocations=node.gate.is_current,
        clock_stepped=node.pools is not None and node.alerts.steady.is_stepped,
        audit=node.audit.state,
    )
