"""``chatd context show``: the five layers and the composed prompt, as a model would be told them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
from redis.asyncio import Redis

from chatd.clock import SystemClock
from chatd.places import Places
from chatd.private_redis import PrivateRedis, RedisNotStarted
from chatd.records import HospitalFileError, RecordKeeper
from chatd.replies.facts import build
from chatd.replies.sessions import session_key
from context.budget import BudgetTooSmall, estimate_tokens
from context.compose import compose
from context.seal import Sealer
from context.store import ContextStore, DepartmentUnknown, PatientUnknown, StoreError, connect


async def show(places: Places, *, department: str, user: str, patient: str, question: str, budget_tokens: int) -> int:
    """Print the layers as JSON and the prompt as text; returns 0, or 1 with one line that says what is not there."""
    now = datetime.now(UTC)
    try:
        async with _store(places) as store:
            layers = await store.read(
                department_id=department,
                user_id=user,
                patient_id=patient,
                session_key=session_key(user, department, "context-show"),
            )
    except PatientUnknown:
        return _fail("not shown: no such patient")
    except DepartmentUnknown:
        return _fail("not shown: no such department")
    except (StoreError, RedisNotStarted, HospitalFileError) as error:
        return _fail(f"not shown: {error or type(error).__name__}")
    if layers.patient is not None and department not in layers.patient.departments:
        return _fail(f"not shown: this patient is not of {department}")
    facts = build(layers, question, library=places.library(), now=now, lang="")
    try:
        prompt = compose(
            layers,
            question,
            quotes=facts.protocols,
            now=now,
            budget_tokens=budget_tokens,
            count_tokens=estimate_tokens,
            must_keep=frozenset(facts.facts[n].ref or "" for n in facts.critical),
        )
    except BudgetTooSmall as error:
        return _fail(f"CHATD_PROMPT_BUDGET_TOKENS is too small for this record: {error}")
    print(msgspec.json.format(msgspec.json.encode(layers), indent=2).decode())
    for segment in prompt.segments:
        print(f"--- {segment.name} ({segment.tokens} tokens, version {segment.version})")
        print(segment.text, end="")
    return 0


@contextlib.asynccontextmanager
async def _store(places: Places) -> AsyncIterator[ContextStore]:
    """The running chatd's store, or one on a private Redis of this command's own, filled from the same sources."""
    sealer = Sealer(places.key_ring())
    own = None if places.redis_url else PrivateRedis(places.data / "show")
    if own is not None:
        places.prepare()
        own.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        own.start()
    redis: Redis = connect(own.url if own is not None else places.redis_url)
    store = ContextStore(redis, sealer)
    try:
        if own is not None:
            is_demo = not (places.data / "hospital.json").exists()
            await RecordKeeper(store, redis, places, demo=is_demo, clock=SystemClock()).load()
        yield store
    finally:
        await redis.aclose()
        if own is not None:
            own.stop()


def _fail(text: str) -> int:
    print(f"chatd: {text}", file=sys.stderr)
    return 1
