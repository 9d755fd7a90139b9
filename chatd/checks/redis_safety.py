"""Whether a Redis keeps to memory what it is given, and shows it to nobody: read without changing anything.

chatd's own user may not ask Redis for its settings. So they are read where they can be: from Redis where it tells them,
else from its configuration file where that lies on this machine, and what it has written since its start from INFO.

What the user may do is asked by sending the forbidden commands themselves, on a connection that has subscribed: there
Redis looks at the permission first and then refuses any command but a few. So each is answered by "no permission" or
by "not in this context", and none is done. A command that is known not to pass is sent first, to see that this holds.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from chatd.checks.table import Finding, fail, ok, unseen, warn
from context.store import connect
from protocols.errors import ChatdError

log = structlog.get_logger(__name__)

#: What must not be possible for the user that chatd goes by: it writes files, or shows what others have sent.
FORBIDDEN: Final[tuple[tuple[str, ...], ...]] = (
    ("SAVE",),
    ("BGSAVE",),
    ("BGREWRITEAOF",),
    ("SHUTDOWN", "NOSAVE"),
    ("CONFIG", "SET", "save", ""),
    ("CONFIG", "GET", "save"),
    ("MONITOR",),
    ("SLOWLOG", "LEN"),
    ("DEBUG", "OBJECT", "chatd:doctor"),
    ("REPLICAOF", "NO", "ONE"),
)
#: Refused to everybody who has subscribed, and allowed to chatd's user otherwise.
_CONTROL: Final = ("GET", "chatd:doctor")
_CHANNEL: Final = "chatd:doctor"
#: Setting to the values that keep chat off the disk, and what goes there otherwise.
WANTED: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "save": (frozenset({""}), "snapshots"),
    "appendonly": (frozenset({"no"}), "every command"),
    "repl-diskless-sync": (frozenset({"yes"}), "a snapshot when a replica joins"),
    "repl-diskless-load": (
        frozenset({"swapdb", "on-empty-db", "flush-before-load"}),
        "a snapshot when it becomes a replica",
    ),
}
#: These hold arguments of commands in memory, for whoever may read them.
_SLOWLOG: Final = ("slowlog-log-slower-than", "slowlog-max-len")
#: What Redis does where its file says nothing. Source: redis.conf of 7.0
_DEFAULTS: Final[Mapping[str, str]] = {
    "save": "3600 1 300 100 60 10000",
    "appendonly": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-load": "disabled",
    "slowlog-log-slower-than": "10000",
    "slowlog-max-len": "128",
}
#: Before that version it was "no". Source: release notes of Redis 7.0
_DISKLESS_SINCE: Final = 7
_MAX_FILE_BYTES: Final = 1_048_576
OVERRIDE: Final = "CHATD_REDIS_UNSAFE=true starts all the same"
_LOCAL: Final = ("localhost", "127.0.0.1", "::1", "[::1]")

Source = Literal["redis", "file", "none"]


class RedisFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a Redis.

    settings: of ``WANTED`` and the slow log, where they could be read; ``source`` says from where.
    snapshots: written since its start; None: it does not say (before 7.0).
    may: which of ``FORBIDDEN`` its user may do; None: could not be asked.
    offset_ms: Redis's clock less this machine's, within ``offset_within_ms``.
    """

    version: str
    user: str
    source: Source
    settings: Mapping[str, str]
    is_aof: bool
    snapshots: int | None
    replicas: int
    may: tuple[str, ...] | None
    offset_ms: float
    offset_within_ms: float


# --- looking ------------------------------------------------------------------------------------------------


async def look(url: str, *, timeout_s: float) -> RedisFacts:
    """Ask the Redis of ``url`` on connections of its own; each wait ends after ``timeout_s``.

    Raises:
        RedisError, OSError: it did not answer, or refused the user.
    """
    client = connect(url, timeout_s=timeout_s, max_connections=2)
    try:
        return await facts_of(client)
    finally:
        await client.aclose()


