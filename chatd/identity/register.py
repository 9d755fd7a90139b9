"""A small map that all gateways share, and that outlives Redis: who is revoked, which phones are known.

Each entry is sealed, under a name that tells nothing, in one hash in Redis; each gateway holds all of them in memory
and as a file in its data directory. The newest entry of a key wins, whatever the order in which gateways hear of it.
When Redis has lost its memory, whoever still knows an entry gives it back. When Redis is away, what was known stays.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Final, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatd import metrics
from chatd.clock import Clock, epoch_ms
from chatd.logs import error_name
from context.seal import Sealer, SealError

log = structlog.get_logger(__name__)

#: Rings after every change of any register; lost rings cost the time to the next look.
DOORBELL: Final = "chatd:registers"
#: What there is: revoked tokens, known phones, records that are open by emergency.
REGISTERS: Final = ("revoked", "devices", "glass")
#: A hospital's staff and their phones, with room; beyond it new entries are refused, aloud.
MAX_ENTRIES: Final = 20_000
_MAX_FILE_BYTES: Final = 33_554_432
#: An entry that has run out is kept this long, so that a gateway that was away does not bring it back.
_GRAVE_S: Final = 3_600.0
_MERGE: Final = (Path(__file__).parent / "merge.lua").read_text("utf-8")


class RegisterUnavailable(Exception):
    """Redis does not answer, or the register is full; nothing was promised."""


class Entry(msgspec.Struct, frozen=True):
    """``value`` of ``key`` since ``at_ms``; over at ``until_s`` (seconds since 1970), None: never by itself."""

    key: str
    value: str
    at_ms: int
    until_s: float | None = None

    def is_over(self, now_s: float) -> bool:
        return self.until_s is not None and now_s >= self.until_s


class Register:
    """One map by its ``name``; made once in each process that uses it.

    ``sync`` is called each second and after each ring; nothing else waits for Redis but ``put``.
    """

    def __init__(self, redis: Redis, sealer: Sealer, name: str, *, clock: Clock, file: Path | None) -> None:
        """Reads the file, if there is one; entries in it that do not open are passed over and logged."""
        self._redis = redis
        self._sealer = sealer
        self._clock = clock
        self._file = file
        self._name = name
        self._hash, self._mark_key = f"chatd:register:{name}", f"chatd:register:{name}:mark"
        self._field_key = sealer.derive("register-field")
        self._raw: dict[str, bytes] = {}
        self._entries: dict[str, Entry] = {}
        self._mark: bytes | None = None
        self._merge = redis.register_script(_MERGE)
        self._lock = asyncio.Lock()
        #: What is known here is what Redis has, as of the last look.
        self.is_current = False
        self._load()

    def get(self, key: str) -> Entry | None:
        """The entry of a key, if it is not over."""
        entry = self._entries.get(key)
        return None if entry is None or entry.is_over(self._clock.now().timestamp()) else entry

    def entries(self) -> Iterator[Entry]:
        """All that are not over."""
        now_s = self._clock.now().timestamp()
        return (entry for entry in tuple(self._entries.values()) if not entry.is_over(now_s))

    async def put(self, key: str, value: str, *, until_s: float | None = None) -> Entry:
        """Set a key for all gateways; when this returns, Redis has it and so has this process.

        Raises RegisterUnavailable; then Redis may have it all the same, and the same call again does no harm.
        """
        async with self._lock:
            await self._sync()
            known = self._entries.get(key)
            if known is None and len(self._entries) >= MAX_ENTRIES:
                raise RegisterUnavailable("the register is full")
            now_ms = epoch_ms(self._clock.now())
            # A clock behind that of the last writer must not make this one lose.
            at_ms = now_ms if known is None else max(now_ms, known.at_ms + 1)
            entry = Entry(key, value, at_ms, until_s)
            field = self._field(key)
            raw = self._sealed(field, entry)
            await self._push({field: raw})
            self._raw[field], self._entries[key] = raw, entry
            await self._save()
        return entry

    async def sync(self) -> bool:
        """Take what others have put, give back what Redis has lost; whether anything is new here.

        Raises RegisterUnavailable; what was known stays.
        """
        async with self._lock:
            return await self._sync()

    async def _sync(self) -> bool:
        try:
            mark = cast("bytes | None", await self._redis.get(self._mark_key))
            if mark is not None and mark == self._mark:
                self.is_current = True
                return False
            # After the mark: what is put in between changes it again.
            there = await cast("Awaitable[dict[bytes, bytes]]", self._redis.hgetall(self._hash))
        except (RedisError, OSError, TimeoutError) as error:
            raise self._away(error) from None
        changed = False
        found = {field.decode("ascii", "replace"): raw for field, raw in there.items()}
        for field, raw in found.items():
            changed = self._take(field, raw) or changed
        lost = {field: raw for field, raw in self._raw.items() if _at_ms(found.get(field, b"")) < _at_ms(raw)}
        if lost or mark is None:
            await self._push(lost)
        await self._bury()
        if changed:
            await self._save()
        self._mark, self.is_current = mark, True
        return changed

    async def _push(self, entries: dict[str, bytes]) -> None:
        arguments = [secrets.token_hex(8), DOORBELL, *(part for pair in entries.items() for part in pair)]
        try:
            await self._merge(keys=[self._hash, self._mark_key], args=arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise self._away(error) from None

    def _away(self, error: Exception) -> RegisterUnavailable:
        metrics.REDIS_ERRORS.inc()
        if self.is_current:
            log.warning("register_not_read", register=self._name, error=error_name(error))
        self.is_current = False
        return RegisterUnavailable("Redis does not answer")

    async def _bury(self) -> None:
        """Drop what has been over for an hour, here and in Redis."""
        before_s = self._clock.now().timestamp() - _GRAVE_S
        over = [key for key, entry in self._entries.items() if entry.is_over(before_s)]
        if not over:
            return
        fields = [self._field(key) for key in over]
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._redis.hdel(self._hash, *fields)
        for key, field in zip(over, fields, strict=True):
            self._entries.pop(key, None)
            self._raw.pop(field, None)

    # --- one entry ---

    def _field(self, key: str) -> str:
        return hmac.digest(self._field_key, f"{self._name}|{key}".encode(), hashlib.sha256)[:16].hex()

    def _aad(self, field: str, at_ms: int) -> bytes:
        return f"register|{self._name}|{field}|{at_ms}".encode()

    def _sealed(self, field: str, entry: Entry) -> bytes:
        return b"%d:%b" % (
            entry.at_ms,
            self._sealer.seal(msgspec.json.encode(entry), aad=self._aad(field, entry.at_ms)),
        )

    def _take(self, field: str, raw: bytes) -> bool:
        """Take an entry that is newer than the known one; one that does not open was not put by us."""
        at_ms = _at_ms(raw)
        if at_ms <= _at_ms(self._raw.get(field, b"")):
            return False
        try:
            opened = self._sealer.open(raw.partition(b":")[2], aad=self._aad(field, at_ms))
            entry = msgspec.json.decode(opened, type=Entry)
        except (SealError, msgspec.MsgspecError) as error:
            log.error("register_unreadable", register=self._name, error=error_name(error))
            return False
        if entry.is_over(self._clock.now().timestamp() - _GRAVE_S):
            return False
        self._raw[field], self._entries[entry.key] = raw, entry
        return True

    # --- the file ---

    def _load(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if self._file.stat().st_size > _MAX_FILE_BYTES:
                return
            for field, raw in msgspec.json.decode(self._file.read_bytes(), type=dict[str, str]).items():
                with contextlib.suppress(ValueError):
                    self._take(field, base64.b64decode(raw))

    async def _save(self) -> None:
        if self._file is None:
            return
        data = msgspec.json.encode({field: base64.b64encode(raw).decode() for field, raw in self._raw.items()})
        try:
            await asyncio.to_thread(_write, self._file, data)
        except OSError as error:
            # Redis and the other gateways have it.
            log.warning("register_not_saved", register=self._name, error=error_name(error))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _at_ms(raw: bytes) -> int:
    """The time of a sealed entry; -1 for what is none."""
    head = raw.partition(b":")[0]
    return int(head) if head.isdigit() and len(head) < 16 else -1
