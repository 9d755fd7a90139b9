"""Answers whose value was replaced: which ones, and that their sessions hear it once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from redis.asyncio import Redis

from chatd.replies.sessions import SessionLost
from chatd.replies.stale import MAX_RESTS, Rest, Rests, cause_of, rest_of
from context.layers import Observation, PatientLayer
from context.seal import KeyRing, Sealer
from protocols.frames import ContextInfo, Fact, Facts, Stale

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def result(ref: str = "k-1", value: float = 6.9, code: str = "2823-3", minutes: int = 0) -> Observation:
    at = NOW - timedelta(hours=1) + timedelta(minutes=minutes)
    return Observation(ref=f"Observation/{ref}", name=f"N{code}", code=code, value=value, unit="mmol/L", as_of=at)


def patient(*results: Observation) -> PatientLayer:
    newest = tuple(sorted(results, key=lambda item: item.as_of or NOW, reverse=True))
    return PatientLayer(patient_id="7823", name="João Silva", as_of=NOW, observations=newest)


def facts(*refs: str, response_id: str = "resp_1") -> Facts:
    named = tuple(Fact(kind="value", name="K", text="K 6.9", ref=f"Observation/{ref}") for ref in refs)
    return Facts(
        response_id=response_id,
        client_msg_id="m-1",
        patient_id="7823",
        facts=named,
        context=ContextInfo(hash="h-1", layers=()),
    )


def rest(*refs: str, of: PatientLayer, response_id: str = "resp_1") -> Rest:
    return rest_of(facts(*refs, response_id=response_id), of, key="u|d|p", epoch="e1", now=NOW)


@pytest.mark.parametrize(
    ("after", "field"),
    [
        ((result(),), None),
        ((result(value=4.1),), "N2823-3"),
        ((), "2823-3"),
        ((result(), result("k-2", 4.0, minutes=5)), "N2823-3"),
        ((result(), result("k-0", 4.0, minutes=-5)), None),
        ((result(), result("na", 140, code="2951-2", minutes=5)), None),
    ],
)
def test_answer_is_stale_when_its_value_is_not_the_value_any_more(
    after: tuple[Observation, ...], field: str | None
) -> None:
    """Another value, none, or a newer one of the same kind; not an older one, nor one of another kind."""
    cause = cause_of(rest("k-1", of=patient(result())), patient(*after), NOW)
    assert (None if cause is None else cause.field) == field


def test_answer_about_an_older_value_stays_when_a_newer_comes() -> None:
    """Who was told of yesterday's value was told of yesterday's."""
    before = (result(), result("k-2", 5.0, minutes=5))
    assert cause_of(rest("k-1", of=patient(*before)), patient(*before, result("k-3", 4.0, minutes=9)), NOW) is None


class Log:
    """A session log that keeps what is appended."""

    def __init__(self) -> None:
        self.frames: dict[str, Stale] = {}
        self.lost: set[str] = set()

    async def append(self, key: str, epoch: str, event_id: str, frame: bytes) -> tuple[int, bool, str]:
        if key in self.lost:
            raise SessionLost
        is_new = event_id not in self.frames
        self.frames[event_id] = msgspec.json.decode(frame, type=Stale)
        return len(self.frames), is_new, epoch


async def test_sessions_hear_it_once(redis: Redis) -> None:
    """Every answer that does not hold is told, each once; one that holds, and one of an ended session, are not."""
    rests, log = Rests(redis, Sealer(KeyRing.generate()), ttl_ms=60_000), Log()
    before = patient(result(), result("na", 140, code="2951-2"))
    await rests.note("7823", rest("k-1", of=before))
    await rests.note("7823", rest("na", of=before, response_id="resp_2"))
    await rests.note("7823", rest(of=before, response_id="resp_3"))
    after = patient(result(value=4.1), result("na", 140, code="2951-2"))
    assert [
        await rests.tell(log, before, NOW),
        await rests.tell(log, after, NOW),
        await rests.tell(log, after, NOW),
    ] == [*(0, 1, 0)]
    assert list(log.frames) == ["stale:resp_1"]
    assert log.frames["stale:resp_1"].cause.new_as_of == "2026-11-22T07:00:00.000Z"
    log.lost.add("u|d|p")
    assert await rests.tell(log, patient(), NOW) == 0
    assert await rests.of("7823") == ()


async def test_one_answer_alone_is_looked_at(redis: Redis) -> None:
    """An answer that was just given is checked by itself; the others are left to whoever brings the new value."""
    rests, log = Rests(redis, Sealer(KeyRing.generate()), ttl_ms=60_000), Log()
    for response_id in ("resp_1", "resp_2"):
        await rests.note("7823", rest("k-1", of=patient(result()), response_id=response_id))
    after = patient(result(value=4.1))
    assert await rests.tell(log, after, NOW, only="resp_2") == 1
    assert list(log.frames) == ["stale:resp_2"]
    assert await rests.tell(log, after, NOW, only="resp_9") == 0
    assert await rests.tell(log, after, NOW) == 1


async def test_watched_answers_are_bounded_and_sealed(redis: Redis) -> None:
    """The oldest go beyond the bound, and Redis sees no word of any."""
    rests = Rests(redis, Sealer(KeyRing.generate()), ttl_ms=60_000)
    for n in range(MAX_RESTS + 3):
        noted = rest("k-1", of=patient(result()), response_id=f"resp_{n}")
        await rests.note("7823", msgspec.structs.replace(noted, at_ms=n))
    kept = {each.response_id for each in await rests.of("7823")}
    assert (len(kept), "resp_2" in kept, "resp_3" in kept) == (MAX_RESTS, False, True)
    (key,) = [name async for name in redis.scan_iter("chatd:rests:*")]
    assert b"7823" not in key
    assert 0 < await redis.pttl(key) <= 60_000