async def facts_of(client: Redis) -> RedisFacts:
    """The same by a client that is there; takes one connection of its pool, and closes it."""
    info: dict[str, Any] = {
        **await client.info("server"),
        **await client.info("persistence"),
        **await client.info("replication"),
    }
    began, before = time.monotonic(), datetime.now(UTC).timestamp()
    seconds, microseconds = await client.time()
    took_s = time.monotonic() - began
    may = await _may(client)
    source, settings = await _settings(client, info, may)
    snapshots = info.get("rdb_saves")
    return RedisFacts(
        version=str(info.get("redis_version", "")),
        user=str(client.connection_pool.connection_kwargs.get("username") or "default"),
        source=source,
        settings=settings,
        is_aof=bool(info.get("aof_enabled")),
        snapshots=None if snapshots is None else int(snapshots),
        replicas=int(info.get("connected_slaves", 0)),
        may=may,
        offset_ms=(seconds + microseconds / 1e6 - before - took_s / 2) * 1000,
        offset_within_ms=took_s * 500,
    )


async def _may(client: Redis) -> tuple[str, ...] | None:
    """Which of ``FORBIDDEN`` the user may do; None where it cannot be asked without doing it."""
    connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        # RESP3 lets a subscriber do everything: then none of the commands may be sent.
        await _said(connection, ("HELLO", "2"))
        if isinstance(await _said(connection, ("SUBSCRIBE", _CHANNEL)), Exception):
            return None
        if not isinstance(await _said(connection, _CONTROL), ResponseError):
            return None
        may = []
        for command in FORBIDDEN:
            answer = await _said(connection, command)
            if not isinstance(answer, ResponseError):
                return None
            if not _is_refused(answer):
                may.append(" ".join(command[:2]) if command[0] == "CONFIG" else command[0])
        return tuple(may)
    finally:
        await connection.disconnect()
        await client.connection_pool.release(connection)


async def _said(connection: Any, command: Sequence[str]) -> object:
    await connection.send_command(*command)
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _is_refused(error: ResponseError) -> bool:
    # By its kind where the library knows it; a command that is switched off for everybody says "not allowed".
    text = str(error)
    return (
        isinstance(error, NoPermissionError)
        or text.startswith("NOPERM")
        or "no permissions" in text
        or "not allowed" in text
        or "unknown command" in text
    )


async def _settings(client: Redis, info: Mapping[str, Any], may: Sequence[str] | None) -> tuple[Source, dict[str, str]]:
    names = (*WANTED, *_SLOWLOG)
    if may is not None and "CONFIG GET" in may:
        # One by one: several patterns in one command are known since 7.0 only.
        told: dict[str, str] = {}
        for name in names:
            told.update({str(_text(key)): str(_text(value)) for key, value in (await client.config_get(name)).items()})
        return "redis", told
    path = str(_text(info.get("config_file", "")))
    if path and _is_here(client):
        try:
            text = (await asyncio.to_thread(Path(path).read_bytes))[:_MAX_FILE_BYTES].decode(errors="replace")
        except OSError:
            return "none", {}
        version = str(info.get("redis_version", "0"))
        return "file", read_settings(text, major=int(version.partition(".")[0] or 0))
    return "none", {}


