"""What a node needs before phones should be sent to it: the cheap checks of ``chatd.checks``, bounded and shared."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
from redis.exceptions import RedisError

from chatd.audit.service import AuditState
from chatd.checks import redis_safety
from chatd.checks.table import CHECKS
from context.store import StoreError
from protocols.frames import Mode

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from chatd.clock import Clock
    from chatd.gateway.node import Node
    from chatd.ledger import Ledger
    from context.store import ContextStore

T = TypeVar("T")

#: A check that did not get its answer is asked again after this, however long an answer would stand.
_AGAIN_MS = 1_000


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``ready``: questions can be answered. Ledger and model are not part of it: without the one only actions are
    refused, without the other answers come from facts (``mode``).

    ``clock_stepped`` is not part of it either: this machine's wall clock, or the ledger's, was set, and it cannot be
    told which of the two is right. A proxy that took away all gateways that differ could take all there are.

    Nor is ``redis_safe``: no gateway starts on a Redis that may write to a disk, unless it was told to. One that
    becomes so later is the same for all gateways, and phones that find none get no alert.
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
    #: Nothing was seen by which Redis could bring chat to a disk; false also until it was looked at.
    redis_safe: bool = True


class Cached(Generic[T]):
    """What one check of the table found, for as long as the table says; callers that come at once share one question.

    A question ends within the table's bound; then, and where it fails, what holds is what ``unknown`` gives.
    """

    def __init__(self, check: str, ask: Callable[[], Awaitable[T]], clock: Clock, unknown: Callable[[], T]) -> None:
        self._check = CHECKS[check]
        self._ask = ask
        self._clock = clock
        self._unknown = unknown
        self._asked_ms = 0
        self._fresh_ms = 0
        self._asking: asyncio.Task[T] | None = None

    @property
    def age_ms(self) -> int:
        """How long ago what is held was asked; 0 before the first question."""
        return 0 if self._asking is None else self._clock.monotonic_ms() - self._asked_ms

    async def get(self) -> T:
        """What was found last, asked anew where that is too old. Cancelling it disturbs no other caller."""
        if self._asking is None or (self._asking.done() and self.age_ms >= self._fresh_ms):
            self._asked_ms = self._clock.monotonic_ms()
            self._asking = asyncio.create_task(self._bounded())
        return await asyncio.shield(self._asking)

    async def _bounded(self) -> T:
        with contextlib.suppress(TimeoutError, RedisError, OSError, StoreError):
            async with asyncio.timeout(self._check.within_s):
                found = await self._ask()
                self._fresh_ms = self._check.fresh_ms
                return found
        self._fresh_ms = min(self._check.fresh_ms, _AGAIN_MS)
        return self._unknown()


class NodeChecks:
    """The cheap checks of one gateway."""

    def __init__(self, redis: Redis, store: ContextStore, ledger: Ledger, clock: Clock) -> None:
        self._redis = redis
        self._store = store
        self._was_safe = False
        self.redis = Cached("redis", self._ping, clock, unknown=lambda: (False, False))
        self.redis_safe = Cached("redis_safe", self._is_safe, clock, unknown=lambda: self._was_safe)
        self.ledger = Cached("ledger", ledger.healthy, clock, unknown=lambda: False)

    @property
    def age_ms(self) -> int:
        """Of the oldest answer that is held."""
        return max(each.age_ms for each in (self.redis, self.redis_safe, self.ledger))

    async def _ping(self) -> tuple[bool, bool]:
        """Whether Redis answers, and whether the layers are there."""
        answers = bool(await self._redis.ping())
        with contextlib.suppress(TimeoutError, RedisError, OSError, StoreError):
            return answers, await self._store.is_loaded()
        return answers, False

    async def _is_safe(self) -> bool:
        """A Redis that is away, as ``redis`` says, is taken for what it was when it was looked at last."""
        self._was_safe = not redis_safety.problems(await redis_safety.facts_of(self._redis))
        return self._was_safe


async def readiness(node: Node) -> Readiness:
    """Redis, the loaded layers and the ledger as they were found last, and what the node itself knows; at most 3 s."""
    (redis, context), is_safe, ledger = await asyncio.gather(
        node.checks.redis.get(), node.checks.redis_safe.get(), node.checks.ledger.get()
    )
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
        redis_safe=is_safe,
    )
