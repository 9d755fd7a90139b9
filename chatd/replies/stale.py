"""Answers that rest on a value which has been replaced since: told by a durable ``stale`` in their session.

Which results an answer showed is kept sealed in Redis as long as its session lives, by patient. Whoever puts a new
layer of the patient (``chatd.hl7``) compares. Losing the list loses a courtesy: the value itself is in the record, with
its time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, Protocol, cast

import msgspec
from redis.asyncio import Redis

from chatd.clock import epoch_ms, iso_ms
from chatd.replies.sessions import SessionLost
from context.layers import ChartRef, Observation, PatientLayer
from context.seal import Sealer, SealError
from protocols.frames import Facts, Stale, StaleCause

#: Answers of one patient that are watched: a department's questions of half an hour. Beyond it the oldest go.
MAX_RESTS: Final = 256


class Cited(msgspec.Struct, frozen=True, kw_only=True):
    """One result that an answer showed. ``is_latest``: it was the newest of its kind then."""

    ref: ChartRef
    kind: str
    shown: str
    as_of: datetime | None
    is_latest: bool


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer rests on; ``key`` and ``epoch`` name the session that has it."""

    response_id: str
    key: str
    epoch: str
    at_ms: int
    cited: tuple[Cited, ...]


class SessionLog(Protocol):
    """What is needed of ``chatd.replies.sessions.Sessions``."""

    async def append(self, key: str, epoch: str, event_id: str, frame: bytes) -> tuple[int, bool, str]: ...


def rest_of(facts: Facts, patient: PatientLayer, *, key: str, epoch: str, now: datetime) -> Rest:
    """What an answer with these facts rests on: the results that they name."""
    named = set(_refs(msgspec.to_builtins(facts)))
    latest: dict[str, ChartRef] = {}
    for item in patient.observations:  # newest first
        latest.setdefault(_kind(item), item.ref)
    cited = tuple(
        Cited(
            ref=item.ref,
            kind=_kind(item),
            shown=_shown(item),
            as_of=item.as_of,
            is_latest=latest[_kind(item)] == item.ref,
        )
        for item in patient.observations
        if item.ref in named
    )
    return Rest(response_id=facts.response_id, key=key, epoch=epoch, at_ms=epoch_ms(now), cited=cited)


def cause_of(rest: Rest, patient: PatientLayer, now: datetime) -> StaleCause | None:
    """Why an answer is stale by what the record says now; None while it holds.

    A result that it showed has another value or is gone, or one that was the newest of its kind is not any more.
    """
    by_ref = {item.ref: item for item in patient.observations}
    newest: dict[str, Observation] = {}
    for each in patient.observations:
        newest.setdefault(_kind(each), each)
    for cited in rest.cited:
        item: Observation | None = by_ref.get(cited.ref)
        last = newest.get(cited.kind)
        if item is not None and _shown(item) == cited.shown:
            if not cited.is_latest or last is None or last.ref == cited.ref or _is_older(last, cited):
                continue
            item = last
        elif item is None:
            item = last
        name = item.name if item is not None else cited.kind
        at = now if item is None or item.as_of is None else item.as_of
        return StaleCause(layer="patient", field=name, new_as_of=iso_ms(at))
    return None


class Rests:
    """The answers that are watched, by patient; one per process."""

    def __init__(self, redis: Redis, sealer: Sealer, *, ttl_ms: int) -> None:
        self._redis = redis
        self._sealer = sealer
        self._naming_key = sealer.derive("rests-names")
        self._ttl_ms = ttl_ms

    async def note(self, patient_id: str, rest: Rest) -> None:
        """Watch an answer from now on; twice is once. Raises RedisError."""
        if not rest.cited:
            return
        name = self._name(patient_id)
        sealed = self._sealer.seal(msgspec.msgpack.encode(rest), aad=name.encode())
        async with self._redis.pipeline(transaction=True) as together:
            together.hset(name, rest.response_id, sealed)
            together.pexpire(name, self._ttl_ms)
            together.hlen(name)
            *_, count = await together.execute()
        if count > MAX_RESTS:
            rests = sorted(await self.of(patient_id), key=lambda each: each.at_ms)
            await self.forget(patient_id, *(each.response_id for each in rests[: count - MAX_RESTS]))

    async def of(self, patient_id: str, *, only: str | None = None) -> tuple[Rest, ...]:
        """The answers that rest on this patient's record; ``only``: that one alone. Raises RedisError."""
        name = self._name(patient_id)
        redis = cast("Any", self._redis)
        held = (await redis.hgetall(name)).values() if only is None else [await redis.hget(name, only)]
        found = []
        for sealed in held:
            if sealed is None:
                continue
            try:
                found.append(msgspec.msgpack.decode(self._sealer.open(sealed, aad=name.encode()), type=Rest))
            except (SealError, msgspec.MsgspecError):
                continue  # another version's; its session outlives it by minutes at most
        return tuple(found)

    async def forget(self, patient_id: str, *response_ids: str) -> None:
        """Watch these no more. Raises RedisError."""
        if response_ids:
            await cast("Any", self._redis.hdel(self._name(patient_id), *response_ids))

    async def tell(self, sessions: SessionLog, patient: PatientLayer, now: datetime, *, only: str | None = None) -> int:
        """Append ``stale`` to every session with an answer that does not hold any more; how many. Each answer once.

        ``only``: look at this answer alone.

        Raises RedisError, and what ``sessions.append`` raises but for a session that has ended.
        """
        told = 0
        for rest in await self.of(patient.patient_id, only=only):
            cause = cause_of(rest, patient, now)
            if cause is None:
                continue
            frame = msgspec.json.encode(Stale(response_id=rest.response_id, cause=cause))
            try:
                _, is_new, _ = await sessions.append(rest.key, rest.epoch, f"stale:{rest.response_id}", frame)
                told += is_new
            except SessionLost:
                pass
            await self.forget(patient.patient_id, rest.response_id)
        return told

    def _name(self, patient_id: str) -> str:
        return f"chatd:rests:{hmac.new(self._naming_key, patient_id.encode(), hashlib.sha256).hexdigest()[:32]}"


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _refs(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _refs(value)
    elif isinstance(node, str) and node.startswith("Observation/"):
        yield node


def _kind(item: Observation) -> str:
    return item.code or item.name.casefold()


def _shown(item: Observation) -> str:
    text = f"{item.comparator}|{item.value}|{item.unit}|{item.text}|{item.as_of}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _is_older(item: Observation, cited: Cited) -> bool:
    """Whether ``item`` is surely older than what was cited; an unknown time decides nothing."""
    return item.as_of is not None and cited.as_of is not None and item.as_of < cited.as_of