def _text(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_here(client: Redis) -> bool:
    """Whether its files are this machine's, as far as its address says."""
    options = client.connection_pool.connection_kwargs
    return "path" in options or options.get("host") in _LOCAL


def read_settings(text: str, *, major: int) -> dict[str, str]:
    """What a configuration file of Redis says of ``WANTED`` and the slow log, with the defaults of version ``major``.

    Files that it includes are not followed.
    """
    found = {**_DEFAULTS, **({} if major >= _DISKLESS_SINCE else {"repl-diskless-sync": "no"})}
    saves: list[str] | None = None
    for line in text.splitlines():
        try:
            words = shlex.split(line, comments=False)
        except ValueError:
            continue
        if not words or words[0].startswith("#"):
            continue
        name, values = words[0].lower(), words[1:]
        if name == "save":
            saves = [] if values == [""] else [*(saves or []), *values]
        elif name in found and values:
            found[name] = values[0].lower()
    return found if saves is None else {**found, "save": " ".join(saves)}


# --- before the first phone ---------------------------------------------------------------------------------


class RedisRefused(ChatdError):
    """chatd does not start on this Redis; the text says why, what to do, and how it starts all the same."""


async def admit(url: str, *, timeout_s: float, is_overridden: bool) -> None:
    """Look at the Redis of ``url`` before anything is put into it, and say in the log what was seen.

    Raises:
        RedisRefused: it may write chat to a disk or show it to others, and nobody has said that this is wanted.
        RedisError, OSError: it did not answer, or refused the user.
    """
    facts = await look(url, timeout_s=timeout_s)
    wrong = problems(facts)
    if wrong and not is_overridden:
        raise RedisRefused(f"this Redis could bring chat to a disk: {'; '.join(wrong)}. {OVERRIDE}")
    if wrong:
        log.warning("redis_unsafe", problems=wrong)
    else:
        log.info("redis_checked", source=facts.source, user=facts.user, snapshots=facts.snapshots)


# --- what it means ------------------------------------------------------------------------------------------


def problems(facts: RedisFacts) -> tuple[str, ...]:
    """Why chatd does not start on it, one line each; empty: nothing was seen that speaks against it."""
    found = []
    for name, (values, what) in WANTED.items():
        value = facts.settings.get(name)
        if value is not None and value not in values:
            wanted = '""' if name == "save" else sorted(values)[-1]
            found.append(f"{name} is {value or 'empty'}, which writes {what} to a disk: set {name} {wanted}")
    if facts.is_aof and "appendonly" not in facts.settings:
        found.append("appendonly is on, which writes every command to a disk: set appendonly no")
    if facts.may:
        found.append(f"its user {facts.user} may do {', '.join(facts.may)}: use the user of deploy/redis/users.acl")
    return tuple(found)


def findings(facts: RedisFacts, *, is_overridden: bool) -> list[Finding]:
    """What a person is told of it: settings, then user. Overridden, what would fail is a warning."""
    bad = warn if is_overridden else fail
    said = " (CHATD_REDIS_UNSAFE is set)" if is_overridden else ""
    wrong = [each for each in problems(facts) if not each.startswith("its user")]
    version, where = f"Redis {facts.version}", {"redis": "as Redis tells", "file": "by its file"}.get(facts.source, "")
    slowlog = facts.settings.get(_SLOWLOG[0], "-1") != "-1" and facts.settings.get(_SLOWLOG[1], "0") != "0"
    if wrong:
        settings = bad("redis_settings", "; ".join(wrong) + said, "use deploy/redis/redis.conf, restart Redis")
    elif facts.snapshots:
        settings = warn(
            "redis_settings",
            f"{version} has written {facts.snapshots} snapshots since its start",
            "remove its dump file, find out who may SAVE, restart Redis",
        )
    elif facts.source == "none":
        nothing = "" if facts.snapshots is None else ", no snapshot so far"
        settings = unseen(
            "redis_settings",
            f"{version}: not persistent now (appendonly off{nothing}); save and replication not readable from here",
            "look at redis.conf on its machine: save, repl-diskless-sync, repl-diskless-load",
        )
    elif slowlog:
        settings = warn(
            "redis_settings",
            f"{version}, {where}: memory only; its slow log keeps arguments of commands",
            "set slowlog-log-slower-than -1",
        )
    else:
        replicas = f", {facts.replicas} replicas" if facts.replicas else ""
        settings = ok("redis_settings", f"{version}, {where}: no snapshot, no log, replicas without a file{replicas}")
    if facts.may is None:
        user = unseen("redis_user", "what its user may do could not be asked without doing it", "look at the ACL file")
    elif facts.may:
        user = bad(
            "redis_user",
            f"user {facts.user} may do {', '.join(facts.may)}{said}",
            "give chatd the user of deploy/redis/users.acl",
        )
    else:
        user = ok("redis_user", f"user {facts.user} can write no file, and read no settings or others' commands")
    return [settings, user]
