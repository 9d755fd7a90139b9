"""The context store on a real Redis: one round trip, sealed, and never a wrong "unknown"."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from redis.asyncio import Redis

from context.layers import Message, PatientLayer, versioned
from context.seal import KeyRing, Sealer
from context.store import (
    MAX_SESSION_BYTES,
    ContextNotLoaded,
    ContextStore,
    DepartmentUnknown,
    LoadLost,
    PatientUnknown,
    StoreUnavailable,
    TooManyPatients,
    connect,
)
from tests.context.sample_layers import CARDIOLOGY, DOCTOR, HOSPITAL, ICU, NOW, PATIENT, SESSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.redis_server import RedisServer

RING = KeyRing({"a": b"1" * 32}, b"r" * 32)
QUESTION = {"department_id": "cardiology", "user_id": "dr.teste", "session_key": "dr.teste:s1"}


def store_on(redis: Redis, ring: KeyRing = RING, **options: Any) -> ContextStore:
    return ContextStore(redis, Sealer(ring), **options)


async def loaded_store(redis: Redis, ring: KeyRing = RING) -> ContextStore:
    store = store_on(redis, ring)
    await store.begin_load("g1")
    await store.put_hospital(HOSPITAL)
    await store.put_department(CARDIOLOGY)
    await store.put_department(ICU)
    await store.put_doctor(DOCTOR)
    await store.put_patient(PATIENT)
    await store.mark_loaded("g1")
    return store


def patient(patient_id: str, *departments: str, name: str = "Rui Teste") -> PatientLayer:
    return versioned(PatientLayer(patient_id=patient_id, name=name, as_of=NOW, departments=departments))


async def everything_in(redis: Redis) -> list[bytes]:
    """All keys and all values of Redis, as bytes."""
    found: list[bytes] = []
    for key in await redis.keys("*"):
        dumped = await redis.dump(key)
        kind = await redis.type(key)
        values: list[Any] = [key, dumped]
        if kind == b"string":
            values.append(await redis.get(key))
        elif kind == b"hash":
            for field, value in (await redis.hgetall(key)).items():
                values += [field, value]
        found += values
    return found


async def test_read_gives_the_five_layers_as_they_were_put(redis: Redis) -> None:
    """All five layers come back equal, versions and times included."""
    store = await loaded_store(redis)
    session = await store.remember(
        "dr.teste:s1",
        *SESSION.messages,
        topic=SESSION.topic,
        patient_id="p-100",
        pending=SESSION.pending_actions,
    )
    layers = await store.read(**QUESTION, patient_id="p-100")
    assert layers.hospital == HOSPITAL
    assert layers.department == CARDIOLOGY
    assert layers.doctor == DOCTOR
    assert layers.patient == PATIENT
    assert layers.session == session == SESSION


async def test_read_is_one_command_in_one_round_trip(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading five layers sends one packet with one command, counted at the client and at the server."""
    store = await loaded_store(redis)
    await store.remember("dr.teste:s1", *SESSION.messages)
    packets = 0
    connection_class = redis.connection_pool.connection_class
    send = connection_class.send_packed_command

    async def counted(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal packets
        packets += 1
        await send(self, command, *args, **kwargs)

    await redis.config_resetstat()
    monkeypatch.setattr(connection_class, "send_packed_command", counted)
    await store.read(**QUESTION, patient_id="p-100")
    monkeypatch.undo()
    stats = await redis.info("commandstats")
    stats.pop("cmdstat_config|resetstat", None)
    stats.pop("cmdstat_config", None)
    assert packets == 1
    assert {name: figures["calls"] for name, figures in stats.items()} == {"cmdstat_mget": 1}


async def test_read_without_patient_has_none(redis: Redis) -> None:
    """A question that names no patient reads no patient."""
    store = await loaded_store(redis)
    assert (await store.read(**QUESTION, patient_id=None)).patient is None


async def test_read_unknown_doctor_gets_the_departments_defaults(redis: Redis) -> None:
    """A user without a doctor layer works with the department and no preferences."""
    store = await loaded_store(redis)
    layers = await store.read(**(QUESTION | {"user_id": "dr.new"}), patient_id=None)
    assert (layers.doctor.user_id, layers.doctor.departments) == ("dr.new", ("cardiology",))
    assert layers.doctor.preferences == ()
    assert layers.doctor.version


async def test_read_unknown_patient_and_department(redis: Redis) -> None:
    """With everything loaded, what is not there is unknown."""
    store = await loaded_store(redis)
    with pytest.raises(PatientUnknown):
        await store.read(**QUESTION, patient_id="p-999")
    with pytest.raises(PatientUnknown):
        await store.patient("p-999")
    with pytest.raises(DepartmentUnknown):
        await store.read(**(QUESTION | {"department_id": "dermatology"}), patient_id=None)


async def test_read_after_a_flush_says_not_loaded(redis: Redis) -> None:
    """An emptied Redis is "not loaded" for every reading: nobody is unknown because of it."""
    store = await loaded_store(redis)
    assert await store.is_loaded()
    await redis.flushall()
    assert not await store.is_loaded()
    for reading in (
        store.read(**QUESTION, patient_id="p-100"),
        store.read(**QUESTION, patient_id=None),
        store.patient("p-100"),
        store.patients_of("cardiology"),
        store.cards_of("cardiology"),
        store.departments(),
    ):
        with pytest.raises(ContextNotLoaded):
            await reading


async def test_read_while_loading_says_not_loaded(redis: Redis) -> None:
    """Until ``mark_loaded``, a patient that has not come yet is "not loaded"."""
    store = store_on(redis)
    await store.put_hospital(HOSPITAL)
    await store.put_department(CARDIOLOGY)
    with pytest.raises(ContextNotLoaded):
        await store.read(**QUESTION, patient_id="p-100")


async def test_read_evicted_patient_is_not_unknown(redis: Redis) -> None:
    """A patient whose layer alone is gone is "not loaded": the lists still know them."""
    store = await loaded_store(redis)
    [key] = [key for key in await redis.keys("*:patient:*")]
    await redis.delete(key)
    for reading in (store.read(**QUESTION, patient_id="p-100"), store.patient("p-100")):
        with pytest.raises(ContextNotLoaded) as error:
            await reading
        assert error.value.part == "patient"


async def test_read_with_another_root_says_not_loaded(redis: Redis) -> None:
    """Another key ring sees an empty store, not unknown patients."""
    await loaded_store(redis)
    with pytest.raises(ContextNotLoaded):
        await store_on(redis, KeyRing.generate()).read(**QUESTION, patient_id="p-100")


async def test_read_after_rotation(redis: Redis) -> None:
    """Layers sealed under an old key open; with that key removed they are "not loaded" until put again."""
    await loaded_store(redis)
    rotated = RING.add("b")
    layers = await store_on(redis, rotated).read(**QUESTION, patient_id="p-100")
    assert layers.patient == PATIENT
    without = rotated.remove("a")
    with pytest.raises(ContextNotLoaded):
        await store_on(redis, without).read(**QUESTION, patient_id="p-100")
    store = await loaded_store(redis, without)
    assert (await store.read(**QUESTION, patient_id="p-100")).patient == PATIENT


async def test_layer_moved_under_another_patient_does_not_open(redis: Redis) -> None:
    """One patient's sealed bytes under another's key are refused, also by a store that has both in its cache."""
    store = await loaded_store(redis)
    await store.put_patient(patient("p-200", "cardiology"))
    await store.read(**QUESTION, patient_id="p-100")
    await store.read(**QUESTION, patient_id="p-200")
    first, second = cast("list[bytes]", await redis.keys("*:patient:*"))
    one, two = await redis.mget(first, second)
    await redis.set(first, cast(bytes, two))
    await redis.set(second, cast(bytes, one))
    for patient_id in ("p-100", "p-200"):
        with pytest.raises(ContextNotLoaded):
            await store.read(**QUESTION, patient_id=patient_id)


async def test_card_moved_under_another_patient_does_not_open(redis: Redis) -> None:
    """Cards swapped within a department's list are refused."""
    store = await loaded_store(redis)
    await store.put_patient(patient("p-200", "cardiology"))
    await store.cards_of("cardiology")
    [index] = await redis.keys("*:patients:cardiology")
    (first, one), (second, two) = (await redis.hgetall(index)).items()
    await redis.hset(index, mapping={first: two, second: one})
    with pytest.raises(ContextNotLoaded):
        await store.cards_of("cardiology")


async def test_redis_holds_no_patient_text(redis: Redis) -> None:
    """Neither keys nor values of Redis hold a name, an id or a text; what is looked for would be found."""
    store = await loaded_store(redis)
    await store.remember("dr.teste:s1", Message(role="doctor", text="canary question", at=NOW, patient_id="p-100"))
    await redis.set("control", msgspec.msgpack.encode(PATIENT))
    words = [b"Maria", b"p-100", b"u-555", b"Penicillin", b"canary", b"Hospital of", b"dr.teste:s1"]
    found = await everything_in(redis)
    assert {word for word in words if any(word in each for each in found)} == {
        b"Maria",
        b"p-100",
        b"u-555",
        b"Penicillin",
    }
    await redis.delete("control")
    found = await everything_in(redis)
    assert len(found) > 10
    assert not [word for word in words if any(word in each for each in found)]


async def test_put_patient_moves_between_departments(redis: Redis) -> None:
    """A patient vanishes from the lists of departments that the new layer does not name."""
    store = await loaded_store(redis)
    await store.put_patient(patient("p-200", "cardiology", "icu"))
    assert [card.patient_id for card in await store.cards_of("icu")] == ["p-200"]
    moved = await store.put_patient(patient("p-200", "icu"))
    assert [card.patient_id for card in await store.cards_of("cardiology")] == ["p-100"]
    assert await store.patients_of("icu") == (moved,)
    await store.put_patient(moved)
    assert [card.patient_id for card in await store.cards_of("icu")] == ["p-200"]


async def test_drop_patient_leaves_nothing(redis: Redis) -> None:
    """A dropped patient is unknown, on no list, and twice is as once."""
    store = await loaded_store(redis)
    await store.drop_patient("p-100")
    await store.drop_patient("p-100")
    assert await store.cards_of("cardiology") == ()
    assert await store.patients_of("cardiology") == ()
    with pytest.raises(PatientUnknown):
        await store.patient("p-100")
    assert not await redis.keys("*:patient*:*") + await redis.keys("*:members:*")


async def test_patients_of_is_ordered_and_whole(redis: Redis) -> None:
    """The list is by name, then id, and holds namesakes apart; more than one read of Redis is needed for it."""
    store = await loaded_store(redis)
    for number in range(150):
        await store.put_patient(patient(f"q-{number:03}", "icu", name="Ana" if number % 2 else "Rui"))
    patients = await store.patients_of("icu")
    assert [(each.name, each.patient_id) for each in patients] == sorted(
        ("Ana" if number % 2 else "Rui", f"q-{number:03}") for number in range(150)
    )
    cards = await store.cards_of("icu")
    assert [card.patient_id for card in cards] == [each.patient_id for each in patients]


async def test_patients_of_too_many_is_refused_aloud(redis: Redis) -> None:
    """Above the limit there is an error and no part of the list."""
    store = await loaded_store(redis)
    for number in range(4):
        await store.put_patient(patient(f"q-{number}", "icu"))
    assert len(await store.patients_of("icu", limit=4)) == 4
    for reading in (store.patients_of("icu", limit=3), store.cards_of("icu", limit=3)):
        with pytest.raises(TooManyPatients) as error:
            await reading
        assert (error.value.count, error.value.limit) == (4, 3)


async def test_cards_of_shows_a_changed_name(redis: Redis) -> None:
    """The cards of an earlier reading do not outlive a change in Redis."""
    store = await loaded_store(redis)
    await store.cards_of("cardiology")
    other = store_on(redis)
    await other.put_patient(patient("p-100", "cardiology", name="Maria Nova"))
    [card] = await store.cards_of("cardiology")
    assert card.name == "Maria Nova"


async def test_read_shows_a_changed_layer(redis: Redis) -> None:
    """A layer that another process has replaced is read anew, never out of the cache."""
    store = await loaded_store(redis)
    await store.read(**QUESTION, patient_id="p-100")
    new = await store_on(redis).put_patient(patient("p-100", "cardiology", name="Maria Nova"))
    assert (await store.read(**QUESTION, patient_id="p-100")).patient == new
    await redis.delete(*await redis.keys("*:patient:*"), *await redis.keys("*:members:*"))
    with pytest.raises(PatientUnknown):
        await store.read(**QUESTION, patient_id="p-100")


async def test_cache_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps no more layers and bytes than its limits, and what fell out is read again."""
    monkeypatch.setattr("context.store._CACHE_LAYERS", 5)
    store = await loaded_store(redis)
    for number in range(20):
        await store.put_patient(patient(f"q-{number}", "icu"))
    assert len(await store.patients_of("icu")) == 20
    assert len(store._cache) == 5
    assert store._cache_bytes == sum(len(sealed) for sealed, _ in store._cache.values())
    monkeypatch.setattr("context.store._CACHE_BYTES", 0)
    assert (await store.patient("p-100")) == PATIENT
    assert (len(store._cache), store._cache_bytes) == (0, 0)


async def test_departments_are_listed_by_id(redis: Redis) -> None:
    """All departments, by id."""
    store = await loaded_store(redis)
    assert await store.departments() == (CARDIOLOGY, ICU)


async def test_stores_with_different_prefixes_share_nothing(redis: Redis) -> None:
    """Two prefixes on one Redis are two hospitals."""
    await loaded_store(redis)
    assert not await store_on(redis, prefix="other:").is_loaded()


async def test_generation_is_what_was_marked(redis: Redis) -> None:
    """``generation`` tells which load is complete."""
    store = store_on(redis)
    assert await store.generation() is None
    await store.begin_load("g7")
    assert await store.generation() is None
    for _ in range(2):
        await store.mark_loaded("g7")
        assert await store.generation() == "g7"


async def lose_all(redis: Redis) -> None:
    """A new Redis, or an emptied one."""
    await redis.flushall()


async def lose_by_promotion(redis: Redis) -> None:
    """What was put last had not reached the replica that is primary now; that a load is under way had."""
    await redis.delete(*await redis.keys("*:department*"))
    # A replica of nobody that answers keeps what it has.
    await redis.replicaof("127.0.0.1", "1")
    await redis.replicaof("NO", "ONE")


@pytest.mark.parametrize("lose", [lose_all, lose_by_promotion])
async def test_load_that_lost_its_beginning_is_not_marked(
    redis: Redis, lose: Callable[[Redis], Awaitable[None]]
) -> None:
    """A load that another Redis goes on with lacks departments: it is "not loaded", and the next load is whole."""
    store = store_on(redis)
    await store.begin_load("g1")
    await store.put_hospital(HOSPITAL)
    await store.put_department(CARDIOLOGY)
    await lose(redis)
    await store.put_patient(PATIENT)
    with pytest.raises(LoadLost):
        await store.mark_loaded("g1")
    with pytest.raises(ContextNotLoaded):
        await store.departments()
    await loaded_store(redis)
    assert (await store.read(**QUESTION, patient_id="p-100")).patient == PATIENT


async def test_loads_at_the_same_time_do_not_stop_each_other(redis: Redis) -> None:
    """A node that took over a slow one's loading ends it, and so may the slow one."""
    store = store_on(redis)
    await store.begin_load("g1")
    await store.begin_load("g2")
    await store.mark_loaded("g2")
    await store.mark_loaded("g1")
    assert await store.is_loaded()


async def test_load_that_nobody_began_is_not_marked(redis: Redis) -> None:
    """Without ``begin_load`` nobody can say that nothing was lost."""
    store = store_on(redis)
    with pytest.raises(LoadLost):
        await store.mark_loaded("g1")
    assert not await store.is_loaded()


# --- the session's memory ---


def message(number: int, patient_id: str | None = "p-100") -> Message:
    return Message(role="doctor", text=f"message {number}", at=NOW, patient_id=patient_id)


async def test_remember_keeps_the_last_ten(redis: Redis) -> None:
    """Of 13 messages the last ten are kept, in order."""
    store = await loaded_store(redis)
    for number in range(13):
        await store.remember("s", message(number))
    layers = await store.read(**(QUESTION | {"session_key": "s"}), patient_id=None)
    assert [each.text for each in layers.session.messages] == [f"message {n}" for n in range(3, 13)]


async def test_remember_twice_is_once(redis: Redis) -> None:
    """A message that is sent to memory again is not there twice."""
    store = store_on(redis)
    await store.remember("s", message(1), message(1))
    session = await store.remember("s", message(1), message(2))
    assert [each.text for each in session.messages] == ["message 1", "message 2"]


async def test_remember_leaves_what_is_not_given(redis: Redis) -> None:
    """Topic, patient and pending actions stay until they are replaced."""
    store = store_on(redis)
    await store.remember("s", topic="t", patient_id="p-100", pending=SESSION.pending_actions)
    kept = await store.remember("s", message(1))
    assert (kept.topic, kept.patient_id, kept.pending_actions) == ("t", "p-100", SESSION.pending_actions)
    replaced = await store.remember("s", topic="", patient_id=None, pending=())
    assert (replaced.topic, replaced.patient_id, replaced.pending_actions) == ("", None, ())
    assert [each.text for each in replaced.messages] == ["message 1"]


async def test_remember_by_two_gateways_loses_nothing(redis: Redis) -> None:
    """Ten writers at once on two clients: every message is kept, exactly once."""
    stores = [store_on(redis, session_messages=10), store_on(redis, session_messages=10)]
    await asyncio.gather(*(stores[n % 2].remember("s", message(n)) for n in range(10)))
    session = await stores[0].remember("s")
    assert sorted(each.text for each in session.messages) == [f"message {n}" for n in range(10)]


async def test_remember_starts_the_thirty_minutes_anew(redis: Redis) -> None:
    """Each message sets the whole time to live; reading does not."""
    store = await loaded_store(redis)
    await store.remember("s", message(1))
    [key] = await redis.keys("*:session:*")
    assert 1_790_000 < await redis.pttl(key) <= 1_800_000
    await redis.pexpire(key, 60_000)
    await store.read(**(QUESTION | {"session_key": "s"}), patient_id=None)
    assert await redis.pttl(key) <= 60_000
    await store.remember("s", message(2))
    assert await redis.pttl(key) > 1_790_000


async def test_forget_shreds_the_memory(redis: Redis) -> None:
    """After ``forget`` nothing of the session is in Redis, and reading gives an empty memory."""
    store = await loaded_store(redis)
    await store.remember("s", message(1), topic="t")
    await store.forget("s")
    await store.forget("s")
    assert not await redis.keys("*:session:*")
    session = (await store.read(**(QUESTION | {"session_key": "s"}), patient_id=None)).session
    assert (session.messages, session.topic, session.patient_id) == ((), "", None)


async def test_forget_wins_over_a_running_remember(redis: Redis) -> None:
    """A memory that is forgotten between a writer's reading and its writing is not brought back."""
    store = store_on(redis)
    await store.remember("s", message(1))
    swap = store._swap

    async def forget_first(*args: Any, **kwargs: Any) -> Any:
        await store.forget("s")
        return await swap(*args, **kwargs)

    store._swap = forget_first  # type: ignore[assignment]
    session = await store.remember("s", message(2))
    assert session.messages == ()
    assert not await redis.keys("*:session:*")


async def test_remember_drops_old_messages_above_its_bytes(redis: Redis) -> None:
    """Messages that are too long together go from the old end; memory stays within its bytes."""
    store = store_on(redis)
    long = [Message(role="chatd", text=str(n) * math.ceil(MAX_SESSION_BYTES / 3), at=NOW) for n in range(5)]
    session = await store.remember("s", *long)
    assert [each.text[0] for each in session.messages] == ["3", "4"]


async def test_session_that_does_not_open_is_an_empty_one(redis: Redis) -> None:
    """A memory sealed for another session is not read as this one's, and is replaced by the next message."""
    store = await loaded_store(redis)
    await store.remember("s", message(1))
    [key] = await redis.keys("*:session:*")
    await store.remember("t", message(2))
    [other] = set(await redis.keys("*:session:*")) - {key}
    await redis.copy(cast(str, key), cast(str, other), replace=True)
    session = (await store.read(**(QUESTION | {"session_key": "t"}), patient_id=None)).session
    assert session.messages == ()
    assert [each.text for each in (await store.remember("t", message(3))).messages] == ["message 3"]


# --- Redis away ---


@pytest.fixture
async def client(own_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """The client of ``connect`` on a Redis of this test's own."""
    async with connect(own_redis_server.url) as client:
        yield client


@contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def test_redis_killed_is_unavailable_then_not_loaded(own_redis_server: RedisServer, client: Redis) -> None:
    """A dead Redis is "unavailable"; the same store finds the restarted one "not loaded", then loads it again."""
    store = await loaded_store(client)
    await store.read(**QUESTION, patient_id="p-100")
    own_redis_server.kill()
    for call in (
        store.read(**QUESTION, patient_id="p-100"),
        store.remember("s", message(1)),
        store.put_patient(PATIENT),
        store.cards_of("cardiology"),
        store.forget("s"),
        store.is_loaded(),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    own_redis_server.start()
    with pytest.raises(ContextNotLoaded):
        await store.read(**QUESTION, patient_id="p-100")
    await store.begin_load("g2")
    await store.put_hospital(HOSPITAL)
    await store.put_department(CARDIOLOGY)
    await store.put_patient(PATIENT)
    await store.mark_loaded("g2")
    assert (await store.read(**QUESTION, patient_id="p-100")).patient == PATIENT


async def test_redis_frozen_is_unavailable_in_time(own_redis_server: RedisServer, client: Redis) -> None:
    """A Redis that does not answer is "unavailable" after the store's own time limit, and serves again after."""
    store = await loaded_store(client)
    impatient = store_on(client, timeout_s=0.05)
    with frozen(own_redis_server), pytest.raises(StoreUnavailable):
        await impatient.read(**QUESTION, patient_id="p-100")
    assert (await store.read(**QUESTION, patient_id="p-100")).patient == PATIENT


async def test_redis_full_is_unavailable(client: Redis) -> None:
    """A Redis at its memory limit refuses the write aloud; what it held stays readable."""
    store = await loaded_store(client)
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable):
        await store.put_patient(patient("p-200", "icu"))
    with pytest.raises(StoreUnavailable):
        await store.remember("s", message(1))
    assert (await store.read(**QUESTION, patient_id="p-100")).patient == PATIENT
    assert [card.patient_id for card in await store.cards_of("icu")] == []
