"""The session log: what a session has been told and what it still waits for, in Redis, sealed, for 30 minutes.

Four keys a session, all under the user's hash tag so that each script touches one slot of a cluster:
the session hash (epoch, last seq, accepted ids, leased runs, sequence number of each event), the log (a stream
whose entry ids are the sequence numbers), the open responses, and the proposals of quick actions.
Each script is atomic and may be sent twice: that makes a resend and a take-over the same as doing it once.

A replica of Redis lags behind its primary, so what was written last is lost where it is promoted, and those sequence
numbers are given to other events. Each script therefore notices that the writes continue another history
(history.lua) and gives the session another epoch first. Whoever writes may name any epoch of the session; whoever reads
or counts names the one it counts in, and goes on only if nothing that it holds was lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any, Literal, NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import metrics
from context.seal import Sealer
from protocols.errors import ChatdError
from protocols.frames import Resume

#: One channel for all sessions: a gateway ignores the keys it has no phone for. 66 rings a second for
#: 200 doctors at the highest rate is nothing beside a subscription per session.
DOORBELL = "chatd:doorbell"
RATE_WINDOW_MS = 60_000
_ERA_KEY = "chatd:era"
#: What XRANGE gives a client that does not decode.
_Rows = list[tuple[bytes, dict[bytes, bytes]]]


class SessionsUnavailable(ChatdError):
    """Redis did not answer in time; nothing is known about whether the command took effect, so it may be resent."""


class SessionLost(ChatdError):
    """The session or its epoch is gone (Redis restarted, or 30 minutes passed): start again with a snapshot."""


class Fenced(ChatdError):
    """Another gateway has taken over this run; whoever gets this must stop working on it."""


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turns every fault of Redis within into SessionsUnavailable, and counts it."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        metrics.REDIS_ERRORS.inc()
        raise SessionsUnavailable from error


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A session as found or made: ``existed`` False means that this call made it. ``idle_ms``: how long no person
    has acted in it, on whatever connection, by Redis's own clock. ``first_seq``: the oldest event still in the log,
    the next one's when there is none. ``asked``: questions of the user within the last minute. ``former``: the epoch
    before this history of Redis ('' where there was none), which up to ``former_seq`` means the same events."""

    key: str
    epoch: str
    seq: int
    existed: bool
    era: str
    idle_ms: int
    first_seq: int
    asked: int
    patient_id: str | None
    former: str = ""
    former_seq: int = 0

    def told_as(self, resume: Resume | None) -> str:
        """The epoch under which a client is told this log: the one it knows, where nothing of that was lost."""
        knows_former = resume is not None and resume.epoch == self.former and resume.seq <= self.former_seq
        return self.former if self.former and knows_former else self.epoch

    def was_lost(self, epoch: str) -> bool:
        """Whether ``epoch`` belongs to a memory that Redis has lost since."""
        return not epoch.startswith(f"{self.era}-")


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """``outcome``: accepted, duplicate, conflict (same id, other body) or limited."""

    outcome: str
    response_id: str = ""
    remaining: int = 0
    reset_ms: int = 0


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One durable frame of the log, encoded without its position."""

    seq: int
    event_id: str
    frame: bytes


class Placed(NamedTuple):
    """Where an event stands, whether this call put it there, and the epoch that its ``seq`` counts in."""

    seq: int
    is_new: bool
    epoch: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The session's last ``seq`` in its ``epoch`` now, and the runs just taken over, as (response_id, request).

    ``holds_to``: what the epoch that was asked for means in this one too; -1: nothing that is known."""

    seq: int
    epoch: str
    holds_to: int
    adopted: tuple[tuple[str, bytes], ...]


def session_key(user_id: str, department: str, session_id: str) -> str:
    """The name of a session. ``|`` is not in the pattern of an id, so no two triples share a key; a session
    belongs to one user in one department, and naming another's session id opens nothing of theirs."""
    return f"{user_id}|{department}|{session_id}"


