"""The five layers and the session's memory in Redis: sealed there, read in one round trip, never on disk.

Names of keys, below ``prefix`` + "context:" + a tag of the key ring's root:

=====================  ======  ========================================================================
``loaded``             string  generation of the load that is complete; absent: Redis has lost its data
``loading:GENERATION`` string  history of Redis in which this load began, one hour of life
``hospital``           string  sealed layer
``departments``        set     department ids
``department:ID``      string  sealed layer
``doctor:ID``          string  sealed layer
``patient:NAME``       string  sealed layer
``members:NAME``       set     department ids of the patient
``patients:ID``        hash    NAME to sealed card, of the department's patients
``session:NAME``       string  sealed layer, 30 minutes of life
=====================  ======  ========================================================================

NAME is a keyed digest of the patient id or of the session key, so that whoever sees Redis's keys sees no patient's
number. A record is sealed for the key it lies under. Another root, as after a lost key file, is another tag: its
store begins empty and says "not loaded", instead of taking everybody for unknown.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any, Literal, NoReturn, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from context.layers import (
    DepartmentLayer,
    DoctorLayer,
    HospitalLayer,
    Layers,
    Message,
    PatientLayer,
    PendingAction,
    SessionLayer,
    versioned,
)
from context.seal import Sealer, SealError
from context.sentinel import PrimaryPool, is_sentinel, parse
from protocols.errors import ChatdError

#: Above this a department's patient list is refused aloud: a cut list would hide the second of two namesakes.
MAX_PATIENTS = 5_000
#: One answer of Redis stays under some tens of megabytes.
_PATIENTS_PER_READ = 64
#: Decoded layers kept by one process: 20 doctors' patients and their departments, many times over.
_CACHE_LAYERS = 256
_CACHE_BYTES = 64 * 1024 * 1024
#: Two devices and a worker write one session; each lost race means that another writer got through.
_MAX_RACES = 64
#: Ten messages of 4,000 characters and ten answers fit twice; more is dropped from the old end.
MAX_SESSION_BYTES = 256 * 1024
MAX_PENDING_ACTIONS = 32
#: A load that has not ended by then counts as lost. One takes seconds, that of a large hospital minutes.
_LOAD_LIFE_MS = 3_600_000

T = TypeVar("T")

# KEYS: session. ARGV: what it held ("" for nothing), what it shall hold, its life in ms.
# Returns {1}, or {0, what it holds} when another writer came first.
_SWAP = """
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return {0, held} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {1}
"""

# KEYS: patient, members. ARGV: sealed layer ("" removes the patient), NAME, prefix of the departments' indexes,
# then department id and sealed card by turns. The indexes' names come out of `members`, so they cannot be KEYS.
# The SET stands first: a full Redis refuses a script's first write, and lets it finish after that.
_PUT_PATIENT = """
if ARGV[1] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
for _, department in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  redis.call('HDEL', ARGV[3] .. department, ARGV[2])
end
redis.call('DEL', KEYS[2])
for i = 4, #ARGV, 2 do
  redis.call('HSET', ARGV[3] .. ARGV[i], ARGV[2], ARGV[i + 1])
  redis.call('SADD', KEYS[2], ARGV[i])
end
"""


# The line of writes that this Redis continues: another one after a restart, and after a replica was promoted.
_HISTORY = """
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
"""

# KEYS: loading. ARGV: its life in ms.
_BEGIN_LOAD = """
redis.call('SET', KEYS[1], history, 'PX', ARGV[1])
"""

# KEYS: loading, loaded. ARGV: generation. Returns 1, or 0 where what was put since the load began may be lost.
# A resend finds its own mark: it lies behind all that was put, so wherever it is, that is too.
_MARK_LOADED = """
if redis.call('GET', KEYS[2]) == ARGV[1] then return 1 end
if redis.call('GET', KEYS[1]) ~= history then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
"""


class StoreError(ChatdError):
    """Root of what the context store raises; none of them holds an id or a text of the record."""


class PatientUnknown(StoreError):
    """The hospital's records are loaded and hold no such patient."""


class DepartmentUnknown(StoreError):
    """The hospital has no such department."""


class ContextNotLoaded(StoreError):
    """Redis does not hold what was loaded into it (emptied, restarted, another key): load from the source again.

    ``part`` says what was missing or did not open: "loaded", "hospital", "department", "doctor", "patient".
    """

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self.part = part


class LoadLost(StoreError):
    """Redis has lost something of what this load had put into it: begin again from the source."""


class StoreUnavailable(StoreError):
    """Redis did not answer in time or refused; what was asked for may or may not have been done."""


