"""Who is here: every gateway says of its phones that it hears them, when they come and every few seconds. In Redis,
without content.

Losing it loses no promise: within one beat it is known again who is here, and until then an alert says that its reach
is not known whole. A gateway always knows its own phones, whatever has become of Redis. All moments of beats are
Redis's own time, so that a gateway whose clock was set wrong makes nobody seem away.

=============================  ======  ==========================================================================
``chatd:presence:in:DEPT``     hash    ``USER|CHANNEL`` to ``MS ROLE,ROLE``: last heard, and the roles of that token
``chatd:presence:state:USER``  string  what the person is available for, until when, and who was asked to take over
``chatd:presence:since``       string  ``MS`` of the first beat that Redis has had since it lost everything
``chatd:presence:ask:ALERT``   string  which person's request this alert carries to a delegate
=============================  ======  ==========================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import metrics
from chatd.alerts.model import Availability, Channel, PresenceRecord
from chatd.logs import error_name
from protocols.errors import ChatdError

log = structlog.get_logger(__name__)

#: Three beats fit into what counts as here, so that one lost beat takes nobody away.
BEAT_S: Final = 4.0
FRESH_S: Final = 3 * BEAT_S
#: Redis has lost who is here: by then every gateway has told it anew.
_TOLD_AGAIN_S: Final = 1.5 * BEAT_S
#: Who was here within a shift belongs to the department and is told as unreachable; before that, they went home.
KEPT_S: Final = 12 * 3600
#: Nobody is in a procedure for longer; a state without an end ends by itself, so that a forgotten one harms no night.
MAX_STATE_S: Final = 12 * 3600
#: An alert does not wait longer for what is known of people: it goes out, and says that its reach is not known.
ANSWER_WITHIN_S: Final = 0.25
#: Of a storm of alerts, all but the first in a second are answered by what was read for that one.
LATELY_MS: Final = 1_000
#: Departments whose people are kept for that second; the one that was read longest ago is forgotten.
MAX_LATELY: Final = 256
#: A beat may take longer, nobody waits for it.
_BEAT_WITHIN_S: Final = 2.0

_BEAT: Final = """
local now = redis.call('TIME')
local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ms .. ' ' .. ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ms, 'NX')
return redis.call('GET', KEYS[2])
"""

#: Changes the state only if it still is the request that this alert carried: an acceptance may come late.
_COVER: Final = """
local state = redis.call('GET', KEYS[1])
if not state then return 0 end
local found = cjson.decode(state)
if found['ask'] ~= ARGV[1] or found['delegate_to'] ~= ARGV[2] then return 0 end
found['is_accepted'] = ARGV[3] == '1'
redis.call('SET', KEYS[1], cjson.encode(found), 'KEEPTTL')
return 1
"""


#: Who has been here, and what those of them have said of themselves: one round trip, whoever has said nothing left out.
_ALL: Final = """
local now = redis.call('TIME')
local fields = redis.call('HGETALL', KEYS[1])
local said, asked = {}, {}
for i = 1, #fields, 2 do
  local user = string.match(fields[i], '^(.*)|') or ''
  if not asked[user] then
    asked[user] = true
    local state = redis.call('GET', ARGV[1] .. user)
    if state then
      said[#said + 1] = user
      said[#said + 1] = state
    end
  end
end
local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
return {ms, fields, redis.call('GET', KEYS[2]), said}
"""


class PresenceUnavailable(ChatdError):
    """Redis did not answer: what a person is available for is not changed, or not known to be."""


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """One open phone of this gateway."""

    department: str
    user_id: str
    channel: Literal["app", "push", "board"]
    roles: tuple[str, ...] = ()


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """A department's people, by user id. ``is_whole`` False: Redis did not answer, and only this gateway's phones and
    nobody's state are known; or it has just lost them, and not all gateways have told it anew. ``has_answered`` False:
    it is the former."""

    records: tuple[PresenceRecord, ...]
    is_whole: bool = True
    has_answered: bool = True


class Availed(msgspec.Struct, frozen=True, kw_only=True):
    """What a person has said of themselves. ``ask``: the alert that asks the delegate; empty: none does."""

    state: Availability
    until: datetime | None = None
    delegate_to: str | None = None
    ask: str = ""
    is_accepted: bool = False


class _Known(msgspec.Struct, kw_only=True):
    """What Redis said of a department at ``at_ms`` of the monotonic clock; its own time then was ``now_ms``.

    ``users``: whose states were asked for. ``told``: what was made of it for a set of own phones, until that changes.
    """

    at_ms: int
    now_ms: int
    heard: dict[tuple[str, Channel], tuple[int, str]]
    states: dict[str, Availed]
    users: frozenset[str]
    told: tuple[dict[tuple[str, Channel], tuple[str, ...]], Present] | None = None


class Presence:
    """Presence of all departments. ``phones`` is set by the gateway: its open phones, boards among them or not."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._beat = redis.register_script(_BEAT)
        self._cover = redis.register_script(_COVER)
        self._all = redis.register_script(_ALL)
        self.phones: Callable[[], Iterable[Here]] = tuple
        self._lately: OrderedDict[str, _Known] = OrderedDict()
        #: The phones that were open when somebody asked last, and what was made of them, by department.
        self._phones: tuple[Here, ...] = ()
        self._own_phones: dict[str, dict[tuple[str, Channel], tuple[str, ...]]] = {}
        self._writes = 0
        self._newcomers: set[Here] = set()
        self._has_newcomers = asyncio.Event()
        #: The first beat that Redis has had, as this gateway has known it; another one: Redis has lost what it had.
        self._since: bytes | None = None

    def came(self, phone: Here) -> None:
        """A phone has just come: it is told at once, in one round trip with those that come at the same time.

        Never waits. Where that fails, the next beat tells it; twice is the same as once.
        """
        if phone.channel != "board":
            self._newcomers.add(phone)
            self._has_newcomers.set()

    async def run(self) -> None:
        """Beat until cancelled, and tell newcomers in between. What fails is the next beat's matter."""
        loop = asyncio.get_running_loop()
        while True:
            beat_at = loop.time() + BEAT_S
            self._take_newcomers()
            is_told = await self._try(self.phones())
            while is_told and (left_s := beat_at - loop.time()) > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._has_newcomers.wait()
                except TimeoutError:
                    break
                is_told = await self._try(self._take_newcomers())
            await asyncio.sleep(max(0.0, beat_at - loop.time()))

    def _take_newcomers(self) -> set[Here]:
        self._has_newcomers.clear()
        taken, self._newcomers = self._newcomers, set()
        return taken

    async def _try(self, phones: Iterable[Here]) -> bool:
        try:
            await self._say(phones)
        except PresenceUnavailable as error:
            log.warning("presence_not_told", error=error_name(error))
            return False
        return True

    async def beat(self) -> None:
        """Say of all of this gateway's phones that they are here: one round trip, however many they are.

        Raises:
            PresenceUnavailable: Redis did not take it within 2 s.
        """
        await self._say(self.phones())

    async def _say(self, phones: Iterable[Here]) -> None:
        told: dict[str, dict[str, str]] = {}
        for phone in phones:
            if phone.channel != "board":
                roles = ",".join(phone.roles)
                told.setdefault(phone.department, {})[f"{phone.user_id}|{phone.channel}"] = roles
        if not told:
            return
        try:
            async with asyncio.timeout(_BEAT_WITHIN_S):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for department, fields in told.items():
                        arguments: list[Any] = [KEPT_S]
                        for field, roles in fields.items():
                            arguments += [field, roles]
                        await self._beat(keys=[_key(department), _SINCE], args=arguments, client=pipe)
                    since = (await pipe.execute())[-1]
            if self._since is None:
                self._since = since
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_ERRORS.inc()
            raise PresenceUnavailable from error

    async def of(self, department: str) -> Present:
        """The people of a department, as far as it is known within a quarter of a second. Never raises."""
        return await self._present(department, None)

    async def lately(self, department: str, now_ms: int) -> Present:
        """The same, as Redis said it less than a second before ``now_ms`` of the monotonic clock.

        This gateway's own phones are as they are now, and so is what people have said of themselves through this
        gateway. What they have said through another one may be a second late. Redis away is not kept: it is asked
        again each time.
        """
        return await self._present(department, now_ms)

    def here(self, department: str) -> Present:
        """What is known without Redis: this gateway's own phones."""
        return Present(records=_records(self._own(department), {}, {}, None), is_whole=False, has_answered=False)

    def _own(self, department: str) -> dict[tuple[str, Channel], tuple[str, ...]]:
        """This gateway's phones of a department; the same object as long as no phone comes or goes."""
        phones = tuple(self.phones())
        if phones != self._phones or len(self._own_phones) >= MAX_LATELY:
            self._phones, self._own_phones = phones, {}
        own = self._own_phones.get(department)
        if own is None:
            own = self._own_phones[department] = {
                (phone.user_id, phone.channel): phone.roles
                for phone in phones
                if phone.department == department and phone.channel != "board"
            }
        return own

    async def _present(self, department: str, now_ms: int | None) -> Present:
        own = self._own(department)
        known = None if now_ms is None else self._lately.get(department)
        # Somebody who has just come may have a state that nobody has asked for.
        if (
            known is None
            or now_ms is None
            or not 0 <= now_ms - known.at_ms < LATELY_MS
            or ((known.told is None or known.told[0] is not own) and any(user not in known.users for user, _ in own))
        ):
            writes = self._writes
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    told_ms, heard, since, states = await self._heard(department)
                    before = {user for user, _ in heard}
                    users = frozenset((*before, *(user for user, _ in own)))
                    # Those who have just come and whose first beat has not: seldom anybody.
                    states |= await self._states(sorted(users - before))
            except (RedisError, OSError, TimeoutError):
                metrics.REDIS_ERRORS.inc()
                return self.here(department)
            if self._has_lost(since, told_ms):
                return Present(records=_records(own, heard, states, told_ms), is_whole=False)
            known = _Known(at_ms=now_ms or 0, now_ms=told_ms, heard=heard, states=states, users=users)
            if now_ms is not None and writes == self._writes:
                self._keep(department, known)
        if known.told is None or known.told[0] is not own:
            known.told = own, Present(records=_records(own, known.heard, known.states, known.now_ms))
        return known.told[1]

    def _has_lost(self, since: bytes | None, now_ms: int) -> bool:
        """Whether Redis has lost who is here so lately that other gateways may not have told it anew."""
        if self._since is None or since == self._since:
            return False
        if since is None or now_ms - int(since) < _TOLD_AGAIN_S * 1000:
            return True
        self._since = since
        return False

    def _keep(self, department: str, known: _Known) -> None:
        self._lately[department] = known
        self._lately.move_to_end(department)
        while len(self._lately) > MAX_LATELY:
            self._lately.popitem(last=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What is kept does not outlive a write of this gateway, nor is it what a read beside it has found.

        A beat is no such write: this gateway's phones are always added as they are.
        """
        try:
            yield
        finally:
            self._writes += 1
            self._lately.clear()

    async def state_of(self, user_id: str) -> Availed | None:
        """What a person has said of themselves, if it holds still.

        Raises:
            PresenceUnavailable: Redis did not answer.
        """
        try:
            async with asyncio.timeout(_BEAT_WITHIN_S):
                return (await self._states([user_id])).get(user_id)
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_ERRORS.inc()
            raise PresenceUnavailable from error

    async def set(self, user_id: str, availed: Availed, *, now: datetime) -> None:
        """Note what a person is available for; ``available`` forgets what was noted, with any delegate.

        It holds until ``availed.until``, at most 12 hours. Twice is the same as once.

        Raises:
            PresenceUnavailable: Redis did not answer: it may or may not be noted, and may be sent again.
        """
        seconds = MAX_STATE_S
        if availed.until is not None:
            seconds = max(1, min(MAX_STATE_S, round((availed.until - now).total_seconds())))
        try:
            with self._writing():
                async with asyncio.timeout(_BEAT_WITHIN_S), self._redis.pipeline(transaction=True) as pipe:
                    if availed.state == "available":
                        pipe.delete(_state_key(user_id))
                    else:
                        pipe.set(_state_key(user_id), msgspec.json.encode(availed), ex=seconds)
                        if availed.ask:
                            pipe.set(_ask_key(availed.ask), user_id, ex=seconds)
                    await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_ERRORS.inc()
            raise PresenceUnavailable from error

    async def delegate_answered(self, alert_id: str, delegate: str, *, accepts: bool) -> str | None:
        """A delegate has answered the alert that asked: from now on, or no longer, they cover.

        Returns whom they cover, or None where the alert asked nothing of the kind, asked somebody else, or the person
        has said something new since. Twice is the same as once.

        Raises:
            PresenceUnavailable: Redis did not answer; the caller sends it again.
        """
        try:
            async with asyncio.timeout(_BEAT_WITHIN_S):
                found = await cast(Any, self._redis.get(_ask_key(alert_id)))
                if found is None:
                    return None
                user_id = str(found.decode())
                with self._writing():
                    changed = await self._cover(keys=[_state_key(user_id)], args=[alert_id, delegate, int(accepts)])
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_ERRORS.inc()
            raise PresenceUnavailable from error
        return user_id if changed else None

    async def _heard(
        self, department: str
    ) -> tuple[int, dict[tuple[str, Channel], tuple[int, str]], bytes | None, dict[str, Availed]]:
        """Redis's time, when each person was last heard on each channel, with their roles; its first beat; and what
        these people have said of themselves."""
        now, fields, since, said = await self._all(keys=[_key(department), _SINCE], args=[_state_key("")])
        now_ms = int(now)
        oldest_ms = now_ms - KEPT_S * 1000
        heard: dict[tuple[str, Channel], tuple[int, str]] = {}
        gone = []
        for field, value in _pairs(fields):
            try:
                user, _, channel = field.decode().rpartition("|")
                ms, _, roles = value.decode().partition(" ")
                at_ms = int(ms)
            except ValueError:
                continue  # of another version: one field must not hold up a department's alerts
            if at_ms < oldest_ms:
                gone.append(field)
            else:
                heard[user, cast(Channel, channel)] = at_ms, roles
        if gone:
            await cast(Any, self._redis.hdel(_key(department), *gone))
        read = ((user.decode(errors="replace"), _said(state)) for user, state in _pairs(said))
        return now_ms, heard, since, {user: state for user, state in read if state is not None}

    async def _states(self, users: Sequence[str]) -> dict[str, Availed]:
        if not users:
            return {}
        found = await cast(Any, self._redis.mget([_state_key(user) for user in users]))
        return {
            user: said
            for user, state in zip(users, found, strict=True)
            if state is not None and (said := _said(state)) is not None
        }


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """A flat list of fields and values, as Lua returns it."""
    return zip(flat[::2], flat[1::2], strict=True)


def _said(state: bytes) -> Availed | None:
    """None for what cannot be read, as of another version: whoever is not known to be away is called."""
    try:
        return msgspec.json.decode(state, type=Availed)
    except msgspec.MsgspecError:
        return None


def _at(each: tuple[Any, tuple[int, str]]) -> int:
    return each[1][0]


def _records(
    own: dict[tuple[str, Channel], tuple[str, ...]],
    heard: dict[tuple[str, Channel], tuple[int, str]],
    states: dict[str, Availed],
    now_ms: int | None,
) -> tuple[PresenceRecord, ...]:
    """One record a person, by user id."""
    channels: dict[str, set[Channel]] = {}
    roles: dict[str, set[str]] = {}
    for (user, channel), held in own.items():
        channels.setdefault(user, set()).add(channel)
        roles.setdefault(user, set()).update(held)
    fresh_since_ms = None if now_ms is None else now_ms - FRESH_S * 1000
    named: dict[str, tuple[str, ...]] = {}
    # The newest first: what an older beat says of somebody's roles counts only where nothing newer does.
    for (user, channel), (at_ms, names) in sorted(heard.items(), key=_at, reverse=True):
        is_here = fresh_since_ms is not None and at_ms >= fresh_since_ms
        known = channels.get(user)
        if is_here or known is None:
            if names not in named:
                named[names] = tuple(name for name in names.split(",") if name)
            roles.setdefault(user, set()).update(named[names])
        if known is None:
            known = channels[user] = set()
        if is_here:
            known.add(channel)
    return tuple(
        PresenceRecord(
            user_id=user,
            roles=tuple(sorted(roles.get(user, ()))),
            channels=tuple(sorted(channels[user])),
            state=(said := states.get(user, _AVAILABLE)).state,
            until=said.until,
            delegate_to=said.delegate_to,
            is_accepted=said.is_accepted,
        )
        for user in sorted(channels)
    )


_AVAILABLE: Final = Availed(state="available")
_SINCE: Final = "chatd:presence:since"


def _key(department: str) -> str:
    return f"chatd:presence:in:{department}"


def _state_key(user_id: str) -> str:
    return f"chatd:presence:state:{user_id}"


def _ask_key(alert_id: str) -> str:
    return f"chatd:presence:ask:{alert_id}"