class Sessions:
    """The session log of all sessions; see the scripts beside this file.

    Every method raises SessionsUnavailable when Redis fails; cancelling one is safe, the command may or may not
    have taken effect and may be sent again.
    """

    def __init__(
        self, redis: Redis, sealer: Sealer, digest_key: bytes, *, node_id: str, ttl_ms: int, max_events: int
    ) -> None:
        self._redis = redis
        self._sealer = sealer
        self._digest_key = digest_key
        self._node_id = node_id
        self._ttl_ms = ttl_ms
        self._max_events = max_events
        history = resources.files(__package__).joinpath("history.lua").read_text()
        self._scripts = {
            name: redis.register_script(history + resources.files(__package__).joinpath(f"{name}.lua").read_text())
            for name in ("open", "accept", "append", "keep")
        }

    @staticmethod
    def _keys(key: str) -> list[str]:
        user = key.split("|", 1)[0]
        base = f"chatd:{{{user}}}:s:{key}"
        return [base, f"{base}:log", f"{base}:open", f"{base}:proposals"]

    @staticmethod
    def _rate_key(user_id: str) -> str:
        return f"chatd:{{{user_id}}}:rate"

    async def _run(self, name: str, keys: list[str], args: Sequence[Any]) -> Any:
        with _answering():
            return await self._scripts[name](keys=keys, args=args)

    def digest(self, body: bytes) -> str:
        """Keyed digest of a command's body: equal bodies, equal digests; a short question cannot be guessed from it."""
        return hmac.new(self._digest_key, body, hashlib.sha256).hexdigest()[:32]

    async def open(self, key: str, *, now_ms: int) -> Opened:
        """Find the session or make it with a new epoch; extends its life. One round trip.

        An epoch begins with the era of this Redis, so that a phone whose session is gone can be told why: the same
        era, and 30 minutes have passed; another era, and Redis has lost its memory.
        """
        found = await self._run(
            "open",
            [*self._keys(key), self._rate_key(key.split("|", 1)[0]), _ERA_KEY],
            [secrets.token_hex(4), self._ttl_ms, now_ms, f"e{secrets.token_hex(4)}", RATE_WINDOW_MS],
        )
        sealed = found[4]
        return Opened(
            key=key,
            era=found[0].decode(),
            epoch=found[1].decode(),
            seq=int(found[2]),
            existed=bool(found[3]),
            patient_id=self._open_sealed(key, "patient", sealed).decode() if sealed else None,
            idle_ms=int(found[5]),
            first_seq=int(found[6]) or int(found[2]) + 1,
            asked=int(found[7]),
            former=found[8].decode(),
            former_seq=int(found[9]),
        )

    def _seal(self, key: str, what: str, content: bytes) -> bytes:
        return self._sealer.seal(content, aad=f"{key}|{what}".encode())

    def _open_sealed(self, key: str, what: str, sealed: bytes) -> bytes:
        return self._sealer.open(sealed, aad=f"{key}|{what}".encode())

    async def accept(
        self,
        key: str,
        epoch: str,
        *,
        user_id: str,
        client_msg_id: str,
        body: bytes,
        response_id: str,
        request: bytes,
        owner: str,
        now_ms: int,
        lease_ms: int,
        messages_per_minute: int,
    ) -> Acceptance:
        """Accept one question: once, however often it is sent; a duplicate costs nothing of the rate.

        Args:
            body: what must be equal in a resend; a known id with another body is a conflict.
            request: what another gateway needs to answer it; sealed here.
        Raises:
            SessionLost: the epoch is not this session's.
        """
        keys = self._keys(key)
        reply = await self._run(
            "accept",
            [keys[0], keys[2], self._rate_key(user_id)],
            [
                epoch,
                client_msg_id,
                self.digest(body),
                response_id,
                self._seal(key, f"q:{response_id}", request),
                owner,
                now_ms,
                lease_ms,
                self._ttl_ms,
                messages_per_minute,
                RATE_WINDOW_MS,
            ],
        )
        outcome = reply[0].decode()
        if outcome == "lost":
            raise SessionLost
        if outcome == "conflict":
            return Acceptance(outcome=outcome)
        if outcome == "limited":
            return Acceptance(outcome=outcome, reset_ms=int(reply[1]))
        return Acceptance(
            outcome=outcome, response_id=reply[1].decode(), remaining=int(reply[2]), reset_ms=int(reply[3])
        )

    async def append(
        self,
        key: str,
        epoch: str,
        event_id: str,
        frame: bytes,
        *,
        response_id: str = "",
        owner: str = "",
        ends_run: bool = False,
        patient_id: str | bool | None = False,
        is_act: bool = False,
        proposals: Iterable[tuple[str, bytes]] = (),
    ) -> Placed:
        """Append a durable frame (encoded without position) and ring the doorbell.

        Args:
            event_id: the idempotency key; the second append of the same id changes nothing.
            owner: with ``response_id``, the node that must hold the run's lease.
            patient_id: the session's active patient from now on; False leaves it.
            is_act: a person's command made the event.
        Raises:
            SessionLost, Fenced.
        """
        patient = b""
        if patient_id is not False:
            patient = b"-" if patient_id is None else self._seal(key, "patient", str(patient_id).encode())
        args: list[Any] = [
            epoch,
            event_id,
            self._seal(key, event_id, frame),
            owner,
            response_id,
            int(ends_run),
            self._max_events,
            self._ttl_ms,
            DOORBELL,
            key,
            patient,
            "1" if is_act else "",
            self._node_id,
        ]
        for action_id, proposal in proposals:
            args += [action_id, self._seal(key, f"p:{action_id}", proposal)]
        reply = await self._run("append", self._keys(key), args)
        outcome = reply[0].decode()
        if outcome == "lost":
            raise SessionLost
        if outcome == "fenced":
            raise Fenced
        return Placed(int(reply[1]), outcome == "appended", reply[2].decode())

    async def keep(
        self,
        wanted: Sequence[tuple[str, str]],
        *,
        owner: str,
        now_ms: int,
        lease_ms: int,
        working: Mapping[tuple[str, str], Collection[str]] | None = None,
        take_over: bool = True,
    ) -> dict[tuple[str, str], Kept | None]:
        """Keep sessions alive, renew the runs this node is working on and take over lapsed ones: one round trip.

        Args:
            wanted: (key, epoch) of each session; one key may stand there with several epochs.
            working: response ids by (key, epoch). A run of this owner's that is not among them is left to lapse.
            take_over: False on a node that is going away.
        Returns:
            By (key, epoch): Kept, or None where the session is lost. Its ``epoch`` may be a later one of the session.
        """
        # A run keeps the epoch it began in, and its session's phones may have gone on to another.
        runs: dict[tuple[str, str], list[str]] = {}
        for (key, epoch), response_ids in (working or {}).items():
            runs.setdefault((key, _base(epoch)), []).extend(response_ids)
        script = self._scripts["keep"]
        with _answering():
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, epoch in wanted:
                    args: list[Any] = [epoch, owner, now_ms, lease_ms, self._ttl_ms, int(take_over)]
                    args += runs.get((key, _base(epoch)), ())
                    await script(keys=self._keys(key), args=args, client=pipe)
                replies = await pipe.execute()
        kept: dict[tuple[str, str], Kept | None] = {}
        for (key, epoch), reply in zip(wanted, replies, strict=True):
            if reply[0] == b"lost":
                kept[key, epoch] = None
                continue
            pairs = [
                (reply[i].decode(), self._open_sealed(key, f"q:{reply[i].decode()}", reply[i + 1]))
                for i in range(4, len(reply), 2)
                if reply[i + 1]
            ]
            kept[key, epoch] = Kept(
                seq=int(reply[1]), epoch=reply[2].decode(), holds_to=int(reply[3]), adopted=tuple(pairs)
            )
        return kept

    async def read(self, key: str, epoch: str, after: int, *, limit: int | None = None) -> list[Event]:
        """The events with ``seq`` above ``after``, oldest first. A gap at the front means that they were trimmed.

        Raises:
            SessionLost: the log is of another epoch than ``epoch``: its numbers mean other events.
        """
        keys = self._keys(key)
        with _answering():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(keys[0], "epoch")
                pipe.xrange(keys[1], f"{after + 1}-0", "+", count=limit)
                found, rows = cast("tuple[bytes | None, _Rows]", await pipe.execute())
        if found is None or found.decode() != epoch:
            raise SessionLost
        events = []
        for entry_id, fields in rows:
            event_id = fields[b"k"].decode()
            events.append(
                Event(
                    seq=int(entry_id.split(b"-")[0]),
                    event_id=event_id,
                    frame=self._open_sealed(key, event_id, fields[b"e"]),
                )
            )
        return events

    async def event(self, key: str, epoch: str, event_id: str) -> Event | None:
        """One event by its id; None when it has not happened yet or was trimmed. Raises SessionLost as ``read``."""
        with _answering():
            seq = await cast(Any, self._redis.hget(self._keys(key)[0], f"o:{event_id}"))
        if seq is None:
            return None
        found = await self.read(key, epoch, int(seq) - 1, limit=1)
        return found[0] if found and found[0].seq == int(seq) else None

    async def epoch(self, key: str) -> str | None:
        """The session's epoch; None when there is no session."""
        with _answering():
            epoch = await cast(Any, self._redis.hget(self._keys(key)[0], "epoch"))
        return None if epoch is None else epoch.decode()

    async def response_of(self, key: str, client_msg_id: str) -> str | None:
        """The ``response_id`` under which a client's message was accepted."""
        with _answering():
            known = await cast(Any, self._redis.hget(self._keys(key)[0], f"i:{client_msg_id}"))
        return known.decode().split(" ")[1] if known else None

    async def open_requests(self, key: str) -> list[tuple[str, bytes]]:
        """The questions still being answered, as (response_id, request)."""
        keys = self._keys(key)
        with _answering():
            ids = sorted(member.decode() for member in await cast(Any, self._redis.smembers(keys[2])))
            sealed = await cast(Any, self._redis.hmget(keys[0], [f"q:{i}" for i in ids])) if ids else []
        return [(i, self._open_sealed(key, f"q:{i}", s)) for i, s in zip(ids, sealed, strict=True) if s]

    async def proposal(self, key: str, action_id: str) -> bytes | None:
        """One proposal of a quick action, as it was appended."""
        with _answering():
            sealed = await cast(Any, self._redis.hget(self._keys(key)[3], action_id))
        return self._open_sealed(key, f"p:{action_id}", sealed) if sealed else None

    async def proposals(self, key: str) -> list[bytes]:
        """All proposals of the session."""
        with _answering():
            rows = await cast(Any, self._redis.hgetall(self._keys(key)[3]))
        return [self._open_sealed(key, f"p:{action_id.decode()}", sealed) for action_id, sealed in rows.items()]

    async def shred(self, key: str) -> None:
        """Remove everything of the session; twice does no harm."""
        with _answering():
            await self._redis.delete(*self._keys(key))


def _base(epoch: str) -> str:
    """What all epochs of a session have in common."""
    return epoch.partition(".")[0]


def same_session(epoch: str, other: str) -> bool:
    """Whether two epochs of one key are of one session, which has gone on under the later of them."""
    return _base(epoch) == _base(other)


def response_id_of(key: str, epoch: str, client_msg_id: str) -> str:
    """The response id of a question: the same for every resend within the session's epoch."""
    return f"resp_{hashlib.sha256(f'{key}|{epoch}|{client_msg_id}'.encode()).hexdigest()[:16]}"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A question as it waits in Redis: everything another gateway needs to answer it."""

    client_msg_id: str
    content: str
    user_id: str
    department: str
    patient_id: str | None
    session_id: str
    lang: Literal["en", "pt"]
    urgency: str
    received_at: datetime
    input: str = "text"