class TooManyPatients(StoreError):
    """A department has more patients than one list may hold; ``count`` of at most ``limit``."""

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"{count} of at most {limit}")
        self.count = count
        self.limit = limit


class PatientCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a department's list shows of a patient, and what a question's words are matched against."""

    patient_id: str
    name: str
    birth_date: date | None = None
    sex: Literal["male", "female", "other", "unknown"] = "unknown"
    identifiers: tuple[str, ...] = ()
    deceased: bool = False


def connect(url: str, *, timeout_s: float = 2.0, max_connections: int = 64) -> Redis:
    """An asyncio client whose every wait ends: for a connection of the pool, for the connect, for an answer.

    A pooled connection to a Redis that has restarted is broken, so a command is tried three times in all.
    The caller closes it with ``aclose``. Nothing is connected yet. ``url`` is one of Redis, or of Sentinels as
    ``context.sentinel`` has it; raises ValueError where it is neither.
    """
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(ExponentialBackoff(cap=0.1, base=0.01), 2),
    }
    if is_sentinel(url):
        return Redis.from_pool(PrimaryPool(parse(url), **options))
    return Redis.from_pool(BlockingConnectionPool.from_url(url, **options))


class ContextStore:
    """Reads and writes the layers; one per process, shared by its tasks.

    It does not decide who may ask about whom: the caller compares ``PatientLayer.departments``.
    Every method raises StoreUnavailable when Redis fails or takes longer than ``timeout_s``.
    """

    def __init__(
        self,
        redis: Redis,
        sealer: Sealer,
        *,
        prefix: str = "chatd:",
        session_ttl_s: float = 1800,
        session_messages: int = 10,
        timeout_s: float = 2.0,
    ) -> None:
        self._redis = redis
        self._sealer = sealer
        self._session_ttl_ms = int(session_ttl_s * 1000)
        self._session_messages = session_messages
        self._timeout_s = timeout_s
        self._naming_key = sealer.derive("context-names")
        self._base = f"{prefix}context:{self._name('tag', '')[:8]}:"
        self._swap = redis.register_script(_SWAP)
        self._put_patient = redis.register_script(_PUT_PATIENT)
        self._begin_load = redis.register_script(_HISTORY + _BEGIN_LOAD)
        self._mark_loaded = redis.register_script(_HISTORY + _MARK_LOADED)
        # By key: the sealed bytes and what they opened to. Only the very same bytes are answered from here,
        # so a cached layer is never older than Redis's.
        self._cache: OrderedDict[str, tuple[bytes, object]] = OrderedDict()
        self._cache_bytes = 0
        # By department, then NAME: as above, for the cards of its last reading.
        self._cards: dict[str, dict[bytes, tuple[bytes, PatientCard]]] = {}

    # --- writing layers: by whoever loads them from their source ---

    async def put_hospital(self, layer: HospitalLayer) -> HospitalLayer:
        """Store the hospital layer with its version, and return it so. Twice is the same as once."""
        layer = versioned(layer)
        key = self._key("hospital")
        async with self._bounded():
            await self._redis.set(key, self._seal(key, layer))
        return layer

    async def put_department(self, layer: DepartmentLayer) -> DepartmentLayer:
        """Store a department with its version, and return it so. Twice is the same as once."""
        layer = versioned(layer)
        key = self._key("department", layer.department_id)
        async with self._bounded(), self._redis.pipeline(transaction=True) as together:
            together.set(key, self._seal(key, layer))
            together.sadd(self._key("departments"), layer.department_id)
            await together.execute()
        return layer

    async def put_doctor(self, layer: DoctorLayer) -> DoctorLayer:
        """Store a member of staff with its version, and return it so. Twice is the same as once."""
        layer = versioned(layer)
        key = self._key("doctor", layer.user_id)
        async with self._bounded():
            await self._redis.set(key, self._seal(key, layer))
        return layer

    async def put_patient(self, layer: PatientLayer) -> PatientLayer:
        """Store a patient with its version, and return it so; the departments' lists change in the same instant.

        The patient vanishes from the lists of departments that the layer no longer names. Twice is the same
        as once.
        """
        layer = versioned(layer)
        name = self._name("patient", layer.patient_id)
        key = self._key("patient", name)
        card = PatientCard(
            patient_id=layer.patient_id,
            name=layer.name,
            birth_date=layer.birth_date,
            sex=layer.sex,
            identifiers=layer.identifiers,
            deceased=bool(layer.deceased),
        )
        arguments: list[str | bytes] = [self._seal(key, layer), name, self._key("patients", "")]
        for department_id in dict.fromkeys(layer.departments):
            arguments += [department_id, self._seal(self._card_place(department_id, name), card)]
        async with self._bounded():
            await self._put_patient(keys=[key, self._key("members", name)], args=arguments)
        return layer

    async def drop_patient(self, patient_id: str) -> None:
        """Remove a patient from everywhere; without effect if unknown."""
        name = self._name("patient", patient_id)
        keys = [self._key("patient", name), self._key("members", name)]
        async with self._bounded():
            await self._put_patient(keys=keys, args=["", name, self._key("patients", "")])

    async def begin_load(self, generation: str) -> None:
        """Say that a load begins, before its first layer is put. Others may be under way; each has its own name."""
        async with self._bounded():
            await self._begin_load(keys=[self._key("loading", generation)], args=[_LOAD_LIFE_MS])

    async def mark_loaded(self, generation: str) -> None:
        """Say that everything is loaded; until then every reading raises ContextNotLoaded. Twice is the same as once.

        Raises:
            LoadLost: Redis was restarted, emptied or replaced by its replica since ``begin_load``, which was more than
                an hour ago, or never. What lacks then would pass for unknown, so nothing is marked.
        """
        keys = [self._key("loading", generation), self._key("loaded")]
        async with self._bounded():
            is_whole = await self._mark_loaded(keys=keys, args=[generation])
        if not is_whole:
            raise LoadLost

    # --- reading layers ---

    async def generation(self) -> str | None:
        """What ``mark_loaded`` was given; None when nothing is loaded, or not all of it."""
        async with self._bounded():
            loaded = cast("bytes | None", await self._redis.get(self._key("loaded")))
        return None if loaded is None else loaded.decode()

    async def is_loaded(self) -> bool:
        """True if the layers are complete."""
        return await self.generation() is not None

    async def read(self, *, department_id: str, user_id: str, patient_id: str | None, session_key: str) -> Layers:
        """Read the five layers of one question, as they are at one instant, in one round trip.

        A user without a layer gets the department's defaults; a session without memory an empty layer.

        Args:
            session_key: names the session's memory. It must hold the user's id, or one user could name
                another's session.
        Raises:
            ContextNotLoaded: layers are missing because Redis lost them, or do not open.
            DepartmentUnknown, PatientUnknown: everything is loaded, and this is not there.
        """
        keys = {
            "hospital": self._key("hospital"),
            "department": self._key("department", department_id),
            "doctor": self._key("doctor", user_id),
            "session": self._key("session", self._name("session", session_key)),
        }
        if patient_id is not None:
            keys["patient"] = self._key("patient", self._name("patient", patient_id))
        sealed = await self._get(keys)
        if sealed["hospital"] is None:
            raise ContextNotLoaded("hospital")
        if sealed["department"] is None:
            raise DepartmentUnknown
        patient = None
        if patient_id is not None:
            if sealed["patient"] is None:
                await self._raise_missing(patient_id)
            else:
                patient = self._open(keys["patient"], sealed["patient"], PatientLayer, "patient")
        department = self._open(keys["department"], sealed["department"], DepartmentLayer, "department")
        return Layers(
            hospital=self._open(keys["hospital"], sealed["hospital"], HospitalLayer, "hospital"),
            department=department,
            doctor=(
                _default_doctor(user_id, department)
                if sealed["doctor"] is None
                else self._open(keys["doctor"], sealed["doctor"], DoctorLayer, "doctor")
            ),
            patient=patient,
            session=self._open_session(keys["session"], sealed["session"])
            or versioned(SessionLayer(session_id=session_key, as_of=department.as_of)),
        )

    async def patient(self, patient_id: str) -> PatientLayer:
        """One patient's layer. Raises PatientUnknown, or ContextNotLoaded when Redis lost its data."""
        key = self._key("patient", self._name("patient", patient_id))
        sealed = (await self._get({"patient": key}))["patient"]
        if sealed is None:
            await self._raise_missing(patient_id)
        return self._open(key, sealed, PatientLayer, "patient")

    async def cards_of(self, department_id: str, *, limit: int = MAX_PATIENTS) -> tuple[PatientCard, ...]:
        """The patients that a department may ask about, by name, then id; empty for an unknown department.

        Raises TooManyPatients above ``limit``, never a part of the list; ContextNotLoaded when Redis lost it.
        """
        sealed = await self._sealed_cards(department_id, limit)
        known = self._cards.get(department_id, {})
        opened: dict[bytes, tuple[bytes, PatientCard]] = {}
        for name, record in sealed.items():
            held = known.get(name)
            if held is None or held[0] != record:
                place = self._card_place(department_id, name.decode())
                held = (record, self._unseal(place, record, PatientCard, "patient"))
            opened[name] = held
        self._cards[department_id] = opened
        return tuple(sorted((card for _, card in opened.values()), key=lambda card: (card.name, card.patient_id)))

    async def patients_of(self, department_id: str, *, limit: int = MAX_PATIENTS) -> tuple[PatientLayer, ...]:
        """The whole layers of a department's patients, by name, then id; for lists, ``cards_of`` is far cheaper.

        Raises TooManyPatients above ``limit``, ContextNotLoaded when Redis lost its data.
        """
        names = [name.decode() for name in await self._sealed_cards(department_id, limit)]
        patients: list[PatientLayer] = []
        for start in range(0, len(names), _PATIENTS_PER_READ):
            keys = {name: self._key("patient", name) for name in names[start : start + _PATIENTS_PER_READ]}
            for name, sealed in (await self._get(keys)).items():
                if sealed is None:
                    continue  # dropped since the list was read
                patient = self._open(keys[name], sealed, PatientLayer, "patient")
                if department_id in patient.departments:
                    patients.append(patient)
        return tuple(sorted(patients, key=lambda patient: (patient.name, patient.patient_id)))

    async def departments(self) -> tuple[DepartmentLayer, ...]:
        """All departments, by id. Raises ContextNotLoaded when Redis lost its data."""
        async with self._bounded(), self._redis.pipeline(transaction=False) as together:
            # The mark first: a load that ends after this reading must not make an empty set of one that was not there.
            together.exists(self._key("loaded"))
            together.smembers(self._key("departments"))
            loaded, ids = cast("tuple[int, set[bytes]]", await together.execute())
        if not loaded:
            raise ContextNotLoaded("loaded")
        keys = {each: self._key("department", each) for each in sorted(item.decode() for item in ids)}
        found = (await self._get(keys)).items()
        return tuple(
            self._open(keys[each], sealed, DepartmentLayer, "department")
            for each, sealed in found
            if sealed is not None
        )

    # --- the session's memory ---

    async def remember(
        self,
        session_key: str,
        *messages: Message,
        topic: str | None = None,
        patient_id: str | UnsetType | None = UNSET,
        pending: tuple[PendingAction, ...] | None = None,
    ) -> SessionLayer:
        """Add messages to a session's memory and start its 30 minutes anew; returns what it now holds.

        Keeps the last ``session_messages``; a message that it holds already is not added again, so twice is
        the same as once. Two gateways that write at once both get through. A memory that is forgotten while
        this runs stays forgotten.

        Args:
            topic, patient_id, pending: replace what is remembered; left as it is when not given.
        Raises:
            StoreUnavailable: also after more lost races than there can be writers.
        """
        key = self._key("session", self._name("session", session_key))
        async with self._bounded():
            held = cast("bytes | None", await self._redis.get(key)) or b""
            found = bool(held)
            for _ in range(_MAX_RACES):
                if found and not held:
                    break
                before = self._open_session(key, held)
                session = self._grown(session_key, before, messages, topic, patient_id, pending)
                swapped = cast(
                    "list[Any]",
                    await self._swap(keys=[key], args=[held, self._seal(key, session), self._session_ttl_ms]),
                )
                if swapped[0] == 1:
                    return session
                held = swapped[1]
            else:
                raise StoreUnavailable("too many writers of one session")
        return self._grown(session_key, None, (), None, UNSET, None)

    async def forget(self, session_key: str) -> None:
        """Remove a session's memory at once; a ``remember`` that begins later starts a new one."""
        async with self._bounded():
            await self._redis.delete(self._key("session", self._name("session", session_key)))

    def _grown(
        self,
        session_key: str,
        before: SessionLayer | None,
        messages: tuple[Message, ...],
        topic: str | None,
        patient_id: str | UnsetType | None,
        pending: tuple[PendingAction, ...] | None,
    ) -> SessionLayer:
        kept = () if before is None else before.messages
        kept += tuple(message for message in dict.fromkeys(messages) if message not in kept)
        kept = kept[-self._session_messages :]
        session = SessionLayer(
            session_id=session_key,
            as_of=max(
                (message.at for message in kept),
                default=datetime.now(UTC) if before is None else before.as_of,
            ),
            patient_id=((None if before is None else before.patient_id) if patient_id is UNSET else patient_id),
            topic=("" if before is None else before.topic) if topic is None else topic,
            messages=kept,
            pending_actions=(
                (() if before is None else before.pending_actions)
                if pending is None
                else pending[-MAX_PENDING_ACTIONS:]
            ),
        )
        while session.messages and len(msgspec.msgpack.encode(session)) > MAX_SESSION_BYTES:
            session = msgspec.structs.replace(session, messages=session.messages[1:])
        return versioned(session)

    # --- keys, bytes and waits ---

    def _name(self, kind: str, identifier: str) -> str:
        """NAME of a patient or session: 128 bits of HMAC-SHA256, so two never meet and none can be guessed."""
        text = f"{kind}\0{identifier}".encode()
        return hmac.new(self._naming_key, text, hashlib.sha256).hexdigest()[:32]

    def _key(self, *parts: str) -> str:
        return self._base + ":".join(parts)

    def _card_place(self, department_id: str, name: str) -> str:
        return f"{self._key('patients', department_id)}#{name}"

    def _seal(self, place: str, record: msgspec.Struct) -> bytes:
        return self._sealer.seal(msgspec.msgpack.encode(record), aad=place.encode())

    def _unseal(self, place: str, sealed: bytes, kind: type[T], part: str) -> T:
        try:
            return msgspec.msgpack.decode(self._sealer.open(sealed, aad=place.encode()), type=kind)
        except (SealError, msgspec.MsgspecError) as error:
            # Another key, another version of chatd, or a changed record: loading from the source heals all three.
            raise ContextNotLoaded(part) from error

    def _open(self, key: str, sealed: bytes, kind: type[T], part: str) -> T:
        """The layer that ``sealed`` holds; decoded once as long as Redis holds the same bytes."""
        held = self._cache.get(key)
        if held is not None and held[0] == sealed:
            self._cache.move_to_end(key)
            return cast(T, held[1])
        layer = self._unseal(key, sealed, kind, part)
        if held is not None:
            self._cache_bytes -= len(held[0])
        self._cache[key] = (sealed, layer)
        self._cache.move_to_end(key)
        self._cache_bytes += len(sealed)
        while len(self._cache) > _CACHE_LAYERS or self._cache_bytes > _CACHE_BYTES:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._cache_bytes -= len(dropped)
        return layer

    def _open_session(self, key: str, sealed: bytes | None) -> SessionLayer | None:
        """The session's memory; one that does not open is none: it was a courtesy and has no other source."""
        if not sealed:
            return None
        try:
            return self._unseal(key, sealed, SessionLayer, "session")
        except ContextNotLoaded:
            return None

    async def _get(self, keys: Mapping[str, str]) -> dict[str, bytes | None]:
        """What the ``keys`` hold at one instant, in one round trip, under the same labels.

        Raises ContextNotLoaded when Redis lost its data: what is missing then says nothing.
        """
        async with self._bounded():
            loaded, *values = await self._redis.mget(self._key("loaded"), *keys.values())
        if loaded is None:
            raise ContextNotLoaded("loaded")
        return dict(zip(keys, cast("list[bytes | None]", values), strict=True))

    async def _sealed_cards(self, department_id: str, limit: int) -> dict[bytes, bytes]:
        """A department's index: NAME to sealed card. Raises as ``cards_of``."""
        index = self._key("patients", department_id)
        async with self._bounded():
            count = await self._redis.hlen(index)
            if count > limit:
                raise TooManyPatients(count, limit)
            # No MULTI: a full Redis refuses even readings inside one. The mark is read last, so that a list
            # emptied before it is told apart from a department without patients.
            async with self._redis.pipeline(transaction=False) as together:
                together.hgetall(index)
                together.exists(self._key("loaded"))
                cards, loaded = await together.execute()
        if not loaded:
            raise ContextNotLoaded("loaded")
        return cast("dict[bytes, bytes]", cards)

    async def _raise_missing(self, patient_id: str) -> NoReturn:
        """Say why a patient's layer is not there while the hospital is loaded."""
        # A patient of some department has members; one whose layer alone is gone was evicted, not unknown.
        async with self._bounded():
            evicted = await self._redis.exists(self._key("members", self._name("patient", patient_id)))
        if evicted:
            raise ContextNotLoaded("patient")
        raise PatientUnknown

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """End the wait after ``timeout_s``, and tell each of Redis's failures as StoreUnavailable."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__) from error


def _default_doctor(user_id: str, department: DepartmentLayer) -> DoctorLayer:
    """What stands for a user whom the hospital's staff list does not know: a name and a department, no preferences."""
    return versioned(
        DoctorLayer(
            user_id=user_id,
            name=user_id,
            as_of=department.as_of,
            role="staff",
            departments=(department.department_id,),
        )
    )
